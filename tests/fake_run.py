"""A trained run on disk and a predictor that answers what a test tells it to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np

from sdseg_cli.core.config import RunConfig, SampleConfig
from sdseg_cli.core.config_file import to_toml
from sdseg_cli.data.manifest import Manifest, PreparedCase
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.imaging.slices import SliceTransform
from sdseg_cli.imaging.volume import Geometry, Volume

SHAPE = (16, 16, 4)
AFFINE = np.array([[-2.0, 0, 0, 9], [0, -2, 0, 5], [0, 0, 3, -7], [0, 0, 0, 1]])  # LPS


def block(columns: slice, *, rows: slice = slice(4, 8), slices: slice = slice(1, 3)) -> np.ndarray:
    """A box of ones; by default 4 rows on 2 slices."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[columns, rows, slices] = 1
    return mask


EMPTY = np.zeros(SHAPE, np.uint8)


@dataclass
class FakePredictor:
    """Answers with a given native mask per case, or per case and seed, at full certainty."""

    data: dict
    answers: dict[str, np.ndarray | dict[int, np.ndarray]]
    calls: list[tuple[str, int, SampleConfig]] = field(default_factory=list)
    device: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(type="cpu"))
    certainty: float = 1.0
    decoder: str = "exact"
    run_threshold: float | None = None
    slices: list[tuple[str, int, int, SampleConfig]] = field(default_factory=list)
    """Those that were asked for alone."""

    @property
    def classes(self) -> ClassRule:
        return ClassRule.of_settings(self.data)

    def predict(self, volume, *, case_id, seed=0, sample=None, progress=None):
        from sdseg_cli.inference.predictor import Prediction

        self.calls.append((case_id, seed, sample))
        answer = self.answers[case_id]
        mask = answer[seed] if isinstance(answer, dict) else answer
        restore = SliceTransform.of(volume.geometry)
        masks = self.classes.masks(as_planes(mask, restore))
        probability = masks.astype(np.float32) * self.certainty
        if progress is not None:
            progress(restore.slices, restore.slices, "predicting slices")
        return Prediction(case_id, probability, restore, seed, 0.1, self.classes)

    def stack(self, volume):
        return SimpleNamespace(volume=volume, restore=SliceTransform.of(volume.geometry))

    def plane(self, stack, k, *, seed=0, sample=None):
        case_id = stack.volume.source.name.removesuffix(".nii.gz").removesuffix(".png")
        self.slices.append((case_id, k, seed, sample))
        answer = self.answers[case_id]
        mask = answer[seed] if isinstance(answer, dict) else answer
        masks = self.classes.masks(as_planes(mask, stack.restore)[k])
        return masks.astype(np.float32) * self.certainty


@dataclass
class Workspace:
    """`prepared/` and `runs/` with one finished run."""

    root: Path
    run: Path
    manifest: Manifest
    predictor: FakePredictor

    def answers(self, **masks) -> None:
        self.predictor.answers |= masks

    def scan(self, case_id: str) -> Path:
        return self.root / "raw" / f"{case_id}.nii.gz"


def as_planes(labels: np.ndarray, restore: SliceTransform) -> np.ndarray:
    """(S,256,256): native labels on the model's planes, to the nearest pixel."""
    planes = (restore.canonical_plane(labels, k) for k in range(restore.slices))
    return np.stack([restore.labels_to_model(plane, k) for k, plane in enumerate(planes)])


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def make_workspace(
    root: Path, references: dict[str, np.ndarray], rule: ClassRule | None = None
) -> Workspace:
    """A prepared set "toy" whose cases all test, and a run that was trained on it.

    Args:
        root: An empty folder.
        references: Case id -> native label map; each scan is 100 HU where its label is not 0.
        rule: The classes of the set; None is one foreground.
    """
    prepared, run, entries = root / "prepared" / "toy", root / "runs" / "toy" / "tiny", []
    restore = SliceTransform.of(Geometry(SHAPE, AFFINE))
    for case_id, labels in references.items():
        image = write_nifti(root / "raw" / f"{case_id}.nii.gz", labels.astype(np.int16) * 100)
        label = write_nifti(root / "raw" / f"{case_id}_label.nii.gz", labels)
        folder = prepared / "cases" / case_id
        folder.mkdir(parents=True)
        planes = as_planes(labels, restore)
        np.save(folder / "labels.npy", planes)
        np.save(folder / "pixels.npy", (planes - 0.5).astype(np.float16))
        filled = int(planes.any(axis=(1, 2)).sum())
        place = f"cases/{case_id}"
        entries.append(
            PreparedCase(
                case_id, "test", image, label, SHAPE[2], place, filled, (2.0, 2.0, 3.0), "0" * 64
            )
        )
    manifest = Manifest(
        root=prepared,
        name="toy",
        adapter="folder",
        modality="CT",
        source=root / "raw",
        target=None,
        labels=(1,),
        normalisation={"kind": "window", "low": -175.0, "high": 250.0},
        crop="none",
        size=256,
        split={"seed": 0, "rule": "all", "sha256": "0" * 64},
        entries=tuple(entries),
        rule=rule,
    )
    (prepared / "manifest.json").write_text(manifest.to_text(), encoding="utf-8")
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "best.pt").write_bytes(b"a checkpoint")
    (run / "config.toml").write_text(to_toml(RunConfig(dataset="toy")), encoding="utf-8")
    predictor = FakePredictor(manifest.inference_settings(), dict(references))
    return Workspace(root, run, manifest, predictor)


def volume(array: np.ndarray, affine: np.ndarray = AFFINE) -> Volume:
    """An array that was never a file."""
    return Volume(array, Geometry(array.shape, np.asarray(affine, np.float64)))
