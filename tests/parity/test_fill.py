"""The regenerated weights are those the reference outputs were made with."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from tests.parity.fill import manifest, state_dict

SHA256 = {
    "tiny": "c270df7e8e2197d161edf04fc4197a4850e87072e06abc6b703a75cdc8dce6db",
    "full": "486c52927078d52472f0b89ee81e60ec104ce405f600a1b0b792855b54a3a0d1",
}
"""Over the bytes of all network tensors, keys sorted; recorded with the reference outputs."""


@pytest.mark.parametrize("size", ["tiny", pytest.param("full", marks=pytest.mark.slow)])
def test_regenerated_weights_have_the_recorded_hash(size: str) -> None:
    prefixes = ("model.", "first_stage_model.", "cond_stage_model.")
    shapes = {k: s for k, s in manifest(f"sdseg_{size}").items() if k.startswith(prefixes)}
    found = hashlib.sha256()
    for key in sorted(shapes):
        found.update(np.ascontiguousarray(state_dict({key: shapes[key]})[key].numpy()).tobytes())
    assert found.hexdigest() == SHA256[size]
