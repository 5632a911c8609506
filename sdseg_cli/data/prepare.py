"""`sdseg prepare`: a data set of scans and label maps -> slices, a split and a manifest.

The set is built beside its place and moved there whole: a killed run leaves its finished cases to
the next one, wrong input leaves nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.core.filenames import is_picture, natural_key, safe_id
from sdseg_cli.core.findings import ERROR, EVERY_CASE, WARNING, Finding, in_order, warning
from sdseg_cli.core.locks import locked
from sdseg_cli.core.processes import available_cores, in_processes
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.checks import Expected, check_case, check_duplicates
from sdseg_cli.data.class_checks import check_unnamed_pairs
from sdseg_cli.data.classes import ClassChoice, ClassOptions, choose
from sdseg_cli.data.manifest import (
    Manifest,
    PreparedCase,
    Staging,
    checked_name,
    lock_of,
    open_array,
)
from sdseg_cli.data.prepared import (
    BadCase,
    CaseJob,
    check_headers,
    finished,
    modality_of,
    prepare_case,
)
from sdseg_cli.data.recognise import find_cases
from sdseg_cli.data.spec import SPLITS, Case, ClassRule, DatasetSpec
from sdseg_cli.data.split import FEWEST_CASES, Split, read_split, split_of, with_folds
from sdseg_cli.data.unexpected_files import check_set
from sdseg_cli.imaging.intensity import PHOTOGRAPH, Normalisation
from sdseg_cli.imaging.measure import CaseFacts, Pair, measure_planes, statistics_in
from sdseg_cli.imaging.slices import CROPS

SMALLEST_SIZE, SIZE_STEP = 32, 8
"""Sides of prepared slices, px: the smallest, and what all are multiples of, one latent pixel."""

MOST_MEASURED = 20
"""Cases whose slices are looked at for twins that no name says."""

OnReplace = Callable[[Path, Mapping[str, Any]], Finding | None]
"""Of the set in place and the settings of the new one: a warning, nothing, or a ConfigError."""


@dataclass(frozen=True)
class PrepareOptions(ClassOptions):
    """The options of `prepare`, beside its classes.

    Attributes:
        dataset: Adapter; recognised by the layout when absent.
        name: Name of the prepared set; default the adapter's, or for "folder" and for a part of
            a published set of pictures the folder's.
        split_file: Who trains, validates and tests; drawn when absent.
        window: Values (HU) that become -1 and +1; default the adapter's, else by modality.
        image_glob: Pattern of the scans relative to the folder; with `label_glob`.
        label_glob: Pattern of the label maps.
        crop: "none", or "body" for a square around the body in each slice.
        workers: Processes; default one per core. The result does not depend on it.
        skip_bad: Leave faulty cases out instead of stopping.
        seed: Of the split.
        size: Side of the model's squares in pixels, a multiple of 8 of at least 32.
        folds: Number of folds that all but the test cases are dealt into; None for none.
    """

    dataset: str | None = None
    name: str | None = None
    split_file: Path | None = None
    window: tuple[float, float] | None = None
    image_glob: str | None = None
    label_glob: str | None = None
    crop: str = "none"
    workers: int | None = None
    skip_bad: bool = False
    seed: int = 0
    size: int = 256
    folds: int | None = None


Records = dict[str, dict[str, Any]]
"""Case id -> what its case.json holds."""


@dataclass(frozen=True)
class PrepareReport:
    """The result of `prepare`.

    Attributes:
        manifest: The manifest file.
        cases: Number of cases by split.
        slices: Number of slices of all cases.
        skipped: Cases left out: {"case", "code", "why"}.
        warnings: What is odd about the cases that were kept.
        classes: Of several classes the name, labels, value in a label map, voxels of all cases, and
            share of the foreground, of each.
        by_default: Nobody asked for them.
        folds: Number of cases by fold; empty where there are none.
        background: Labels in no class, with name, voxels of all cases and share of all labelled
            voxels, of each.
    """

    manifest: Path
    cases: dict[str, int]
    slices: int
    skipped: tuple[dict[str, str], ...]
    warnings: tuple[Finding, ...] = ()
    classes: tuple[dict[str, Any], ...] = ()
    by_default: bool = False
    folds: tuple[int, ...] = ()
    background: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "manifest": str(self.manifest),
            "cases": self.cases,
            "slices": self.slices,
            "skipped": list(self.skipped),
            "warnings": [finding.to_json() for finding in self.warnings],
            **({"classes": list(self.classes)} if self.classes else {}),
            **({"folds": list(self.folds)} if self.folds else {}),
            **({"background": list(self.background)} if self.classes and self.background else {}),
        }


@dataclass(frozen=True)
class _Plan:
    """The options of one call, checked, with what was found in the folder."""

    options: PrepareOptions
    spec: DatasetSpec
    source: Path
    name: str
    choice: ClassChoice
    workers: int
    found: tuple[Finding, ...]
    """What `check_set` says of the files as a whole."""
    on_replace: OnReplace


def prepare(
    src: Path,
    workspace: Path,
    options: PrepareOptions | None = None,
    *,
    progress: Progress = no_op,
    on_replace: OnReplace = no_op,
) -> PrepareReport:
    """Prepare a data set, or finish what a killed run left.

    Args:
        src: Folder of the data set.
        workspace: `prepared/<name>/` is made in it.
        options: The defaults when absent.
        progress: Called after each case.
        on_replace: Asked what becomes of runs where a set of this name is there, see
            `runs/run_folder.py`; it may refuse.

    Raises:
        ConfigError: An option makes no sense; or the set in place would get other settings while
            a run is being trained on it.
        DataError: No cases, too few, or a faulty one; then nothing is left behind.
        RunError: The disk refused, or another process prepares a set of this name.
    """
    options = options or PrepareOptions()
    if options.crop not in CROPS:
        raise ConfigError(f"--crop {options.crop} is unknown.", f"Use one of {', '.join(CROPS)}.")
    if options.size < SMALLEST_SIZE or options.size % SIZE_STEP:
        raise ConfigError(
            f"Slices of {options.size} x {options.size} pixels are not possible.",
            f"Use a multiple of {SIZE_STEP}, at least {SMALLEST_SIZE}; 256 is usual.",
        )
    globs = options.image_glob, options.label_glob
    spec, cases = find_cases(src, options.dataset, *globs)
    named = options.dataset is not None
    workers = options.workers
    plan = _Plan(
        options,
        spec,
        source=src.resolve(),
        name=checked_name(options.name or own_name(src, spec, len(cases), named=named)),
        choice=choose(options, spec),
        workers=available_cores() if workers is None else max(1, workers),
        found=tuple(check_set(src, spec, cases, *globs)),
        on_replace=on_replace,
    )
    staging = Staging(workspace.absolute() / "prepared" / plan.name)
    # Two at once would build in one folder, and mix their settings in one set.
    with locked(
        lock_of(staging.final),
        subject=str(staging.final),
        busy="is preparing this set",
        hint="Wait for it or stop it, or prepare under another --name.",
    ):
        return _carry_out(plan, cases, staging, progress)


def _carry_out(
    plan: _Plan, cases: list[Case], staging: Staging, progress: Progress
) -> PrepareReport:
    split = _split(plan, cases, cases)
    listed = [case for case in cases if case.id in split.of]
    # Headers first: a mask of another shape is found before minutes of work.
    bad = _faults(plan, listed)
    usable = _without(listed, bad, plan.options)
    modality, normalisation = _normalisation(plan, usable)
    known = {
        "normalisation": normalisation.to_dict(),
        "crop": plan.options.crop,
        "size": plan.options.size,
        **_target_known_before(plan.choice),
    }
    plan.on_replace(staging.final, known)  # before minutes of work, too
    try:
        records, kept, late = _records(_jobs(plan, usable, normalisation), staging, plan, progress)
        usable = _without(usable, late, plan.options)
        split = _split(plan, cases, usable)
        while leaks := _leaks(usable, records, split):  # each turn leaves a case out
            late += leaks
            usable = _without(usable, leaks, plan.options)
            split = _split(plan, cases, usable)
        records = {case.id: records[case.id] for case in usable}
        kept &= set(records)
        classes, odd = _classes(plan, records, split)
        entries = tuple(_entry_of(case, records[case.id], split, classes) for case in usable)
        manifest = Manifest(
            root=staging.final,
            name=plan.name,
            adapter=plan.spec.name,
            modality=modality,
            source=plan.source,
            target=classes.labels,
            labels=tuple(sorted({int(n) for one in records.values() for n in one["label_slices"]})),
            normalisation=normalisation.to_dict(),
            crop=plan.options.crop,
            size=plan.options.size,
            split=split.to_dict(),
            entries=entries,
            cleaning=plan.spec.cleaning,
            mask_levels=plan.spec.mask_levels,
            rule=classes if len(classes) > 1 or classes.ignore is not None else None,
        )
        _require_foreground(manifest)
        absent = dict.fromkeys(("classes", "ignore", "mirror_pairs"))
        settings = absent | manifest.inference_settings() | {"folds": manifest.folds_listed()}
        replaces = plan.on_replace(staging.final, settings)
        if len(kept) < len(entries) or not staging.is_current(manifest.to_text()):
            staging.publish(manifest.to_text(), set(records) - kept, kept)
    except (ConfigError, DataError):
        # After an interrupt or a full disk, finished cases wait for the next run instead.
        staging.discard()
        raise
    faulty = {one.id: one.to_json() for one in (*bad, *late)}
    unlisted = {
        case.id: {"case": case.id, "code": "split", "why": "not named in the split file"}
        for case in cases
        if case.id not in split.of
    }
    skipped = unlisted | faulty  # each is named once
    warnings = in_order(
        (
            *odd,
            *_unnamed_pairs(plan.choice, manifest),
            *_warnings(plan, manifest, usable, records, split),
        )
    )
    return PrepareReport(
        manifest=manifest.path,
        cases={name: len(manifest.cases(name)) for name in SPLITS},
        slices=sum(case.slices for case in entries),
        skipped=tuple(skipped[id] for id in sorted(skipped, key=natural_key)),
        warnings=warnings if replaces is None else (replaces, *warnings),
        classes=_listed(classes, records) if len(classes) > 1 else (),
        by_default=plan.choice.by_default,
        folds=tuple(
            sum(case.fold == fold for case in manifest.entries) for fold in range(manifest.folds)
        ),
        background=_background(plan.choice, manifest, records),
    )


def _target_known_before(choice: ClassChoice) -> dict[str, Any]:
    """The manifest's target, where it does not depend on which labels occur."""
    if not choice.one:
        return {}
    return {"target": None if choice.target is None else list(choice.target)}


