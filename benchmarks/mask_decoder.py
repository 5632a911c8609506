"""What the fast mask decoder makes of real masks, by the size of what it has to draw.

    python -m benchmarks.mask_decoder --dataset openkbp --dataset msd-hippocampus

Masks of a prepared set's slices are encoded and drawn by both decoders. Each connected part of a
mask is looked at by itself, with what is drawn within 4 px of it: by its thickness, which is twice
the largest distance from its edge, it is thin (below 5 px: vessels), small (to 16 px) or an organ.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.results import command
from sdseg_cli.core.config import THRESHOLD
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.inference.decoders import find_mask_decoder
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.mask_decoder import MaskDecoder
from sdseg_cli.model.runtime import gflop
from sdseg_cli.model.starts import load_tiny_autoencoder
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.training.batches import open_split
from sdseg_cli.training.distill import Teacher

THIN_PX, SMALL_PX, AROUND_PX = 5, 16, 4
MOST_SLICES = 200
Mask = NDArray[np.bool_]


def kind_of(part: Mask) -> str:
    """Thin, small or an organ: by the thickness of one connected part (H,W)."""
    thickness = 2 * float(ndimage.distance_transform_edt(np.pad(part, 1)).max())
    if thickness < THIN_PX:
        return "thin, below 5 px"
    return "small, 5 to 16 px" if thickness <= SMALL_PX else "organs, above 16 px"


def dice(one: Mask, other: Mask) -> float | None:
    """None where both are empty."""
    both = int(one.sum() + other.sum())
    return 2 * int((one & other).sum()) / both if both else None


@torch.inference_mode()
def compare(
    teacher: Teacher, decoder: MaskDecoder, masks: torch.Tensor
) -> dict[str, list[tuple[float, float, float]]]:
    """By kind of part: Dice of fast with exact, of exact with the mask, and of fast with it."""
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for mask in masks:
        latent = teacher.encode(mask[None, None].float())
        exact = (teacher.decode(latent)[0] > THRESHOLD).numpy()
        fast = (decoder(latent)[0] > THRESHOLD).numpy()
        labels, count = ndimage.label(mask.numpy())
        for number in range(1, count + 1):
            part = labels == number
            near = ndimage.distance_transform_edt(~part) <= AROUND_PX
            near &= (labels == 0) | part
            pairs = ((fast, exact), (exact, part), (fast, part))
            scores = [dice(one & near, other & near) for one, other in pairs]
            # Both draw nothing of it: they agree.
            found[kind_of(part)].append(tuple(1.0 if s is None else s for s in scores))  # type: ignore[arg-type]
    return found


def main() -> None:
    """Print a table per set."""
    parser = command(__doc__, workspace=True)
    parser.add_argument("--dataset", action="append", required=True, help="a prepared set")
    args = parser.parse_args()
    sizes = PRESETS["tiny"].model.autoencoder
    autoencoder = Autoencoder(sizes)
    load_tiny_autoencoder(autoencoder)
    teacher = Teacher(autoencoder.eval().requires_grad_(False))
    decoder = find_mask_decoder(autoencoder, sizes, WeightStore.default())
    assert decoder is not None
    latent = torch.zeros(1, 4, 32, 32)
    small, whole = gflop(lambda: decoder(latent)), gflop(lambda: autoencoder.decode(latent))
    count = sum(value.numel() for value in decoder.parameters())
    print(f"{count:,} parameters, {small:.3f} GFLOP, {small / whole:.2%} of {whole:.3f}")
    print("| set | parts | number | fast with exact | exact with the mask | fast with the mask |")
    print("|---|---|---|---|---|---|")
    for name in args.dataset:
        slices = open_split(Manifest.find(args.workspace, name), "test")
        chosen = slices.with_foreground[:: max(1, len(slices.with_foreground) // MOST_SLICES)]
        by_kind = compare(teacher, decoder, slices.masks(slices.batch(chosen).labels)[:, 0])
        for kind, scores in sorted(by_kind.items()):
            means = " | ".join(f"{value:.3f}" for value in np.mean(scores, axis=0))
            print(f"| {name} | {kind} | {len(scores)} | {means} |", flush=True)


if __name__ == "__main__":
    main()
