"""The cases a run is judged on, with a panel of each: where `evaluate` and `stability` start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.errors import ConfigError, DataError, RunError
from sdseg_cli.core.files import file_sha256
from sdseg_cli.core.progress import Progress
from sdseg_cli.data.manifest import Manifest, PreparedCase, open_array, set_of
from sdseg_cli.data.spec import SPLITS
from sdseg_cli.evaluation.results import provenance
from sdseg_cli.imaging.intensity import Normalisation
from sdseg_cli.imaging.io.files import read_image, read_labels
from sdseg_cli.imaging.postprocess import Cleaning
from sdseg_cli.imaging.slices import SliceTransform
from sdseg_cli.imaging.volume import Volume, reorient_to, require_same_grid
from sdseg_cli.runs.run_folder import RunDir, find_run

if TYPE_CHECKING:
    from sdseg_cli.inference.predictor import Predictor


@dataclass(frozen=True)
class EvaluationSplit:
    """One split of the data set a run was trained on, and the run ready to predict it."""

    run: RunDir
    manifest: Manifest
    split: str
    cases: tuple[PreparedCase, ...]
    predictor: Predictor
    checkpoint_sha256: str
    """Of the weights it was loaded with: a run that still trains replaces its best checkpoint."""
    members: tuple[Path, ...] = ()
    """The runs of an ensemble, whose reports go into the folder `run`."""

    def read(self, case: PreparedCase) -> tuple[Volume, NDArray[np.bool_]]:
        """As `read_labels`, with the reference as one foreground."""
        scan, labels = self.read_labels(case)
        return scan, self.manifest.is_foreground(labels)

    def read_labels(self, case: PreparedCase) -> tuple[Volume, NDArray[Any]]:
        """A case as it came: scan and labels, both (I,J,K) on the scan's own grid.

        The labels are cleaned as those of the prepared set were.

        Raises:
            DataError: A file is missing or damaged.
            GeometryError: They do not lie on one grid.
        """
        for path in (case.image, case.label):
            if not path.exists():
                raise DataError(
                    f"case {case.id}: {path}, from which {self.manifest.name} was prepared, is "
                    "gone.",
                    "Put it back, or prepare the set again from where its files lie now.",
                )
        scan = read_image(case.image)
        labels = read_labels(case.label, self.manifest.mask_levels)
        labels = reorient_to(labels, scan.geometry)
        names = f"case {case.id}: scan {scan.name}", f"label {labels.name}"
        require_same_grid(scan.geometry, labels.geometry, *names)
        return scan, Cleaning(**self.manifest.cleaning).apply(labels, scan).array

    @property
    def title(self) -> str:
        """Title of a report about it."""
        run = self.run.path.resolve()
        return f"{run.parent.name}/{run.name} on {self.manifest.name}, {self.split} cases"

    def report_folder(self, ending: str = "") -> Path:
        """Folder of the split's reports; another protocol or grid has its own."""
        return self.run.report / f"{self.split}{ending}"

    def provenance(self, command: str) -> dict[str, object]:
        """Provenance of its numbers; `command` is what was typed."""
        files: dict[str, Path | str] = {
            "checkpoint": self.checkpoint_sha256,
            "manifest": self.manifest.path,
        }
        return provenance(command=command, files=files)

    @property
    def config_text(self) -> str:
        """The run's settings, TOML."""
        run = RunDir(self.members[0]) if self.members else self.run
        return run.config_file.read_text(encoding="utf-8")

    def reference_planes(self, case: PreparedCase) -> NDArray[np.bool_]:
        """The reference as the model sees it, (S,256,256) bool.

        Raises:
            DataError: The prepared array is missing or damaged.
        """
        return self.manifest.is_foreground(self.label_planes(case))

    def label_planes(self, case: PreparedCase) -> NDArray[Any]:
        """The labels as the model sees them, (S,256,256); errors as `reference_planes`."""
        return open_array(self.manifest.labels_file(case))

    def looks(
        self, scan: Volume, restore: SliceTransform
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """The values drawn black and white, and height and width of a pixel in mm."""
        limits = Normalisation.from_dict(self.manifest.normalisation).limits(scan)
        height_mm, width_mm, _ = restore.planes.spacing_mm
        return (limits.low, limits.high), (height_mm, width_mm)

    def image_plane(self, case: PreparedCase, k: int) -> NDArray[np.float32]:
        """One prepared slice, (256,256), of a picture (256,256,3), float32 in [-1,1].

        Raises:
            DataError: The prepared array is missing or damaged.
        """
        plane = open_array(self.manifest.pixels_file(case))[k].astype(np.float32)
        return np.moveaxis(plane, 0, -1) if plane.ndim == 3 else plane


@dataclass(frozen=True)
class SplitOptions:
    """Which cases of a run's data are predicted, and how.

    Attributes:
        split: "train", "val" or "test".
        seed: Of all noise; where a case is predicted several times, of the first.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        batch_size: Slices at a time; None for what suits the device.
        decoder: "auto", "exact" or "fast", as `Predictor`.
        predictor: The run's model if it is loaded already.
    """

    split: str = "test"
    seed: int = 0
    device: str = "auto"
    batch_size: int | None = None
    decoder: str = "auto"
    predictor: Predictor | None = None


def open_held_out(
    run: Path | None, workspace: Path, options: SplitOptions | None = None
) -> EvaluationSplit:
    """Find the run and its data, check that they belong together, and load the model.

    Args:
        run: The run folder; None for the newest finished run of the workspace.
        workspace: Folder that holds `prepared/` and `runs/`.
        options: Which split, and how its cases are predicted.

    Raises:
        ConfigError: There is no such run, split or prepared set; the split has no case; or the
            set was prepared anew, so that cases the run was trained on may now be test cases.
        WeightsError: The checkpoint is missing or damaged.
        RunError: A training replaced the checkpoint meanwhile.
    """
    options = options or SplitOptions()
    split = options.split
    if split not in SPLITS:
        raise ConfigError(f"--split is {split!r}.", f"Choose one of {', '.join(SPLITS)}.")
    folder = find_run(workspace, run)
    manifest = set_of(workspace, folder.config())
    cases = manifest.cases(split)
    if not cases:
        raise ConfigError(
            f"{manifest.name} has no {split} case.", "Choose another --split, or prepare it anew."
        )
    before = file_sha256(folder.best) if folder.best.is_file() else ""
    predictor = options.predictor
    if predictor is None:
        from sdseg_cli.inference.predictor import Predictor

        predictor = Predictor(
            folder.path,
            device=options.device,
            batch_size=options.batch_size,
            decoder=options.decoder,
        )
        if file_sha256(folder.best) != before:
            raise RunError(
                f"{folder.best} was replaced while it was read.", "The run trains: call again."
            )
    if predictor.data != manifest.inference_settings():
        raise ConfigError(
            f"{manifest.name} was prepared anew since run {folder.path} was trained.",
            "Test cases may have been trained on: prepare it as before, or train again.",
        )
    return EvaluationSplit(folder, manifest, split, cases, predictor, before)


class CaseProgress:
    """Turns the progress within cases into one progress over all of them, counted in slices.

    Args:
        cases: All that will be worked on.
        progress: Called with the slices done so far.
        what: Goes before the case's id.
        repeats: How often each case is gone through.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        progress: Progress,
        what: str = "case",
        *,
        repeats: int = 1,
    ) -> None:
        self._progress, self._what, self._done = progress, what, 0
        self._total = repeats * sum(case.slices for case in cases)

    def of(self, case: PreparedCase) -> Progress:
        """The callback for one pass through a case."""

        def within(done: int, total: int, what: str) -> None:
            # The last report of a pass is `finish`, so that both never say the same twice.
            if done < total:
                self._progress(self._done + done, self._total, f"{self._what} {case.id}")

        return within

    def finish(self, case: PreparedCase) -> None:
        """One pass through a case is done, however it was come by."""
        self._done += case.slices
        self._progress(self._done, self._total, f"{self._what} {case.id}")


def drawn_classes(case: PreparedCase) -> Sequence[str] | None:
    """Names of the classes that were drawn in a case; None for all."""
    found: Sequence[str] | None = getattr(case, "labelled", None)
    return found


def prepared_otherwise(
    case: PreparedCase, prepared: tuple[int, ...], found: tuple[int, ...]
) -> DataError:
    """The error for a scan whose planes are not those that were prepared."""
    return DataError(
        f"case {case.id}: prepared as {prepared}, now {found}.",
        "The scan was changed: run the same `sdseg prepare` command again.",
    )


def place(restore: SliceTransform, k: int) -> str:
    """Which slice is shown, for a caption; empty of a picture."""
    return "" if restore.slices == 1 else f"slice {k + 1} of {restore.slices}"