def _classes(plan: _Plan, records: Records, split: Split) -> tuple[ClassRule, tuple[Finding, ...]]:
    """The classes of the set, by the labels that occur; and what is odd about them."""
    occurring = {id: set(map(int, record["label_slices"])) for id, record in records.items()}
    stored = {int(n) for one in records.values() for n in one.get("label_voxels", ())}
    present = set().union(stored, *occurring.values()) - {0}
    trained = set().union(*(occurring[id] for id in split.ids("train")))
    try:
        rule, odd = plan.choice.rule(present, trained)
    except DataError as error:
        raise DataError(f"{plan.source}: {error.message}", error.hint) from error
    if split.labelled:
        _check_labelled(plan, rule, split)
        odd += tuple(_contradicted(rule, split, occurring))
    if len(rule) > 1:
        validated = set().union(*(occurring[id] for id in split.ids("val")))
        odd += tuple(_not_validated(rule, validated))
    return rule, odd


def _check_labelled(plan: _Plan, rule: ClassRule, split: Split) -> None:
    """Refuse names that are no class."""
    source = f"{plan.options.split_file}: labelled"
    if len(rule) == 1:
        raise ConfigError(
            f"{source} has no effect on one foreground.",
            "Add --classes all, or take it out of the split file.",
        )
    for id, names in split.labelled.items():
        for name in names:
            if name not in rule.names:
                raise ConfigError(
                    f"{source} of {id} names {name!r:.40}, which is no class.",
                    f"Classes: {', '.join(rule.names[:16])}.",
                )


