"""The adapter that fits a folder and the cases it finds there; where none fits, what the folder
holds and two patterns for it. Standard library only.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from sdseg_cli.core.errors import ConfigError, DataError, SdsegError, near
from sdseg_cli.core.filenames import is_picture, may_be_called_slice, require_there, stem_of, walked
from sdseg_cli.data.layouts import DATASETS, Case, DatasetSpec
from sdseg_cli.data.layouts.folder import FOLDER, UNPAIRED, find_by_globs, keys_of
from sdseg_cli.data.layouts.pairs import DATASET_JSON, IMAGES, LABELS, is_volume
from sdseg_cli.data.split import FEWEST_CASES
from sdseg_cli.data.unexpected_files import is_dicom, sets_in

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


def find_cases(
    src: Path,
    dataset: str | None = None,
    image_glob: str | None = None,
    label_glob: str | None = None,
) -> tuple[DatasetSpec, list[Case]]:
    """Find the cases of a data set.

    Args:
        src: Its folder.
        dataset: Adapter; recognised by the layout when absent ("folder" when patterns are given).
        image_glob: Pattern of the scans relative to `src`; with `label_glob`.
        label_glob: Pattern of the label maps.

    Returns:
        The adapter, and at least one case, in natural order.

    Raises:
        ConfigError: Unknown adapter, or one pattern without the other.
        DataError: No folder, no cases, or several adapters fit.
    """
    if dataset is not None:
        adapter(dataset)
    if (image_glob is None) != (label_glob is None):
        raise ConfigError(
            "--image-glob and --label-glob go together.",
            "Give both, for example --image-glob '*/ct.nii.gz' --label-glob '*/mask.nii.gz'.",
        )
    if not src.is_dir():
        require_there(src, "Give the folder of the data set.")
        raise DataError(f"{src} is a file, not a folder.", "Give the folder of the data set.")
    if image_glob is not None and label_glob is not None:
        spec = DATASETS[dataset or FOLDER.name]
        return spec.refine(src, spec), find_by_globs(src, image_glob, label_glob)
    spec = DATASETS[dataset] if dataset else _recognised(src)
    try:
        cases = spec.find_cases(src)
    except DataError as error:
        if error.code == UNPAIRED and (here := holding(src)).patterns is not None:
            raise DataError(error.message, f"{here.advice(src)}.", error.code) from error
        raise
    alone = spec is FOLDER and cases and not any(case.label for case in cases)
    if alone and (here := holding(src)).patterns:
        raise DataError(
            f"{src}: no scan has a label map in the layout of {spec.name}; it holds "
            f"{here.words(src)}.",
            f"{here.advice(src)}.",
            UNPAIRED,
        )
    if not cases:
        raise DataError(
            f"{src}: no cases in the layout of {spec.name}{_if_empty(src)}.",
            f"Expected: {spec.summary}.",
        )
    return spec.refine(src, spec), cases


def adapter(name: str) -> DatasetSpec:
    """The adapter of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in DATASETS:
        meant = near(name, DATASETS)
        raise ConfigError(
            f"Unknown data set adapter {name!r}.",
            (f"Did you mean {meant[0]}? " if meant else "")
            + f"Known: {', '.join(DATASETS)}. For your own data use folder.",
        )
    return DATASETS[name]


def fitting(src: Path) -> list[DatasetSpec]:
    """The adapters whose layout a folder has; the plain folder only where it finds other scans."""
    found = [spec for spec in DATASETS.values() if spec.recognises(src)]
    named = [spec for spec in found if spec is not FOLDER]
    if not named or FOLDER not in found:
        return found
    plain, known = ({case.image for case in s.find_cases(src)} for s in (FOLDER, named[0]))
    return named if plain <= known else found


def _recognised(src: Path) -> DatasetSpec:
    found = fitting(src)
    if len(found) == 1 and found[0] is not FOLDER:
        return found[0]
    if len(several := sets_in(src)) > 1:
        named = ", ".join(folder.name for folder in several[:5])
        raise DataError(
            f"{src}: holds several data sets: {named}{', ...' if len(several) > 5 else ''}.",
            "Give the folder of one of them.",
        )
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(spec.name for spec in found)
        raise DataError(f"{src} looks like {names}.", "Choose one with --dataset.")
    here = holding(src)
    layouts = "; ".join(f"{spec.name}: {spec.summary}" for spec in DATASETS.values())
    words = here.words(src)
    raise DataError(
        f"{src}: no cases in a layout this tool knows{words and f'; it holds {words}'}"
        f"{_if_empty(src)}.",
        f"{here.advice(src) or 'Use --image-glob and --label-glob'}. Known layouts: {layouts}.",
    )


def _if_empty(folder: Path) -> str:
    return "" if any(folder.iterdir()) else "; the folder is empty"


@dataclass(frozen=True)
class Holding:
    """The contents of a folder, at any depth.

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
        """Advice: the command that works here, or how to convert DICOM; else ""."""
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
    """Number of scans with a label map; 0 unless all have one of their own."""
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
