"""nnU-Net raw data, versions 1 and 2, and the Medical Segmentation Decathlon: both describe
themselves in dataset.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from sdseg_cli.core.errors import DataError
from sdseg_cli.core.filenames import is_picture, natural_key, stem_of
from sdseg_cli.core.findings import EVERY_CASE, Finding, warning
from sdseg_cli.core.json_files import read_object
from sdseg_cli.data.layouts.pairs import (
    DATASET_JSON,
    IMAGES,
    LABELS,
    Stems,
    by_stem,
    case_of,
    files_in,
    is_volume,
)
from sdseg_cli.data.spec import Case, DatasetSpec, in_order

_HINT = "Repair it: labels and channel_names (or modality) as nnU-Net or the Decathlon write them."
_LARGEST_LABEL = 65535
_LONGEST_NAME, _LONGEST_PATH = 255, 1000
"""Bytes of a file name, and of a path below a data set."""
_CHANNEL = "_0000"


@dataclass(frozen=True)
class Description:
    """The content of dataset.json.

    Attributes:
        channels: Names of the image channels, such as ("CT",).
        labels: Declared labels without background and ignore, ascending.
        classes: Name and labels of each declared class, as they are listed.
        ignore: The label that marks unlabelled voxels, None when there is none.
        file_ending: Of the images and label maps, ".nii.gz" when not said.
        training: (image, label) paths as written, but with slashes; empty when not listed.
        cases: How many training cases there are said to be; None = not said.
    """

    channels: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[tuple[str, tuple[int, ...]], ...]
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
        classes=_classes(content["labels"], ignore),
        ignore=ignore,
        file_ending=ending if ending.startswith(".") else f".{ending}",
        training=training,
        cases=_count(content.get("numTraining")),
    )


def _classes(labels: dict[str, Any], ignore: int | None) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Name and labels of each class; names may be alike where numbers are the keys (version 1)."""
    named: list[tuple[str, tuple[int, ...]]]
    if all(isinstance(value, str) for value in labels.values()) and all(map(str.isdecimal, labels)):
        named = [(name, (int(number),)) for number, name in labels.items()]
    else:
        named = list(_label_numbers(labels).items())
    without = ((name, tuple(sorted(set(numbers) - {0, ignore}))) for name, numbers in named)
    return tuple((name, numbers) for name, numbers in without if numbers)


def refine(root: Path, spec: DatasetSpec) -> DatasetSpec:
    """The spec with what dataset.json says: modality, labels and names, without the ignore label.

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
    has_regions = any(len(labels) > 1 for _, labels in said.classes)
    return replace(
        spec,
        modality=modality,
        target=target,
        labels=declared,
        class_names={labels[0]: name for name, labels in said.classes if len(labels) == 1},
        regions=said.classes if has_regions else (),
        ignore=said.ignore,
    )


def check_description(root: Path, cases: Sequence[Case], *, is_complete: bool) -> Iterator[Finding]:
    """Find where the files differ from dataset.json.

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
            yield warning(
                "file-ending",
                case.id,
                f"{' and '.join(odd)} read, though {DATASET_JSON} "
                + ("lists another ending" if is_complete else f"says {said.file_ending}"),
                "Nothing to do if the file belongs to the set; other tools go by dataset.json.",
            )
    if said.cases is not None and said.cases != len(cases):
        yield warning(
            "cases-count",
            EVERY_CASE,
            f"{DATASET_JSON} says numTraining {said.cases}, {len(cases)} here",
            "Look for files that are missing, not listed or called otherwise; else correct it.",
        )
    if said.training:
        yield from _check_listed(said, cases, is_complete)


