"""Several results of the same slices, compared with one another as the paper's Table 5 does.

*Seg* is the mask, 0 or 255; *Score* is the probability, 0..255. PSNR, SSIM and MS-SSIM are measured
on the slices with a reference, LPIPS on all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.config import THRESHOLD
from sdseg_cli.metrics.lpips import Lpips
from sdseg_cli.metrics.similarity import DATA_RANGE, ms_ssim, psnr, ssim

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
        where both are the same plane.
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
                (name, "ms_ssim"): ms_ssim(*both, device=device),
            }
            if lpips is not None:
                found[pair][name, "lpips"] = lpips(first, other)
    return found
