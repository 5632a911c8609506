"""Corrected or newly labelled cases -> a set of its own: an old one with these as training cases.

The old set stays as it is, for other runs trained on it; its arrays are linked, not sliced again.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from sdseg_cli.core.errors import DataError
from sdseg_cli.core.filenames import natural_key
from sdseg_cli.core.json_files import read_object
from sdseg_cli.core.locks import locked
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.manifest import (
    Manifest,
    PreparedCase,
    Staging,
    link_or_copy,
    lock_of,
)
from sdseg_cli.data.prepared import BadCase, CaseJob, check_headers, prepare_case
from sdseg_cli.data.spec import Case
from sdseg_cli.data.split import split_sha256
from sdseg_cli.imaging.intensity import Normalisation

_ADDED = re.compile(r"-added-\d+$")


@dataclass(frozen=True)
class Extended:
    """The set with the added cases."""

    manifest: Manifest
    added: tuple[str, ...]
    """Ids of training cases that are new."""
    corrected: tuple[str, ...]
    """Ids of training cases that have another mask now."""
    found: bool = False
    """It was there already."""


def extended(manifest: Manifest, cases: Sequence[Case], progress: Progress = no_op) -> Extended:
    """A set with the cases of another and some more to train on; all else is as it was.

    It lies beside the other, as NAME-added-1, -2 and so on. The same cases give the same set.

    Args:
        manifest: The set, without folds.
        cases: To add, each with its label map. One whose image is a training case's replaces that
            case's labels; one whose image validates or tests is refused.
        progress: Called after each added case.

    Raises:
        DataError: The set has folds; a case is faulty, is there twice, or validates or tests; a
            record of the set is damaged.
        RunError: The disk refused, or another process makes this set.
    """
    if manifest.folds:
        raise DataError(
            f"{manifest.name} has folds, and an added case is in none of them.",
            "Add the cases to the data set and prepare it again with --folds.",
        )
    base = _ADDED.sub("", manifest.name)
    folder = manifest.root.parent
    number = next(n for n in count(1) if not (folder / f"{base}-added-{n}").exists())
    staging = Staging(folder / f"{base}-added-{number}")
    with locked(
        lock_of(staging.final),
        subject=str(staging.final),
        busy="is making this set",
        hint="Wait for it.",
    ):
        try:
            return _built(
                manifest, cases, staging, [f"{base}-added-{n}" for n in range(1, number)], progress
            )
        except DataError:
            staging.discard()
            raise


def _built(
    manifest: Manifest,
    cases: Sequence[Case],
    staging: Staging,
    earlier: Sequence[str],
    progress: Progress,
) -> Extended:
    records = _prepared(manifest, cases, staging, progress)
    known = {_pixels(manifest.root / case.folder): case for case in manifest.entries}
    taken = {case.id.lower() for case in manifest.entries}
    entries = {case.id: case for case in manifest.entries}
    new: dict[str, Path] = {}
    seen: dict[str, str] = {}
    corrected = []
    for case, record in zip(cases, records, strict=True):
        there, twin = known.get(record["pixels_sha256"]), seen.get(record["pixels_sha256"])
        if twin is not None:
            raise DataError(
                f"case {case.id}: its image is that of {twin}, too.", "Keep one of the two."
            )
        if there is not None and there.split != "train":
            role = {"val": "validates", "test": "tests"}[there.split]
            raise DataError(
                f"case {case.id}: its image is that of {there.id}, which {role}.",
                "Leave it out: a run may not train on what judges it.",
            )
        seen[record["pixels_sha256"]] = case.id
        id = there.id if there is not None else _free(case.id, taken)
        taken.add(id.lower())
        corrected += [id] if there is not None else []
        new[id] = staging.building / "added" / case.id
        entries[id] = _entry(manifest, case, record, id)
    split = {
        "seed": manifest.split["seed"],
        "rule": f"{manifest.split['rule'].split('; added')[0]}; added to train: {', '.join(new)}",
        "sha256": split_sha256({case.id: case.split for case in entries.values()}),
    }
    labels = {int(n) for record in records for n in record["label_slices"]}
    whole = replace(
        manifest,
        labels=tuple(sorted(labels.union(manifest.labels))),
        split=split,
        entries=tuple(sorted(entries.values(), key=lambda case: natural_key(case.id))),
    )
    added = tuple(id for id in new if id not in corrected)
    for name in earlier:
        root = staging.final.with_name(name)
        same = replace(whole, name=name, root=root)
        if Staging(root).is_current(same.to_text()):
            staging.discard()
            return Extended(same, added, tuple(corrected), found=True)
    whole = replace(whole, name=staging.final.name, root=staging.final)
    for id in entries:
        target = staging.building / "cases" / id
        shutil.rmtree(target, ignore_errors=True)
        source = new.get(id, manifest.root / "cases" / id)
        shutil.copytree(source, target, copy_function=link_or_copy)
    shutil.rmtree(staging.building / "added")
    staging.publish(whole.to_text(), set(entries), ())
    return Extended(whole, added, tuple(corrected))


def _prepared(
    manifest: Manifest, cases: Sequence[Case], staging: Staging, progress: Progress
) -> list[dict[str, Any]]:
    """The records of the added cases, whose arrays are made as those of the set."""
    records = []
    for done, case in enumerate(cases, start=1):
        fault = check_headers(case.id, case.image, case.label)
        if fault is not None or case.label is None:
            raise fault.error if fault is not None else ValueError("a case without a label")
        job = CaseJob(
            case.id,
            case.image,
            case.label,
            Normalisation.from_dict(manifest.normalisation),
            manifest.crop,
            manifest.size,
            manifest.cleaning,
            manifest.mask_levels,
        )
        record = prepare_case(job, staging.building / "added")
        if isinstance(record, BadCase):
            raise record.error
        records.append(record)
        progress(done, len(cases), f"case {case.id}")
    return records


def _pixels(folder: Path) -> str:
    """sha256 of the prepared image of a case."""
    hint = "Run the same `sdseg prepare` command again; it redoes what is damaged."
    return str(read_object(folder / "case.json", hint).get("pixels_sha256"))


def _free(id: str, taken: set[str]) -> str:
    """The id, with a number behind it where another case has it."""
    names = (f"{id}-{n}" if n > 1 else id for n in count(1))
    return next(name for name in names if name.lower() not in taken)


def _entry(manifest: Manifest, case: Case, record: dict[str, Any], id: str) -> PreparedCase:
    if case.label is None:
        raise ValueError("a case without a label")
    return PreparedCase(
        id=id,
        split="train",
        image=case.image.absolute(),
        label=case.label.absolute(),
        slices=record["slices"],
        folder=f"cases/{id}",
        foreground_slices=len(manifest.classes.slices(record["label_slices"])),
        spacing_mm=record["spacing_mm"] and tuple(record["spacing_mm"]),
        sha256=record["sha256"],
    )
