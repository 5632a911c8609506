"""One case: whether it is done, what is wrong with it, how it is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sdseg_cli.core.errors import RunError
from sdseg_cli.data.prepared import BadCase, CaseJob, check_headers, finished, prepare_case
from sdseg_cli.imaging.intensity import Normalisation
from tests.raw_cases import write_case


@pytest.fixture
def job(tmp_path: Path) -> CaseJob:
    write_case(tmp_path / "pt_1", 0)
    return CaseJob(
        "pt_1",
        tmp_path / "pt_1/image.nii.gz",
        tmp_path / "pt_1/label.nii.gz",
        Normalisation("window", -175, 250),
        "none",
        32,
    )


def test_a_prepared_case_is_finished(job: CaseJob, tmp_path: Path) -> None:
    assert finished(job, tmp_path / "cases") is None
    record = prepare_case(job, tmp_path / "cases")
    assert record == finished(job, tmp_path / "cases")
    assert isinstance(record, dict)
    assert record["label_slices"] == {"1": [1, 2], "300": [4]}
    assert sorted(path.name for path in (tmp_path / "cases").iterdir()) == ["pt_1"]


@pytest.mark.parametrize(
    "change",
    [{"size": 16}, {"crop": "body"}, {"normalisation": Normalisation("window", 0, 1)}],
)
def test_other_settings_make_it_unfinished(
    job: CaseJob, tmp_path: Path, change: dict[str, object]
) -> None:
    prepare_case(job, tmp_path / "cases")
    assert finished(replace(job, **change), tmp_path / "cases") is None  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["pixels.npy", "labels.npy", "case.json"])
def test_a_file_cut_short_makes_it_unfinished(job: CaseJob, tmp_path: Path, name: str) -> None:
    prepare_case(job, tmp_path / "cases")
    file = tmp_path / "cases/pt_1" / name
    file.write_bytes(file.read_bytes()[:-9])
    assert finished(job, tmp_path / "cases") is None


def test_a_source_written_since_makes_it_unfinished(job: CaseJob, tmp_path: Path) -> None:
    prepare_case(job, tmp_path / "cases")
    job.label.write_bytes(job.label.read_bytes() + b"\0")
    assert finished(job, tmp_path / "cases") is None


def test_headers_tell_a_missing_scan_a_missing_label_and_a_sound_case(job: CaseJob) -> None:
    assert check_headers("pt_1", job.image, job.label) is None
    no_label = check_headers("pt_1", job.image, None)
    no_scan = check_headers("pt_1", job.image.with_name("nothing.nii"), job.label)
    assert no_label is not None
    assert no_scan is not None
    assert (no_label.code, no_scan.code) == ("label-missing", "image-missing")


def test_a_refusing_disk_is_a_run_error_naming_the_case(job: CaseJob, tmp_path: Path) -> None:
    (tmp_path / "cases").write_text("a file in the way")
    with pytest.raises(RunError, match="case pt_1: cannot be written"):
        prepare_case(job, tmp_path / "cases")


def test_results_come_in_the_order_of_the_jobs(job: CaseJob, tmp_path: Path) -> None:
    missing = replace(job, id="pt_0", label=tmp_path / "nothing.nii.gz")
    results = [prepare_case(one, tmp_path / "cases") for one in (missing, job)]
    assert isinstance(results[0], BadCase)
    assert (results[0].id, results[0].code) == ("pt_0", "label-missing")
    assert isinstance(results[1], dict)


def test_labels_up_to_255_are_stored_in_a_byte(job: CaseJob, tmp_path: Path) -> None:
    image = nib.load(job.label)
    nib.save(nib.Nifti1Image(np.minimum(np.asanyarray(image.dataobj), 2), image.affine), job.label)
    prepare_case(job, tmp_path / "cases")
    assert np.load(tmp_path / "cases/pt_1/labels.npy").dtype == np.uint8
