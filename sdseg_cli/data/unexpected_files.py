"""Files beside the cases: pictures, masks without a scan, DICOM. Standard library only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from sdseg_cli.core.filenames import (
    LABEL_STEM,
    is_dicom_file,
    is_picture,
    leads_nowhere,
    listed,
    matching,
    may_be_called_slice,
    natural_key,
    stem_of,
    suffix_of,
    walked,
)
from sdseg_cli.core.findings import ERROR, Finding, warning
from sdseg_cli.data.layouts.pairs import files_in, is_volume
from sdseg_cli.data.spec import Case, DatasetSpec

_MASK_FOLDERS = ("masks", "mask", "labels", "label")
_BESIDE_SCANS = {
    ".bval", ".bvec", ".csv", ".db", ".dcm", ".html", ".ini", ".json", ".log", ".md", ".pdf",
    ".raw", ".tsv", ".txt", ".xls", ".xlsx", ".xml", ".yaml", ".yml", ".zraw",
}  # fmt: skip
"""Files beside scans that are no scan, and no part of one."""


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


def check_set(
    root: Path,
    spec: DatasetSpec,
    cases: Collection[Case],
    image_glob: str | None = None,
    label_glob: str | None = None,
) -> Iterator[Finding]:
    """Find files of a data set that became no case, or half of one, before reading any.

    `check` and `prepare` both ask this, so that nothing is left out without a word.

    Args:
        root: The data set's folder.
        spec: Its adapter.
        cases: Those found.
        image_glob: The pattern of the scans, when patterns were given.
        label_glob: The pattern of the label maps.
    """
    yield from _check_twins(cases)
    yield from check_unexpected_files(root, cases, label_glob)
    yield from _check_links(root, cases)
    if image_glob is not None and label_glob is not None:
        yield from _check_patterns(root, cases, (image_glob, label_glob))
    else:
        yield from _check_unused(root, cases)
        yield from spec.check(root, list(cases))


def check_unexpected_files(
    root: Path, cases: Collection[Case], label_glob: str | None
) -> Iterator[Finding]:
    """Label maps that no scan belongs to.

    Args:
        root: The data set's folder.
        cases: Those found.
        label_glob: The pattern of the label maps, when patterns were given.
    """
    used = _labels_of(cases)
    if label_glob is not None:
        labels = [root / path for path in matching(root, label_glob)]
    else:  # a folder of label maps beside the scans' folder; in case folders anything may lie
        folders = {label.parent for label in used} - {case.image.parent for case in cases}
        labels = [path for folder in folders for path in files_in(folder, _may_be_label)]
        labels += _labels_alone(root, cases)
    for path in _sorted(set(labels) - used):
        yield warning(
            "label-without-image",
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
    owner: dict[Path, str] = {}
    for case in cases:
        if case.label is not None and owner.setdefault(case.label, case.id) != case.id:
            yield Finding(
                "label-shared",
                ERROR,
                case.id,
                f"its label map {case.label.name} is that of case {owner[case.label]} too",
                "Give each scan its own, in dataset.json or by other patterns.",
            )


def _labels_alone(root: Path, cases: Collection[Case]) -> Iterator[Path]:
    """Label maps in folders beside the case folders; elsewhere anything may lie."""
    of_cases = _case_folders(cases)
    beside = {folder.parent for folder in of_cases if folder != root}
    for folder in (one for parent in beside for one in listed(parent)[0]):
        if folder in of_cases or next(dicom_folders(folder), None) is not None:
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
        found = [path for path in listed(folder)[1] if not leads_nowhere(path)]
        for path in _sorted(set(found) - images):
            if (folder, stem_of(path)) in stems or path.suffix.lower() in _BESIDE_SCANS:
                continue
            known = is_volume(path) or is_picture(path)
            yield warning(
                "scan-not-used",
                str(path.relative_to(root)),
                f"{path.name} lies among the scans and is no case"
                + ("" if known else ": not a kind of file this tool reads"),
                "Name it as the others, convert it, take it out, or choose files with "
                "--image-glob and --label-glob.",
            )


def _check_below(root: Path, folder: Path, images: Collection[Path]) -> Iterator[Finding]:
    """Folders of scans within a folder of scans."""
    for below in listed(folder)[0]:
        found = set(files_in(below, _may_be_label))
        if found and not found & set(images):
            yield warning(
                "scan-not-used",
                str(below.relative_to(root)),
                f"{len(found)} file(s) in a folder among the scans are no cases",
                "Move them up beside the scans, take them out, or choose files with --image-glob "
                "and --label-glob.",
            )


def _check_links(root: Path, cases: Collection[Case]) -> Iterator[Finding]:
    """Links to files that are not there, such as those of git-annex before they are fetched.

    Those of a case are errors of that case.
    """
    used = {case.image for case in cases} | _labels_of(cases)
    folders = {file.parent for file in used}
    if _case_folders(cases):
        folders |= {folder for folder, _ in walked(root)}
    for folder in sorted(folder for folder in folders if folder.is_dir()):
        for path in files_in(folder, _may_be_label):
            if leads_nowhere(path) and path not in used:
                yield warning(
                    "link-dangling",
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
        others = matching(root, f"{pattern[: -len(ending)]}.*")
        for path in _sorted({root / path for path in others} - used):
            if _may_be_label(path) and path.is_file():
                yield warning(
                    "file-ending",
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


def _sorted(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: natural_key(str(path)))


def dicom_folders(root: Path) -> Iterator[Path]:
    """Folders that hold DICOM, or links without an end that are called as DICOM is."""
    for folder, files in walked(root):
        candidates = [path for path in files if may_be_called_slice(path)]
        if any(is_dicom(path) or leads_nowhere(path) for path in candidates):
            yield folder


def is_dicom(path: Path) -> bool:
    """True if a file has DICOM's mark."""
    try:
        return is_dicom_file(path)
    except OSError:
        return False


def unchecked_dicom(
    case: str, why: str, fix: str = "Nothing to do: plans, contours and reports are no scans."
) -> Finding:
    """The warning about DICOM that cannot be read as a scan.

    Args:
        case: Its path inside the data set.
        why: What the reader said.
        fix: What to do.
    """
    return warning(
        "dicom-unchecked",
        case,
        f"DICOM that was not checked ({why.rstrip('.')})",
        fix,
    )


def _may_be_label(path: Path) -> bool:
    return is_volume(path) or is_picture(path)
