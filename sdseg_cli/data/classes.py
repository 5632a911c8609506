"""The classes of a set: what the user chose, what the data set calls them, which of them occur.

`choose` reads the options before any scan is opened; `ClassChoice.rule` makes the classes once the
labels that occur are known.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdseg_cli.core.errors import ConfigError, DataError, SdsegError, near
from sdseg_cli.core.findings import EVERY_CASE, Finding, warning
from sdseg_cli.core.json_files import read_object, read_text
from sdseg_cli.data.manifest import checked_target
from sdseg_cli.data.spec import ClassRule, DatasetSpec, are_twins, side_of

MOST_CLASSES = 128
"""A run has four latent channels for each class."""
LONGEST_NAME = 60
LARGEST_LABEL = 65535
_SPEC = "For example --classes liver=6,kidneys=2+3; all = each label, any = all as one."
_PAIRS = "For example --mirror-pairs 3:4,left_lung:right_lung; none = no pairs."
_NAMES = 'Write {"1": "liver", "2": "spleen"} as JSON, or a line 1,liver for each label.'
_ITK_SNAP = re.compile(r'\s*(\d+)(?:\s+[\d.]+){6}\s+"(.*)"\s*')
_COLOUR_TABLE = re.compile(r"\s*(\d+)\s+(\S+)(?:\s+\d+){4}\s*")
_ONE_AS_BYTES = {1, 255}
"""Masks of one structure, some written as 0 and 1, others as 0 and 255."""
_BROKEN = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode's control characters, halves of characters, and ends of lines and paragraphs."""


@dataclass(frozen=True)
class ClassOptions:
    """Which labels a run segments, as `prepare` and `check` take it.

    Attributes:
        target: Labels that count as one foreground; default the adapter's.
        classes: "all", "any" or NAME=1+2,NAME=3; see `choose`.
        class_names: File that names the labels.
        ignore: Label of pixels that count neither in a loss nor in a metric.
        mirror_pairs: Labels or names that change places in a mirror, 3:4,5:6, or "none"; found by
            their names when absent.
    """

    target: tuple[int, ...] | None = None
    classes: str | None = None
    class_names: Path | None = None
    ignore: int | None = None
    mirror_pairs: str | None = None


Group = tuple[str, tuple[int, ...]]
"""Name and labels of a class."""


