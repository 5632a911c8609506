"""dataset.json, in which nnU-Net and Decathlon data sets describe themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdseg_cli.datasets.manifest import read_json
from sdseg_cli.datasets.spec import DatasetSpec
from sdseg_cli.errors import DataError

DATASET_JSON, IMAGES, LABELS = "dataset.json", "imagesTr", "labelsTr"
_HINT = "Repair it: labels and channel_names (or modality) as nnU-Net or the Decathlon write them."


@dataclass(frozen=True)
class Description:
    """What dataset.json says.

    Attributes:
        channels: Names of the image channels, such as ("CT",).
        labels: Declared labels without background and ignore, ascending.
        ignore: The label that marks unlabelled voxels, None when there is none.
        file_ending: Of the images and label maps, ".nii.gz" when not said.
        training: (image, label) paths as written; empty when not listed.
    """

    channels: tuple[str, ...]
    labels: tuple[int, ...]
    ignore: int | None
    file_ending: str
    training: tuple[tuple[str, str], ...]


def describe(root: Path) -> Description:
    """Read a folder's dataset.json, in the forms of nnU-Net 1 and 2 and of the Decathlon.

    Raises:
        DataError: Missing, no JSON, or a part of it has another form.
    """
    file = root / DATASET_JSON
    content = read_json(file, _HINT)
    try:
        channels = content.get("channel_names", content.get("modality", {"0": "unknown"}))
        labels = _label_numbers(content["labels"])
        training = tuple((str(e["image"]), str(e["label"])) for e in content.get("training", []))
        names = tuple(str(name) for name in channels.values())
        ending = str(content.get("file_ending", ".nii.gz"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{file}: not in the form of nnU-Net or Decathlon ({error!r}).", _HINT
        ) from (error)
    ignore = next(iter(labels.get("ignore", ())), None)
    declared = {number for numbers in labels.values() for number in numbers} - {0, ignore}
    return Description(names, tuple(sorted(map(int, declared - {None}))), ignore, ending, training)


def refine(root: Path, spec: DatasetSpec) -> DatasetSpec:
    """The spec with the modality dataset.json names, and without its ignore label.

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
    return replace(spec, modality=modality, target=target, labels=declared)


def _label_numbers(labels: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> numbers: {"1": "liver"} in version 1, {"liver": 1, "both": [1, 2]} in version 2."""
    if all(isinstance(value, str) for value in labels.values()):
        return {name: (int(number),) for number, name in labels.items()}
    return {
        name: tuple(int(n) for n in (value if isinstance(value, list) else [value]))
        for name, value in labels.items()
    }
