"""A case's slice for report.html: what `evaluate` and `stability` show of each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.data.manifest import PreparedCase
from sdseg_cli.evaluation.evaluation_split import EvaluationSplit
from sdseg_cli.imaging.intensity import Normalisation
from sdseg_cli.imaging.slices import SliceTransform
from sdseg_cli.imaging.volume import Volume
from sdseg_cli.metrics.agreement import disagreement_of_counts
from sdseg_cli.report.map_panels import map_panel
from sdseg_cli.report.panels import CasePanel, case_panel
from sdseg_cli.report.pictures import largest_area_slice


def panel_of(
    held: EvaluationSplit,
    case: PreparedCase,
    scan: Volume,
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
) -> CasePanel:
    """The slice with the largest reference; both masks (I,J,K) bool on the scan's grid."""
    restore = SliceTransform.of(scan.geometry)
    k = largest_area_slice(reference, prediction, restore)
    return case_panel(
        case.id,
        _place(restore, k),
        scan.values(restore.canonical_plane(scan.array, k)),
        np.asarray(restore.canonical_plane(reference, k)),
        np.asarray(restore.canonical_plane(prediction, k)),
        **_looks(held, scan, restore),
    )


def map_panel_of(
    held: EvaluationSplit,
    case: PreparedCase,
    scan: Volume,
    reference: NDArray[np.bool_],
    votes: NDArray[np.unsignedinteger],
    runs: int,
    k: int,
) -> CasePanel:
    """Slice k with the disagreement of its runs.

    Args:
        held: The split.
        case: One of its cases.
        scan: As read.
        reference: (I,J,K) bool on the scan's grid.
        votes: (I,J,K), how many runs call each voxel foreground.
        runs: How many there are.
        k: Slice number, from the feet.
    """
    restore = SliceTransform.of(scan.geometry)
    plane = np.asarray(restore.canonical_plane(votes, k))
    where = _place(restore, k)
    return map_panel(
        case.id,
        f"{where}, where {runs} runs disagree most" if where else f"where {runs} runs disagree",
        scan.values(restore.canonical_plane(scan.array, k)),
        np.asarray(restore.canonical_plane(reference, k)),
        2 * plane.astype(np.int64) > runs,
        disagreement_of_counts(plane, runs),
        **_looks(held, scan, restore),
    )


def _place(restore: SliceTransform, k: int) -> str:
    return "" if restore.slices == 1 else f"slice {k + 1} of {restore.slices}"


def _looks(held: EvaluationSplit, scan: Volume, restore: SliceTransform) -> dict[str, Any]:
    """The values drawn black and white, and the size of a pixel."""
    limits = Normalisation.from_dict(held.manifest.normalisation).limits(scan)
    height_mm, width_mm, _ = restore.planes.spacing_mm
    return {"window": (limits.low, limits.high), "pixel_mm": (height_mm, width_mm)}