@dataclass(frozen=True)
class ClassChoice:
    """What was chosen, before it is known which labels occur.

    Attributes:
        groups: The classes; None = each label that occurs, where there is not `one`.
        one: All labels are one foreground.
        target: Its labels; None = every label but 0.
        names: Label -> name.
        ignore: As in `ClassOptions`, or as the data set says.
        asked_to_ignore: The option said so.
        pairs: Labels that change places in a mirror; None = found by names.
        named: A file of names was given.
        asked: The groups were named one by one, so that each must occur.
        by_default: Nothing was asked for.
    """

    groups: tuple[Group, ...] | None
    one: bool
    target: tuple[int, ...] | None
    names: Mapping[int, str]
    ignore: int | None
    asked_to_ignore: bool
    pairs: tuple[tuple[int, int], ...] | None
    named: bool
    asked: bool
    by_default: bool

    def rule(
        self, present: Collection[int], trained: Collection[int]
    ) -> tuple[ClassRule, tuple[Finding, ...]]:
        """The classes, and what is odd about them and about the options.

        Args:
            present: Labels of all cases.
            trained: Labels on the slices of the training cases.

        Raises:
            DataError: A class that was asked for is in no (training) case, or there are too many.
            ConfigError: A pair for a mirror is none, or there is one class alone.
        """
        rule, odd = self._rule(present, trained)
        if len(rule) == 1 and self.pairs is not None:
            raise ConfigError(
                "--mirror-pairs has no effect: there is one class alone.", "Leave it out."
            )
        if len(rule) == 1 and self.named:
            odd += (
                warning(
                    "class-names-unused",
                    EVERY_CASE,
                    "there is one class alone, which has no name in a run",
                    "None needed; --class-names can be left out.",
                ),
            )
        if self.asked_to_ignore and self.ignore not in present:
            odd += (
                warning(
                    "ignore-absent",
                    EVERY_CASE,
                    f"no case has label {self.ignore}, which is to be ignored",
                    "Correct --ignore, or leave it out.",
                ),
            )
        return rule, odd

    def _rule(
        self, present: Collection[int], trained: Collection[int]
    ) -> tuple[ClassRule, tuple[Finding, ...]]:
        """As `rule`, without what is odd about the options."""
        if self.one or (self.by_default and set(present) - {0} == _ONE_AS_BYTES):
            foreground = ClassRule.of_target(self.target)
            ignore = self.ignore if self.asked_to_ignore else None
            return replace(foreground, ignore=ignore), ()
        if self.groups is None:
            each = sorted(set(present) - {0, self.ignore})
            groups = self._each(each)
        else:
            groups = self.groups
        if self.asked:
            _require_present(groups, present, trained)
        left_out = [group for group in groups if not set(group[1]) & set(trained)]
        groups = tuple(group for group in groups if group not in left_out)
        if len(groups) < 2 and not self.asked:
            # One label alone is what it always was: everything but 0, or the adapter's.
            one = replace(self, one=True)
            return one._rule(present, trained)[0], tuple(map(_left_out, left_out))
        names, labels = zip(*groups, strict=True)
        _require_few(len(groups))
        rule = ClassRule(labels, names)
        if len(rule) > 1 or self.asked_to_ignore:
            rule = replace(rule, ignore=self.ignore)
        if len(rule) > 1:
            rule = replace(rule, mirror_pairs=self._mirror_pairs(rule))
        odd = (*map(_left_out, left_out), *_odd(rule, present))
        return rule, odd

    def _each(self, labels: Iterable[int]) -> tuple[Group, ...]:
        """Each label a class; a name that several have gets its label as a suffix."""
        named = [(self.names.get(label, f"label_{label}"), label) for label in labels]
        often = Counter(name.casefold() for name, _ in named)
        return tuple(
            (name if often[name.casefold()] == 1 else f"{name}_{label}", (label,))
            for name, label in named
        )

    def _mirror_pairs(self, rule: ClassRule) -> tuple[tuple[int, int], ...]:
        """The numbers of the classes that change places, each in one pair at most."""
        given = [
            (_class_of(a, rule), _class_of(b, rule)) for a, b in (self.pairs or ())
        ]  # fmt: skip
        taken = [number for pair in given for number in pair]
        if len(taken) != len(set(taken)):
            twice = next(number for number in taken if taken.count(number) > 1)
            raise ConfigError(
                f"--mirror-pairs names {rule.names[twice]} twice.", "A class has one mirror image."
            )
        if self.pairs == ():
            return ()
        free = [number for number in range(len(rule)) if number not in taken]
        found: list[tuple[int, int]] = []
        for a, b in itertools.combinations(free, 2):
            if self._are_twins(rule, a, b) and not {a, b} & {n for pair in found for n in pair}:
                found.append((a, b))
        return tuple(sorted((min(pair), max(pair)) for pair in (*given, *found)))

    def _are_twins(self, rule: ClassRule, a: int, b: int) -> bool:
        """By the names of the classes, or by what the data set calls their labels."""
        if are_twins(rule.names[a], rule.names[b]):
            return True
        if side_of(rule.names[a]) or side_of(rule.names[b]):
            return False
        left, right = (rule.groups[number] or () for number in (a, b))
        if len(left) != len(right):
            return False
        return all(
            any(are_twins(self.names.get(one, ""), self.names.get(other, "")) for other in right)
            for one in left
        )


