"""How far our networks are from the recorded outputs of the official code.

    python -m benchmarks.parity                     # small and full widths, a few minutes
    python -m benchmarks.parity --step step.json    # a training step of the `sd` preset instead

Prints the largest absolute difference of each output as a table.

The step is one from the paper's start, with regenerated weights: anyone can regenerate them
(tests/parity/fill.py); no download is needed. kl-f8 and LDM-8 are written as files, added to a
weight store in a temporary folder, and training starts from them. Then the model is given the
weights and inputs of the parity fixture, and its loss terms are compared with those of the official
code.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.made_up import initial_checkpoint, made_up_slices, stepper
from benchmarks.results import command
from sdseg_cli.core.presets import preset
from sdseg_cli.model import diffusion
from sdseg_cli.model.pretrained import load_official
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.training.initialise import initial_model
from sdseg_cli.training.weights import add_weights
from tests.parity.fill import manifest, state_dict
from tests.parity.reference import Reference, differences, flipped_pixels


def measure(size: str) -> dict[str, str]:
    """Output -> largest difference, for "tiny" or "full"."""
    tensors, reference = state_dict(manifest(f"sdseg_{size}")), Reference(size)
    model = load_official(tensors, ema=False)
    found = {name: f"{value:.1e}" for name, value in differences(model, reference).items()}
    averaged = load_official(tensors)
    with torch.inference_mode():
        zc = reference.output["cond_latent"]
        ours = averaged.predict_noise(reference.input["noise"], 999, zc)
    found["eps_t999_ema"] = f"{reference.difference('eps_t999_ema', ours):.1e}"
    for name in ("latent", "z0"):
        flipped, on_the_edge = flipped_pixels(model, reference, name)
        found[f"mask_{name}"] = f"{flipped} pixels of {on_the_edge} allowed"
    return found


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
    config = preset("sd")
    slices = made_up_slices(folder / "case", 4)
    started = time.perf_counter()
    model, origin = initial_model(config, WeightStore(folder / "store"), slices)
    state = replace(initial_checkpoint(config, model), origin=origin)
    loaded = time.perf_counter()
    trainer, step = stepper(config, slices, folder, state, torch.device("cpu"), steps=1)
    del model, state
    row = step().row()
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


def tables() -> None:
    """Print both widths' differences."""
    small, full = measure("tiny"), measure("full")
    print("| output | small | full |\n|---|---|---|")
    for name in small:
        print(f"| `{name}` | {small[name]} | {full[name]} |")


def write_step(out: Path) -> None:
    """Each part in a process of its own, so that its peak memory is its own."""
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
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def main() -> None:
    """The table, or the step."""
    parser = command(__doc__)
    parser.add_argument("--step", type=Path, help="measure a training step, into this file")
    step = parser.parse_args().step
    if step is None:
        tables()
    else:
        write_step(step)


if __name__ == "__main__":
    main()
