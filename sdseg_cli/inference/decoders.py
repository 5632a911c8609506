"""Which decoder a trained model predicts with, and the fast one that a run keeps.

A run keeps the fast mask decoder it was measured with, and how its Dice on validation slices
differed: `mask_decoder.safetensors` beside its checkpoints, or in its package. The fast one is the
default where that was below `LARGEST_DIFFERENCE`, and in runs that were trained through it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sdseg_cli.core.config import AutoencoderConfig
from sdseg_cli.core.errors import ConfigError, DataError, WeightsError
from sdseg_cli.core.files import file_sha256, replacing
from sdseg_cli.core.json_files import parse_json
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.interface import SliceModel
from sdseg_cli.model.mask_decoder import MaskDecoder, autoencoder_hash, read_mask_decoder
from sdseg_cli.model.sdseg import has_latents
from sdseg_cli.model.starts import shipped_file
from sdseg_cli.model.tensor_files import read_metadata, read_tensors, write_tensors
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.package import FAST_DECODER, is_package
from sdseg_cli.runs.run_folder import RunDir

DECODERS = ("auto", "exact", "fast")
SHIPPED = "tiny_mask_decoder.safetensors"
LARGEST_DIFFERENCE = 0.002
"""Of the Dice on validation slices, in either direction."""


@dataclass(frozen=True)
class DecoderCheck:
    """The Dice that a mask decoder costs a run."""

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
        """True if it was measured on the weights of this step."""
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


_TYPES: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "slices": (int,),
    "exact_dice": (int, float),
    "fast_dice": (int, float),
    "trained_through": (bool,),
}


def choose_decoder(
    asked: str, model: Path, checkpoint: Checkpoint, networks: SliceModel, store: WeightStore
) -> MaskDecoder | None:
    """The mask decoder to predict with; None is the autoencoder's own decoder.

    Args:
        asked: "auto" is "fast" where these very weights were trained through it, or it was measured
            to be harmless for them.
        model: A run folder or a package.
        checkpoint: Its weights.
        networks: The same, filled in.
        store: Where mask decoders are that a run was not measured with.

    Raises:
        ConfigError: There is no such decoder.
        WeightsError: Its file is damaged.
    """
    if asked not in DECODERS:
        raise ConfigError(f'there is no decoder "{asked}".', "Choose auto, exact or fast.")
    if not has_latents(networks):
        if asked == "fast":
            raise ConfigError(
                f"--decoder fast: a {networks.config.network} has no decoder to replace.",
                "Leave it out.",
            )
        return None
    if asked == "exact":
        return None
    check, sizes = read_check(model), networks.config.autoencoder
    own = check is not None and check.fits(checkpoint.step)
    if asked == "auto" and not (check and own and check.is_default):
        return None
    if own:
        return read_own(model, sizes)
    found = find_mask_decoder(networks.autoencoder, sizes, store)
    if found is None:
        raise ConfigError(
            "--decoder fast: there is none for this model's autoencoder.",
            "`sdseg distill --run RUN` trains one; or use --decoder exact.",
        )
    return found


def decoder_identity(asked: str, model: Path, store: WeightStore | None = None) -> str:
    """Identity of all that decides which decoder is used: equal for equal masks.

    Args:
        asked: As `choose_decoder`.
        model: A run folder or a package.
        store: The weight store; by default the user's.
    """
    if asked == "exact":
        return asked
    files = [decoder_file(model)]
    if asked == "fast":  # where the run has none of its own, or one of older weights
        files += sorted((store or WeightStore.default()).folder.glob("mask-decoders/*"))
        files.append(Path(str(resources.files("sdseg_cli.model") / "shipped_files" / SHIPPED)))
    return " ".join([asked, *(file_sha256(path) for path in files if path.is_file())])


def decoder_file(model: Path) -> Path:
    """Path of the mask decoder in a run folder or a package."""
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
        if path.is_file() and read_metadata(path).get("autoencoder") == key:
            return read_mask_decoder(read_tensors(path), sizes, source="tiny mask decoder")
    return None


def stored_decoder(store: WeightStore, key: str) -> Path:
    """Path in the store of the mask decoder of an autoencoder of this hash."""
    return store.folder / "mask-decoders" / f"{key[:32]}.safetensors"


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


def read_check(model: Path) -> DecoderCheck | None:
    """The measured cost of the mask decoder of a run or package; None where it has none.

    Raises:
        WeightsError: The file is damaged.
    """
    path = decoder_file(model)
    if not path.is_file():
        return None
    try:
        values = parse_json(read_metadata(path)["check"], source=str(path))
        values.pop("difference")
        check = DecoderCheck(**values)
        if any(type(getattr(check, key)) not in kinds for key, kinds in _TYPES.items()):
            raise TypeError(check)
        return check
    except (AttributeError, KeyError, TypeError, DataError) as error:
        raise WeightsError(
            f"{path}: does not say how it was measured.",
            "Delete it; `sdseg distill --run RUN` makes one.",
        ) from error


def keep_with_run(run: RunDir, decoder: MaskDecoder, check: DecoderCheck) -> None:
    """Write a mask decoder and what it costs into a run folder.

    Raises:
        RunError: The disk refused.
    """
    tensors = {key: value.cpu().contiguous() for key, value in decoder.state_dict().items()}
    with replacing(run.checkpoints / FAST_DECODER) as temporary:
        write_tensors(tensors, temporary, metadata={"check": json.dumps(check.to_json())})
