"""The weights LPIPS needs: from two files, or from the weight store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sdseg_cli.core.errors import ConfigError, WeightsError
from sdseg_cli.metrics.lpips import BACKBONE, HEADS, Lpips
from sdseg_cli.model.sources import recognise
from sdseg_cli.model.store import WeightStore
from sdseg_cli.model.tensor_files import read_tensors

OPTIONS = {BACKBONE: "--lpips-backbone", HEADS: "--lpips-linear"}


@dataclass(frozen=True)
class FoundLpips:
    """The measure, or what it lacks."""

    measure: Lpips | None
    missing: tuple[str, ...] = ()
    """Names that `sdseg weights fetch` knows."""


def find_lpips(
    backbone: Path | None, heads: Path | None, store: WeightStore, *, device: str = "cpu"
) -> FoundLpips:
    """Load LPIPS.

    Args:
        backbone: The ImageNet AlexNet in torchvision's names; None for that of the store.
        heads: The LPIPS v0.1 heads for AlexNet; None for those of the store.
        store: Where weights are kept.
        device: Where torch computes.

    Raises:
        ConfigError: One file is given, and the other is neither given nor in the store.
        WeightsError: Weights are missing, damaged or of another kind.
    """
    given = {BACKBONE: backbone, HEADS: heads}
    found = {kind: _weights(kind, path, store) for kind, path in given.items()}
    missing = tuple(kind for kind, tensors in found.items() if tensors is None)
    if missing and any(given.values()):
        raise ConfigError(
            "LPIPS needs two files, one is absent.",
            f"Give {OPTIONS[missing[0]]} as well, or run sdseg weights fetch {missing[0]}.",
        )
    alexnet, linear = found[BACKBONE], found[HEADS]
    if alexnet is None or linear is None:
        return FoundLpips(None, missing)
    return FoundLpips(Lpips.of(alexnet, linear, device=device))


def _weights(kind: str, path: Path | None, store: WeightStore) -> dict[str, Tensor] | None:
    if path is None:
        entry = store.of_kind(kind)
        return None if entry is None else store.load(entry)
    source = recognise(read_tensors(path), source=str(path))
    if source.kind != kind:
        raise WeightsError(
            f"{path}: weights of kind {source.kind}, not {kind}.",
            f"Check what {OPTIONS[kind]} names.",
        )
    return source.tensors
