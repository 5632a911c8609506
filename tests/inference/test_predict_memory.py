"""What a prediction needs, and what is said of one that does not fit: expected values by hand."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdseg_cli.core.errors import RunError
from sdseg_cli.imaging.postprocess import PostProcess
from sdseg_cli.imaging.scans import Scan
from sdseg_cli.imaging.slices import SliceStack
from sdseg_cli.imaging.volume import Geometry
from sdseg_cli.inference.cohort import Task, predict_one
from sdseg_cli.inference.ledger import FAILED
from sdseg_cli.inference.options import OutputPaths, PredictOptions
from sdseg_cli.inference.predict import (
    PREVIEW_BYTES,
    MemoryGuard,
    Need,
    advice,
    need_of,
    predict_file,
)
from tests.fake_run import write_nifti
from tests.inference.test_predict import SIDE, Given

GRID = Geometry((20, 10, 5), np.diag([-2.0, -2.0, 3.0, 1.0]))
"""1,000 voxels; its planes are 10 x 20, so a slice on its way takes 20 x 20 x 24 = 9,600 bytes."""
NII, MHA = Path("m.nii.gz"), Path("m.mha")


def test_the_contracts_case_takes_scan_mask_probability_and_a_batch() -> None:
    need = need_of(OutputPaths(NII, Path("p.nii")), GRID, voxel_bytes=2, batch_bytes=7000, draws=1)
    # Each draw is compared as two bytes per pixel: 400 x 2.
    assert need == Need(2000, 1000, 1000, 0, 0, 0, 7000 + 9600 + 800)
    assert need.total == 2000 + 1000 + 1000 + 17400


def test_every_map_and_the_drawing_are_counted() -> None:
    outputs = OutputPaths(NII, Path("p.nii"), "float32", Path("u.nii"), Path("look.png"))
    need = need_of(outputs, GRID, voxel_bytes=4, batch_bytes=0, draws=5)
    assert need == Need(4000, 1000, 4000, 1000, 0, PREVIEW_BYTES, 9600 + 4000)


def test_other_formats_than_nifti_copy_the_largest_map_they_write() -> None:
    assert need_of(OutputPaths(MHA), GRID, 2, 0).copies == 1000
    assert need_of(OutputPaths(NII, MHA), GRID, 2, 0).copies == 4000, "as float32"
    assert need_of(OutputPaths(MHA, Path("p.nrrd")), GRID, 2, 0).copies == 4000, "one at a time"


def test_the_advice_is_the_first_option_that_is_enough() -> None:
    savings = {"--batch-size 1": 5, "no --preview": 0, "no --prob": 10}
    assert advice(savings, 5) == "It fits with --batch-size 1."
    assert advice(savings, 6) == "It fits with no --prob."


def test_where_one_option_is_not_enough_all_are_named_that_add_up() -> None:
    savings = {"--batch-size 1": 5, "--prob-dtype uint8": 6, "no --preview": 0, "no --prob": 8}
    assert advice(savings, 13) == "It fits with --batch-size 1 and no --prob."
    assert advice(savings, 14).startswith("No option makes it fit"), "uint8 is no prob's part"


def refused(room: MemoryGuard, free: int, monkeypatch: pytest.MonkeyPatch) -> RunError:
    monkeypatch.setattr("sdseg_cli.inference.predict.available_bytes", lambda: free)
    with pytest.raises(RunError) as caught:
        room(Geometry((1000, 1000, 1000), np.diag([1.0, 1.0, 1.0, 1.0])), 2)
    return caught.value


def test_a_scan_that_does_not_fit_is_told_its_need_what_is_free_and_what_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = MemoryGuard("ct.nii.gz", OutputPaths(NII, Path("p.nii")), lambda _: 474_000_000)
    # 2 GB of scan, 1 of mask, 1 of probability, 0.474 of batch, 0.026 of a slice's 10^6 pixels.
    error = refused(room, 3_600_000_000, monkeypatch)
    assert error.message == (
        "ct.nii.gz: predicting it takes 4.50 GB of memory (scan 2.00, mask 1.00, probability 1.00, "
        "batch 0.50), and 3.60 GB are free."
    )
    assert error.hint == "It fits with no --prob."
    assert error.exit_code == 1


@pytest.mark.parametrize(
    ("free", "hint"),
    [
        (4_400_000_000, "It fits with --batch-size 1."),
        (2_900_000_000, "No option makes it fit: end other programs, or take a machine"),
    ],
)
def test_what_helps_depends_on_how_much_is_missing(
    free: int, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {None: 474_000_000, 1: 74_000_000}
    room = MemoryGuard("ct.nii.gz", OutputPaths(NII, Path("p.nii")), sizes.__getitem__)
    assert refused(room, free, monkeypatch).hint.startswith(hint)


def test_a_batch_counts_no_more_slices_than_the_scan_has_and_the_hint_names_what_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def bytes_of(size: int | None) -> int:
        return (size or 0) * 1_000_000

    room = MemoryGuard("ct.nii.gz", OutputPaths(NII), bytes_of, batch_size=10**9)
    # 2 GB of scan, 1 of mask, 0.026 of a slice's pixels: 0.974 GB are left for 1 MB a slice, and
    # the scan has 1000.
    error = refused(room, 4_000_000_000, monkeypatch)
    assert "batch 1.03" in error.message
    assert error.hint == "It fits with --batch-size 974."
    MemoryGuard("ct", OutputPaths(NII), bytes_of, batch_size=10**9)(GRID, 2)  # five slices


def test_what_just_fits_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdseg_cli.inference.predict.available_bytes", lambda: 13_400)
    MemoryGuard("ct", OutputPaths(NII), lambda _: 0)(GRID, 2)  # 2000 + 1000 + 9600 + 800
    with pytest.raises(RunError):
        MemoryGuard("ct", OutputPaths(NII), lambda _: 1)(GRID, 2)


class Endless(Given):
    """Answers the same for each slice: nothing, but for a corner; a scan may have any number."""

    def __init__(self) -> None:
        super().__init__(np.zeros((1, SIDE, SIDE)))
        self.answers[..., :4, :4] = 1

    def planes(self, stack: SliceStack, **_: object) -> Iterator[Any]:
        for k in range(len(stack)):
            yield k, self.answers[0]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_prediction_keeps_the_contracts_bound(suffix: str, tmp_path: Path) -> None:
    voxels = np.zeros((192, 192, 128), np.int16)
    voxels[::2] = 40
    scan = write_nifti(tmp_path / f"scan{suffix}", voxels)
    mask, probability = tmp_path / f"mask{suffix}", tmp_path / f"prob{suffix}"
    post = PostProcess(fill_holes=True, min_size_ml=0.1, keep_largest=1)
    count = voxels.size
    del voxels
    predictor: Any = Endless()
    predict_file(scan, OutputPaths(mask), predictor, PredictOptions(post=post))  # loads libraries
    tracemalloc.start()
    report = predict_file(
        scan, OutputPaths(mask, probability=probability), predictor, PredictOptions(post=post)
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.foreground_voxels > 0
    assert 4 * count < peak < (1.5 * 2 + 1 + 1) * count


def test_a_scan_that_does_not_fit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = write_nifti(tmp_path / "ct.nii", np.zeros((8, 8, 8), np.int16))
    monkeypatch.setattr("sdseg_cli.inference.predict.available_bytes", lambda: 0)
    monkeypatch.setattr("sdseg_cli.imaging.io.nifti.read_array", None)
    with pytest.raises(RunError, match=r"ct\.nii: predicting it takes .* 0\.00 GB are free"):
        predict_file(scan, OutputPaths(tmp_path / "m.nii"), Endless())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == [scan]


def test_in_a_cohort_it_is_one_failed_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_nifti(tmp_path / "in" / "ct.nii", np.zeros((8, 8, 8), np.int16))
    scan = Scan("ct", path, Path("ct.nii"))
    monkeypatch.setattr("sdseg_cli.inference.predict.available_bytes", lambda: 0)
    row = predict_one(Task(tmp_path, OutputPaths(tmp_path / "out")), scan, Endless(), {})  # type: ignore[arg-type]
    assert row.status == FAILED
    assert "GB are free. No option makes it fit" in row.error