def _check_listed(said: Description, cases: Sequence[Case], is_complete: bool) -> Iterator[Finding]:
    """Cases beside the list, and entries of it without a case (Decathlon's are all cases)."""
    stems = [stem_of(Path(image)) for image, _ in said.training]
    listed = {stem.removesuffix(_CHANNEL) for stem in stems if not stem.startswith(".")}
    here = {stem_of(case.image).removesuffix(_CHANNEL) for case in cases}
    for stem in sorted(listed - here, key=natural_key):
        yield warning(
            "scan-missing",
            stem,
            f'listed under "training" in {DATASET_JSON}, and no file here',
            "Add the scan and its mask, or take the entry out.",
        )
    if not is_complete:
        for stem in sorted(here - listed, key=natural_key):
            yield warning(
                "scan-not-listed",
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
    if not 0 <= number <= _LARGEST_LABEL:
        raise ValueError(f"label {value!r:.40} is not within 0..{_LARGEST_LABEL}")
    return int(number)


def _find_nnunet(root: Path) -> list[Case]:
    """Pair imagesTr/CASE_0000 with labelsTr/CASE.

    dataset.json's file ending is what nnU-Net itself goes by. A pair of another one is read too,
    and the checks say so.

    Raises:
        DataError: dataset.json is missing or malformed, or the images have several channels.
    """
    if not _is_nnunet(root):
        return []
    said = describe(root)
    images = by_stem(files_in(root / IMAGES, _is_read))
    labels = by_stem(files_in(root / LABELS, _is_read))
    _require_one_channel(root, said, images)
    cases = []
    for stem, several in images.items():
        id = stem.removesuffix(_CHANNEL)
        for image in several:
            is_own = image.name.lower().endswith(said.file_ending.lower())
            if stem.endswith(_CHANNEL) and (is_own or id in labels):
                cases.append(case_of(id, image, labels.get(id, ())))
    return in_order(cases)


def _is_nnunet(root: Path) -> bool:
    """True if it has dataset.json and imagesTr/*_0000.*."""
    images = (root / IMAGES).glob(f"[!.]*{_CHANNEL}.*")
    return (root / DATASET_JSON).is_file() and any(images)


def _require_one_channel(root: Path, said: Description, images: Stems) -> None:
    ending = said.file_ending
    second = {stem.removesuffix("_0001") for stem in images if stem.endswith("_0001")}
    alone = sorted(id for id in second if f"{id}{_CHANNEL}" not in images)
    if alone and len(said.channels) == 1:
        raise DataError(
            f"{root}: dataset.json declares one channel, and {IMAGES}/{alone[0]}_0001 is a second.",
            f"Rename it to {alone[0]}{_CHANNEL}, or take it out.",
        )
    # nnU-Net names the three colours of a picture, which lie in one file.
    in_one = all(is_picture(image) for group in images.values() for image in group)
    if second or (len(said.channels) > 1 and not in_one):
        raise DataError(
            f"{root}: its images have several channels ({', '.join(said.channels)}); one is used.",
            f"Choose one: --image-glob '{IMAGES}/*{_CHANNEL}{ending}' "
            f"--label-glob '{LABELS}/*{ending}'.",
        )


def _is_read(path: Path) -> bool:
    return is_volume(path) or is_picture(path)


NNUNET = DatasetSpec(
    name="nnunet",
    summary="dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz (nnU-Net)",
    find_cases=_find_nnunet,
    recognises=_is_nnunet,
    refine=refine,
    check=partial(check_description, is_complete=False),
)


def _find_decathlon(root: Path) -> list[Case]:
    """The pairs that dataset.json lists under "training"; macOS's "._" twins are passed over.

    Raises:
        DataError: dataset.json is missing or malformed, the images have several channels, or a
            path leaves the folder.
    """
    if not _is_decathlon(root):
        return []
    said = describe(root)
    colours = all(is_picture(Path(image)) for image, _ in said.training)
    if len(said.channels) > 1 and not colours:
        raise DataError(
            f"{root}: its images are 4D, with {len(said.channels)} channels "
            f"({', '.join(said.channels)}); one is used.",
            "Write the channel you want as 3D files, and use the folder layout images/, labels/.",
        )
    twice = [listed for listed, count in Counter(said.training).items() if count > 1]
    if twice:
        raise DataError(
            f"{root / DATASET_JSON}: lists {twice[0][0]!a} twice under training.",
            "Remove one of the two entries.",
        )
    cases = []
    for listed in said.training:
        image, label = (_inside(root, text) for text in listed)
        if not image.name.startswith("."):
            labels = [label] if label.is_file() else []
            cases.append(case_of(stem_of(image), image, labels))
    return in_order(cases)


def _is_decathlon(root: Path) -> bool:
    """True if it has dataset.json and imagesTr, in another layout than nnU-Net's."""
    there = (root / DATASET_JSON).is_file() and (root / IMAGES).is_dir()
    return there and not _is_nnunet(root)


def _inside(root: Path, text: str) -> Path:
    written = PurePosixPath(text)
    drive = PureWindowsPath(text).drive
    if _is_odd(text) or not written.name:
        raise DataError(
            f"{root / DATASET_JSON}: {text!a:.60} is no path of a file.",
            "Name the files as ./imagesTr/NAME.nii.gz and ./labelsTr/NAME.nii.gz.",
        )
    if written.is_absolute() or drive or ".." in written.parts:
        raise DataError(
            f"{root / DATASET_JSON}: {text!a} leaves the data set's folder.",
            "Name the files as ./imagesTr/NAME.nii.gz and ./labelsTr/NAME.nii.gz.",
        )
    return _as_found(root / written)


def _as_found(path: Path) -> Path:
    """The listed file, or the only one that differs from it by its ending."""
    if path.is_file():
        return path
    stem = stem_of(path)
    alike = by_stem(files_in(path.parent, is_volume)).get(stem, [])
    return alike[0] if len(alike) == 1 else path


def _is_odd(text: str) -> bool:
    """True if no file can have this name: half a character, a zero, or too long."""
    broken = "\0" in text or any("\ud800" <= character <= "\udfff" for character in text)
    if broken or len(text) > _LONGEST_PATH:
        return True
    return any(len(part.encode()) > _LONGEST_NAME for part in text.split("/"))


DECATHLON = DatasetSpec(
    name="decathlon",
    summary='dataset.json with "training": [{"image", "label"}], imagesTr, labelsTr (Decathlon)',
    find_cases=_find_decathlon,
    recognises=_is_decathlon,
    refine=refine,
    check=partial(check_description, is_complete=True),
)