def choose(options: ClassOptions, spec: DatasetSpec) -> ClassChoice:
    """What the options say of a data set.

    `classes` is "all" (each label, or each region that the data set declares), "any" (all labels as
    one foreground), or classes by commas: NAME=1+2, a label alone, which the data set or
    `class_names` names, or such a name alone. By default the data sets of the paper have one
    foreground, all others each label as a class.

    Raises:
        ConfigError: An option makes no sense, or contradicts another.
        DataError: A name of the data set cannot be one.
    """
    text = None if options.classes is None else options.classes.strip()
    one = options.target is not None or text == "any" or (text is None and spec.published)
    _require_alone(options, one=one)
    ignore = _checked_ignore(options)
    target = spec.target
    if options.target is not None:
        target = checked_target(options.target)
    elif text == "any" and target is not None and len(target) == 1 and spec.ignore is None:
        target = None
    names: Mapping[int, str] = {} if one else _names(options, spec)
    groups = None
    if text not in (None, "all", "any"):
        groups = parse_classes(str(text), names, spec.regions)
    elif not one and spec.regions:
        groups = _checked(spec.regions, "dataset.json")
    elif not one and target is not None and len(target) > 1 and spec.ignore is None:
        groups = tuple((names.get(label, f"label_{label}"), (label,)) for label in target)
    used = {label for _, labels in groups or () for label in labels} | set(options.target or ())
    if options.ignore is not None and options.ignore in used:
        raise ConfigError(
            f"--ignore {options.ignore} is also a label of a class.", "Name it in one of the two."
        )
    pairs = None if options.mirror_pairs is None else _parse_pairs(options.mirror_pairs, names)
    return ClassChoice(
        groups=groups,
        one=one,
        target=target,
        names=names,
        # Whoever names the data set's ignore label as a class wants it.
        ignore=ignore if ignore is not None else None if spec.ignore in used else spec.ignore,
        asked_to_ignore=ignore is not None,
        pairs=pairs,
        named=options.class_names is not None,
        asked=text not in (None, "all", "any"),
        by_default=text is None and options.target is None,
    )


def parse_classes(
    text: str, names: Mapping[int, str], regions: Sequence[Group] = ()
) -> tuple[Group, ...]:
    """`liver=6,kidneys=2+3,5` as classes.

    Args:
        text: As typed.
        names: Label -> name.
        regions: Classes of the data set that overlap.

    Raises:
        ConfigError: It is none, or two classes have one name or the same labels.
    """
    groups = tuple(_parse_class(part, names, dict(regions)) for part in text.split(","))
    return _checked(groups, "--classes")


def parse_scored(text: str | None) -> dict[int | str, tuple[int, ...]] | None:
    """Classes to score in finished masks, `liver=6,kidneys=2+3,5`: name, or the label itself where
    it has none, -> labels. None of no text or "any": one foreground.

    Raises:
        ConfigError: As `parse_classes`, or "all": files do not say their classes.
    """
    if text is None or text.strip() == "any":
        return None
    if text.strip() == "all":
        raise ConfigError(
            "--classes all: masks do not say which classes there are.",
            "Name them, for example --classes liver=6,kidneys=2+3 or --classes 1,2,3.",
        )
    groups = parse_classes(text, {})
    return {labels[0] if name == f"label_{labels[0]}" else name: labels for name, labels in groups}


def _parse_class(
    part: str, names: Mapping[int, str], regions: Mapping[str, tuple[int, ...]]
) -> Group:
    if part.count("=") > 1:
        raise ConfigError(f"--classes: {part.strip()!r} has two equals signs.", _SPEC)
    name, equals, labels = (piece.strip() for piece in part.rpartition("="))
    if equals and not name:
        raise ConfigError(f"--classes: {part.strip()!r} has no name.", _SPEC)
    if not labels:
        raise ConfigError(
            f"--classes: {name} has no labels." if name else "--classes: a class is empty.", _SPEC
        )
    several = [piece.strip() for piece in labels.split("+")]
    if not equals:
        if len(several) > 1:
            raise ConfigError(
                f"--classes: {labels} are several labels without a name.",
                f"Name them: --classes organ={labels}",
            )
        numbers = _labels(labels, names, regions)
        own = names.get(numbers[0], f"label_{numbers[0]}") if labels.isdecimal() else labels
        return own, numbers
    found = {label for piece in several for label in _labels(piece, names, regions)}
    return name, tuple(sorted(found))


