"""BTCV, the abdomen CT of "Multi-Atlas Labeling Beyond the Cranial Vault": 30 cases, 13 organs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sdseg_cli.core.filenames import stem_of
from sdseg_cli.data.layouts.pairs import by_stem, case_of, files_in, is_volume
from sdseg_cli.data.spec import Case, DatasetSpec, in_order

_PLACES = ("", "Training", "RawData/Training", "Abdomen/RawData/Training")
_ORGANS = (
    "spleen",
    "right_kidney",
    "left_kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior_vena_cava",
    "portal_and_splenic_vein",
    "pancreas",
    "right_adrenal_gland",
    "left_adrenal_gland",
)
"""What labels 1 to 13 are."""
_TEST_CASES = (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)


def find_cases(root: Path) -> list[Case]:
    """Pair img/img00NN.nii.gz with label/label00NN.nii.gz; the id is the number, "0001"."""
    training = _training_folder(root)
    if training is None:
        return []
    labels = by_stem(files_in(training / "label", is_volume))
    cases = []
    for image in files_in(training / "img", is_volume):
        stem = stem_of(image)
        if stem.startswith("img"):
            number = stem.removeprefix("img")
            cases.append(case_of(number, image, labels.get(f"label{number}", ())))
    return in_order(cases)


def recognises(root: Path) -> bool:
    """True if the folder, or a known parent of it, holds img/img*.nii.gz and label/."""
    return _training_folder(root) is not None


def _training_folder(root: Path) -> Path | None:
    for place in _PLACES:
        folder = root / place
        if (folder / "label").is_dir() and any(folder.glob("img/img*.nii.gz")):
            return folder
    return None


BTCV = DatasetSpec(
    name="btcv",
    summary="Abdomen/RawData/Training/{img/img00NN,label/label00NN}.nii.gz",
    find_cases=find_cases,
    recognises=recognises,
    published=True,
    modality="CT",
    target=tuple(range(1, 14)),
    labels=tuple(range(1, 14)),
    class_names=dict(enumerate(_ORGANS, 1)),
    window_hu=(-175.0, 250.0),
    test_ids=frozenset(f"{number:04d}" for number in _TEST_CASES),
)

# The same archive with the eight organs the official code keeps; only by name, never recognised.
BTCV8 = replace(BTCV, name="btcv8", target=(1, 2, 3, 4, 6, 7, 8, 11), recognises=lambda root: False)
