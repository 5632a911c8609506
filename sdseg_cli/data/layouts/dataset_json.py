"""dataset.json, in which nnU-Net and Decathlon data sets describe themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdseg_cli.core.errors import DataError
from sdseg_cli.core.filenames import natural_key, stem_of
from sdseg_cli.core.findings import EVERY_CASE, WARNING, Finding
from sdseg_cli.core.json_files import read_object
from sdseg_cli.data.spec import Case, DatasetSpec

DATASET_JSON, IMAGES, LABELS = "dataset.json", "imagesTr", "labelsTr"
_HINT = "Repair it: labels and channel_names (or modality) as nnU-Net or the Decathlon write them."

LARGEST_LABEL = 65535


@dataclass(frozen=True)
class Description:
    """What dataset.json says.

    Attributes:
        channels: Names of the image channels, such as ("CT",).
        labels: Declared labels without background and ignore, ascending.
        ignore: The label that marks unlabelled voxels, None when there is none.
        file_ending: Of the images and label maps, ".nii.gz" when not said.
        training: (image, label) paths as written, but with slashes; empty when not listed.
        cases: How many training cases there are said to be; None = not said.
    """

    channels: tuple[str, ...]
    labels: tuple[int, ...]
    ignore: int | None
    file_ending: str
    training: tuple[tuple[str, str], ...]
    cases: int | None = None


def describe(root: Path) -> Description:
    """Read a folder's dataset.json, in the forms of nnU-Net 1 and 2 and of the Decathlon.

    Raises:
        DataError: Missing, no JSON, or a part of it has another form.
    """
    file = root / DATASET_JSON
    content = read_object(file, _HINT)
    try:
        channels = content.get("channel_names", content.get("modality", {"0": "unknown"}))
        labels = _label_numbers(content["labels"])
        training = tuple(_pair(entry) for entry in content.get("training", []))
        names = _names(channels)
        ending = _text(content.get("file_ending", ".nii.gz"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{file}: not in the form of nnU-Net or Decathlon ({error!r}).", _HINT
        ) from error
    ignore = next(iter(labels.get("ignore", ())), None)
    declared = {number for numbers in labels.values() for number in numbers} - {0, ignore}
    return Description(
        channels=names,
        labels=tuple(sorted(map(int, declared - {None}))),
        ignore=ignore,
        file_ending=ending if ending.startswith(".") else f".{ending}",
        training=training,
        cases=_count(content.get("numTraining")),
    )


def refine(root: Path, spec: DatasetSpec) -> DatasetSpec:
    """The spec with the modality dataset.json names, and without its ignore label.

    Raises:
        DataError: As for `describe`.
    """
    said = describe(root)
    known = [name for name in said.channels if name.lower() not in ("", "unknown")]
    modality = None if not known else "CT" if known[0].lower() == "ct" else "MR/other"
    # Unlabelled voxels are no foreground; without them every label but 0 counts.
    target = None if said.ignore is None else said.labels
    ignored = () if said.ignore is None else (said.ignore,)
    declared = (*said.labels, *ignored)
    return replace(spec, modality=modality, target=target, labels=declared)


def check_description(root: Path, cases: Sequence[Case], *, is_complete: bool) -> Iterator[Finding]:
    """Where the files and what dataset.json says of them part.

    Args:
        root: The data set's folder.
        cases: Those found.
        is_complete: Whether dataset.json has to list every scan, if it lists any.
    """
    said = describe(root)
    ending = said.file_ending.lower()
    listed = {Path(text).name for pair in said.training for text in pair}
    for case in cases:
        odd = [
            file.name
            for file in (case.image, case.label)
            if file is not None
            and (file.name not in listed if is_complete else not file.name.lower().endswith(ending))
        ]
        if odd:
            yield Finding(
                "file-ending",
                WARNING,
                case.id,
                f"{' and '.join(odd)} read, though {DATASET_JSON} "
                + ("lists another ending" if is_complete else f"says {said.file_ending}"),
                "Nothing to do if the file belongs to the set; other tools go by dataset.json.",
            )
    if said.cases is not None and said.cases != len(cases):
        yield Finding(
            "cases-count",
            WARNING,
            EVERY_CASE,
            f"{DATASET_JSON} says numTraining {said.cases}, {len(cases)} here",
            "Look for files that are missing, not listed or called otherwise; else correct it.",
        )
    if said.training:
        yield from _check_listed(said, cases, is_complete)


def _check_listed(said: Description, cases: Sequence[Case], is_complete: bool) -> Iterator[Finding]:
    """Cases beside the list, and entries of it without a case (Decathlon's are all cases)."""
    stems = [stem_of(Path(image)) for image, _ in said.training]
    listed = {stem.removesuffix("_0000") for stem in stems if not stem.startswith(".")}
    here = {stem_of(case.image).removesuffix("_0000") for case in cases}
    for stem in sorted(listed - here, key=natural_key):
        yield Finding(
            "scan-missing",
            WARNING,
            stem,
            f'listed under "training" in {DATASET_JSON}, and no file here',
            "Add the scan and its mask, or take the entry out.",
        )
    if not is_complete:
        for stem in sorted(here - listed, key=natural_key):
            yield Finding(
                "scan-not-listed",
                WARNING,
                stem,
                f'read, though not listed under "training" in {DATASET_JSON}',
                "List it, or take it out.",
            )


def _names(channels: Any) -> tuple[str, ...]:
    """{"0": "CT"} as both write it; a name alone or a list as some do."""
    if isinstance(channels, str):
        return (channels,)
    return tuple(
        _text(name) for name in (channels if isinstance(channels, list) else channels.values())
    )


def _count(value: Any) -> int | None:
    """A number, also as text; what is none says nothing."""
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
    return int(value) if whole else None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _pair(entry: Any) -> tuple[str, str]:
    """Windows writes backslashes."""
    image, label = _text(entry["image"]), _text(entry["label"])
    return image.replace("\\", "/"), label.replace("\\", "/")


def _label_numbers(labels: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> numbers: {"1": "liver"} in version 1, {"liver": 1, "both": [1, 2]} in version 2."""
    if all(isinstance(value, str) for value in labels.values()) and all(map(str.isdecimal, labels)):
        return {name: (_label(number),) for number, name in labels.items()}
    return {
        name: tuple(_label(n) for n in (value if isinstance(value, list) else [value]))
        for name, value in labels.items()
    }


def _label(value: Any) -> int:
    number = int(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or number != int(number):
        raise TypeError(f"{value!r:.40} is no label")
    if not 0 <= number <= LARGEST_LABEL:
        raise ValueError(f"label {value!r:.40} is not within 0..{LARGEST_LABEL}")
    return int(number)
