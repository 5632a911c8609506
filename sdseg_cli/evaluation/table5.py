"""Table 5 of the paper with a row of ours: how alike the results of several runs are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdseg_cli.core.tables import Cell, write_csv
from sdseg_cli.evaluation.stability_scores import StabilityReport
from sdseg_cli.metrics.pairwise_similarity import MAPS, METRICS
from sdseg_cli.report.latex import write_latex
from sdseg_cli.report.paper_tables import TABLE5

_HEADS = {"lpips": ("LPIPS", 4), "psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 4)}
_HEADS["ms_ssim"] = ("MS-SSIM", 4)
_KEYS = tuple((metric, name) for metric in _HEADS for name in MAPS)
COLUMNS = ("method", "data", *(name for name, _ in _HEADS.values()))
"""Each cell is Seg / Score, as the paper prints them."""


@dataclass(frozen=True)
class Row:
    """One method on one data set."""

    method: str
    data: str
    values: dict[str, dict[str, float | None]]
    """`{"seg": {"psnr": 27.63, ...}, "score": {...}}`; None where it was not measured."""

    @property
    def cells(self) -> tuple[str, ...]:
        """As text, with no more decimals than the paper; a dash for what is absent."""
        pairs = ([_text(metric, self.values[name][metric]) for name in MAPS] for metric in _HEADS)
        return (self.method, self.data, *(" / ".join(pair) for pair in pairs))

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"method": self.method, "data": self.data, **self.values}


def table5_rows(report: StabilityReport, dataset: str) -> tuple[Row, ...]:
    """The paper's rows, then ours.

    Args:
        report: Of `stability`; first against rest is taken, as the paper does.
        dataset: The prepared set's name.
    """
    paper = (
        Row(row.method, "BTCV, paper", {"seg": asdict(row.seg), "score": asdict(row.score)})
        for row in TABLE5
    )
    measured: dict[str, dict[str, float | None]] = {
        name: {metric: report.mean(name, metric) for metric in METRICS} for name in MAPS
    }
    return (*paper, Row("this run", dataset, measured))


def table5_caption(report: StabilityReport, dataset: str) -> str:
    """What has to be known to read it."""
    same = ", ".join(f"{name.title()} {report.identical(name)}" for name in MAPS)
    return (
        f"Stability of {len(report.seeds)} runs on {dataset} ({report.split}), Seg / Score, first "
        f"against rest, beside Table 5 of the paper. Its rows are of BTCV, other data: they say "
        f"how large such numbers are, not which method is better. PSNR is the mean of the pairs "
        f"that differ; identical of {report.pairs()}: {same}."
    )


def write_table5(folder: Path, report: StabilityReport, dataset: str) -> tuple[Path, Path]:
    """Write table5.csv and table5.tex.

    Args:
        folder: Made if missing.
        report: Of `stability`.
        dataset: The prepared set's name.

    Raises:
        RunError: The disk refused.
    """
    rows = table5_rows(report, dataset)
    table, latex = folder / "table5.csv", folder / "table5.tex"
    keys = [f"{name}_{metric}" for metric, name in _KEYS]
    lines: list[dict[str, Cell]] = [
        {
            "method": row.method,
            "data": row.data,
            **{f"{name}_{metric}": row.values[name][metric] for metric, name in _KEYS},
        }
        for row in rows
    ]
    write_csv(table, ["method", "data", *keys], lines)
    write_latex(latex, COLUMNS, [row.cells for row in rows], table5_caption(report, dataset))
    return table, latex


def _text(metric: str, value: float | None) -> str:
    return "-" if value is None else str(round(value, _HEADS[metric][1]))
