"""One's own data: images/ beside labels/ or masks/, one folder per case, or any two patterns.

Pictures only beside each other: in a folder per case there may be previews of anything.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.core.filenames import (
    LABEL_STEM,
    glob_expression,
    leads_nowhere,
    matching,
    stem_of,
    walked,
)
from sdseg_cli.data.layouts.pairs import (
    DATASET_JSON,
    IMAGES,
    by_stem,
    case_of,
    cases_of,
    files_in,
    is_volume,
    paired,
)
from sdseg_cli.data.spec import Case, DatasetSpec, in_order

SCAN_FOLDERS = ("images", "image")
LABEL_FOLDERS = ("labels", "masks", "label", "mask")
_IMAGE_STEM = re.compile(r"(^|.*[_\-. ])(image|img|scan|ct|mr|mri)", re.IGNORECASE)
_LABEL_START = re.compile(r"(labels?|masks?|seg|segmentation)[_\-. ]", re.IGNORECASE)
"""Only where no name ends so: "seg_v2_117classes" beside "image"."""
UNPAIRED = "unpaired"
"""Code of the error that two patterns would fix."""
_GLOB_HINT = "Name the files with --image-glob '*/image.nii.gz' --label-glob '*/label.nii.gz'."


def find_cases(root: Path) -> list[Case]:
    """Find cases in either layout; images/ and labels/ side by side come first.

    Returns:
        Cases in natural order. A scan without label map has `label=None`; folders without a scan
        (a DICOM series, notes) are passed over.

    Raises:
        DataError: A case folder holds several scans or label maps, or two cases share an id.
    """
    return in_order(_from_twin_folders(root) or _from_case_folders(root))


def recognises(root: Path) -> bool:
    """True for either layout without a dataset.json that says otherwise."""
    if (root / DATASET_JSON).is_file() and (root / IMAGES).is_dir():
        return False
    try:
        return bool(find_cases(root))
    except DataError:
        # It is this layout, with a fault that `find_cases` will name.
        return True


def find_by_globs(root: Path, image_glob: str, label_glob: str) -> list[Case]:
    """Pair the files of two patterns: by what their wildcards stand for, else by folder.

    "img/img*.nii.gz" and "label/label*.nii.gz" pair img0001 with label0001 as case 0001.

    Args:
        root: Both patterns are relative to it.
        image_glob: Pattern of the scans.
        label_glob: Pattern of the label maps.

    Raises:
        ConfigError: A pattern is absolute or leaves the folder.
        DataError: A pattern matches nothing, or the files cannot be paired one to one.
    """
    images, labels = _matches(root, image_glob), _matches(root, label_glob)
    image_keys, label_keys = keys_of(images, image_glob, labels, label_glob)
    for keys, pattern in ((image_keys, image_glob), (label_keys, label_glob)):
        twice = [key for key, count in Counter(keys).items() if count > 1]
        if twice:
            raise DataError(
                f"{pattern} matches several files of case {twice[0] or '.'}.",
                "Make the pattern narrower, so that it matches one file per case.",
            )
    by_key = dict(zip(label_keys, labels, strict=True))
    return in_order(
        [
            Case(key, root / image, root / by_key[key] if key in by_key else None)
            for key, image in zip(image_keys, images, strict=True)
        ]
    )


def keys_of(
    images: Sequence[Path], image_glob: str, labels: Sequence[Path], label_glob: str
) -> tuple[list[str], list[str]]:
    """The keys by which the files of two patterns are paired, one for each file.

    Args:
        images: Relative paths that match `image_glob`.
        image_glob: Pattern of the scans.
        labels: Relative paths that match `label_glob`.
        label_glob: Pattern of the label maps.
    """
    keys = _keys(images, image_glob), _keys(labels, label_glob)
    if set(keys[0]) & set(keys[1]):
        return keys
    return _folders(images), _folders(labels)


def _from_twin_folders(root: Path) -> list[Case]:
    images = _first_folder(root, SCAN_FOLDERS)
    labels = _first_folder(root, LABEL_FOLDERS)
    if images is None or labels is None:
        return []
    volumes = files_in(images, is_volume)
    if not volumes:
        return paired(images, labels)
    return cases_of(by_stem(volumes), by_stem(files_in(labels, is_volume)))


def _from_case_folders(root: Path) -> list[Case]:
    cases = []
    for folder, files in walked(root):
        volumes = [path for path in files if is_volume(path)]
        # A folder, for all we know, whose case must not be missed without a word.
        lost = [path for path in files if not path.suffix and leads_nowhere(path)]
        cases += [Case(path.relative_to(root).as_posix(), path, None) for path in lost]
        labels, images = labels_and_scans(volumes)
        if not images:
            continue
        if len(images) > 1 or len({stem_of(path) for path in labels}) > 1:
            raise DataError(
                f"{folder}: {len(images)} scans and {len(labels)} label maps in one folder.",
                _GLOB_HINT,
                UNPAIRED,
            )
        relative = folder.relative_to(root).as_posix()
        id = root.resolve().name if relative == "." else relative
        cases.append(case_of(id, images[0], labels))
    return cases if any(case.image.suffix for case in cases) else []


def labels_and_scans(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The label maps and the scans of a case folder, by name."""
    images = [path for path in files if _IMAGE_STEM.fullmatch(stem_of(path))]
    labels = [path for path in files if LABEL_STEM.fullmatch(stem_of(path))] or [
        path for path in files if _LABEL_START.match(stem_of(path)) and path not in images
    ]
    return labels, images


def _first_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _matches(root: Path, pattern: str) -> list[Path]:
    """Files a pattern matches, relative to the root."""
    if not pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise ConfigError(
            f"The pattern {pattern!r} does not stay inside the data set's folder.", _GLOB_HINT
        )
    try:
        found = matching(root, pattern)
    except re.error as error:
        raise ConfigError(f"The pattern {pattern!r} is none ({error}).", _GLOB_HINT) from error
    if not found:
        raise DataError(
            f"{root}: no file matches {pattern!r}.",
            "Patterns are relative to the data set's folder; ** stands for any folders.",
        )
    return found


def _keys(paths: Sequence[Path], pattern: str) -> list[str]:
    """The text matched by the wildcards, without that of a final ".*", the suffix."""
    expression = glob_expression(pattern)
    without_ending = glob_expression(pattern.removesuffix(".*"))
    keys = []
    for path in paths:
        match = without_ending.fullmatch(path.with_name(stem_of(path)).as_posix())
        if not match or not pattern.endswith(".*"):
            match = expression.fullmatch(path.as_posix())
        keys.append("_".join(part for part in match.groups() if part) if match else "")
    return keys


def _folders(paths: Sequence[Path]) -> list[str]:
    return [path.parent.as_posix() for path in paths]


FOLDER = DatasetSpec(
    name="folder",
    summary="images/ beside labels/ or masks/ with equal names, or folders {image,label}.nii.gz",
    find_cases=find_cases,
    recognises=recognises,
)
