"""Which cases train, validate and test: drawn once, by case, and frozen in the manifest."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.core.filenames import natural_key, stem_of
from sdseg_cli.core.json_files import read_object, read_text
from sdseg_cli.data.spec import SPLITS, Case, DatasetSpec

FEWEST_CASES = 3
_LABELLED = "labelled"
"""Beside the splits, in a JSON file."""
_FORM = 'Give JSON {"train": [ids], "val": [ids], "test": [ids]} or a folder of train.txt, ...'


@dataclass(frozen=True)
class Split:
    """A split by case.

    Attributes:
        of: Case id -> "train", "val" or "test".
        seed: What the draw was seeded with.
        rule: How it was drawn, in words.
        labelled: Case id -> names of the classes that were drawn in it, where some were not.
    """

    of: dict[str, str]
    seed: int
    rule: str
    labelled: dict[str, tuple[str, ...]] = field(default_factory=dict)
    folds: dict[str, int] = field(default_factory=dict)
    """Case id -> fold, from 0, of all but the test cases; empty where none were drawn."""

    def ids(self, split: str) -> list[str]:
        """The cases of one split in natural order."""
        return sorted((id for id, name in self.of.items() if name == split), key=natural_key)

    def among(self, ids: Collection[str]) -> Split:
        """The same split of fewer cases."""
        return replace(self, of={id: name for id, name in self.of.items() if id in ids})

    def to_dict(self) -> dict[str, Any]:
        """Seed, rule, and a hash of who is where, for the manifest."""
        return {"seed": self.seed, "rule": self.rule, "sha256": split_sha256(self.of)}


def split_sha256(of: Mapping[str, str]) -> str:
    """Hash of who is where; `of` is case id -> split."""
    listed: dict[str, list[str]] = {name: [] for name in SPLITS}
    for id in sorted(of, key=natural_key):
        listed[of[id]].append(id)
    return hashlib.sha256(json.dumps(listed, ensure_ascii=False).encode()).hexdigest()


def split_of(cases: Collection[Case], spec: DatasetSpec, seed: int) -> Split:
    """The split of a data set's cases: what it publishes, else drawn; see `draw_split`."""
    return draw_split(
        [case.id for case in cases],
        seed,
        spec.test_ids | {case.id for case in cases if case.split == "test"},
        groups={case.id: case.group for case in cases if case.group},
        sizes=spec.split_sizes,
    )


def draw_split(
    ids: Collection[str],
    seed: int,
    test_ids: Collection[str] = (),
    *,
    groups: Mapping[str, str] | None = None,
    sizes: tuple[int, int, int] | None = None,
) -> Split:
    """The default split, or the published one as far as its cases are here.

    Args:
        ids: Case ids.
        seed: Shuffles the naturally sorted ids.
        test_ids: Cases that test, if any of them is among `ids`.
        groups: Case id -> group; the cases of a group come into one split.
        sizes: Cases that train, validate and test when all published cases are here.

    Raises:
        DataError: Fewer than three cases, fewer than two beside the test cases, or none to train.
    """
    if len(ids) < FEWEST_CASES:
        raise DataError(
            f"{len(ids)} case(s) cannot be split into train, val and test.",
            f"At least {FEWEST_CASES} cases are needed.",
        )
    shuffled = sorted(ids, key=natural_key)
    random.Random(seed).shuffle(shuffled)
    groups = groups or {}
    test = [id for id in shuffled if id in test_ids]
    if test:
        rest = [id for id in shuffled if id not in test_ids]
        if len(rest) < 2:
            raise DataError(
                f"{len(test)} of {len(ids)} cases are test cases; too few are left to train on.",
                "Add cases, or give --split-file.",
            )
        val_size = _tenth(len(rest))
        here = f"{len(test)} of {len(test_ids)} here"
        rule = f"published test cases ({here}), a tenth of the rest for val"
    else:
        val_size, test_size, rule = _sizes(len(shuffled), sizes)
        test, rest = _taken(shuffled, test_size, groups)
    val, train = _taken(rest, val_size, groups)
    if not train:
        raise DataError(
            f"{len(ids)} cases in {len(set(groups.values()))} groups: none is left to train on.",
            "Add cases of other groups, or give --split-file.",
        )
    return _split([*val, *train], len(val), test, seed, rule + (", groups whole" if groups else ""))


def with_folds(split: Split, count: int, groups: Mapping[str, str]) -> Split:
    """A split whose train and val cases are also dealt into folds; test cases stay test cases.

    The cases are shuffled by the split's seed; the largest groups first, each goes whole into the
    fold that has the fewest cases.

    Args:
        split: Who tests.
        count: Number of folds.
        groups: Case id -> group, as for `draw_split`.

    Raises:
        ConfigError: Fewer than two folds.
        DataError: Fewer cases, or groups, than folds.
    """
    if count < 2:
        raise ConfigError(f"--folds is {count}.", "Give at least 2; 5 is usual.")
    ids = sorted((id for id, name in split.of.items() if name != "test"), key=natural_key)
    random.Random(split.seed).shuffle(ids)
    units: dict[tuple[str, str], list[str]] = {}
    for id in ids:
        units.setdefault(("group", groups[id]) if groups.get(id) else ("case", id), []).append(id)
    if len(units) < count:
        what = "groups of cases" if groups else "cases"
        raise DataError(
            f"{len(units)} {what} besides the test cases do not make {count} folds.",
            f"Give --folds {len(units)} or fewer, or add cases.",
        )
    folds: dict[str, int] = {}
    sizes = [0] * count
    for unit in sorted(units.values(), key=len, reverse=True):
        fewest = sizes.index(min(sizes))
        folds |= dict.fromkeys(unit, fewest)
        sizes[fewest] += len(unit)
    return replace(split, folds=folds)


