"""The method: SDSeg's diffusion, in one page (arXiv 2406.18361).

    z0          clean latent of the mask, scaled to about unit size     (B,4,h,w)
    noise       n, standard normal                                      (B,4,h,w)
    t           timestep, 0..999; 999 is almost pure noise              (B,) or int
    zt          noisy latent                                            (B,4,h,w)
    zc          latent of the image, the condition                      (B,4,h,w)
    alpha_bar   share of z0's variance left at t; 6.7e-4 at t = 999     (1000,)
    noise_pred, z0_pred   what the network makes of zt, t and zc        (B,4,h,w)

    Eq. 1   zt = sqrt(alpha_bar_t) z0 + sqrt(1 - alpha_bar_t) n                         add_noise
    Eq. 2   z0_pred = (zt - sqrt(1 - alpha_bar_t) noise_pred) / sqrt(alpha_bar_t)       estimate_z0
    Eq. 3   L = L_noise + lambda L_latent, both mean absolute error                     loss_terms

Prediction is Eq. 2 once, from pure noise at t = 999 (`single_step`); `ddim` is the paper's
comparison, with fresh noise between its steps where eta > 0. At t = 999 an error of `noise_pred`
reaches `z0_pred` multiplied by 38.66, so both stay in float32.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

TIMESTEPS = 1000
LAST = TIMESTEPS - 1
BETA_FIRST, BETA_LAST = 0.0015, 0.0155

Denoiser = Callable[[Tensor, int | Tensor, Tensor], "Estimate"]
"""`denoise(zt, t, zc)`: what `SDSeg.denoise` is."""


@dataclass(frozen=True)
class Estimate:
    """The network's estimate from one `zt`: two views of it, each (B,4,h,w) float32."""

    noise_pred: Tensor
    z0_pred: Tensor


def _alpha_bar() -> Tensor:
    """(1000,) float64: beta = linspace(sqrt(0.0015), sqrt(0.0155))^2, cumprod(1 - beta)."""
    roots = torch.linspace(
        math.sqrt(BETA_FIRST), math.sqrt(BETA_LAST), TIMESTEPS, dtype=torch.float64
    )
    return torch.cumprod(1 - roots**2, dim=0)


ALPHA_BAR = _alpha_bar()


@cache
def _roots(device: torch.device) -> tuple[Tensor, Tensor]:
    """Both roots of every t, float32, on the device: looking one up there waits for nothing."""
    return ALPHA_BAR.sqrt().float().to(device), (1 - ALPHA_BAR).sqrt().float().to(device)


