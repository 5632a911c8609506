"""Surface distances of masks small enough to measure by hand, and against MONAI's on large ones."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from sdseg_cli.metrics import ScoringOptions
from sdseg_cli.metrics.mask_metrics import MaskPair, assd, hd95, surface_dice
from sdseg_cli.metrics.surfaces import border, surface_distances

SPACING = (1.0, 2.0, 4.0)


def voxels(*places, shape=(6, 6, 6)):
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


def measured(pred, label, spacing=SPACING, tolerance=2.0):
    """HD95, ASSD and surface Dice."""
    pair = MaskPair(pred, label, spacing, options=ScoringOptions(tolerance=tolerance))
    return hd95(pair), assd(pair), surface_dice(pair)


@pytest.mark.parametrize(("step", "mm"), [((1, 0, 0), 1), ((0, 1, 0), 2), ((0, 0, 1), 4)])
def test_two_voxels_lie_apart_by_the_spacing_of_their_axis(step, mm):
    other = tuple(2 + n for n in step)
    assert measured(voxels((2, 2, 2)), voxels(other)) == (mm, mm, float(mm <= 2))


def test_two_voxels_across_all_axes_lie_apart_by_the_diagonal():
    diagonal = (1 + 4 + 16) ** 0.5
    found = measured(voxels((2, 2, 2)), voxels((3, 3, 3)))
    assert found == (pytest.approx(diagonal), pytest.approx(diagonal), 0.0)


def test_equal_masks_have_no_distance():
    mask = voxels(np.s_[1:4, 1:4, 1:4])
    assert measured(mask, mask) == (0.0, 0.0, 1.0)


def test_one_empty_mask_has_no_distance_and_no_surface_in_common():
    assert measured(voxels(), voxels((1, 1, 1))) == (None, None, 0.0)
    assert measured(voxels((1, 1, 1)), voxels()) == (None, None, 0.0)


def test_two_empty_masks_have_nothing_to_measure():
    assert measured(voxels(), voxels()) == (None, None, None)


def test_an_empty_mask_against_a_full_one_has_no_distance():
    full = np.ones((3, 3, 3), bool)
    assert measured(voxels(shape=(3, 3, 3)), full) == (None, None, 0.0)
    assert border(full).sum() == 26  # all but the voxel in the middle


def test_a_mask_that_touches_the_edge_of_the_grid_ends_there():
    edge = border(np.ones((4, 3, 1), bool)[:, :, 0])
    assert edge.tolist() == [[1, 1, 1], [1, 0, 1], [1, 0, 1], [1, 1, 1]]
    # A full grid against the same without its first layer. Of the 26 border voxels of the one, 17
    # are border of the other too; the 9 of the first layer lie a step of 3 mm away.
    full, less = np.ones((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    less[0] = False
    surfaces = surface_distances(full, less, (3.0, 1.0, 1.0))
    assert sorted(surfaces.to_label) == [0.0] * 17 + [3.0] * 9
    # Two layers are all border; the middle of the upper one lies inside of the full grid, 1 mm
    # from that grid's border.
    assert sorted(surfaces.to_pred) == [0.0] * 17 + [1.0]
    farthest, mean, _ = measured(full, less, (3.0, 1.0, 1.0))
    assert mean == pytest.approx((9 * 3 + 1) / (26 + 18))
    assert farthest == 3.0


def test_hd95_is_the_larger_direction_and_interpolates():
    # From 11 voxels in a row to the first of them: 0..10 mm, of which the 95th percentile is 9.5;
    # the other direction is 0.
    row, first = voxels(np.s_[:11, 0], shape=(11, 2)), voxels((0, 0), shape=(11, 2))
    assert sorted(surface_distances(row, first, (1.0, 1.0)).to_label) == list(range(11))
    assert measured(row, first, (1.0, 1.0)) == (
        pytest.approx(9.5),
        pytest.approx(55 / 12),
        pytest.approx((3 + 1) / 12),
    )
    assert measured(first, row, (1.0, 1.0))[0] == pytest.approx(9.5)


def test_a_distance_of_exactly_the_tolerance_is_within():
    one, other = voxels((0, 0, 0)), voxels((3, 0, 0))
    assert 3 * 0.1 > 0.3  # by rounding
    assert measured(one, other, (0.1, 1.0, 1.0), tolerance=0.3)[2] == 1.0
    assert measured(one, other, (0.1, 1.0, 1.0), tolerance=0.2999)[2] == 0.0


def test_a_grid_of_one_plane_is_measured_within_it():
    # In 3D every voxel of a plane would be border, and the mask's inside count as its surface.
    wide, narrow = np.zeros((7, 7, 1), bool), np.zeros((7, 7, 1), bool)
    wide[1:6, 1:6], narrow[2:5, 2:5] = True, True
    pair = MaskPair(wide, narrow, (1.0, 1.0, 9.0))
    assert sorted(pair.surfaces.to_pred) == [1.0] * 8  # not 9: the middle voxel is no border
    assert len(pair.surfaces.to_label) == 16
    deep = MaskPair(
        np.pad(wide, ((0, 0), (0, 0), (0, 1))), np.pad(narrow, ((0, 0), (0, 0), (0, 1))), (1.0,) * 3
    )
    assert len(deep.surfaces.to_pred) == 9


def test_a_pair_is_cut_to_its_box_and_keeps_its_distances():
    pred, label = voxels((0, 0, 5), (4, 1, 1)), voxels((4, 2, 1))
    for order in "CF":
        laid = (np.asarray(mask, order=order) for mask in (pred, label))
        pair = MaskPair(*laid, SPACING, options=ScoringOptions(tolerance=1.0))
        assert sorted(pair.pred.shape) == [3, 5, 5]
        assert pair.pred.flags.c_contiguous and pair.label.flags.c_contiguous
        assert (pair.predicted_voxels, pair.reference_voxels, pair.options.tolerance) == (2, 1, 1.0)
        # (0,0,5) to (4,2,1): 4 mm, 2 x 2 mm, 4 x 4 mm.
        far = (16 + 16 + 256) ** 0.5
        assert sorted(pair.surfaces.to_label) == pytest.approx([2.0, far])
        assert pair.surfaces.to_pred.tolist() == [2.0]


def test_a_pair_of_unequal_shapes_types_or_axes_is_refused():
    mask = voxels((1, 1, 1))
    with pytest.raises(ValueError, match="shape"):
        MaskPair(mask, mask[:3], SPACING)
    with pytest.raises(ValueError, match="bool"):
        MaskPair(mask.astype(np.uint8), mask, SPACING)
    with pytest.raises(ValueError, match="2 spacings for 3 axes"):
        MaskPair(mask, mask, (1.0, 1.0))
    with pytest.raises(ValueError, match="no distances"):
        MaskPair(mask, mask, None).surfaces  # noqa: B018


def random_pair(seed: int, axes: int):
    """Two clouds with holes and islands that touch the edge of the grid, and a spacing."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(12, 24, axes))
    base = gaussian_filter(rng.normal(size=shape), 2)
    masks = (base + 0.3 * gaussian_filter(rng.normal(size=shape), 1) > 0 for _ in range(2))
    return (*masks, tuple(rng.uniform(0.4, 5, axes)))


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_random_masks_score_as_monai_scores_them(seed, axes):
    with warnings.catch_warnings():  # MONAI and what it imports warn of their own calls
        warnings.simplefilter("ignore")
        import torch
        from monai.metrics import (
            compute_average_surface_distance,
            compute_hausdorff_distance,
            compute_surface_dice,
        )

        pred, label, spacing = random_pair(seed, axes)
        batch = [torch.from_numpy(mask)[None, None] for mask in (pred, label)]
        how = {"include_background": True, "spacing": spacing}
        monai = [
            compute_hausdorff_distance(*batch, percentile=95, **how),
            compute_average_surface_distance(*batch, symmetric=True, **how),
            compute_surface_dice(*batch, class_thresholds=[2.0], **how),
        ]
    expected = [float(value) for value in monai]
    assert 0 < expected[2] < 1
    assert measured(pred, label, spacing) == pytest.approx(expected, rel=1e-6)
