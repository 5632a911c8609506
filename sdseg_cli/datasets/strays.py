"""Files beside the cases: pictures, masks without a scan, DICOM. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from sdseg_cli.datasets.folder import LABEL_STEM
from sdseg_cli.datasets.pairs import files_in, is_volume
from sdseg_cli.datasets.spec import Case, DatasetSpec
from sdseg_cli.filenames import is_picture, natural_key, stem_of, suffix_of
from sdseg_cli.findings import ERROR, WARNING, Finding

_MASK_FOLDERS = ("masks", "mask", "labels", "label")
_BESIDE_SCANS = {
    ".bval", ".bvec", ".csv", ".db", ".dcm", ".html", ".ini", ".json", ".log", ".md", ".pdf",
    ".raw", ".tsv", ".txt", ".xls", ".xlsx", ".xml", ".yaml", ".yml", ".zraw",
}  # fmt: skip
"""What lies beside scans and is none, or a part of one."""


def sets_in(root: Path) -> list[Path]:
    """The folders of a folder of data sets; empty when it is a data set itself, or none.

    A folder whose subfolders have images/ beside masks/ or labels/ is one of data sets.
    """
    if _mask_folder(root) is not None:
        return []
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    return folders if any(_mask_folder(folder) for folder in folders) else []


def _mask_folder(root: Path) -> Path | None:
    """The folder of the masks beside images/."""
    if not (root / "images").is_dir():
        return None
    return next((root / name for name in _MASK_FOLDERS if (root / name).is_dir()), None)


def check_set(
    root: Path,
    spec: DatasetSpec,
    cases: Collection[Case],
    image_glob: str | None = None,
    label_glob: str | None = None,
) -> Iterator[Finding]:
    """What the files of a data set are that became no case, or half a one, before any is read.

    `check` and `prepare` both ask this, so that nothing is left out without a word.

    Args:
        root: The data set's folder.
        spec: Its adapter.
        cases: Those found.
        image_glob: The pattern of the scans, when patterns were given.
        label_glob: The pattern of the label maps.
    """
    yield from _check_twins(cases)
    yield from check_strays(root, cases, label_glob)
    yield from _check_links(root, cases)
    if image_glob is not None and label_glob is not None:
        yield from _check_patterns(root, cases, (image_glob, label_glob))
    else:
        yield from _check_unused(root, cases)
        yield from spec.check(root, list(cases))


def check_strays(root: Path, cases: Collection[Case], label_glob: str | None) -> Iterator[Finding]:
    """Label maps that no scan belongs to.

    Args:
        root: The data set's folder.
        cases: Those found.
        label_glob: The pattern of the label maps, when patterns were given.
    """
    used = _labels_of(cases)
    if label_glob is not None:
        labels = [path for path in root.glob(label_glob) if _is_shown(path)]
    else:  # a folder of label maps beside the scans' folder; in case folders anything may lie
        folders = {label.parent for label in used} - {case.image.parent for case in cases}
        labels = [path for folder in folders for path in folder.iterdir() if _may_be_label(path)]
        labels += _labels_alone(root, cases)
    for path in _sorted(set(labels) - used):
        yield Finding(
            "label-without-image",
            WARNING,
            str(path.relative_to(root)),
            f"no scan for {path.name}",
            "Add the scan, take the mask out, or pair files with --image-glob and --label-glob.",
        )


def _check_twins(cases: Collection[Case]) -> Iterator[Finding]:
    for case in cases:
        if case.label is not None and case.other_labels:
            names = ", ".join(path.name for path in case.other_labels)
            yield Finding(
                "label-twice",
                ERROR,
                case.id,
                f"several label maps: {case.label.name}, {names}",
                "Keep the one that is right, or choose files with --image-glob and --label-glob.",
            )


def _labels_alone(root: Path, cases: Collection[Case]) -> Iterator[Path]:
    """Label maps in folders beside the case folders; elsewhere anything may lie."""
    of_cases = _case_folders(cases)
    beside = {folder.parent for folder in of_cases if folder != root}
    for folder in (one for parent in beside for one in parent.iterdir() if one.is_dir()):
        hidden = folder.name.startswith(".")
        if folder in of_cases or hidden or next(dicom_folders(folder), None) is not None:
            continue
        images = {case.image for case in cases}
        if not images & set(files_in(folder, is_volume)):
            yield from (
                path for path in files_in(folder, is_volume) if LABEL_STEM.fullmatch(stem_of(path))
            )


def _check_unused(root: Path, cases: Collection[Case]) -> Iterator[Finding]:
    """Files among the scans of a folder that holds scans only; previews of them are none."""
    labels = _labels_of(cases)
    folders = {case.image.parent for case in cases} - {label.parent for label in labels}
    images = {case.image for case in cases}
    stems = {(path.parent, stem_of(path)) for path in images}
    for folder in sorted(folder for folder in folders if folder.is_dir()):
        yield from _check_below(root, folder, images)
        found = [path for path in folder.iterdir() if _is_shown(path)]
        for path in _sorted(set(found) - images):
            if (folder, stem_of(path)) in stems or path.suffix.lower() in _BESIDE_SCANS:
                continue
            known = is_volume(path) or is_picture(path)
            yield Finding(
                "scan-not-used",
                WARNING,
                str(path.relative_to(root)),
                f"{path.name} lies among the scans and is no case"
                + ("" if known else ": not a kind of file this tool reads"),
                "Name it as the others, convert it, take it out, or choose files with "
                "--image-glob and --label-glob.",
            )


def _check_below(root: Path, folder: Path, images: Collection[Path]) -> Iterator[Finding]:
    """Folders of scans within a folder of scans."""
    for below in _sorted(path for path in folder.iterdir() if path.is_dir()):
        found = {path for path in below.iterdir() if _may_be_label(path) and path.is_file()}
        if found and not below.name.startswith(".") and not found & set(images):
            yield Finding(
                "scan-not-used",
                WARNING,
                str(below.relative_to(root)),
                f"{len(found)} file(s) in a folder among the scans are no cases",
                "Move them up beside the scans, take them out, or choose files with --image-glob "
                "and --label-glob.",
            )


def _check_links(root: Path, cases: Collection[Case]) -> Iterator[Finding]:
    """Links to files that are not there, such as those of git-annex before they are fetched."""
    folders = {file.parent for case in cases for file in (case.image, case.label) if file}
    if _case_folders(cases):
        folders |= set(_folders(root))
    for folder in sorted(folder for folder in folders if folder.is_dir()):
        for path in _sorted(folder.iterdir()):
            shown = not path.name.startswith(".") and (is_volume(path) or is_picture(path))
            if shown and path.is_symlink() and not path.exists():
                yield Finding(
                    "link-dangling",
                    WARNING,
                    str(path.relative_to(root)),
                    f"{path.name} is a link to {path.readlink()}, which is not there",
                    "Fetch or restore the file it points to, or take the link out.",
                )


def _check_patterns(
    root: Path, cases: Collection[Case], patterns: tuple[str, str]
) -> Iterator[Finding]:
    """Files that a pattern misses only for their ending."""
    used = {case.image for case in cases} | _labels_of(cases)
    for pattern in patterns:
        ending = suffix_of(Path(pattern)) or Path(pattern).suffix
        if not ending or set("*?[]") & set(ending):
            continue
        matched = set(root.glob(pattern))
        others = set(root.glob(f"{pattern[: -len(ending)]}.*")) - matched - used
        for path in _sorted(others):
            if _may_be_label(path) and path.is_file():
                yield Finding(
                    "file-ending",
                    WARNING,
                    str(path.relative_to(root)),
                    f"{path.name} is left out for its ending: the pattern says {ending}",
                    "Let the pattern end in .* if it belongs to the set.",
                )


def _case_folders(cases: Collection[Case]) -> set[Path]:
    """Folders that hold a scan and its label map."""
    return {case.image.parent for case in cases if case.label is not None} & {
        case.label.parent for case in cases if case.label is not None
    }


def _labels_of(cases: Collection[Case]) -> set[Path]:
    return {path for case in cases for path in (case.label, *case.other_labels) if path is not None}


def _folders(root: Path) -> Iterator[Path]:
    """A folder and all below it, each once, as `folder.find_cases` goes through them."""
    seen: set[Path] = set()
    for name, folders, _ in os.walk(root, followlinks=True):
        folder = Path(name)
        if folder.resolve() in seen:
            folders.clear()
            continue
        seen.add(folder.resolve())
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        yield folder


def _sorted(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: natural_key(str(path)))


def dicom_folders(root: Path) -> Iterator[Path]:
    """Folders whose first file that is no volume, picture or text is DICOM."""
    for name, folders, files in os.walk(root):
        folders.sort()
        candidates = (Path(name, file) for file in sorted(files) if may_be_dicom(Path(file)))
        first = next((file for file in candidates if not file.name.startswith(".")), None)
        if first is not None and is_dicom(first):
            yield Path(name)


def may_be_dicom(path: Path) -> bool:
    """Whether a file may be DICOM by its name: .dcm, .ima, none, or the end of a UID."""
    return path.suffix.lower() in (".dcm", ".ima", "") or path.suffix[1:].isdecimal()


def is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's mark."""
    try:
        with path.open("rb") as file:
            file.seek(128)
            return file.read(4) == b"DICM"
    except OSError:
        return False


def unchecked_dicom(
    case: str, why: str, fix: str = "Nothing to do: plans, contours and reports are no scans."
) -> Finding:
    """What is said of DICOM that cannot be read as a scan.

    Args:
        case: Its path inside the data set.
        why: What the reader said.
        fix: What to do.
    """
    return Finding(
        "dicom-unchecked",
        WARNING,
        case,
        f"DICOM that was not checked ({why.rstrip('.')})",
        fix,
    )


def _may_be_label(path: Path) -> bool:
    return (is_volume(path) or is_picture(path)) and not path.name.startswith(".")


def _is_shown(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")