def _contradicted(
    rule: ClassRule, split: Split, occurring: Mapping[str, set[int]]
) -> Iterator[Finding]:
    """Classes that a case has, though it is said that they were not drawn in it."""
    for id in split.labelled.keys() & occurring.keys():
        drawn = split.labelled[id]
        for name, group in zip(rule.names, rule.groups, strict=True):
            if name not in drawn and set(group or ()) & occurring[id]:
                yield warning(
                    "labelled-contradicted",
                    id,
                    f"has {name}, which is not under labelled in the split file",
                    "Add it there, or remove it from the label map: no loss counts it now.",
                )


def _not_validated(rule: ClassRule, labels: Collection[int]) -> Iterator[Finding]:
    for name, group in zip(rule.names, rule.groups, strict=True):
        if not set(group or ()) & set(labels):
            yield warning(
                "class-not-validated",
                EVERY_CASE,
                f"no validation case has {name}",
                "Its Dice is unknown until test cases are evaluated; --split-file can change it.",
            )


def _listed(classes: ClassRule, records: Records) -> tuple[dict[str, Any], ...]:
    """The classes for `--json`."""
    voxels = _voxels(records)
    total = sum(voxels[label] for label in classes.labels or ())
    listed = []
    for name, group, value in zip(classes.names, classes.groups, classes.values, strict=True):
        count = sum(voxels[label] for label in group or ())
        one = {"name": name, "labels": list(group or ()), "value": value, "voxels": count}
        listed.append(one | {"share": round(count / total, 6) if total else None})
    return tuple(listed)