def _labels(
    text: str, names: Mapping[int, str], regions: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """A label or what the data set calls one, or a region."""
    if re.fullmatch(r"[+-]?\d+", text, re.ASCII):
        return (_label(int(text) if len(text) < 10 else LARGEST_LABEL + 1, text, "--classes"),)
    called: dict[str, tuple[int, ...]] = {f"label_{label}": (label,) for label in range(1, 256)}
    called |= {name: (label,) for label, name in names.items()} | dict(regions)
    exact = called.get(text) or {name.casefold(): one for name, one in called.items()}.get(
        text.casefold()
    )
    if exact is None:
        known = [*names.values(), *regions]
        meant = near(text, known)
        hint = (
            f"Did you mean {meant[0]}?" if meant else f"Known: {_few(known)}." if known else _SPEC
        )
        if text in ("all", "any"):
            hint = f"{text} stands alone: --classes {text}"
        raise ConfigError(f"--classes: {_shown(text)} is no label and no known name.", hint)
    return exact


def _label(number: int, text: str, option: str) -> int:
    if number == 0:
        raise ConfigError(f"{option}: label 0 is the background.", "Name labels of 1 or more.")
    if not 0 < number <= LARGEST_LABEL:
        raise ConfigError(f"{option}: {text:.20} is no label.", f"Labels are 1 to {LARGEST_LABEL}.")
    return number


def _checked_ignore(options: ClassOptions) -> int | None:
    if options.ignore is None:
        return None
    return _label(options.ignore, str(options.ignore), "--ignore")


def _require_alone(options: ClassOptions, *, one: bool) -> None:
    """Options that would contradict each other, or do nothing."""
    if options.target is not None and options.classes is not None:
        raise ConfigError(
            "--target and --classes are both given.",
            "--target makes one foreground of labels, --classes several classes: give one.",
        )
    given = {"--class-names": options.class_names, "--mirror-pairs": options.mirror_pairs}
    instead = "Add --classes all"
    if options.target is not None:
        instead = f"Give --classes {','.join(map(str, options.target))} instead of --target"
    elif options.classes is not None:
        instead = "Give --classes all instead"
    for option, value in given.items():
        if one and value is not None:
            raise ConfigError(
                f"{option} has no effect on one foreground.", f"{instead}, or leave it out."
            )


def _names(options: ClassOptions, spec: DatasetSpec) -> dict[int, str]:
    """Label -> name, as the file says, else as the data set does."""
    names = {
        label: checked_class_name(name, "dataset.json", DataError)
        for label, name in spec.class_names.items()
    }
    if options.class_names is not None:
        names |= read_class_names(options.class_names)
    return names


def read_class_names(path: Path) -> dict[int, str]:
    """Label -> name from a file: JSON {"1": "liver"} (or {"liver": 1}, or nnU-Net's with
    "labels"), lines `1,liver`, the label file of ITK-SNAP or a colour table of 3D Slicer.

    Raises:
        ConfigError: It is none of these, or says a label twice.
    """
    try:
        pairs = (_json_pairs if path.suffix.lower() == ".json" else _line_pairs)(path)
    except DataError as error:
        raise ConfigError(error.message, error.hint or _NAMES) from error
    names: dict[int, str] = {}
    for value, name in pairs:
        if not value.isascii() or not value.isdecimal() or len(value) > 9:
            raise ConfigError(f"{path}: {_shown(value)} is no label.", _NAMES)
        if int(value) == 0:
            continue  # the background has a name in most tables
        label = _label(int(value), value, str(path))
        if label in names:
            raise ConfigError(f"{path}: label {label} is named twice.", "Name each label once.")
        names[label] = checked_class_name(name, str(path))
    if not names:
        raise ConfigError(f"{path}: names no label.", _NAMES)
    return names


def _json_pairs(path: Path) -> list[tuple[str, str]]:
    content = read_object(path, _NAMES)
    inner = content.get("labels", content)
    pairs = inner.items() if isinstance(inner, dict) else ()
    named = [(str(b), a) if type(b) is int else (a, b) for a, b in pairs]
    if not named or not all(isinstance(name, str) for _, name in named):
        raise ConfigError(f"{path}: not a name for each label.", _NAMES)
    return named


def _line_pairs(path: Path) -> list[tuple[str, str]]:
    lines = [line for line in read_text(path, _NAMES).splitlines() if line.strip()]
    lines = [line for line in lines if not line.lstrip().startswith("#")]
    for table in (_ITK_SNAP, _COLOUR_TABLE):
        found = [match.groups() for line in lines if (match := table.fullmatch(line))]
        if found and len(found) == len(lines):
            return [(value, name) for value, name in found]
    delimiter = next((one for one in "\t;," if all(one in line for line in lines)), ",")
    pairs = []
    for number, row in enumerate(csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter)):
        if len(row) < 2:
            raise ConfigError(f"{path}: {_shown(lines[number])} is no value and name.", _NAMES)
        value, name = row[0].strip(), row[1].strip()
        if number or value.isdecimal():  # the first line may be a heading
            pairs.append((value, name))
    return pairs


