"""Real contours against a second implementation, SimpleITK's overlap and Hausdorff filters.

Overlaps and volumes are the same. Distances are not defined alike: SimpleITK measures from every
voxel of one mask to the nearest voxel of the other, which is 0 within that; ours, as MONAI's, lie
from border to border. So:

- The maxima agree unless the point furthest from the other border lies inside the other mask: of 45
  pairs one differs, where dilation fills a pocket of a parotid (7.13 mm against 5.08 mm).
- SimpleITK's average counts the zeros of all inner voxels, and takes the larger of both directions.
  The average of border distances is 1.0 times it where masks hardly overlap, 4.9 where they differ
  by a layer of voxels.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from sdseg_cli.metrics.mask_metrics import (
    MaskPair,
    assd,
    dice,
    iou,
    precision,
    recall,
    volume_difference,
)

CASES = ("pt_100", "pt_13", "pt_22")
RIGHT_PAROTID, LEFT_PAROTID = 3, 4


def pairs(folder: Path):
    """What differs, prediction, reference and spacing: 15 pairs of a case."""
    image = nib.load(folder / "label.nii.gz")
    labels = np.asarray(image.dataobj)
    spacing = tuple(float(step) for step in image.header.get_zooms())
    for label in range(1, 8):
        mask = labels == label
        yield f"{label} dilated", ndimage.binary_dilation(mask), mask, spacing
        yield f"{label} moved", np.roll(mask, (2, 1, 1), (0, 1, 2)), mask, spacing
    yield "sides", labels == LEFT_PAROTID, labels == RIGHT_PAROTID, spacing


def second_opinion(pred, label, spacing):
    """SimpleITK's two filters, executed."""
    import SimpleITK as sitk  # noqa: N813

    images = []
    filled = np.argwhere(pred | label)
    box = tuple(
        slice(low, high + 1) for low, high in zip(filled.min(0), filled.max(0), strict=True)
    )
    for mask in (pred[box], label[box]):
        image = sitk.GetImageFromArray(mask.T.astype(np.uint8))
        image.SetSpacing(spacing)
        images.append(image)
    overlap, hausdorff = sitk.LabelOverlapMeasuresImageFilter(), sitk.HausdorffDistanceImageFilter()
    overlap.Execute(*images)
    hausdorff.Execute(*images)
    return overlap, hausdorff


@pytest.mark.data
@pytest.mark.parametrize("case", CASES)
def test_overlaps_and_volumes_are_simpleitks(real_data: Path, case: str) -> None:
    for _, pred, label, spacing in pairs(real_data / "openkbp-hn-ct" / case):
        theirs, _ = second_opinion(pred, label, spacing)
        pair = MaskPair(pred, label, spacing)
        assert dice(pair) == pytest.approx(theirs.GetDiceCoefficient(), abs=1e-12)
        assert iou(pair) == pytest.approx(theirs.GetJaccardCoefficient(), abs=1e-12)
        assert precision(pair) == pytest.approx(1 - theirs.GetFalseDiscoveryRate())
        assert recall(pair) == pytest.approx(1 - theirs.GetFalseNegativeError())
        # Theirs is 2 (P - R) / (P + R).
        both_ml = (pred.sum() + label.sum()) * np.prod(spacing) / 1000
        of_ours = 2 * volume_difference(pair) / both_ml
        assert of_ours == pytest.approx(theirs.GetVolumeSimilarity(), abs=1e-9)


@pytest.mark.data
def test_hausdorff_distances_are_simpleitks_but_for_a_filled_pocket(real_data: Path) -> None:
    apart, ratios = {}, []
    for case in CASES:
        for name, pred, label, spacing in pairs(real_data / "openkbp-hn-ct" / case):
            _, theirs = second_opinion(pred, label, spacing)
            pair = MaskPair(pred, label, spacing)
            largest, maximum = pair.surfaces.both.max(), theirs.GetHausdorffDistance()
            assert largest >= maximum - 1e-4
            if largest > maximum + 1e-4:
                apart[case, name] = (round(float(largest), 2), round(maximum, 2))
            ratios.append((assd(pair) or 0) / theirs.GetAverageHausdorffDistance())
    assert apart == {("pt_13", "4 dilated"): (7.13, 5.08)}
    assert len(ratios) == 45
    assert min(ratios) == pytest.approx(0.999, abs=5e-4)
    assert max(ratios) == pytest.approx(4.875, abs=5e-4)
