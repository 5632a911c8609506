"""What a fast decoder costs a run.

A run keeps the fast mask decoder it was measured with, and how its Dice on validation slices
differed: `mask_decoder.safetensors` beside its checkpoints, or in its package. The fast one is the
default where that was below `LARGEST_DIFFERENCE`, and in runs that were trained through it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sdseg_cli.atomic import replacing
from sdseg_cli.config import AutoencoderConfig
from sdseg_cli.errors import SdsegError, WeightsError
from sdseg_cli.findings import WARNING, Finding
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.mask_decoder import MaskDecoder, autoencoder_hash, read_mask_decoder
from sdseg_cli.model.sdseg import SDSeg
from sdseg_cli.model.shipped import shipped_file
from sdseg_cli.model.store import WeightStore
from sdseg_cli.model.tensor_files import read_tensors, read_told, write_tensors
from sdseg_cli.training.batches import PreparedSlices, spread
from sdseg_cli.training.checkpoint import Checkpoint
from sdseg_cli.training.distillation import adapted, own_latents
from sdseg_cli.training.distributed import Ranks
from sdseg_cli.training.package import FAST_DECODER, is_package, networks_of
from sdseg_cli.training.run_folder import RunDir
from sdseg_cli.training.runtime import ran_out_of_memory
from sdseg_cli.training.sampling import decoded_by
from sdseg_cli.training.validation import validation

SHIPPED = "tiny_mask_decoder.safetensors"
ADAPT_SLICES = 96
"""Training slices from which a decoder gets used to a run."""
LARGEST_DIFFERENCE = 0.002
"""Of the Dice on validation slices, in either direction."""


@dataclass(frozen=True)
class DecoderCheck:
    """What a mask decoder costs a run."""

    step: int
    """The weights it was measured with."""
    slices: int
    exact_dice: float
    """Mean over the validation cases, with the autoencoder's decoder."""
    fast_dice: float
    trained_through: bool = False
    """The run's networks are trained by what this decoder says (`train.mask_loss_weight`). The run
    keeps it from its beginning, when no slices are measured yet, and never changes it."""

    @property
    def difference(self) -> float:
        """Fast less exact."""
        return self.fast_dice - self.exact_dice

    def fits(self, step: int) -> bool:
        """Whether it is of the weights of this step."""
        return self.trained_through or self.step == step

    @property
    def is_default(self) -> bool:
        """Whether the fast decoder is: because it is harmless, or meant."""
        return self.trained_through or abs(self.difference) < LARGEST_DIFFERENCE

    @property
    def choice(self) -> str:
        """Which decoder predictions draw with, and by which rule: not by the higher Dice."""
        fast, exact = (f"{dice:.4f}" for dice in (self.fast_dice, self.exact_dice))
        if self.trained_through:
            measured = f" (validation Dice {fast}; with the exact one {exact})"
            return f"fast: the run was trained through it{measured if self.slices else ''}"
        of = f"validation Dice {fast} with the fast one and {exact} with the exact one"
        if self.is_default:
            return f"fast: as good as the exact one ({of})"
        return (
            "exact: the fast one only replaces it where both draw alike, within "
            f"{LARGEST_DIFFERENCE:g} of the Dice ({of})"
        )

    def to_json(self) -> dict[str, Any]:
        """For `--json` and the file."""
        values = {**asdict(self), "difference": self.difference}
        if not self.trained_through:
            del values["trained_through"]  # older versions know no such key
        return values


def decoder_file(model: Path) -> Path:
    """Where a run folder or a package keeps its mask decoder."""
    return model / FAST_DECODER if is_package(model) else RunDir(model).checkpoints / FAST_DECODER


def find_mask_decoder(
    autoencoder: Autoencoder, sizes: AutoencoderConfig, store: WeightStore
) -> MaskDecoder | None:
    """The mask decoder of an autoencoder: of the weight store (`sdseg distill`), or shipped.

    Raises:
        WeightsError: The file is damaged.
    """
    key = autoencoder_hash(autoencoder)
    own = stored_decoder(store, key)
    if own.is_file():
        return read_mask_decoder(read_tensors(own), sizes, source=str(own))
    with shipped_file(SHIPPED) as path:
        if path.is_file() and read_told(path).get("autoencoder") == key:
            return read_mask_decoder(read_tensors(path), sizes, source="tiny mask decoder")
    return None


def stored_decoder(store: WeightStore, key: str) -> Path:
    """Where the store keeps the mask decoder of an autoencoder of this hash."""
    return store.folder / "mask-decoders" / f"{key[:32]}.safetensors"


