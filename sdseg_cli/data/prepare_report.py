"""What `prepare` made: a case's entry in the manifest, and the report. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdseg_cli.core.errors import DataError
from sdseg_cli.core.filenames import natural_key
from sdseg_cli.core.findings import Finding
from sdseg_cli.data.manifest import Manifest, PreparedCase
from sdseg_cli.data.spec import SPLITS, Case, ClassRule
from sdseg_cli.data.split import Split

Records = dict[str, dict[str, Any]]
"""Case id -> what its case.json holds."""


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` made.

    Attributes:
        manifest: The manifest file.
        cases: Number of cases by split.
        slices: Number of slices of all cases.
        skipped: Cases left out: {"case", "code", "why"}.
        warnings: What is odd about the cases that were kept.
    """

    manifest: Path
    cases: dict[str, int]
    slices: int
    skipped: tuple[dict[str, str], ...]
    warnings: tuple[Finding, ...] = ()

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        skipped: Sequence[dict[str, str]],
        unlisted: Iterable[str],
        warnings: Sequence[Finding],
    ) -> PrepareReport:
        """The report of a manifest.

        Args:
            manifest: What was made.
            skipped: Faulty cases: {"case", "code", "why"}.
            unlisted: Cases in no split; the faulty ones among them are named once.
            warnings: See the attribute.
        """
        faulty = {entry["case"] for entry in skipped}
        rest = [
            {"case": id, "code": "split", "why": "not named in the split file"}
            for id in unlisted
            if id not in faulty
        ]
        return cls(
            manifest=manifest.path,
            cases={name: len(manifest.cases(name)) for name in SPLITS},
            slices=sum(case.slices for case in manifest.entries),
            skipped=tuple(sorted([*skipped, *rest], key=lambda one: natural_key(one["case"]))),
            warnings=tuple(warnings),
        )

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "manifest": str(self.manifest),
            "cases": self.cases,
            "slices": self.slices,
            "skipped": list(self.skipped),
            "warnings": [finding.to_json() for finding in self.warnings],
        }


def entry_of(
    case: Case, record: Mapping[str, Any], split: Split, classes: ClassRule
) -> PreparedCase:
    """A case as the manifest names it.

    Args:
        case: With its label.
        record: What its case.json holds.
        split: Where it goes.
        classes: What counts as foreground.
    """
    if case.label is None:
        raise ValueError(f"case {case.id} has no label")
    return PreparedCase(
        id=case.id,
        split=split.of[case.id],
        image=case.image.absolute(),
        label=case.label.absolute(),
        slices=record["slices"],
        folder=f"cases/{case.id}",
        foreground_slices=len(classes.slices(record["label_slices"])),
        spacing_mm=record["spacing_mm"] and tuple(record["spacing_mm"]),
        sha256=record["sha256"],
    )


def labels_of(records: Records) -> tuple[int, ...]:
    """Labels that occur, ascending, without 0."""
    return tuple(
        sorted({int(label) for case in records.values() for label in case["label_slices"]})
    )


def check_foreground(manifest: Manifest) -> None:
    """Refuse a set in which there is nothing to learn, or nothing to validate on.

    Raises:
        DataError: No case has foreground, or none of the split train or val.
    """
    present = ", ".join(map(str, manifest.labels)) or "none"
    for split in (None, "train", "val"):
        if not any(case.foreground_slices for case in manifest.cases(split)):
            raise DataError(
                f"{manifest.source}: no {split or ''} case has foreground (labels: {present}).",
                "Choose labels that occur with --target, or another split with --split-file.",
            )