def _sizes(count: int, published: tuple[int, int, int] | None) -> tuple[int, int, str]:
    """Numbers of validation and test cases, and the rule in words."""
    rule = "80/10/10 by case"
    if published is None:
        return _tenth(count), _tenth(count), rule
    if count == sum(published):
        return published[1], published[2], f"{'/'.join(map(str, published))} by case"
    return _tenth(count), _tenth(count), f"{rule} ({count} of {sum(published)} cases are here)"


def _taken(
    ids: Sequence[str], count: int, groups: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """The first ids, each with its whole group, as near to `count` as that comes; the others."""
    chosen: set[str] = set()
    for id in ids:
        group = groups.get(id)
        more = {id} if group is None else {other for other in ids if groups.get(other) == group}
        if chosen and abs(len(chosen | more) - count) >= abs(len(chosen) - count):
            break
        chosen |= more
    return [id for id in ids if id in chosen], [id for id in ids if id not in chosen]


def read_split(path: Path, ids: Collection[str], seed: int) -> Split:
    """A split from a file; cases it does not name belong to none.

    Args:
        path: JSON, or a folder with train.txt, val.txt and test.txt (or one of these files).
        ids: Case ids of the data set.
        seed: Draws a tenth of the training cases for validation when the file names none.

    Raises:
        ConfigError: Missing, malformed, no training case, or one case in two splits.
        DataError: It names a case the data set does not have.
    """
    listed, labelled = _read_lists(path)
    seen: dict[str, str] = {}
    for name in SPLITS:
        for id in listed[name]:
            if id in seen:
                raise ConfigError(
                    f"{path}: case {id} is in {seen[id]} and in {name}.", "Name each case once."
                )
            seen[id] = name
    unknown = sorted({*seen, *labelled} - set(ids), key=natural_key)
    if unknown:
        here = ", ".join(sorted(ids, key=natural_key)[:3])
        raise DataError(
            f"{path}: {len(unknown)} case(s) not in the data set, such as {unknown[0]}.",
            f"Case ids here look like {here}.",
        )
    if len(listed["train"]) < (1 if listed["val"] else 2):
        raise ConfigError(f"{path}: too few training cases.", _FORM)
    if listed["val"]:
        return Split(seen, seed, f"file {path.name}", labelled)
    train = sorted(listed["train"], key=natural_key)
    random.Random(seed).shuffle(train)
    rule = f"file {path.name}, a tenth of train for val"
    split = _split(train, _tenth(len(train)), listed["test"], seed, rule)
    return replace(split, labelled=labelled)


def _split(rest: Sequence[str], val: int, test: Sequence[str], seed: int, rule: str) -> Split:
    """The first `val` of the rest validate, the others train."""
    of = dict.fromkeys(test, "test") | dict.fromkeys(rest[:val], "val")
    return Split(of | dict.fromkeys(rest[val:], "train"), seed, rule)


def _tenth(count: int) -> int:
    return max(1, round(0.1 * count))


def _read_lists(path: Path) -> tuple[dict[str, list[str]], dict[str, tuple[str, ...]]]:
    """The cases of each split, and by case the classes that were drawn where some were not."""
    if not path.exists():
        raise ConfigError(f"The split file {path} does not exist.", _FORM)
    if path.suffix == ".txt" and path.stem in SPLITS:
        path = path.parent
    try:
        content = _content(path)
    except DataError as error:
        raise ConfigError(error.message, error.hint) from error
    unknown = sorted(set(content) - {*SPLITS, _LABELLED})
    if unknown:
        raise ConfigError(f"{path}: unknown split {unknown[0]!r}.", _FORM)
    lists = {name: content.get(name, []) for name in SPLITS}
    for name, ids in lists.items():
        plain = isinstance(ids, list) and not any(isinstance(id, bool) for id in ids)
        if not plain or not all(isinstance(id, str | int) for id in ids):
            raise ConfigError(f"{path}: {name} is not a list of case ids.", _FORM)
    labelled = content.get(_LABELLED, {})
    if not isinstance(labelled, dict) or not all(map(_are_names, labelled.values())):
        raise ConfigError(
            f"{path}: {_LABELLED} is no list of class names for each case.",
            f'Write "{_LABELLED}": {{"case_1": ["liver"]}}; other cases have all classes.',
        )
    ids_of = {name: [_id(str(id)) for id in ids] for name, ids in lists.items()}
    return ids_of, {_id(id): tuple(names) for id, names in labelled.items()}


def _are_names(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _id(text: str) -> str:
    """A case id as it is written: alone or as a path, with a suffix or not."""
    return stem_of(Path(text.strip().replace("\\", "/")))


def _content(path: Path) -> dict[str, Any]:
    if path.is_dir():
        files = {name: path / f"{name}.txt" for name in SPLITS}
        if not files["train"].is_file():
            raise ConfigError(f"{path}: there is no train.txt.", _FORM)
        return {name: _lines(file) if file.is_file() else [] for name, file in files.items()}
    return read_object(path, _FORM)


def _lines(file: Path) -> list[str]:
    lines = (line.strip() for line in read_text(file, _FORM).splitlines())
    return [line for line in lines if line and not line.startswith("#")]