def measure(
    model: SDSeg,
    decoder: MaskDecoder,
    slices: PreparedSlices,
    positions: Sequence[int],
    *,
    step: int,
    batch_size: int,
) -> DecoderCheck:
    """Validate with both decoders.

    Args:
        model: As it predicts, without a mask decoder, in eval mode.
        decoder: On any device.
        slices: Of the validation cases.
        positions: Which of them.
        step: Of the model's weights.
        batch_size: Slices at a time.
    """
    dice = {}
    for name, each in (("exact", None), ("fast", decoder.to(next(model.parameters()).device))):
        with decoded_by(model, each):
            found = validation(model, slices, positions, (), Ranks(), batch_size=batch_size)
        dice[name] = found.dice
    return DecoderCheck(step, len(positions), dice["exact"], dice["fast"])


def measure_run(
    run: RunDir,
    training: PreparedSlices,
    validation_slices: PreparedSlices,
    device: torch.device,
    store: WeightStore,
    decoder: MaskDecoder | None = None,
) -> DecoderCheck | None:
    """Let a run keep the mask decoder of its autoencoder, used to the run's own latents, and what
    that costs its best weights.

    Args:
        run: Its best weights have to have found something, or nothing is measured.
        training: Slices of the training cases, for getting used to.
        validation_slices: Of the validation cases.
        device: That computes.
        store: Where mask decoders are.
        decoder: In place of the one that is found there. A run that was trained through one keeps
            that.

    Returns:
        What it costs; None where nothing was measured: no mask decoder, or nothing to decode.
    """
    if not run.best.is_file():
        return None
    best = Checkpoint.load(run.best)
    if not best.best.get("val_dice"):
        return None
    model, recipe = networks_of(best, device, source=str(run.best)), run.config().train
    if not isinstance(model, SDSeg):
        return None
    meant = kept_for_training(run, model.config.autoencoder)
    found = (
        meant or decoder or find_mask_decoder(model.autoencoder, model.config.autoencoder, store)
    )
    if found is None:
        return None
    positions = spread(training, min(ADAPT_SLICES, recipe.validation_slices))
    own = found if meant else adapted(found, own_latents(model, training, positions))
    check = measure(
        model,
        own,
        validation_slices,
        spread(validation_slices, recipe.validation_slices),
        step=best.step,
        batch_size=recipe.batch_size,
    )
    check = replace(check, trained_through=meant is not None)
    keep_with_run(run, own, check)
    return check


def kept_for_training(run: RunDir, sizes: AutoencoderConfig) -> MaskDecoder | None:
    """The decoder a run is trained through; None if it is not.

    Raises:
        WeightsError: The file is damaged.
    """
    check = read_check(run.path)
    return read_own(run.path, sizes) if check is not None and check.trained_through else None


def read_own(model: Path, sizes: AutoencoderConfig) -> MaskDecoder:
    """The mask decoder that a run or package keeps.

    Raises:
        WeightsError: The file is missing or damaged.
    """
    path = decoder_file(model)
    return read_mask_decoder(read_tensors(path), sizes, source=str(path))


def try_measuring(
    run: RunDir,
    training: PreparedSlices,
    validation_slices: PreparedSlices,
    device: torch.device,
    store: WeightStore,
    warn: Callable[[Finding], None],
    *,
    anew: bool = True,
) -> DecoderCheck | None:
    """`measure_run` for a run that is whole without: what goes wrong is a warning.

    With `anew` false, for a run that has not been trained since, what it keeps already is enough.
    """
    try:
        kept = None if anew else read_check(run.path)
        if kept is not None and kept.slices:
            return kept
        return measure_run(run, training, validation_slices, device, store)
    except (SdsegError, RuntimeError, MemoryError) as error:
        if not (isinstance(error, SdsegError) or ran_out_of_memory(error)):
            raise
        why = error.message if isinstance(error, SdsegError) else "out of memory"
        through = run.config().train.mask_loss_weight > 0
        finding = Finding(
            code="fast-decoder-unmeasured",
            level=WARNING,
            case=run.path.name,
            measured=f"predictions will use the {'fast' if through else 'exact'} decoder ({why})",
            fix="None needed: the run was trained through it."
            if through
            else "To try again: sdseg distill --run RUN.",
        )
        warn(finding)
        return None


def keep_with_run(run: RunDir, decoder: MaskDecoder, check: DecoderCheck) -> None:
    """Write a mask decoder and what it costs into a run folder.

    Raises:
        RunError: The disk refused.
    """
    tensors = {key: value.cpu().contiguous() for key, value in decoder.state_dict().items()}
    with replacing(run.checkpoints / FAST_DECODER) as temporary:
        write_tensors(tensors, temporary, told={"check": json.dumps(check.to_json())})


def read_check(model: Path) -> DecoderCheck | None:
    """What the mask decoder of a run or package was measured to cost; None where it has none.

    Raises:
        WeightsError: The file is damaged.
    """
    path = decoder_file(model)
    if not path.is_file():
        return None
    try:
        values = json.loads(read_told(path)["check"])
        values.pop("difference")
        return DecoderCheck(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: does not say how it was measured.",
            "Delete it; `sdseg distill --run RUN` makes one.",
        ) from error
