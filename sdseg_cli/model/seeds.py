"""Independent streams of random numbers, named by what they are for."""

from __future__ import annotations

import hashlib

import torch


def seeded_generator(*key: int | str) -> torch.Generator:
    """A CPU generator of its own for each key, for example `("noise", seed, slice)`.

    torch's CPU generator keeps 32 bits of its seed, so keys are hashed rather than added up: two
    keys that differ anywhere have unrelated streams.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
