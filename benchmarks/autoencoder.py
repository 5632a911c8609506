"""How well the shipped autoencoder returns masks: made-up disks, and the masks of a prepared set.

    python -m benchmarks.autoencoder [--dataset prepared/NAME] [--every 16]

Disks: Dice at 256x256 by radius, 16 positions each. A prepared set: total Dice over every n-th
slice with foreground, on the model's plane and on the scans' own grids. It bounds every result.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.results import command
from sdseg_cli.core.config import THRESHOLD
from sdseg_cli.core.presets import preset
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.imaging.intensity import Normalisation
from sdseg_cli.imaging.io.files import read_image, read_labels
from sdseg_cli.imaging.slices import to_stack
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.starts import load_tiny_autoencoder

Mask = NDArray[np.bool_]


class Overlap:
    """Dice over everything added."""

    def __init__(self) -> None:
        self.both = self.sum = 0

    def add(self, a: Mask, b: Mask) -> None:
        """Two masks of one shape."""
        self.both += 2 * int((a & b).sum())
        self.sum += int(a.sum() + b.sum())

    @property
    def dice(self) -> float:
        """Of all pixels together."""
        return self.both / self.sum


@torch.inference_mode()
def returned(model: Autoencoder, mask: Mask) -> NDArray[np.float32]:
    """(256,256) bool -> probability after encoding to the posterior's mean and decoding."""
    x: Tensor = torch.from_numpy(mask).float() * 2 - 1
    decoded = model.decode(model.moments(x.expand(1, 3, -1, -1))[:, :4])
    probability: NDArray[np.float32] = ((decoded + 1) / 2).clamp(0, 1).mean(dim=1)[0].numpy()
    return probability


def disks(model: Autoencoder, radius_px: float) -> float:
    """Dice over 16 disks whose centres lie off the latent's grid."""
    axis = np.arange(256.0)
    total = Overlap()
    for i in range(16):
        y, x = 60.3 + 8.4 * i, 180.1 - 7.7 * i
        disk = (axis[:, None] - y) ** 2 + (axis[None] - x) ** 2 < radius_px**2
        total.add(returned(model, disk) > THRESHOLD, disk)
    return total.dice


def real_masks(model: Autoencoder, manifest: Manifest, every: int) -> tuple[float, float]:
    """Total Dice on the model's plane and on the scans' own grids."""
    plane_total, native_total = Overlap(), Overlap()
    for case in manifest.cases():
        labels = read_labels(case.label)
        normalise = Normalisation.from_dict(manifest.normalisation)
        stack = to_stack(read_image(case.image), normalise, size=manifest.size, crop=manifest.crop)
        planes = np.load(manifest.labels_file(case), mmap_mode="r", allow_pickle=False)
        for k in manifest.foreground_slices(case)[::every]:
            probability = returned(model, manifest.is_foreground(planes[k]))
            plane_total.add(probability > THRESHOLD, manifest.is_foreground(planes[k]))
            native = manifest.is_foreground(stack.restore.canonical_plane(labels.array, k))
            native_total.add(stack.restore.to_native(probability, k) > THRESHOLD, native)
    return plane_total.dice, native_total.dice


def main() -> None:
    """Print both tables."""
    parser = command(__doc__)
    parser.add_argument("--dataset", type=Path, help="folder of a prepared set")
    parser.add_argument("--every", type=int, default=16)
    args = parser.parse_args()
    model = Autoencoder(preset("tiny").model.autoencoder).eval()
    load_tiny_autoencoder(model)
    print("| disk radius, px | Dice |\n|---|---|")
    for radius in (2, 3, 5, 8, 16, 40):
        print(f"| {radius} | {disks(model, radius):.4f} |", flush=True)
    if args.dataset is not None:
        manifest = Manifest.load(args.dataset)
        plane, native = real_masks(model, manifest, args.every)
        print(f"{manifest.name}, crop {manifest.crop}, every {args.every}th foreground slice:")
        print(f"model plane {plane:.4f}, scan's own grid {native:.4f}")


if __name__ == "__main__":
    main()
