from __future__ import annotations

import numpy as np
import pytest

from sdseg_cli.imaging.planes import Planes
from sdseg_cli.imaging.volume import Geometry
from tests.imaging.test_slices import ORDERS, SIGNS


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("signs", SIGNS)
def test_all_planes_at_once_are_the_planes_one_by_one(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = (np.diag(signs) @ np.diag([1.0, 2.0, 3.0]))[:, list(order)]
    array = np.arange(24).reshape(2, 3, 4)
    planes = Planes.of(Geometry((2, 3, 4), affine))
    stacked = planes.stacked(array)
    assert np.shares_memory(stacked, array)
    assert np.array_equal(stacked, [planes.get(array, k) for k in range(planes.count)])
