"""The U-Net's other way to see the image: cross-attention to the tokens of its latent.

    x (B,C,h,w), condition zc (B,4,h',w')  ->  (B,C,h,w)

Each position of x asks all h'w' positions of zc, four numbers each, what to take from them. A token
does not know where it lies: zc shuffled over its positions gives the same answer, whereas the
concatenation of `unet.py` hands each position its own. Names as in public Stable Diffusion
checkpoints.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sdseg_cli.core.config import UNET_NORM_GROUPS

NORM_EPS = 1e-6
EXPANSION = 4
"""Width within the feed-forward network over its width outside."""


class Attention(nn.Module):
    """Tokens that ask and tokens that answer; with itself as context, self-attention.

    Args:
        width: Channels of the asking tokens; divisible by `heads`.
        context_width: Channels of the answering tokens.
        heads: Parts of the width that attend on their own.
        dropout: Probability behind the last layer.
    """

    def __init__(self, width: int, context_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B,n,width) and (B,m,context_width) -> (B,n,width): softmax(q k / sqrt(head width)) v."""
        q, k, v = (
            values.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B,heads,tokens,head width)
            for values in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(attended.transpose(1, 2).flatten(2))


class Geglu(nn.Module):
    """A linear layer whose second half gates its first (arXiv 2002.05202)."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width_in, 2 * width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B,n,width_in) -> (B,n,width_out): `value * gelu(gate)`."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Two layers on each token alone."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        wide = EXPANSION * width
        self.net = nn.Sequential(Geglu(width, wide), nn.Dropout(dropout), nn.Linear(wide, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B,n,width) -> (B,n,width)."""
        return self.net(x)


class TransformerBlock(nn.Module):
    """Attention among the tokens, attention to the context, feed-forward: each a residual."""

    def __init__(self, width: int, context_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attn1 = Attention(width, width, heads, dropout)
        self.attn2 = Attention(width, context_width, heads, dropout)
        self.ff = FeedForward(width, dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B,n,width) and (B,m,context_width) -> (B,n,width)."""
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Stands where the concatenating U-Net has an `AttentionBlock`; starts as the identity.

    Args:
        width: Channels of the plane.
        context_width: Channels of the condition (4).
        heads: Heads of both attentions.
        dropout: Probability behind each attention and within the feed-forward network.
    """

    def __init__(self, width: int, context_width: int, heads: int, *, dropout: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(UNET_NORM_GROUPS, width, eps=NORM_EPS)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(width, context_width, heads, dropout)]
        )
        self.proj_out = nn.Conv2d(width, width, 1)
        for value in self.proj_out.parameters():
            nn.init.zeros_(value)

    def forward(self, x: Tensor, zc: Tensor) -> Tensor:
        """(B,width,h,w) and (B,context_width,h',w') -> (B,width,h,w)."""
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (B,hw,width)
        context = zc.flatten(2).transpose(1, 2)  # (B,h'w',context_width)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens.transpose(1, 2).reshape(x.shape))
