from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.evaluation.stability_results import (
    COLUMNS,
    Comparison,
    StabilityReport,
    table5_caption,
    table5_rows,
    write_table5,
)


@pytest.fixture
def report() -> StabilityReport:
    """Two pairs of slices, of which the masks of one are identical; no LPIPS."""
    values = {
        ("seg", "psnr"): np.array([np.inf, 20.0]),
        ("seg", "ssim"): np.array([1.0, 0.91]),
        ("seg", "ms_ssim"): np.array([1.0, 0.9876]),
        ("score", "psnr"): np.array([30.0, 20.126]),
        ("score", "ssim"): np.array([0.5, 0.6]),
        ("score", "ms_ssim"): np.array([0.5, 0.7]),
    }
    return StabilityReport(
        run=Path("runs/a_b/x"),
        split="test",
        seeds=(0, 1),
        sample=SampleConfig(),
        comparisons=(Comparison("c", 1, 2, values),),
        dice={},
        missing_lpips=("lpips-alexnet",),
    )


def test_ours_stands_below_the_papers_with_a_dash_for_what_is_missing(
    report: StabilityReport,
) -> None:
    *_, paper, ours = (row.cells for row in table5_rows(report, "a_b"))
    assert COLUMNS == ("method", "data", "LPIPS", "PSNR, dB", "SSIM", "MS-SSIM")
    assert paper == (
        "SDSeg",
        "BTCV, paper",
        "0.0199 / 0.0143",
        "27.63 / 31.55",
        "0.9796 / 0.9764",
        "0.9897 / 0.9909",
    )
    # (30 + 20.126) / 2 = 25.063; (1 + 0.91) / 2; (1 + 0.9876) / 2
    assert ours == (
        "this run",
        "a_b",
        "- / -",
        "20.0 / 25.06",
        "0.955 / 0.55",
        "0.9938 / 0.6",
    )


def test_the_caption_says_that_the_data_are_others_and_how_many_pairs_are_identical(
    report: StabilityReport,
) -> None:
    caption = table5_caption(report, "a_b")
    assert "rows are of BTCV, other data" in caption
    assert "identical of 2: Seg 1, Score 0" in caption


def test_the_files_hold_plain_numbers_and_escaped_latex(
    report: StabilityReport, tmp_path: Path
) -> None:
    table, latex = write_table5(tmp_path / "new", report, "a_b & 5%")
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert (rows[-1]["data"], rows[-1]["seg_psnr"]) == ("a_b & 5%", "20.0")
    assert (rows[-1]["seg_lpips"], rows[0]["seg_lpips"]) == ("", "0.3139")
    source = latex.read_text(encoding="utf-8")
    assert r"a\_b \& 5\%" in source and "a_b &" not in source
    assert source.count(r"\\") == 5  # heads and four rows
