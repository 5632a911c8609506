"""One training in several processes, each with its own GPU or CPU cores.

Under `torchrun`, or `srun` with several tasks, every process runs the same command; each computes
its share of every batch and averages gradients with the others (PyTorch's DDP).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sdseg_cli.core.errors import ConfigError, RunError

PORT_RANGE = 20_000, 30_000


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among those that train together."""

    rank: int = 0
    """Number of this process; 0 writes the files."""
    world: int = 1
    """Number of processes."""
    local: int = 0
    """Number of this process on its machine: which GPU is its own."""

    @property
    def writes(self) -> bool:
        """True if this process writes files and reports progress."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, on each; in place."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes, on each; in place."""
        return self.sum(value).div_(self.world) if self.world > 1 else value

    def require_same(self, step: int, scale: float | Tensor, device: torch.device) -> None:
        """Require that all processes resume from one checkpoint, of this step and latent scale.

        Raises:
            RunError: They do not.
        """
        scales = torch.as_tensor(scale, dtype=torch.float32).flatten().to(device)
        mine = torch.cat([torch.tensor([float(step)], device=device), scales])
        if not torch.equal(self.mean(mine.clone()), mine):
            raise RunError(
                f"process {self.rank} goes on from step {step}, another from elsewhere.",
                "All must see the same run folder: put it on a disk they share.",
            )

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()


def ranks_of(environment: Mapping[str, str]) -> Ranks:
    """Ranks from torchrun (RANK, WORLD_SIZE, LOCAL_RANK) or srun (SLURM_*).

    A batch script's own process, which srun did not start, is alone whatever the job's size.

    Raises:
        ConfigError: The variables are no such numbers.
    """
    torchrun = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    srun = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    for names in (torchrun, srun):
        texts = [environment.get(name) for name in names]
        if all(text is not None for text in texts):
            try:
                rank, world, local = (int(str(text)) for text in texts)
            except ValueError:
                rank, world, local = -1, 0, 0
            if not 0 <= rank < world or local < 0:
                told = ", ".join(f"{n}={t}" for n, t in zip(names, texts, strict=True))
                raise ConfigError(f"{told}: no rank.", f"Unset {names[0]}, or start by torchrun.")
            return Ranks(rank, world, local)
    return Ranks()


def _meeting_place(environment: Mapping[str, str]) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT where srun leaves them out.

    Raises:
        ConfigError: Nothing says where the first process is.
    """
    missing = {}
    if "MASTER_ADDR" not in environment:
        nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
        alone = environment.get("SLURM_STEP_NUM_NODES") == "1"
        address = "127.0.0.1" if alone else _first_host(nodes)
        if not address:
            raise ConfigError(
                "MASTER_ADDR is not set, and srun does not say it.",
                "export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -1)",
            )
        missing["MASTER_ADDR"] = address
    if "MASTER_PORT" not in environment:
        low, high = PORT_RANGE
        missing["MASTER_PORT"] = str(low + int(environment.get("SLURM_JOB_ID", "0")) % (high - low))
    return missing


def _first_host(nodes: str) -> str:
    """First host of a Slurm list: `a[01-03,07],b2` -> `a01`; empty where there is none."""
    found = re.match(r"([^,\[\]]+)(?:\[([^,\-\]]+)[^\]]*\])?([^,\[\]]*)", nodes)
    return "".join(part or "" for part in found.groups()) if found else ""


@contextmanager
def training_together(ranks: Ranks, device: torch.device) -> Iterator[torch.device]:
    """Meet the other processes, if there are any; within the block they are connected.

    Args:
        ranks: Who this process is.
        device: The kind to compute on.

    Yields:
        This process's own device.

    Raises:
        ConfigError: More processes than GPUs on a machine, or the others cannot be found.
    """
    if ranks.world == 1:
        yield device
        return
    if device.index is not None:
        raise ConfigError(
            f"{ranks.world} processes cannot share {device}: each takes the GPU of its own number.",
            "Give --device cuda; CUDA_VISIBLE_DEVICES says which GPUs there are.",
        )
    if device.type == "cuda":
        count, local = torch.cuda.device_count(), ranks.local
        if count == 1 and "LOCAL_RANK" not in os.environ:
            local = 0  # srun shows each task its own GPU alone
        if local >= count:
            raise ConfigError(
                f"process {ranks.local} of this machine has no GPU: {count} there.",
                "Start as many processes per machine as it has GPUs, or use --device cpu.",
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    os.environ.update(_meeting_place(os.environ))
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            rank=ranks.rank,
            world_size=ranks.world,
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"process {ranks.rank} of {ranks.world} did not find the others ({error}).",
            "Check MASTER_ADDR and MASTER_PORT, and that all processes are started.",
        ) from error
    try:
        yield device
    finally:
        dist.destroy_process_group()
