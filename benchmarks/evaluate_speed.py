"""How long two folders of large masks take, and how much memory, with every metric.

    python -m benchmarks.evaluate_speed [--cases 100] [--workers 2]

Masks of 512x512x200 at 0.8 x 0.8 x 2.5 mm, written as .nii.gz: five organs of 12 to 90 voxels'
radius with wavy borders; predictions are moved and shrunk, and have stray voxels in far corners, so
that the box around both is nearly the whole scan. CPU seconds compare on a machine with other work.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.results import command
from sdseg_cli.evaluation.folders import FolderOptions, evaluate_folders

SHAPE = (512, 512, 200)
AFFINE = np.diag([-0.8, -0.8, 2.5, 1.0])
ORGANS = (  # centre and radii in voxels
    ((180, 250, 100), (90, 70, 60)),
    ((360, 260, 110), (50, 60, 45)),
    ((300, 330, 80), (30, 30, 40)),
    ((250, 200, 60), (12, 12, 8)),
    ((330, 180, 140), (20, 60, 20)),
)
STRAYS = 8


def organ(
    mask: NDArray[np.uint8], centre: NDArray[Any], radii: NDArray[Any], rng: np.random.Generator
) -> None:
    """Add an ellipsoid whose radius varies by 6 % along waves across it."""
    low = np.maximum(0, np.floor(centre - 1.1 * radii)).astype(int)
    high = np.minimum(mask.shape, np.ceil(centre + 1.1 * radii) + 1).astype(int)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    x, y, z = ((g - c) / r for g, c, r in zip(np.ogrid[box], centre, radii, strict=True))
    phases = rng.uniform(0, 2 * np.pi, 3)
    waves = [np.sin(5 * axis + phase) for axis, phase in zip((x, y, z), phases, strict=True)]
    mask[box] |= x**2 + y**2 + z**2 < 1 + 0.04 * (waves[0] + waves[1] + waves[2])


def make_pair(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A prediction and its reference."""
    rng = np.random.default_rng(seed)
    pred, label = (np.zeros(SHAPE, np.uint8, order="F") for _ in range(2))
    for place, size in ORGANS:
        centre, radii = np.array(place) + rng.normal(0, 6, 3), np.array(size) * rng.uniform(0.8, 1)
        organ(label, centre, radii, np.random.default_rng(seed))
        organ(pred, centre + rng.normal(0, 2, 3), radii - 1, np.random.default_rng(seed))
    for _ in range(STRAYS):
        pred[tuple(rng.integers(0, SHAPE))] = 1
    pred[3, 4, 2] = pred[508, 506, 197] = 1
    return pred, label


class Watch:
    """This process and its children, workers of a server of processes too, ten times a second.

    Attributes:
        bytes: The most that they held together.
        cpu: Process id -> CPU seconds it has used.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.cpu: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._stop.wait(0.1):
            held = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    held += process.memory_info().rss
                    times = process.cpu_times()
                    self.cpu[process.pid] = times.user + times.system
                except psutil.Error:  # it has just ended
                    continue
            self.bytes = max(self.bytes, held)


def main() -> None:
    """Make the masks, score them, print what it took."""
    parser = command(__doc__)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folders = Path(name, "pred"), Path(name, "ref")
        for n in range(options.cases):
            for folder, mask in zip(folders, make_pair(n), strict=True):
                folder.mkdir(exist_ok=True)
                nib.save(nib.Nifti1Image(mask, AFFINE), folder / f"{n}.nii.gz")
        before, started = time.process_time(), time.perf_counter()
        with Watch() as watch:
            report = evaluate_folders(*folders, reading=FolderOptions(workers=options.workers))
        seconds, cpu = time.perf_counter() - started, sum(watch.cpu.values()) - before
    means = {column: summary.mean for column, summary in report.metrics.items()}
    print(" ".join(f"{column} {mean:.4g}" for column, mean in means.items() if mean is not None))
    print(f"{options.cases} cases, {options.workers} workers: {seconds:.1f} s")
    print(f"{seconds / options.cases:.2f} s a case, {cpu / options.cases:.2f} CPU seconds a case")
    print(f"peak memory {watch.bytes / 2**20:.0f} MiB, parent and children together")


if __name__ == "__main__":
    main()
