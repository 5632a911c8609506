"""One training step of the `sd` preset from the paper's start, with regenerated weights.

    python -m benchmarks.paper_step --out step.json

Anyone can regenerate the weights (tests/parity/fill.py); no download is needed. kl-f8 and LDM-8
are written as files, added to a weight store in a temporary folder, and training starts from them.
Then the model is given the weights and inputs of the parity fixture, and its loss terms are
compared with those of the official code.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sdseg_cli.model import diffusion
from sdseg_cli.model.pretrained import load_official
from sdseg_cli.model.store import WeightStore
from sdseg_cli.presets import preset
from sdseg_cli.training.batches import Batch
from sdseg_cli.training.checkpoint import Checkpoint, config_values
from sdseg_cli.training.initialise import initial_model
from sdseg_cli.training.trainer import Trainer
from sdseg_cli.weights import add_weights
from tests.parity.fill import manifest, state_dict
from tests.parity.reference import Reference

SIZE = 256


class _MadeUpSlices:
    """In place of prepared slices: discs in noise."""

    with_foreground: tuple[int, ...] = ()

    def __len__(self) -> int:
        return 4

    def batch(self, positions: list[int]) -> Batch:
        """(B,256,256): a disc of another radius in each slice."""
        axis = torch.arange(SIZE) - SIZE / 2
        distance = (axis[:, None] ** 2 + axis[None] ** 2).sqrt()
        foreground = torch.stack([distance < 20 + 15 * i for i in positions])
        noise = torch.rand(foreground.shape, generator=torch.Generator().manual_seed(0))
        return Batch((foreground * 0.5 + noise).clamp(-1, 1), foreground)


def fill_store(folder: Path) -> None:
    """Regenerate kl-f8 and LDM-8 as files, and add them."""
    store = WeightStore(folder / "store")
    for name, shapes in (("kl-f8", "klf8_full"), ("ldm-8", "lsun_churches_full")):
        path = folder / f"{name}.safetensors"
        save_file(state_dict(manifest(shapes)), path)
        print(add_weights(path, store), flush=True)
        path.unlink()


def peak_gib() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def one_step(folder: Path) -> dict[str, Any]:
    """The step: seconds, loss terms, peak memory."""
    config, slices = preset("sd"), _MadeUpSlices()
    started = time.perf_counter()
    made_up: Any = slices
    model, origin = initial_model(config, WeightStore(folder / "store"), made_up)
    state = Checkpoint(
        step=0,
        config=config_values(config),
        data={},
        latent_scale=model.latent_scale,
        weights=model.state_dict(),
        ema=model.unet.state_dict(),
        origin=origin,
    )
    loaded = time.perf_counter()
    trainer = Trainer(config, state, torch.device("cpu"))
    del model, state
    row = trainer.train_step(made_up)
    return {
        **row,
        "latent_scale": trainer.model.latent_scale,
        "load_s": loaded - started,
        "step_s": time.perf_counter() - loaded,
        "peak_gib": peak_gib(),
    }


@torch.inference_mode()
def official_loss() -> dict[str, Any]:
    """Loss terms at t = 500 with the fixture's weights and inputs, ours and the official code's."""
    reference = Reference("full")
    model = load_official(state_dict(manifest("sdseg_full")), ema=False)
    z0, noise = model.encode_mask(reference.input["mask"]), reference.input["noise"]
    zc = model.encode_image(reference.input["image"])
    estimate = model.denoise(diffusion.add_noise(z0, noise, 500), 500, zc)
    loss_noise, loss_latent = diffusion.loss_terms(estimate, noise, z0)
    ours = torch.stack([loss_noise + loss_latent, loss_noise, loss_latent]).tolist()
    official = reference.output["loss_t500"].tolist()
    return {
        "ours": ours,
        "official": official,
        "largest_difference": max(abs(a - b) for a, b in zip(ours, official, strict=True)),
    }


def main() -> None:
    """Each part in a process of its own, so that its peak memory is its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    results: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    with tempfile.TemporaryDirectory() as name:
        context = multiprocessing.get_context("spawn")
        with context.Pool(1, maxtasksperchild=1) as alone:
            alone.apply(fill_store, (Path(name),))
            results["step"] = alone.apply(one_step, (Path(name),))
            results["loss_t500"] = alone.apply(official_loss)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