def coefficients(t: int | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """`sqrt(alpha_bar_t)` and `sqrt(1 - alpha_bar_t)` on the device of `like`, float32, (1,1,1,1)
    for one timestep or (B,1,1,1) for (B,) int64.
    """
    signal, noise = _roots(like.device)
    index = torch.as_tensor(t, device=like.device).reshape(-1, 1, 1, 1)
    return signal[index], noise[index]


def add_noise(z0: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
    """Eq. 1: `zt`, (B,4,h,w)."""
    a, s = coefficients(t, z0)
    return a * z0 + s * noise


def estimate_z0(zt: Tensor, noise_pred: Tensor, t: int | Tensor) -> Tensor:
    """Eq. 2: `z0_pred`, (B,4,h,w). float32, because 1/sqrt(alpha_bar_999) = 38.67."""
    a, s = coefficients(t, zt)
    return (zt.float() - s * noise_pred.float()) / a


def read_output(output: Tensor, zt: Tensor, t: int | Tensor, parameterisation: str) -> Estimate:
    """The network's output as noise and as clean latent.

    Args:
        output: (B,4,h,w): the noise for "eps" (the paper), the clean latent for "z0", and for "v"
            the velocity `sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) z0` (arXiv 2202.00512).
        zt: (B,4,h,w), what the network was given.
        t: The timestep(s) of `zt`.
        parameterisation: "eps", "v" or "z0".
    """
    a, s = coefficients(t, zt)
    output, zt = output.float(), zt.float()
    if parameterisation == "eps":
        return Estimate(noise_pred=output, z0_pred=estimate_z0(zt, output, t))
    if parameterisation == "z0":
        return Estimate(noise_pred=(zt - a * output) / s, z0_pred=output)
    if parameterisation == "v":
        return Estimate(noise_pred=s * zt + a * output, z0_pred=a * zt - s * output)
    raise ValueError(f"unknown parameterisation {parameterisation!r}")


def loss_terms(
    estimate: Estimate,
    noise: Tensor,
    z0: Tensor,
    weight: Tensor | None = None,
    *,
    mean_weight: Tensor | None = None,
    importance: Tensor | None = None,
    squared: bool = False,
    partly: bool = False,
) -> tuple[Tensor, Tensor]:
    """L_noise and L_latent of Eq. 3: mean absolute errors, unless `squared`.

    Args:
        estimate: The network's answer.
        noise: (B,4,h,w), the noise of Eq. 1.
        z0: (B,4,h,w), the clean latent.
        weight: Optional (B,1,h,w) >= 0, where L_latent looks harder; normalised by its mean.
        mean_weight: The mean to normalise by, a scalar, where this is one part of a larger batch.
        importance: Optional (B,), what each sample counts (`timestep_weights`).
        squared: L_latent is the mean squared error instead.
        partly: Where the weight is 0 nothing is known of z0, and L_noise is left out as well.

    Returns:
        Two scalars.
    """
    noise_error = (estimate.noise_pred - noise).abs()
    latent_error = estimate.z0_pred - z0
    latent_error = latent_error.square() if squared else latent_error.abs()
    if weight is not None:
        latent_error = (
            latent_error * weight / (weight.mean() if mean_weight is None else mean_weight)
        )
    if weight is not None and partly:
        known = (weight > 0).float()
        noise_error = noise_error * known / known.mean().clamp(min=1e-6)
    if importance is not None:
        counts = importance.view(-1, 1, 1, 1)
        noise_error, latent_error = noise_error * counts, latent_error * counts
    return noise_error.mean(), latent_error.mean()


def timestep_weights(
    parameterisation: str, noise_loss_weight: float, latent_loss_weight: float
) -> Tensor:
    """Weight that Eq. 3 gives an error of the network's output at each t.

    The two errors of one answer are tied by Eq. 1, sample by sample: with s = sqrt(1 - alpha_bar)
    and a = sqrt(alpha_bar), an error e of the noise is one of s/a e in z0, and an error e of v is
    one of a e in the noise and of s e in z0.

    Args:
        parameterisation: "eps", "v" or "z0".
        noise_loss_weight: Of L_noise.
        latent_loss_weight: Lambda, of L_latent.

    Returns:
        (1000,) float64; for the paper's loss `1 + sqrt(1 / alpha_bar - 1)`, from 1.04 to 39.66.
    """
    a, s = ALPHA_BAR.sqrt(), (1 - ALPHA_BAR).sqrt()
    noise, latent = {
        "eps": (torch.ones_like(a), s / a),
        "z0": (a / s, torch.ones_like(a)),
        "v": (a, s),
    }[parameterisation]
    return noise_loss_weight * noise + latent_loss_weight * latent


def single_step(denoise: Denoiser, noise: Tensor, zc: Tensor) -> Tensor:
    """Prediction as in the paper: Eq. 2 once, from pure noise at t = 999; (B,4,h,w) float32."""
    return denoise(noise, LAST, zc).z0_pred


def ddim_sigma(t: int, t_next: int, eta: float) -> float:
    """Eq. 16 of arXiv 2010.02502: deviation of the fresh noise on the way from `t` down to
    `t_next`; eta 0 is none, 1 that of ancestral sampling (DDPM).
    """
    now, after = ALPHA_BAR[t].item(), ALPHA_BAR[t_next].item()
    return eta * math.sqrt((1 - after) / (1 - now) * (1 - now / after))


def ddim(
    denoise: Denoiser,
    noise: Tensor,
    zc: Tensor,
    steps: int,
    *,
    eta: float = 0.0,
    fresh: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """DDIM (Eq. 12 of arXiv 2010.02502) over `steps` evenly spaced timesteps from 999 down.

    Args:
        denoise: `SDSeg.denoise`.
        noise: (B,4,h,w) standard normal.
        zc: (B,4,h,w), the condition.
        steps: 1 to 1000; 1 is `single_step`.
        eta: See `ddim_sigma`; 0 is deterministic.
        fresh: Gives the noise, as `noise`, of the i-th way between two steps, i from 1; asked only
            where eta > 0.

    Returns:
        `z0_pred` of the last step, (B,4,h,w) float32.

    Raises:
        ValueError: eta > 0 without fresh noise.
    """
    if eta > 0 and fresh is None:
        raise ValueError("eta > 0 needs fresh noise")
    times = [LAST - i * TIMESTEPS // steps for i in range(steps)]
    zt = noise
    for i, (t, t_next) in enumerate(pairwise(times), start=1):
        estimate = denoise(zt, t, zc)
        after, sigma = ALPHA_BAR[t_next].item(), ddim_sigma(t, t_next, eta)
        kept = math.sqrt(1 - after - sigma**2)
        zt = math.sqrt(after) * estimate.z0_pred + kept * estimate.noise_pred
        if eta > 0 and fresh is not None:
            zt = zt + sigma * fresh(i)
    return denoise(zt, times[-1], zc).z0_pred


def seeded_noise(
    seed: int, slices: Sequence[int | str], shape: tuple[int, int, int], *draw: int
) -> Tensor:
    """Noise from one generator per (seed, slice, draw): free of batch size, sharding and
    neighbours.

    Args:
        seed: The user's seed.
        slices: Slice numbers, counted from the feet; equal ones get equal noise.
        shape: (4,h,w) of one slice.
        draw: Nothing where a first sample starts, its number where another one starts, and number
            and step for the fresh noise of `ddim`.

    Returns:
        (len(slices),4,h,w) float32 on the CPU.
    """
    return torch.stack(
        [torch.randn(shape, generator=seeded_generator("noise", seed, k, *draw)) for k in slices]
    )


def seeded_generator(*key: int | str) -> torch.Generator:
    """A CPU generator of its own for each key, for example `("noise", seed, slice)`.

    torch's CPU generator keeps 32 bits of its seed, so keys are hashed rather than added up: two
    keys that differ anywhere have unrelated streams.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