def _voxels(records: Records) -> Counter[int]:
    """The voxels of each label, in all cases; 0 where they were not counted."""
    voxels: Counter[int] = Counter()
    for record in records.values():
        voxels.update({int(n): count for n, count in record.get("label_voxels", {}).items()})
    return voxels


def _background(
    choice: ClassChoice, manifest: Manifest, records: Records
) -> tuple[dict[str, Any], ...]:
    """The labels in no class, as `PrepareReport` has them."""
    voxels, classes = _voxels(records), manifest.classes
    if classes.labels is None:
        return ()
    present = ({n for n, count in voxels.items() if count} | set(manifest.labels)) - {0}
    total = sum(voxels[label] for label in present)
    return tuple(
        {
            "label": label,
            "name": choice.names.get(label, f"label_{label}"),
            "voxels": voxels[label],
            "share": round(voxels[label] / total, 6) if total else None,
        }
        for label in sorted(present - set(classes.labels) - {classes.ignore})
    )


def _unnamed_pairs(choice: ClassChoice, manifest: Manifest) -> Iterator[Finding]:
    """Twins that no name and no option says, by the slices of some cases."""
    several = len(manifest.classes) > 1
    if not several or manifest.modality == PHOTOGRAPH or choice.pairs == ():
        return
    facts = []
    for case in manifest.entries[:MOST_MEASURED]:
        labels = open_array(manifest.labels_file(case))
        count, rows, columns = labels.shape
        found = measure_planes(labels, (count, rows, columns), int(labels.max()))
        facts.append(CaseFacts(case.id, case.image, labels=found))
    yield from check_unnamed_pairs(facts, manifest.classes)


def own_name(src: Path, spec: DatasetSpec, cases: int, *, named: bool) -> str:
    """The default name of a set: its adapter's, or its folder's."""
    published = spec.name != "folder" and (named or spec.whole is None or cases in spec.whole)
    return spec.name if published else safe_id(src.resolve().name)


def _faults(plan: _Plan, cases: Sequence[Case]) -> list[BadCase]:
    """Cases that are wrong as a whole, or by their headers, each once."""
    ids = {case.id for case in cases}
    bad = {
        one.case: BadCase.of(one.case, "", DataError(f"{one.measured}.", one.fix, one.code))
        for one in plan.found
        if one.level == ERROR and one.case in ids
    }
    for case in cases:
        if case.id not in bad and (fault := check_headers(case.id, case.image, case.label)):
            bad[case.id] = fault
    return list(bad.values())


def _jobs(plan: _Plan, cases: Sequence[Case], normalisation: Normalisation) -> list[CaseJob]:
    return [
        CaseJob(
            case.id,
            case.image,
            case.label,
            normalisation,
            plan.options.crop,
            plan.options.size,
            plan.spec.cleaning,
            plan.spec.mask_levels,
        )
        for case in cases
        if case.label
    ]


def _records(
    jobs: Sequence[CaseJob], staging: Staging, plan: _Plan, progress: Progress
) -> tuple[Records, set[str], list[BadCase]]:
    """All records, prepared or found; the cases of the set in place; the faulty cases."""
    building, final = staging.building / "cases", staging.final / "cases"
    records = _finished(jobs, final, plan.workers)
    kept = set(records)
    records |= _finished([job for job in jobs if job.id not in kept], building, plan.workers)
    todo = [job for job in jobs if job.id not in records]
    bad: list[BadCase] = []
    progress(len(records), len(jobs), "done before")
    work = partial(prepare_case, folder=building)
    with closing(in_processes(work, todo, plan.workers)) as results:
        for done, (job, result) in enumerate(zip(todo, results, strict=True), len(records) + 1):
            if isinstance(result, BadCase):
                if not plan.options.skip_bad:
                    raise result.error
                bad.append(result)
            else:
                records[job.id] = result
            progress(done, len(jobs), f"case {job.id}")
    return records, kept, bad


def _finished(jobs: Sequence[CaseJob], folder: Path, workers: int) -> Records:
    """The cases of a folder that need not be prepared again."""
    with ThreadPoolExecutor(workers) as pool:  # hashing leaves the interpreter to others
        found = pool.map(partial(finished, folder=folder), jobs)
        return {job.id: record for job, record in zip(jobs, found, strict=True) if record}


def _split(plan: _Plan, cases: Sequence[Case], left: Sequence[Case]) -> Split:
    """The split of the cases that are left of all, with folds where they are asked for."""
    split = _roles(plan, cases, left)
    if plan.options.folds is None:
        return split
    return with_folds(split, plan.options.folds, {one.id: one.group for one in left if one.group})


