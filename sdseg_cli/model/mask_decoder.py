"""The fast mask decoder: from a latent to one probability map.

The autoencoder's decoder can draw any image, and two thirds of a prediction's arithmetic go into
that. A mask needs less: this network stays at the latent's resolution, where each position answers
for its own square of `factor` x `factor` pixels. It is trained to answer as the decoder does
(`training.distill`), so it belongs to one autoencoder and to no run.

    latent -> 3x3 -> blocks of (5x5 within each channel, 1x1 across them, the plane's mean) -> 1x1
    -> pixel shuffle -> probability
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdseg_cli.core.config import AutoencoderConfig
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.tensor_files import load_strictly

BLOCKS, KERNEL = 3, 5
MOST_OF_EXACT = 0.03
"""Its arithmetic is at most this share of the decoder's."""


class Block(nn.Module):
    """A look around in each channel, then across the channels, beside a skip.

    The decoder's group norms let each place depend on the whole plane; here its mean does.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.around = nn.Conv2d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.across = nn.Conv2d(width, width, 1)
        self.whole = nn.Linear(width, width)
        nn.init.dirac_(self.around.weight, groups=width)
        nn.init.zeros_(self.whole.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B,width,h,w) -> the same."""
        whole: Tensor = self.whole(x.mean(dim=(2, 3)))[:, :, None, None]
        change: Tensor = self.across(F.silu(self.around(x) + whole))
        return x + change


class MaskDecoder(nn.Module):
    """Latent -> probability.

    Args:
        width: Channels within.
        latent_channels: Of the latent.
        factor: Side of the plane over that of the latent.
    """

    def __init__(self, width: int, *, latent_channels: int = 4, factor: int = 8) -> None:
        super().__init__()
        self.factor = factor
        self.enter = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(BLOCKS)))
        self.leave = nn.Conv2d(width, factor * factor, 1)

    def logits(self, latent: Tensor) -> Tensor:
        """(B,4,h,w) as the autoencoder makes it, unscaled -> (B,H,W); above 0 is foreground."""
        x = self.leave(F.silu(self.blocks(self.enter(latent))))
        return F.pixel_shuffle(x, self.factor)[:, 0]

    def forward(self, latent: Tensor) -> Tensor:
        """(B,4,h,w), unscaled -> probability (B,H,W) float32 in [0,1]."""
        return torch.sigmoid(self.logits(latent).float())


def decoder_width(sizes: AutoencoderConfig) -> int:
    """Channels within: five quarters of the autoencoder's lowest level (120 for `tiny`, 640 for
    kl-f8), about the most that `MOST_OF_EXACT` leaves `tiny`.
    """
    return 5 * sizes.channels * sizes.channel_mult[-1] // 4


def build_mask_decoder(sizes: AutoencoderConfig) -> MaskDecoder:
    """The mask decoder of an autoencoder, with fresh weights."""
    return MaskDecoder(
        decoder_width(sizes), latent_channels=sizes.latent_channels, factor=sizes.factor
    )


def read_mask_decoder(
    tensors: Mapping[str, Tensor], sizes: AutoencoderConfig, *, source: str
) -> MaskDecoder:
    """A trained one, in eval mode.

    Raises:
        WeightsError: They are the weights of something else.
    """
    decoder = build_mask_decoder(sizes)
    load_strictly(decoder, tensors, source=source)
    return decoder.eval().requires_grad_(False)


def autoencoder_hash(autoencoder: Autoencoder) -> str:
    """Identity of an autoencoder: the sha256 of its weights as float16, as runs keep them."""
    digest = hashlib.sha256()
    for key, value in sorted(autoencoder.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()
