"""Train the fast mask decoder of an autoencoder, once, and measure what it costs a run."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from sdseg_cli.core.errors import ConfigError, WeightsError
from sdseg_cli.core.files import replacing
from sdseg_cli.core.presets import preset
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.inference.decoders import DecoderCheck, read_check, stored_decoder
from sdseg_cli.model.diffusion import seeded_generator
from sdseg_cli.model.mask_decoder import autoencoder_hash, build_mask_decoder
from sdseg_cli.model.runtime import choose_device, gflop, stop_signals, to_device
from sdseg_cli.model.sdseg import SDSeg, build_sdseg
from sdseg_cli.model.starts import start_autoencoder
from sdseg_cli.model.tensor_files import unpickled, write_tensors
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.package import sdseg_of
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.batches import flip_codes, flipped, open_split
from sdseg_cli.training.calibration import measure_run
from sdseg_cli.training.distillation import SIDE, Distiller, Masks, Teacher, mixed, procedural

SAVE_EVERY, HELD_OUT = 250, 32


@dataclass(frozen=True)
class DistillReport:
    """What came of `distill`."""

    decoder: Path
    autoencoder: str
    """Its hash."""
    steps: int
    seconds: float
    parameters: int
    gflop: float
    """Per 256x256 slice."""
    exact_gflop: float
    """Of the decoder it stands in for."""
    agreement: float
    """Mean Dice with the exact decoder's masks, on latents it has not seen."""
    check: DecoderCheck | None
    """What it costs the run, where one was named."""

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        return {
            "decoder": str(self.decoder),
            "autoencoder": self.autoencoder,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "parameters": self.parameters,
            "gflop": round(self.gflop, 4),
            "exact_gflop": round(self.exact_gflop, 4),
            "agreement": round(self.agreement, 4),
            "check": self.check and self.check.to_json(),
        }


def distill(
    *,
    run: RunDir | None = None,
    manifest: Manifest | None = None,
    preset_name: str = "tiny",
    masks: Manifest | None = None,
    output: Path | None = None,
    steps: int = 10_000,
    seed: int = 0,
    device: str = "auto",
    store: WeightStore | None = None,
    progress: Progress = no_op,
) -> DistillReport:
    """Train the mask decoder that stands in for an autoencoder's decoder.

    Killed or stopped, the same call goes on from the last 250 steps.

    Args:
        run: Its autoencoder is taken, and it is measured afterwards what its predictions lose.
        manifest: The set it was trained on, whose validation cases that is measured on.
        preset_name: Without a run, whose pretrained autoencoder is taken.
        masks: A prepared set whose training masks are half of the examples.
        output: The file; by default in the weight store, where predictions find it.
        steps: Of training.
        seed: Of all examples.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        store: The weight store; by default the user's.
        progress: Told after each step.

    Raises:
        WeightsError: The autoencoder is missing or damaged.
        ConfigError: A step count below 1, or the run has the decoder it was trained through.
        RunError: The disk refused.
        KeyboardInterrupt: It was asked to stop; what was reached is kept.
    """
    started, own, store = time.monotonic(), choose_device(device), store or WeightStore.default()
    if steps < 1:
        raise ConfigError(f"--steps is {steps}.", "Give at least 1.")
    if run is not None and (kept := read_check(run.path)) and kept.trained_through:
        raise ConfigError(
            f"{run.path}: trained through its own fast decoder, which another cannot replace.",
            "It predicts with that one already: there is nothing to do.",
        )
    model = to_device(_model(run, preset_name, store), own)
    key = autoencoder_hash(model.autoencoder)
    file = output or stored_decoder(store, key)
    teacher = Teacher(model.autoencoder, procedural if masks is None else prepared_masks(masks))
    torch.manual_seed(seed)
    decoder = build_mask_decoder(model.config.autoencoder)
    distiller = Distiller(decoder, teacher, steps=steps, seed=seed)
    _train(
        distiller,
        file.with_suffix(".state.pt"),
        f"{key} {steps} {seed} {masks and masks.cases()}",
        progress,
    )
    trained = distiller.average
    tensors = {name: value.cpu().contiguous() for name, value in trained.state_dict().items()}
    with replacing(file) as temporary:
        write_tensors(tensors, temporary, metadata={"autoencoder": key})
    with suppress(OSError):
        file.with_suffix(".state.pt").unlink()
    check = None
    if run is not None and manifest is not None:
        training, validating = open_split(manifest, "train"), open_split(manifest, "val")
        check = measure_run(run, training, validating, own, store, trained)
    latent = torch.zeros(1, *model.latent_shape(SIDE, SIDE), device=own)
    return DistillReport(
        decoder=file,
        autoencoder=key,
        steps=steps,
        seconds=time.monotonic() - started,
        parameters=sum(value.numel() for value in trained.parameters()),
        gflop=gflop(lambda: trained(latent)),
        exact_gflop=gflop(lambda: model.autoencoder.decode(latent)),
        agreement=agreement(trained, teacher, HELD_OUT),
        check=check,
    )


@torch.inference_mode()
def agreement(decoder: torch.nn.Module, teacher: Teacher, count: int) -> float:
    """Mean Dice of the two decoders' masks over latents of a stream of its own; pairs of empty
    masks are left out.
    """
    found = []
    for k in range(count):
        one = teacher.example(seeded_generator("held out", k))
        fast, exact = decoder(one.latent) > 0.5, one.target > 0.5
        if both := int(fast.sum() + exact.sum()):
            found.append(2 * int((fast & exact).sum()) / both)
    return sum(found) / max(1, len(found))


def _model(run: RunDir | None, preset_name: str, store: WeightStore) -> SDSeg:
    if run is not None:
        best = Checkpoint.load(run.best)
        return sdseg_of(best, torch.device("cpu"), source=str(run.best))
    model = build_sdseg(preset(preset_name).model)
    start_autoencoder(model, store)
    return model.eval().requires_grad_(False)


def _train(distiller: Distiller, state: Path, identity: str, progress: Progress) -> None:
    """To the end, from where the same call stopped."""
    if state.is_file():
        # Whatever it is, it is not what this call left: begin anew.
        with suppress(WeightsError, OSError, KeyError, TypeError, ValueError, AttributeError):
            values = unpickled(state)
            if values.pop("identity") == identity:
                distiller.go_on(values)

    def save() -> None:
        with replacing(state) as temporary:
            torch.save({**distiller.state(), "identity": identity}, temporary)

    with stop_signals() as stop:
        while distiller.step < distiller.steps:
            distiller.train_step()
            progress(distiller.step, distiller.steps, "distilling")
            if stop.is_set():
                save()
                raise KeyboardInterrupt
            if distiller.step % SAVE_EVERY == 0:
                save()


def prepared_masks(manifest: Manifest) -> Masks:
    """Procedural masks and those of the training cases, flipped at random, half each."""
    slices = open_split(manifest, "train")

    def prepared(count: int, generator: Generator) -> Tensor:
        places = torch.randint(len(slices.with_foreground), (count,), generator=generator)
        batch = slices.batch([slices.with_foreground[int(place)] for place in places])
        turned = flipped(batch, flip_codes(count, "hv", generator))
        return turned.foreground[:, None].float()

    return mixed(prepared) if slices.with_foreground else procedural