def _roles(plan: _Plan, cases: Sequence[Case], left: Sequence[Case]) -> Split:
    if plan.options.split_file is None:
        return split_of(left, plan.spec, plan.options.seed)
    split = read_split(plan.options.split_file, [case.id for case in cases], plan.options.seed)
    split = split.among([case.id for case in left])
    for name in ("train", "val"):
        if not split.ids(name):
            raise DataError(
                f"No usable {name} case is left of {plan.options.split_file}.",
                "Repair the skipped cases, or name others in the split file.",
            )
    return split


def _normalisation(plan: _Plan, cases: Sequence[Case]) -> tuple[str, Normalisation]:
    """Modality and normalisation, from the options, the adapter, or the first readable scan."""
    images = [case.image for case in cases]
    told = None if any(map(is_picture, images)) else plan.spec.modality
    modality = told or modality_of(images)
    if modality == PHOTOGRAPH and plan.options.crop != "none":
        raise ConfigError(
            f"--crop {plan.options.crop} does not go with pictures.",
            "Leave it out: pictures are kept whole.",
        )
    window = plan.options.window or plan.spec.window_hu
    if window:
        kind = "window" if plan.options.window else plan.spec.window_kind
        return modality, Normalisation(kind, *window)
    return modality, Normalisation.for_modality(modality)


def _without(cases: list[Case], bad: Sequence[BadCase], options: PrepareOptions) -> list[Case]:
    if bad and not options.skip_bad:
        raise bad[0].error
    left = [case for case in cases if case.id not in {fault.id for fault in bad}]
    if not left:
        raise DataError("No usable case is left.", bad[0].error.message)
    if bad and options.split_file is None and len(left) < FEWEST_CASES:
        faults = "; ".join(fault.error.message.rstrip(".") for fault in bad)
        raise DataError(
            f"Of {len(cases)} cases {len(left)} can be used ({faults}).",
            f"At least {FEWEST_CASES} are needed: repair some of the skipped ones.",
        )
    return left


def _leaks(cases: Sequence[Case], records: Records, split: Split) -> list[BadCase]:
    """Cases whose image another split holds too, or another fold."""
    contents = {case.id: records[case.id].get("pixels_sha256", "") for case in cases}
    found = list(check_duplicates(contents, split.of))
    if split.folds:
        found += check_duplicates(contents, {id: f"fold {n}" for id, n in split.folds.items()})
    leaks: dict[str, Finding] = {}
    for one in found:
        if one.level == ERROR:
            leaks.setdefault(one.case, one)
    return [
        BadCase.of(one.case, "", DataError(f"{one.measured}.", one.fix, one.code))
        for one in leaks.values()
    ]


def _warnings(
    plan: _Plan, manifest: Manifest, cases: Sequence[Case], records: Records, split: Split
) -> tuple[Finding, ...]:
    """Warnings about the cases, from what was measured while they were read."""
    several = len(manifest.classes) > 1
    target = None if several and not plan.choice.asked else manifest.target
    expected = Expected(manifest.modality == "CT", target, plan.spec.labels, several=several)
    facts = [
        statistics_in(Pair(case.id, case.image, case.label), records[case.id]) for case in cases
    ]
    alone = [finding for case in facts for finding in check_case(case, expected)]
    alike = check_duplicates({case.id: case.sha256 for case in facts}, split.of)
    every = (*alone, *alike, *plan.found)
    return in_order(finding for finding in every if finding.level == WARNING)


def _entry_of(
    case: Case, record: Mapping[str, Any], split: Split, classes: ClassRule
) -> PreparedCase:
    """A case as the manifest names it."""
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
        labelled=_in_order_of(classes, split.labelled.get(case.id)),
        fold=split.folds.get(case.id),
    )


def _in_order_of(classes: ClassRule, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    return tuple(name for name in classes.names if name in names)


def _require_foreground(manifest: Manifest) -> None:
    """Refuse a set in which there is nothing to learn, or nothing to validate on."""
    present = ", ".join(map(str, manifest.labels)) or "none"
    hint = "Choose labels that occur with --target, or another split with --split-file."
    for split in (None, "train", "val"):
        if not any(case.foreground_slices for case in manifest.cases(split)):
            raise DataError(
                f"{manifest.source}: no {split or ''} case has foreground (labels: {present}).",
                hint,
            )
    for fold in range(manifest.folds):
        if not any(case.foreground_slices for case in manifest.of_fold(fold).cases("val")):
            raise DataError(
                f"{manifest.source}: no case of fold {fold} has foreground (labels: {present}).",
                "Give fewer --folds, or another --seed.",
            )
