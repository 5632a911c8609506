"""What a folder of no known layout holds, and two patterns that fit it. Standard library only."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from sdseg_cli.core.errors import SdsegError
from sdseg_cli.core.filenames import is_picture, may_be_called_slice, stem_of, walked
from sdseg_cli.data.layouts.dataset_json import DATASET_JSON, IMAGES, LABELS
from sdseg_cli.data.layouts.folder import find_by_globs, keys_of
from sdseg_cli.data.layouts.pairs import is_volume
from sdseg_cli.data.split import FEWEST_CASES
from sdseg_cli.data.unexpected_files import is_dicom

MOST_FILES = 20_000
"""Files that are looked at: no data set with another layout is understood from more."""
MOST_PATTERNS = 60
_LABEL_WORD = re.compile(
    r"seg|mask|label|lbl|annot|truth|manual|contour|lesion|tumou?r|(?<![a-z])(gts?|rois?)(?![a-z])",
    re.IGNORECASE,
)
_KIND = re.compile(r"[_\-. ]([A-Za-z]+|0000)$")
"""What the end of a stem says of the file: "p1_seg", "p1_0000"."""
_BEGIN = re.compile(r"([A-Za-z]+[_\-. ]?)(?=\d)")
"""And its beginning: "ct01", "seg-01"."""


@dataclass(frozen=True)
class Holding:
    """What lies below a folder.

    Attributes:
        volumes: Relative paths of NIfTI, NRRD and MetaImage files.
        pictures: Relative paths of pictures.
        dicom: Number of DICOM files.
        patterns: (--image-glob, --label-glob) that pair all scans they match, if there are any.
    """

    volumes: list[Path] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    dicom: int = 0
    patterns: tuple[str, str] | None = None

    def words(self, root: Path) -> str:
        """In words: "imagesTr/ and labelsTr/ without dataset.json, 12 volumes"; "" = nothing."""
        parts = []
        if (root / IMAGES).is_dir() and not (root / DATASET_JSON).is_file():
            beside = f" and {LABELS}/" if (root / LABELS).is_dir() else ""
            parts.append(f"{IMAGES}/{beside} without {DATASET_JSON}")
        elif self.patterns is not None:
            image, label = (Path(pattern).parent.as_posix() for pattern in self.patterns)
            if "*" not in image + label and image != label:
                alike = "equal" if len({Path(one).name for one in self.patterns}) == 1 else "like"
                parts.append(f"{image}/ and {label}/ with {alike} names")
        for count, what in (
            (self.dicom, "DICOM file"),
            (len(self.volumes), "volume"),
            (len(self.pictures), "picture"),
        ):
            if count:
                parts.append(f"{count} {what}{'s' if count > 1 else ''}")
        return ", ".join(parts)

    def advice(self, root: Path) -> str:
        """What to do: the command that works here, or how DICOM becomes training data; else ""."""
        if self.patterns is not None:
            image, label = map(quote, self.patterns)
            return (
                f"This fits: sdseg prepare {quote(str(root))} --image-glob {image} "
                f"--label-glob {label}"
            )
        if self.dicom:
            return (
                "DICOM is read by predict, not as training data: convert each series and its "
                "contours to NIfTI (dcm2niix, 3D Slicer), scans into images/, masks into labels/"
            )
        return ""


def holding(root: Path) -> Holding:
    """Look through a folder, and for patterns that fit it."""
    found = Holding()
    dicom = 0
    files = (path for _, files in walked(root) for path in files)
    for path in itertools.islice(files, MOST_FILES):
        if is_volume(path):
            found.volumes.append(path.relative_to(root))
        elif is_picture(path):
            found.pictures.append(path.relative_to(root))
        elif may_be_called_slice(path) and is_dicom(path):
            dicom += 1
    patterns = _fitting(root, found.volumes) or _fitting(root, found.pictures)
    return Holding(found.volumes, found.pictures, dicom, patterns)


def _fitting(root: Path, paths: Sequence[Path]) -> tuple[str, str] | None:
    """The best two patterns: every scan of the first has a label map in the second."""
    matches = _patterns(paths)
    best: tuple[tuple[bool | int, ...], tuple[str, str]] | None = None
    for image, label in itertools.permutations(matches, 2):
        pairs = _pairs(image, matches[image], label, matches[label])
        words = bool(_LABEL_WORD.search(label)), not _LABEL_WORD.search(image)
        if pairs < FEWEST_CASES or not (all(words) or _is_smaller(root, matches, label, image)):
            continue
        whole = len(matches[label]) == pairs
        score = (all(words), pairs, whole, -(image + label).count("*"), -len(image + label))
        if best is None or score > best[0]:
            best = score, (image, label)
    return best[1] if best and _works(root, best[1]) else None


def _patterns(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Patterns that may stand for the scans or the label maps, and what each matches."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        for pattern in _patterns_of(path):
            found[pattern].append(path)
    often = sorted(found, key=lambda pattern: (-len(found[pattern]), pattern))
    enough = [pattern for pattern in often if len(found[pattern]) >= FEWEST_CASES]
    return {pattern: found[pattern] for pattern in enough[:MOST_PATTERNS]}


def _patterns_of(path: Path) -> set[str]:
    """Its name and its folders, each as it is or with a wildcard in it."""
    if set("*?[") & set(path.as_posix()):
        return set()
    folders, stem = path.parent.parts, stem_of(path)
    ending = path.name[len(stem) :]
    names = {path.name, f"*{ending}"}
    if stem[-1:].isdecimal():
        names.add(f"*[0-9]{ending}")  # p1, beside p1_seg
    if kind := _KIND.search(stem):
        names.add(f"*{kind.group()}{ending}")
    if begin := _BEGIN.match(stem):
        names.add(f"{begin.group()}*{ending}")
    places = [folders, *((*folders[:i], "*", *folders[i + 1 :]) for i in range(len(folders)))]
    return {"/".join((*place, name)) for place in places for name in names}


def _pairs(image: str, images: Sequence[Path], label: str, labels: Sequence[Path]) -> int:
    """How many scans have a label map; 0 unless all have, and each its own."""
    if set(images) & set(labels):
        return 0
    image_keys, label_keys = keys_of(images, image, labels, label)
    if len(set(image_keys)) < len(image_keys) or len(set(label_keys)) < len(label_keys):
        return 0
    return len(image_keys) if set(image_keys) <= set(label_keys) else 0


def _is_smaller(root: Path, matches: dict[str, list[Path]], label: str, image: str) -> bool:
    """Label maps compress far better than scans."""
    if _LABEL_WORD.search(image):
        return False
    sizes = [sum((root / path).stat().st_size for path in matches[one]) for one in (label, image)]
    return 3 * sizes[0] < sizes[1]


def _works(root: Path, patterns: tuple[str, str]) -> bool:
    try:
        cases = find_by_globs(root, *patterns)
    except SdsegError:
        return False
    return all(case.label is not None for case in cases)
