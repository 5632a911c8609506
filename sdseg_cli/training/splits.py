"""One split of a prepared set, as the networks read it."""

from __future__ import annotations

from sdseg_cli.core.errors import DataError
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.training.batches import PreparedSlices


def open_split(manifest: Manifest, split: str) -> PreparedSlices:
    """The slices of a split's cases.

    Args:
        manifest: The prepared set.
        split: "train", "val" or "test".

    Raises:
        DataError: It has no such case, or its arrays are missing or damaged.
    """
    cases = manifest.cases(split)
    if not cases:
        raise DataError(
            f"{manifest.name}: no {split} case.", "Prepare it again with at least 3 cases."
        )
    return PreparedSlices(
        [manifest.root / case.folder for case in cases],
        manifest.is_foreground,
        [manifest.foreground_slices(case) for case in cases],
    )
