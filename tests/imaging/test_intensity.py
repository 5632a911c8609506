"""Windows, percentiles and what a scan's range tells."""

from __future__ import annotations

import numpy as np
import pytest

from sdseg_cli.core.errors import ConfigError
from sdseg_cli.imaging.intensity import (
    Extent,
    Limits,
    Normalisation,
    extent,
    guess_modality,
    percentiles,
)
from sdseg_cli.imaging.volume import Geometry, Volume


def volume_of(values: np.ndarray) -> Volume:
    shape = (values.size // 4, 2, 2)
    return Volume(values.reshape(shape), Geometry(shape, np.eye(4)))


def test_a_window_maps_its_ends_to_minus_one_and_one():
    values = np.array([-1000, -175, 37.5, 250, 3000, np.nan, np.inf, -np.inf], np.float32)
    scaled = Limits(-175, 250).rescale(values)
    assert np.allclose(scaled, [-1, -1, 0, 1, 1, -1, 1, -1], atol=1e-6)
    assert np.isnan(values[5])  # the input is left alone


def test_percentiles_count_voxels_above_the_minimum():
    values = np.concatenate([np.zeros(3000), np.arange(1, 1001)]).astype(np.int16)
    low, high = percentiles(volume_of(values), (0.5, 99.5))
    assert low == pytest.approx(5, abs=0.01)
    assert high == pytest.approx(995, abs=0.01)


def test_percentiles_ignore_the_order_of_voxels_and_values_that_are_no_numbers():
    values = np.random.default_rng(0).lognormal(4, 2, 4000).astype(np.float32)
    values[:3] = np.nan, np.inf, -np.inf
    expected = percentiles(volume_of(values), (0.5, 50, 99.5))
    assert percentiles(volume_of(values[::-1].copy()), (0.5, 50, 99.5)) == expected
    finite = np.sort(values[np.isfinite(values)])[1:]
    by_sorting = [finite[int(np.ceil(q / 100 * finite.size)) - 1] for q in (0.5, 50, 99.5)]
    assert np.allclose(expected, by_sorting, atol=np.ptp(finite) / 4096**2)


def test_one_bright_voxel_does_not_coarsen_percentiles():
    values = np.arange(4000, dtype=np.float32)
    values[-1] = 1e6
    (median,) = percentiles(volume_of(values), (50,))
    assert median == pytest.approx(2000, abs=0.1)


def test_a_constant_scan_becomes_background():
    volume = volume_of(np.full(8, 7, np.int16))
    limits = Normalisation("percentile", 0.5, 99.5).limits(volume)
    assert (limits.rescale(volume.values()) == -1).all()


def test_the_extent_counts_what_is_not_finite():
    values = np.array([1, 2, np.nan, np.inf, -3, 0, 0, 0], np.float32)
    assert extent(volume_of(values)) == Extent(-3, 2, 2)
    assert extent(volume_of(np.full(4, np.nan, np.float32))) == Extent(0, 0, 4)


def test_values_of_air_mean_ct():
    assert guess_modality(Extent(-1000, 3000, 0)) == "CT"
    assert guess_modality(Extent(-150, 900, 0)) == "MR/other"


def test_defaults_follow_the_modality_and_survive_the_manifest():
    ct, other = Normalisation.for_modality("CT"), Normalisation.for_modality("MR/other")
    assert ct == Normalisation("window", -175, 250)
    assert other == Normalisation("percentile", 0.5, 99.5)
    assert Normalisation.from_dict(other.to_dict()) == other


@pytest.mark.parametrize(("kind", "low", "high"), [("window", 5, 5), ("window", 9, 1), ("x", 0, 1)])
def test_an_empty_window_or_unknown_kind_is_refused(kind, low, high):
    with pytest.raises(ConfigError):
        Normalisation(kind, low, high)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((-1000, 3000), (-100, 1100)),  # beyond both ends: the window itself
        ((-1000, 700), (-100, 700)),
        ((0, 700), (0, 700)),
        ((-1000, -500), (-100, -99)),  # all below: nothing to spread
    ],
)
def test_a_window_range_ends_where_the_scan_does(ends, expected):
    array = np.array([ends[0], ends[1]], np.int16).reshape(1, 1, 2)
    scan = Volume(array, Geometry((1, 1, 2), np.eye(4)))
    limits = Normalisation("window-range", -100, 1100).limits(scan)
    assert (limits.low, limits.high) == expected


@pytest.mark.parametrize(
    ("kind", "low", "high", "hides"),
    [
        ("window", -175, 250, True),
        ("window-range", -800, 100, True),
        ("window", -1000, 400, False),  # air lies within
        ("window", 0, 255, False),  # of pictures
        ("window", -200, -50, False),  # water lies above
        ("percentile", 0.5, 99.5, False),
    ],
)
def test_air_is_hidden_by_windows_that_start_between_air_and_water(kind, low, high, hides):
    assert Normalisation(kind, low, high).hides_air is hides
