"""The made-up data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sdseg_cli.data.layouts.btcv import BTCV
from sdseg_cli.demo.anatomy import AORTA, LIVER, SPLEEN, STOMACH
from sdseg_cli.demo.phantom import Phantom, make_phantom
from sdseg_cli.imaging.io.files import read_image, read_labels


def test_the_same_numbers_make_the_same_patient(ct_phantom: Phantom) -> None:
    shape, spacing = ct_phantom.scan.array.shape, (8.0, 8.0, 16.0)
    again, other = make_phantom(0, 1, shape, spacing), make_phantom(0, 2, shape, spacing)
    assert np.array_equal(again.scan.array, ct_phantom.scan.array)
    assert np.array_equal(again.scan.geometry.affine, ct_phantom.scan.geometry.affine)
    assert not np.array_equal(other.labels.array, ct_phantom.labels.array)


def test_every_patient_has_btcvs_larger_organs() -> None:
    for case in range(1, 6):
        labels = make_phantom(3, case, (60, 60, 12), (6.0, 6.0, 13.0)).labels.array
        assert set(np.unique(labels)) == {0, 1, 2, 3, 4, 6, 7, 8, 9, 11}


def test_it_is_oblique_and_stored_left_front_head(ct_phantom: Phantom) -> None:
    affine = ct_phantom.scan.geometry.affine[:3, :3]
    assert ct_phantom.scan.geometry.axis_codes == "LAS"
    assert np.count_nonzero(np.abs(affine) > 1e-3) == 9
    assert np.allclose(ct_phantom.scan.geometry.spacing_mm, (8, 8, 16))


def test_liver_and_spleen_lie_on_their_sides(ct_phantom: Phantom) -> None:
    labels = ct_phantom.labels.array  # i towards the left, j towards the front
    liver, spleen = (np.argwhere(labels == organ).mean(axis=0) for organ in (LIVER, SPLEEN))
    stomach, aorta = (np.argwhere(labels == organ).mean(axis=0) for organ in (STOMACH, AORTA))
    assert liver[0] < labels.shape[0] / 2 < spleen[0]
    assert aorta[1] < stomach[1]


def test_organs_overlap_in_density() -> None:
    phantom = make_phantom(0, 2, (88, 88, 16), (4.2, 4.2, 10.0))
    hu, labels = phantom.scan.array, phantom.labels.array
    low, high = np.percentile(hu[labels == LIVER], (5, 95))
    for organ in (0, SPLEEN, STOMACH, AORTA):
        within = (hu[labels == organ] > low) & (hu[labels == organ] < high)
        assert within.mean() > 0.01
    assert hu.min() < -900
    assert hu[labels == 0].max() > 300


def test_files_come_in_btcvs_layout_on_one_grid(phantom_set: Path) -> None:
    cases = BTCV.find_cases(phantom_set)
    assert [case.id for case in cases] == [f"{number:04d}" for number in range(1, 8)]
    scan = read_image(cases[0].image)
    assert cases[0].label
    label = read_labels(cases[0].label)
    assert scan.array.dtype == np.int16
    assert scan.geometry.same_grid(label.geometry, 0)