def checked_class_name(name: str, source: str, error: type[SdsegError] = ConfigError) -> str:
    """A name for a class, without blanks around it.

    Raises:
        ConfigError: It is empty, too long, or has control characters; or the error given.
    """
    plain = name.strip()
    if not plain:
        raise error(f"{source}: a class has an empty name.", "Give it a name.")
    if any(unicodedata.category(character) in _BROKEN for character in plain):
        raise error(f"{source}: the name {plain!a:.60} has a control character.", "Remove it.")
    if len(plain) > LONGEST_NAME:
        raise error(
            f"{source}: the name {plain[:20]}... has {len(plain)} characters.",
            f"At most {LONGEST_NAME} are possible.",
        )
    return plain


def _checked(groups: Sequence[Group], source: str) -> tuple[Group, ...]:
    """Classes with names and labels of their own."""
    error = ConfigError if source.startswith("--") else DataError
    by_name: dict[str, str] = {}
    by_labels: dict[tuple[int, ...], str] = {}
    named = tuple((checked_class_name(name, source, error), labels) for name, labels in groups)
    for name, labels in named:
        if name.casefold() in by_name:
            raise error(f"{source}: two classes are called {name}.", "Give each its own name.")
        if labels in by_labels:
            raise error(
                f"{source}: {by_labels[labels]} and {name} are the same: label "
                f"{'+'.join(map(str, labels))}.",
                "Leave one out, or give it other labels; regions may share some.",
            )
        by_name[name.casefold()] = by_labels[labels] = name
    _require_few(len(named))
    return named


def _require_few(count: int) -> None:
    if count > MOST_CLASSES:
        raise DataError(
            f"{count} classes: a run has at most {MOST_CLASSES}.",
            "Choose some or merge them, for example --classes liver=6,kidneys=2+3; or make one "
            "foreground of all: --classes any",
        )


def _parse_pairs(text: str, names: Mapping[int, str]) -> tuple[tuple[int, int], ...]:
    if text.strip() == "none":
        return ()
    pairs = []
    for part in text.split(","):
        sides = [side.strip() for side in part.split(":")]
        if len(sides) != 2 or not all(sides):
            raise ConfigError(f"--mirror-pairs: {_shown(part.strip())} is no pair.", _PAIRS)
        left, right = (_pair_label(side, names) for side in sides)
        if left == right:
            raise ConfigError(f"--mirror-pairs: {part.strip()} is one label twice.", _PAIRS)
        pairs.append((left, right))
    return tuple(pairs)


