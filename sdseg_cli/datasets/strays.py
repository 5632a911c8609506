"""Files beside the cases: pictures, masks without a scan, DICOM. Standard library only."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from sdseg_cli.datasets.spec import Case
from sdseg_cli.filenames import (
    is_dicom_file,
    is_picture,
    leads_nowhere,
    listed,
    matching,
    may_be_called_slice,
    natural_key,
    suffix_of,
    walked,
)
from sdseg_cli.findings import WARNING, Finding

_MASK_FOLDERS = ("masks", "mask", "labels", "label")


def sets_in(root: Path) -> list[Path]:
    """The folders of a folder of data sets; empty when it is a data set itself, or none.

    A folder whose subfolders have images/ beside masks/ or labels/ is one of data sets.
    """
    if _mask_folder(root) is not None:
        return []
    # Not `listed`: a link to the root itself would be a set of sets without end.
    below = (folder for folder, _ in walked(root, lambda one: one.parent == root))
    folders = sorted(below, key=lambda folder: natural_key(folder.name))
    folders.remove(root)
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
        labels = [root / path for path in matching(root, label_glob)]
    else:  # a folder of label maps beside the scans' folder; in case folders anything may lie
        folders = {label.parent for label in used} - {case.image.parent for case in cases}
        files = (path for folder in folders for path in listed(folder)[1])
        labels = [path for path in files if suffix_of(path) is not None or is_picture(path)]
    for path in sorted(set(labels) - used, key=lambda path: natural_key(str(path))):
        yield Finding(
            "label-without-image",
            WARNING,
            str(path.relative_to(root)),
            f"no scan for {path.name}",
            "Add the scan, take the mask out, or pair files with --image-glob and --label-glob.",
        )


def dicom_folders(root: Path) -> Iterator[Path]:
    """Folders that hold DICOM, or links without an end that are called as DICOM is."""
    for folder, files in walked(root):
        candidates = [path for path in files if may_be_called_slice(path)]
        if any(is_dicom(path) or leads_nowhere(path) for path in candidates):
            yield folder


def is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's mark."""
    try:
        return is_dicom_file(path)
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
