"""Files beside the cases: pictures, masks without a scan, DICOM. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from sdseg_cli.datasets.spec import Case
from sdseg_cli.filenames import is_picture, natural_key, suffix_of
from sdseg_cli.findings import WARNING, Finding

_MASK_FOLDERS = ("masks", "mask", "labels", "label")


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


def check_strays(root: Path, cases: Collection[Case], label_glob: str | None) -> Iterator[Finding]:
    """Label maps that no scan belongs to.

    Args:
        root: The data set's folder.
        cases: Those found.
        label_glob: The pattern of the label maps, when patterns were given.
    """
    used = {case.label for case in cases if case.label is not None}
    if label_glob is not None:
        labels = [path for path in root.glob(label_glob) if path.is_file()]
    else:  # a folder of label maps beside the scans' folder; in case folders anything may lie
        folders = {label.parent for label in used} - {case.image.parent for case in cases}
        labels = [path for folder in folders for path in folder.iterdir() if _may_be_label(path)]
    for path in sorted(set(labels) - used, key=lambda path: natural_key(str(path))):
        yield Finding(
            "label-without-image",
            WARNING,
            str(path.relative_to(root)),
            f"no scan for {path.name}",
            "Add the scan, take the mask out, or pair files with --image-glob and --label-glob.",
        )


def dicom_folders(root: Path) -> Iterator[Path]:
    """Folders whose first file that is no volume, picture or text is DICOM."""
    for name, folders, files in os.walk(root):
        folders.sort()
        candidates = (
            Path(name, file)
            for file in sorted(files)
            if Path(file).suffix.lower() in (".dcm", ".ima", "")
            or Path(file).suffix[1:].isdecimal()
        )
        first = next((file for file in candidates if not file.name.startswith(".")), None)
        if first is not None and is_dicom(first):
            yield Path(name)


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
    return (suffix_of(path) is not None or is_picture(path)) and not path.name.startswith(".")
