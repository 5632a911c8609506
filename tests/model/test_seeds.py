from __future__ import annotations

import itertools

import torch

from sdseg_cli.model.seeds import seeded_generator


def _stream(*key: int | str) -> tuple[float, ...]:
    return tuple(torch.rand(4, generator=seeded_generator(*key)).tolist())


def test_one_key_gives_one_stream() -> None:
    assert _stream("step", 0, 7) == _stream("step", 0, 7)


def test_keys_that_differ_anywhere_have_different_streams() -> None:
    # 2**32 and 2**40 vanish in the 32 bits that torch keeps of a plain seed.
    numbers = (0, 1, 2, 12, 2**32, 2**40, -1)
    keys = [
        (purpose, a, b)
        for purpose in ("noise", "step")
        for a, b in itertools.product(numbers, repeat=2)
    ]
    assert len({_stream(*key) for key in keys}) == len(keys)
