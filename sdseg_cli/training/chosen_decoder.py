"""Which decoder a trained model predicts with."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from sdseg_cli.errors import ConfigError
from sdseg_cli.model.baselines import SliceModel
from sdseg_cli.model.mask_decoder import MaskDecoder
from sdseg_cli.model.sdseg import SDSeg
from sdseg_cli.model.store import WeightStore
from sdseg_cli.model.tensor_files import file_sha256
from sdseg_cli.training.checkpoint import Checkpoint
from sdseg_cli.training.fast_decoder import (
    SHIPPED,
    decoder_file,
    find_mask_decoder,
    read_check,
    read_own,
)

DECODERS = ("auto", "exact", "fast")


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
    if not isinstance(networks, SDSeg):
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
    """Of everything that decides which decoder is taken: equal for equal masks.

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
        files.append(Path(str(resources.files("sdseg_cli") / "shipped" / SHIPPED)))
    return " ".join([asked, *(file_sha256(path) for path in files if path.is_file())])
