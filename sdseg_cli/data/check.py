"""`sdseg check`: what is wrong or odd about a data set or a file, and how to fix it.

Files are measured by `imaging`, one scan at a time in each process; `datasets` judges the numbers.
Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.core.filenames import is_picture
from sdseg_cli.core.findings import ERROR, EVERY_CASE, Finding, in_order
from sdseg_cli.core.processes import available_cores, in_processes
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.checks import Expected, check_case, check_cohort, check_grid, check_scan
from sdseg_cli.data.class_checks import check_classes
from sdseg_cli.data.classes import ClassChoice, ClassOptions, choose
from sdseg_cli.data.layouts.folder import FOLDER
from sdseg_cli.data.recognise import find_cases, fitting
from sdseg_cli.data.spec import Case, ClassRule, DatasetSpec
from sdseg_cli.data.split import FEWEST_CASES, read_split, split_of
from sdseg_cli.data.unexpected_files import (
    check_set,
    dicom_folders,
    is_dicom,
    sets_in,
    unchecked_dicom,
)
from sdseg_cli.imaging.measure import CaseFacts, Pair, measure_case, measure_pictures


@dataclass(frozen=True)
class CheckReport:
    """The findings of a check.

    Attributes:
        findings: Errors first.
        cases: Number of cases looked at.
    """

    findings: tuple[Finding, ...]
    cases: int

    @property
    def errors(self) -> int:
        """Number of findings that would stop `prepare`."""
        return sum(finding.level == ERROR for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"findings": [one.to_json() for one in self.findings], "cases": self.cases}


def check(
    src: Path,
    *,
    dataset: str | None = None,
    image_glob: str | None = None,
    label_glob: str | None = None,
    options: ClassOptions | None = None,
    split_file: Path | None = None,
    workers: int | None = None,
    progress: Progress = no_op,
) -> CheckReport:
    """Check a data set's folder, or one file.

    Args:
        src: Folder of the data set, found as `prepare` does; a folder of several, checked one by
            one; or a scan, checked alone.
        dataset: Adapter; recognised by the layout when absent.
        image_glob: Pattern of the scans relative to `src`; with `label_glob`.
        label_glob: Pattern of the label maps.
        options: Which labels a run would segment; default as `prepare`'s.
        split_file: Who trains, validates and tests; when absent, as `prepare` would draw it.
        workers: Processes; default one per core.
        progress: Called after each case.

    Raises:
        ConfigError: An option makes no sense.
        DataError: There is nothing to check.
    """
    if src.is_file():
        return _check_file(src)
    plain = dataset is image_glob is label_glob is None
    known = src.is_dir() and any(spec is not FOLDER for spec in fitting(src))
    if src.is_dir() and plain and not known and (sets := sets_in(src)):
        return _check_sets(sets, options, split_file, workers, progress)
    spec, cases = _find(src, dataset, image_glob, label_glob)
    if not cases:
        series = len(list(dicom_folders(src)))
        return CheckReport(in_order(_check_dicom(src, ())), series)
    choice = choose(options or ClassOptions(), spec or FOLDER)
    split = _split(spec, cases, split_file)
    levels = spec.mask_levels if spec else None
    pairs = [Pair(case.id, case.image, case.label, levels) for case in cases]
    measured: list[CaseFacts] = []
    cores = available_cores() if workers is None else max(1, workers)
    with closing(in_processes(measure, pairs, cores)) as results:
        for case in results:
            measured.append(case)
            progress(len(measured), len(pairs), f"case {case.id}")
    rule, odd = _classes(choice, measured)
    several = len(rule) > 1
    expected = Expected(
        ct=_is_ct(spec, measured),
        target=choice.target if choice.groups is None else rule.labels,
        declared=spec.labels if spec else None,
        several=several,
    )
    findings = [
        *(finding for case in measured for finding in check_case(case, expected)),
        *check_cohort(measured, split, expected),
        *odd,
        *(check_classes(measured, rule) if several else ()),
        *(check_set(src, spec, cases, image_glob, label_glob) if spec else ()),
        *_check_dicom(src, cases),
    ]
    return CheckReport(in_order(findings), len(cases))


def _check_sets(
    sets: Sequence[Path],
    options: ClassOptions | None,
    split_file: Path | None,
    workers: int | None,
    progress: Progress,
) -> CheckReport:
    """Several data sets, each for itself; cases are named with their set's folder."""
    findings: list[Finding] = []
    cases = 0
    for folder in sets:
        if not fitting(folder) and next(dicom_folders(folder), None) is None:
            continue  # No data set.
        report = check(
            folder, options=options, split_file=split_file, workers=workers, progress=progress
        )
        cases += report.cases
        findings += [replace(one, case=f"{folder.name}/{one.case}") for one in report.findings]
    return CheckReport(in_order(findings), cases)


