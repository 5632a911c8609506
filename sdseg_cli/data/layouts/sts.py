"""STS-3D, teeth in cone-beam CT: 12 labelled scans, all teeth one foreground."""

from __future__ import annotations

from pathlib import Path

from sdseg_cli.core.filenames import stem_of
from sdseg_cli.data.layouts.pairs import by_stem, case_of, files_in, is_volume
from sdseg_cli.data.spec import Case, DatasetSpec, in_order

_CHANNEL = "_0000"
_LEVEL_HU, _WIDTH_HU = 500.0, 1200.0


def find_cases(root: Path) -> list[Case]:
    """Pair labelled/image/NAME_0000.nii.gz with labelled/label/, same name; the id is NAME."""
    labelled = _labelled_folder(root)
    if labelled is None:
        return []
    labels = by_stem(files_in(labelled / "label", is_volume))
    cases = []
    for image in files_in(labelled / "image", is_volume):
        stem = stem_of(image)
        if stem.endswith(_CHANNEL):
            cases.append(case_of(stem.removesuffix(_CHANNEL), image, labels.get(stem, ())))
    return in_order(cases)


def recognises(root: Path) -> bool:
    """True if the folder is the archive's, or its `labelled` folder."""
    return _labelled_folder(root) is not None


def _labelled_folder(root: Path) -> Path | None:
    for folder in (root / "labelled", root):
        if (folder / "label").is_dir() and any(folder.glob(f"image/*{_CHANNEL}.nii.gz")):
            return folder
    return None


STS = DatasetSpec(
    name="sts",
    summary="labelled/{image,label}/Teeth_00NN_0000.nii.gz",
    find_cases=find_cases,
    recognises=recognises,
    published=True,
    modality="CT",
    window_hu=(_LEVEL_HU - _WIDTH_HU / 2, _LEVEL_HU + _WIDTH_HU / 2),
    window_kind="window-range",
    test_ids=frozenset({"Teeth_0010", "Teeth_0011", "Teeth_0012"}),
    cleaning={"smallest_voxels": 64, "inside_field": True},
)
