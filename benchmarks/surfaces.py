"""Surface distances: ours (a tree of border points) against MONAI's, the same pairs in one run.

    python -m benchmarks.surfaces [--large]

MONAI 1.6.1 asks a tree, too; older releases transform the whole box, which is what "box" measures.
`--large` adds a pair of 512x512x200 with stray voxels in far corners, for which the box takes
gigabytes. "centre" is the worst case of a tree: from the middle of a shell all its points are
equally near.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy import ndimage

from benchmarks.evaluate_speed import AFFINE, make_pair
from benchmarks.results import command
from sdseg_cli.metrics import Mask
from sdseg_cli.metrics.surfaces import SurfaceDistances, border, surface_distances

Spacing = tuple[float, ...]
Way = Callable[[Mask, Mask, Spacing], SurfaceDistances]
ISOTROPIC = (1.0, 1.0, 1.0)


def ball(radius: float, size: int = 160) -> Mask:
    """A ball in the middle of a cube."""
    x, y, z = ((index - size / 2) ** 2 for index in np.ogrid[:size, :size, :size])
    inside: Mask = x + y + z < radius**2
    return inside


def pairs(large: bool) -> Iterator[tuple[str, Mask, Mask, Spacing]]:
    """Name, prediction, reference, spacing."""
    yield "shrunken", ball(60), ball(64), ISOTROPIC
    yield "half as large", ball(35), ball(70), ISOTROPIC
    yield "centre", ball(10), ball(75), ISOTROPIC
    stray = ball(60)
    stray[0, 0, 0] = stray[-1, -1, -1] = True
    yield "stray voxels", stray, ball(64), (2.5, 0.8, 0.8)
    if large:
        pred, label = make_pair(0)
        spacing = tuple(float(abs(step)) for step in np.diag(AFFINE)[2::-1])
        yield "512x512x200", pred.T != 0, label.T != 0, spacing


def by_box(pred: Mask, label: Mask, spacing: Spacing) -> SurfaceDistances:
    """By Euclidean distance transforms of the whole box."""
    edges = border(pred), border(label)
    maps = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return SurfaceDistances(maps[1][edges[0]], maps[0][edges[1]])


def by_monai(pred: Mask, label: Mask, spacing: Spacing) -> SurfaceDistances:
    """By the installed MONAI."""
    from monai.metrics.utils import get_edge_surface_distance

    masks = (torch.from_numpy(np.ascontiguousarray(mask)) for mask in (pred, label))
    _, distances, _ = get_edge_surface_distance(*masks, spacing=spacing, symmetric=True)
    to_label, to_pred = (np.asarray(one, np.float64) for one in distances)
    return SurfaceDistances(to_label, to_pred)


def cpu_seconds(
    work: Way, pred: Mask, label: Mask, spacing: Spacing
) -> tuple[float, SurfaceDistances]:
    """What it took, and what it gave."""
    started = time.process_time()
    found = work(pred, label, spacing)
    return time.process_time() - started, found


def main() -> None:
    """Print one line per pair; every way has to give the same distances."""
    parser = command(__doc__)
    parser.add_argument("--large", action="store_true")
    large = parser.parse_args().large
    by_monai(ball(3, 8), ball(2, 8), ISOTROPIC)  # loads MONAI
    print(f"{'CPU seconds':<16}{'ours':>8}{'MONAI':>8}{'box':>8}{'MONAI/ours':>12}{'box/ours':>10}")
    for name, pred, label, spacing in pairs(large):
        took, found = [], []
        for way in (surface_distances, by_monai, by_box):
            seconds, distances = cpu_seconds(way, pred, label, spacing)
            took.append(seconds)
            found.append(distances)
        for other in found[1:]:
            assert np.allclose(found[0].both, other.both, rtol=1e-6)
        ours, monai, box = took
        print(f"{name:<16}{ours:8.2f}{monai:8.2f}{box:8.2f}{monai / ours:12.1f}{box / ours:10.1f}")


if __name__ == "__main__":
    main()