def measure(pair: Pair) -> CaseFacts:
    """Measure a case of volumes or of pictures."""
    return measure_pictures(pair) if is_picture(pair.image) else measure_case(pair)


def _check_file(path: Path) -> CheckReport:
    """A file alone: no mask to compare it with, and it may be a mask itself."""
    case = measure(Pair(path.name, path, None))
    alone = _as_dicom(case) if is_dicom(path) else _alone(case)
    return CheckReport(in_order(alone), 1)


def _check_dicom(src: Path, cases: Sequence[Case]) -> Iterator[Finding]:
    """Series that are no case of the set, each alone."""
    used = {case.image for case in cases}
    for folder in dicom_folders(src):
        if folder not in used:
            name = src.name if folder == src else str(folder.relative_to(src))
            try:
                yield from _as_dicom(measure_case(Pair(name, folder, None)))
            except ConfigError as several:  # which of them is meant is for `predict` to ask
                yield unchecked_dicom(name, several.message, several.hint)


def _as_dicom(case: CaseFacts) -> Iterator[Finding]:
    """DICOM holds more than scans (plans, contours): what holds no image is no error."""
    if any(fault.code == "image-no-image" for fault in case.faults):
        yield unchecked_dicom(case.id, case.faults[0].message)
        return
    codes = {"image": "image-series"}
    named = (replace(fault, code=codes.get(fault.code, fault.code)) for fault in case.faults)
    yield from _alone(replace(case, faults=tuple(named)))


def _alone(case: CaseFacts) -> Iterator[Finding]:
    for fault in case.faults:
        yield Finding(fault.code, ERROR, case.id, fault.message, fault.hint)
    if case.grid is not None:
        yield from check_grid(case.id, case.grid)
    if case.scan is not None:
        yield from check_scan(case.id, case.scan, ct=None)


def _find(
    src: Path, dataset: str | None, image_glob: str | None, label_glob: str | None
) -> tuple[DatasetSpec | None, list[Case]]:
    """The cases of a folder; DICOM is looked for where no adapter finds anything."""
    try:
        return find_cases(src, dataset, image_glob, label_glob)
    except DataError:
        if src.is_dir() and next(dicom_folders(src), None) is not None:
            return None, []
        raise


def _split(
    spec: DatasetSpec | None, cases: Sequence[Case], split_file: Path | None
) -> dict[str, str]:
    """The split by case; empty where there are too few cases to split."""
    ids = [case.id for case in cases]
    if split_file is not None:
        return read_split(split_file, ids, seed=0).of
    if spec is None or len(ids) < FEWEST_CASES:
        return {}
    try:
        return split_of(cases, spec, seed=0).of
    except DataError:  # too few to train on: `prepare` will say so
        return {}


def _classes(
    choice: ClassChoice, measured: Sequence[CaseFacts]
) -> tuple[ClassRule, tuple[Finding, ...]]:
    """The classes that `prepare` would make of the labels that occur; too many are an error."""
    present = {label for case in measured if case.labels for label in case.labels.labels}
    try:
        return choice.rule(present, present)
    except DataError as error:
        if choice.asked:
            raise
        many = Finding("classes-many", ERROR, EVERY_CASE, error.message.rstrip("."), error.hint)
        return ClassRule.of_target(choice.target), (many,)


def _is_ct(spec: DatasetSpec | None, measured: Sequence[CaseFacts]) -> bool | None:
    """True for CT by the adapter, else if most scans contain air."""
    if spec is not None and spec.modality is not None:
        return spec.modality == "CT"
    scans = [case.scan for case in measured if case.scan is not None]
    return 2 * sum(scan.air_share > 0 for scan in scans) > len(scans)
