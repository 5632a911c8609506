"""A cohort on a Ray cluster: one actor per worker, each with one model and the work of one process.

Which actor takes which scan, and that a dead one is replaced, is Ray's business.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdseg_cli.core.errors import ConfigError, RunError, SdsegError
from sdseg_cli.core.processes import available_cores
from sdseg_cli.imaging.scans import Scan
from sdseg_cli.inference.cohort import Outcome, Task, Worker, failed_row, row_names, said
from sdseg_cli.inference.ledger import Ledger

RETRIES = 2
"""So often a scan is begun again whose actor died."""
LOOK_S = 30.0
"""After so long without an outcome: is the cluster still there?"""


def require_ray() -> None:
    """Raises ConfigError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "--engine ray needs Ray, which is not installed.", "pip install 'sdseg-cli[ray]'"
        )


@dataclass(frozen=True)
class RayEngine:
    """Does a task on a cluster; an `Engine` of `cohort`.

    Attributes:
        workers: Actors, each with a model; None: one per GPU, without GPUs one per two CPUs.
        address: Of a cluster, as `ray.init` takes it ("auto", "10.0.0.1:6379"); None: on this
            machine alone, for as long as the work takes.
    """

    workers: int | None = None
    address: str | None = None

    def __call__(
        self, task: Task, scans: Sequence[Scan], stop: threading.Event
    ) -> Iterator[Outcome]:
        """Give outcomes in the order in which they come.

        Raises:
            ConfigError: The cluster is not there, or too small for so many workers.
            RunError: The cluster is gone.
            SdsegError: As `Worker`.
        """
        import ray

        if not scans:
            return
        identity = task.identity()
        self._connect()
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            workers, share = actor_shares(nodes, self.workers, task.predictor.device)
            # Paths are the driver's: an actor works in another folder.
            outputs = task.outputs.each(lambda _, path: path.absolute())
            model, *others = (member.absolute() for member in task.members)
            placed = replace(task, model=model, others=tuple(others), outputs=outputs)
            arguments = (placed, identity)
            kind: Any = ray.remote(max_restarts=-1, max_task_retries=RETRIES, **share)(_Actor)
            todo = [Scan(scan.case, scan.path.absolute(), scan.mask) for scan in scans]
            yield from _through_pool(kind, arguments, min(workers, len(scans)), todo, stop)
        finally:
            ray.shutdown()

    def _connect(self) -> None:
        import ray

        quietly: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        polite_stop = signal.getsignal(signal.SIGTERM)
        try:
            if self.address is not None:
                ray.init(address=self.address, **quietly)
            else:
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent home
                cores = max(available_cores(), self.workers or 1)
                ray.init(address="local", num_cpus=cores, include_dashboard=False, **quietly)
        except Exception as error:  # Ray raises bare ones, for example where a node is slow
            hint = "Run the command again, or start several processes with --shard."
            if self.address is not None:
                hint = "Start one (ray start --head), or leave --ray-address out."
            where = self.address or "this machine"
            raise ConfigError(f"no Ray cluster at {where} ({said(error)}).", hint) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, polite_stop)  # Ray's own would end the scans in work


class _Actor:
    """A worker of the cluster."""

    def __init__(self, task: Task, identity: str) -> None:
        self._work = Worker(task, identity)

    def do(self, scan: Scan) -> Outcome:
        return self._work(scan)


def actor_shares(
    nodes: Sequence[Mapping[str, float]], workers: int | None, device: str
) -> tuple[int, dict[str, float]]:
    """Number of actors, and the share of the cluster for each.

    Args:
        nodes: Of each machine Ray's names -> amounts.
        workers: How many actors are asked for.
        device: Of the predictor; with "cpu" no GPU is taken.

    Returns:
        The number, and `num_cpus` and `num_gpus` of each: as much as lets all run at once.

    Raises:
        ConfigError: The cluster has too few resources for so many.
    """
    sizes = [
        (int(node.get("CPU", 0)), 0 if device == "cpu" else int(node.get("GPU", 0)))
        for node in nodes
    ]
    cpus, gpus = (sum(amounts) for amounts in zip(*sizes, strict=True))
    wanted = workers or gpus or max(1, cpus // 2)
    on_a_gpu = -(-wanted // gpus) if gpus else 0

    def places(share: int) -> int:
        return sum(min(c // share, g * on_a_gpu) if gpus else c // share for c, g in sizes)

    shares = [share for share in range(1, cpus + 1) if places(share) >= wanted]
    if not shares:
        raise ConfigError(
            f"--workers is {wanted}, and the cluster has {cpus} CPUs and {gpus} GPUs.",
            "Give fewer: each takes a CPU, on the machine of its GPU.",
        )
    return wanted, {"num_cpus": shares[-1], "num_gpus": 1 / on_a_gpu if gpus else 0}


def _through_pool(
    kind: Any,
    arguments: tuple[Task, str],
    workers: int,
    scans: Sequence[Scan],
    stop: threading.Event,
) -> Iterator[Outcome]:
    """Keep every actor busy until there is nothing left to begin, and nothing begun."""
    import ray
    from ray.exceptions import ActorDiedError, RayError, RayTaskError
    from ray.util import ActorPool

    pool: Any = ActorPool([kind.remote(*arguments) for _ in range(workers)])
    todo, begun = iter(scans), {}
    while True:
        while pool.has_free() and not stop.is_set() and (scan := next(todo, None)) is not None:
            begun[scan.mask] = scan
            pool.submit(lambda actor, scan: actor.do.remote(scan), scan)
        if not pool.has_next():
            break
        try:
            outcome: Outcome = pool.get_next_unordered(timeout=LOOK_S)
        except RayTaskError as error:
            if isinstance(error.cause, SdsegError):
                raise error.cause from error
            raise
        except RayError as error:  # which scan it was shows in what is missing at the end
            if isinstance(error, ActorDiedError):
                pool.push(kind.remote(*arguments))
            continue
        except TimeoutError as silence:
            if any(node["Alive"] for node in ray.nodes()):
                continue
            # It would be waited for in vain: as where a laptop slept, and Ray took it for dead.
            raise RunError(
                "the Ray cluster has no machine left.", "The same command goes on, once it has."
            ) from silence
        del begun[outcome.scan.mask]
        yield outcome
    yield from (_given_up(arguments[0], scan) for scan in begun.values())


def _given_up(task: Task, scan: Scan) -> Outcome:
    """The row of a scan that no actor outlived."""
    error = (
        f"its worker died, {RETRIES + 1} times. Probably for want of memory: give fewer --workers, "
        "or predict it alone to see why."
    )
    row = failed_row(row_names(task, scan), error, 0.0, {})
    Ledger(task.outputs.mask).write(scan.mask, row)
    return Outcome(scan, row)