def _pair_label(text: str, names: Mapping[int, str]) -> int:
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return _label(int(text), text, "--mirror-pairs")
    for label, name in names.items():
        if name.casefold() == text.casefold():
            return label
    raise ConfigError(f"--mirror-pairs: {_shown(text)} is no label and no known name.", _PAIRS)


def _class_of(label: int, rule: ClassRule) -> int:
    """The class of a label: that of it alone, else the only one that has it."""
    holding = [number for number, group in enumerate(rule.groups) if label in (group or ())]
    alone = [number for number in holding if rule.groups[number] == (label,)]
    if len(found := alone or holding) != 1:
        what = "in no class" if not found else "in several classes"
        classes = [f"{'+'.join(map(str, group or ()))}" for group in rule.groups]
        raise ConfigError(
            f"--mirror-pairs: label {label} is {what}.", f"Labels of the classes: {_few(classes)}."
        )
    return found[0]


def _require_present(
    groups: Sequence[Group], present: Collection[int], trained: Collection[int]
) -> None:
    """Each class that was asked for must be in a case, and in one to train on."""
    for where, labels in (("case", present), ("training case", trained)):
        absent = [group for group in groups if not set(group[1]) & set(labels)]
        if absent:
            here = ", ".join(map(str, sorted(labels)[:16])) or "none"
            named = [f"{name} ({'+'.join(map(str, numbers))})" for name, numbers in absent]
            raise DataError(
                f"no {where} has class {_few(named)}; labels there: {here}.",
                "Leave it out of --classes, or correct its label."
                if where == "case"
                else "Leave it out of --classes, give another --split-file, or with structures "
                "below a pixel of the slices try --crop body.",
            )


def _left_out(group: Group) -> Finding:
    name, labels = group
    return warning(
        "class-left-out",
        EVERY_CASE,
        f"{name} (label {'+'.join(map(str, labels))}) is on no slice of a training case",
        "It is no class of this set. Give another --split-file, or --crop body if it is too small.",
    )


def _odd(rule: ClassRule, present: Collection[int]) -> Iterable[Finding]:
    """Labels of unions that do not occur, and regions that others hide in a label map."""
    for name, group in zip(rule.names, rule.groups, strict=True):
        absent = sorted(set(group or ()) - set(present))
        if absent:
            yield warning(
                "class-label-absent",
                EVERY_CASE,
                f"no case has label {', '.join(map(str, absent))} of {name}",
                "Correct it in --classes, or leave it out.",
            )
    pairs = itertools.combinations(zip(rule.names, rule.groups, strict=True), 2)
    for (name, group), (later, larger) in pairs:
        if set(group or ()) <= set(larger or ()):
            yield warning(
                "class-hidden",
                EVERY_CASE,
                f"{name} lies within {later}, which comes after it and hides it in label maps",
                f"Name {later} before {name} in --classes.",
            )


def mirror_words(rule: ClassRule) -> str:
    """What becomes of left-right mirrors of several classes; "" where nothing is to say."""
    pairs = [f"{rule.names[a]} and {rule.names[b]}" for a, b in rule.mirror_pairs]
    swapped = f"in a left-right mirror {', '.join(pairs)} change places" if pairs else ""
    if rule.mirror_safe:
        return swapped
    paired = {number for pair in rule.mirror_pairs for number in pair}
    alone = [rule.names[k] for k in sorted(rule.sided - paired)]
    off = (
        f"left-right mirrors are off: {_few(alone)} would be on the other side, and no class is "
        "known as the mirror image (name it with --mirror-pairs 3:4)"
    )
    return f"{swapped}; {off}" if swapped else off


def _few(words: Sequence[str]) -> str:
    return ", ".join(words[:12]) + (f" and {len(words) - 12} more" if len(words) > 12 else "")


def _shown(text: str) -> str:
    return f"{text[:40]!a}" if not text.isprintable() else f"'{text[:40]}'"
