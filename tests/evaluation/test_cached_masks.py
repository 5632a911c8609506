"""A kept mask counts only for what it was made from; `test_evaluate` tries every change."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.evaluation.cached_masks import CachedMask, CachedMasks
from sdseg_cli.imaging.io.files import read_image
from tests.fake_run import block, volume, write_nifti
from tests.raw_pictures import save

MASK = block(slice(4, 8))
PLANES = np.zeros((4, 256, 256), bool)
PLANES[1, 3, 5:9] = True
SHOWN = 1, np.full((256, 256), 0.3, np.float32)


def made(mask=MASK, planes=PLANES) -> CachedMask:
    return CachedMask(mask != 0, planes, SHOWN)


@pytest.fixture
def scan(tmp_path):
    return read_image(write_nifti(tmp_path / "scan.nii.gz", MASK.astype(np.int16)))


@pytest.fixture
def masks(tmp_path) -> CachedMasks:
    return CachedMasks(
        tmp_path / "predictions" / "test", "c" * 64, "exact ", "cpu", seed=0, sample=SampleConfig()
    )


def test_a_kept_mask_is_found_again(masks, scan):
    assert masks.find("a", scan) is None
    masks.keep("a", made(), scan)
    found = masks.find("a", scan)
    assert (found.mask.dtype, found.planes.dtype) == (np.bool_, np.bool_)
    assert np.array_equal(found.mask, MASK != 0)
    assert np.array_equal(found.planes, PLANES)
    assert found.shown[0] == 1
    assert found.shown[1].dtype == np.float32
    assert np.array_equal(found.shown[1], SHOWN[1])


def test_planes_that_were_replaced_or_taken_away_do_not_count(masks, scan):
    masks.keep("a", made(), scan)
    masks.keep("b", made(planes=~PLANES), scan)
    masks.planes_file("a").write_bytes(masks.planes_file("b").read_bytes())
    assert masks.find("a", scan) is None
    masks.planes_file("b").unlink()
    assert masks.find("b", scan) is None


def test_the_mask_of_a_picture_is_kept_as_png(masks, tmp_path):
    picture = read_image(save(tmp_path / "a.png", np.zeros((4, 6, 3), np.uint8)))
    mask = np.zeros((4, 6, 1), np.uint8)
    mask[1, 2] = 1
    masks.keep("a", made(mask, PLANES[:1]), picture)
    assert masks.file("a", picture).name == "a.png"
    assert np.array_equal(masks.find("a", picture).mask, mask != 0)
    assert replace(masks, seed=1).find("a", picture) is None


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"checkpoint_sha256": "d" * 64},
        {"device": "cuda"},
        {"sample": SampleConfig(steps=10)},
        {"sample": SampleConfig(eta=1.0)},
        {"sample": SampleConfig(samples=2)},
        {"sample": SampleConfig(noise="shared")},
        {"sample": SampleConfig(flips="h")},
    ],
)
def test_a_mask_made_otherwise_is_not_found(masks, scan, change):
    masks.keep("a", made(), scan)
    assert masks.find("b", scan) is None
    assert replace(masks, **change).find("a", scan) is None
    assert masks.find("a", scan) is not None


def test_a_mask_written_without_its_record_does_not_count(masks, scan, monkeypatch):
    masks.keep("a", made(), scan)

    def killed(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr("sdseg_cli.evaluation.cached_masks.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        replace(masks, seed=1).keep("a", made(block(slice(0, 2))), scan)
    assert masks.find("a", scan) is None
    assert replace(masks, seed=1).find("a", scan) is None


def test_the_index_names_what_each_mask_was_made_from(masks, scan):
    masks.keep("b", made(), scan)
    masks.keep("a", made(), scan)
    index = json.loads((masks.folder / "predictions.json").read_text())
    assert list(index["cases"]) == ["a", "b"]
    record = index["cases"]["a"]
    assert (record["checkpoint_sha256"], record["seed"]) == ("c" * 64, 0)
    expected = {"steps": 1, "eta": 0.0, "samples": 1, "noise": "slice", "flips": ""}
    assert record["sample"] == expected
    assert record["scan"] == str(scan.source)


def test_a_scan_without_a_file_cannot_be_kept(masks):
    with pytest.raises(ValueError, match="without a file"):
        masks.keep("a", made(), volume(MASK))
