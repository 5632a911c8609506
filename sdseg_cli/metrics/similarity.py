"""Similarity of two results of one image: PSNR, SSIM and MS-SSIM, a value per plane.

All take planes of grey values in 0..255 (`DATA_RANGE`). SSIM uses the published setting: an 11 x 11
Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, windows that lie wholly inside the plane;
MS-SSIM its five published weights.

`compare` measures several results of the same slices as the paper's Table 5 does. *Seg* is the
mask, 0 or 255; *Score* is the probability, 0..255. PSNR, SSIM and MS-SSIM are measured on the
slices with a reference, LPIPS on all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.config import THRESHOLD

if TYPE_CHECKING:
    from torch import Tensor

    from sdseg_cli.metrics.lpips import Lpips

DATA_RANGE = 255.0
BATCH_PLANES = 16
WINDOW_PX = 11
WINDOW_SIGMA_PX = 1.5
MS_SSIM_MIN_PX = 176
"""Four halvings must leave a plane at least as large as the window: 11 x 2^4."""

Planes = NDArray[np.generic]
PerPlane = NDArray[np.float64]


def _stacks(first: Planes, other: Planes, smallest_px: int = 1) -> tuple[Planes, Planes]:
    """Both as (S,H,W)."""
    if first.shape != other.shape or first.ndim not in (2, 3):
        raise ValueError(f"planes of one shape wanted, got {first.shape} and {other.shape}")
    if min(first.shape[-2:]) < smallest_px:
        raise ValueError(f"planes of at least {smallest_px} px wanted, got {first.shape[-2:]}")
    return (first, other) if first.ndim == 3 else (first[None], other[None])


def psnr(first: Planes, other: Planes) -> PerPlane:
    """Peak signal-to-noise ratio, 10 log10(255^2 / mean squared difference), of each plane.

    Args:
        first: (H,W) or (S,H,W), real numbers in 0..255.
        other: The same shape and range.

    Returns:
        (S,) float64, dB; infinite where the two planes are identical, so that the caller decides
        how to count them.

    Raises:
        ValueError: The shapes differ.
    """
    first, other = _stacks(first, other)
    values = np.full(len(first), np.inf)
    for k, (one, two) in enumerate(zip(first, other, strict=True)):
        error = one.astype(np.float64) - two.astype(np.float64)
        mean_square = float(np.mean(error * error))
        if mean_square > 0:
            values[k] = 10 * np.log10(DATA_RANGE**2 / mean_square)
    return values


def per_plane(
    first: Planes,
    other: Planes,
    score: Callable[[Tensor, Tensor], Tensor],
    *,
    identical: float,
    device: str,
) -> PerPlane:
    """Score pairs of planes in batches, skipping those that are equal to the last bit.

    Args:
        first: (S,H,W), real numbers in 0..255.
        other: The same shape and range.
        score: Takes two (B,1,H,W) float32 tensors on `device`, returns (B,) or (B,1).
        identical: The value of a pair without any difference.
        device: Where torch computes.

    Returns:
        (S,) float64.
    """
    import torch

    values = np.full(len(first), identical)
    differ = [k for k in range(len(first)) if not np.array_equal(first[k], other[k])]
    for start in range(0, len(differ), BATCH_PLANES):
        picks = differ[start : start + BATCH_PLANES]
        x, y = (
            torch.from_numpy(stack[picks].astype(np.float32))[:, None].to(device)
            for stack in (first, other)
        )
        with torch.inference_mode():
            values[picks] = score(x, y).flatten().cpu().double().numpy()
    return values


def ssim(first: Planes, other: Planes, *, device: str = "cpu") -> PerPlane:
    """Structural similarity (Wang et al. 2004), averaged over the plane.

    Args:
        first: (H,W) or (S,H,W), real numbers in 0..255, sides of at least 11 px.
        other: The same shape and range.
        device: Where torch computes.

    Returns:
        (S,) float64, 1 where the two planes are identical.

    Raises:
        ValueError: The shapes differ, or the planes are too small.
    """
    first, other = _stacks(first, other, WINDOW_PX)

    def score(x: Tensor, y: Tensor) -> Tensor:
        from monai.metrics.regression import compute_ssim_and_cs

        window, sigma = (WINDOW_PX,) * 2, (WINDOW_SIGMA_PX,) * 2
        full, _ = compute_ssim_and_cs(x, y, 2, window, sigma, data_range=DATA_RANGE)
        mean: Tensor = full.mean(dim=(1, 2, 3))
        return mean

    return per_plane(first, other, score, identical=1.0, device=device)


def ms_ssim(first: Planes, other: Planes, *, device: str = "cpu") -> PerPlane:
    """Multi-scale structural similarity (Wang et al. 2003), five scales; see `ssim`.

    The sides are at least 176 px. A negative term, which has no real power, counts as 0.
    """
    first, other = _stacks(first, other, MS_SSIM_MIN_PX)

    def score(x: Tensor, y: Tensor) -> Tensor:
        from monai.metrics.regression import compute_ms_ssim

        value: Tensor = compute_ms_ssim(x, y, 2, DATA_RANGE, "gaussian", WINDOW_PX, WINDOW_SIGMA_PX)
        return value

    return per_plane(first, other, score, identical=1.0, device=device)


Map = Literal["seg", "score"]
MAPS: tuple[Map, ...] = ("seg", "score")
METRICS = ("psnr", "ssim", "ms_ssim", "lpips")
Values = NDArray[np.float64]
Measured = dict[tuple[Map, str], Values]
"""(map, metric) -> one value per compared slice."""
Pair = tuple[int, int]
"""Two results by their place, from 0."""


def grey(name: Map, probability: NDArray[np.float32]) -> NDArray[np.float32]:
    """A map as grey values: "seg" 0 or 255, "score" 0..255; shape as given, float32."""
    values = probability > THRESHOLD if name == "seg" else probability
    return values.astype(np.float32) * np.float32(DATA_RANGE)


def compare(
    results: NDArray[np.float32],
    pairs: Sequence[Pair],
    filled: NDArray[np.bool_],
    *,
    lpips: Lpips | None = None,
    device: str = "cpu",
) -> dict[Pair, Measured]:
    """Measure how alike results are.

    Args:
        results: (M,n,H,W) probabilities in [0,1]: M results of the same n slices.
        pairs: Which of them are compared.
        filled: (n,) the slices with a reference.
        lpips: None leaves LPIPS out.
        device: Where torch computes.

    Returns:
        Pair by pair (filled,) values of PSNR, SSIM and MS-SSIM, and (n,) of LPIPS. PSNR is infinite
        where both are the same plane. No MS-SSIM of planes below `MS_SSIM_MIN_PX`.
    """
    found: dict[Pair, Measured] = {pair: {} for pair in pairs}
    for name in MAPS:
        planes = grey(name, results)
        for pair in pairs:
            first, other = planes[pair[0]], planes[pair[1]]
            both = first[filled], other[filled]
            found[pair] |= {
                (name, "psnr"): psnr(*both),
                (name, "ssim"): ssim(*both, device=device),
            }
            if min(both[0].shape[-2:]) >= MS_SSIM_MIN_PX:
                found[pair][name, "ms_ssim"] = ms_ssim(*both, device=device)
            if lpips is not None:
                found[pair][name, "lpips"] = lpips(first, other)
    return found
