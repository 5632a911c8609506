"""Predictions against references: 3D Dice and IoU per case, their summary, and pictures.

For each case: predict (or reuse the mask a former call kept), score, record. Then the best, the
median and the worst case are drawn; one slice of each is predicted anew, for its probability.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.config import THRESHOLD, SampleConfig
from sdseg_cli.datasets.manifest import PreparedCase
from sdseg_cli.errors import ConfigError, DataError
from sdseg_cli.held_out import CaseProgress, HeldOut, open_held_out
from sdseg_cli.imaging.intensity import Normalisation
from sdseg_cli.imaging.volume import Volume
from sdseg_cli.metrics import Grid, Protocol, Terms
from sdseg_cli.progress import Progress, silent
from sdseg_cli.report.evaluation import CaseResult, EvaluateReport, score_case
from sdseg_cli.report.kept_masks import KeptMasks, sha256_of
from sdseg_cli.report.pictures import CasePlane, case_plane, save_cases
from sdseg_cli.training.fast_decoder import decoder_identity

if TYPE_CHECKING:
    from sdseg_cli.predict import Prediction, Predictor

GRIDS: tuple[Grid, ...] = ("native", "model")
PROTOCOLS: tuple[Protocol, ...] = ("standard", "official")
OFFICIAL_NOTE = (
    "official protocol: scored on the 256 x 256 planes, one value per 3D case; an empty reference "
    "scores 1 against a non-empty prediction and 0 against an empty one"
)


def evaluate(
    run: Path | None,
    workspace: Path,
    *,
    split: str = "test",
    grid: str = "native",
    protocol: str = "standard",
    terms: Terms | None = None,
    seed: int = 0,
    sample: SampleConfig | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    decoder: str = "auto",
    predictor: Predictor | None = None,
    progress: Progress = silent,
) -> EvaluateReport:
    """Score a run on one split of the data set it was trained on.

    Args:
        run: The run folder; None for the newest finished run of the workspace.
        workspace: Folder that holds `prepared/` and `runs/`.
        split: "train", "val" or "test".
        grid: "native" scores on each scan's own voxels, "model" on the 256 x 256 planes.
        protocol: "standard", or "official": the official code's rules for empty masks, on the
            model's planes whatever `grid` says.
        terms: How a case is judged: tolerance and the like.
        seed: Of all noise.
        sample: Reverse steps and samples; None is the run's setting.
        device: "auto", "cpu", "cuda" or "mps".
        batch_size: Slices at a time; None for what suits the device.
        decoder: As `Predictor`.
        predictor: The run's model if it is loaded already.
        progress: Told in slices.

    Returns:
        Scores and files: report/evaluate.csv, evaluate.json, best.png, median.png, worst.png and
        cases.png (all three) of the run; the masks stay in predictions/<split>/.

    Raises:
        ConfigError: An option is unknown, or there is no such run or split.
        DataError: A scan, label or prepared array is missing or damaged.
        GeometryError: A label does not lie on its scan's grid.
        WeightsError: The checkpoint is missing or damaged.
        RunError: The disk refused.
    """
    chosen_grid, chosen_protocol = _choices(grid, protocol)
    held = open_held_out(
        run,
        workspace,
        split,
        device=device,
        batch_size=batch_size,
        decoder=decoder,
        predictor=predictor,
    )
    sample = sample or held.run.config().sample
    masks = KeptMasks(
        held.run.predictions / split,
        sha256_of(held.run.best),
        decoder_identity(held.predictor.decoder, held.run.path),
        held.predictor.device.type,
        seed,
        sample,
    )
    terms = terms or Terms()
    scoring = _Scoring(held, masks, chosen_grid, chosen_protocol, terms, progress)
    report = EvaluateReport(
        run=held.run.path,
        split=split,
        grid=chosen_grid,
        protocol=chosen_protocol,
        cases=scoring.score_all(),
        seed=seed,
        sample=sample,
        decoder=held.predictor.decoder,
        notes=(OFFICIAL_NOTE,) if chosen_protocol == "official" else (),
        terms=terms,
    )
    files = (*report.write(scoring.folder), *scoring.draw(report.cases))
    return replace(report, files=files)


def _choices(grid: str, protocol: str) -> tuple[Grid, Protocol]:
    """Both options checked; the official protocol knows the model's grid only."""
    for option, value, allowed in (
        ("--grid", grid, GRIDS),
        ("--protocol", protocol, PROTOCOLS),
    ):
        if value not in allowed:
            raise ConfigError(f"{option} is {value!r}.", f"Choose one of {', '.join(allowed)}.")
    if protocol == "official":
        return "model", "official"
    return ("model" if grid == "model" else "native"), "standard"


@dataclass(frozen=True)
class _Scoring:
    """One pass over the held-out cases."""

    held: HeldOut
    masks: KeptMasks
    grid: Grid
    protocol: Protocol
    terms: Terms
    progress: Progress

    @property
    def folder(self) -> Path:
        """Where the report goes: one folder per split, grid and protocol."""
        usual = (self.grid, self.protocol) == ("native", "standard")
        name = self.held.split if usual else f"{self.held.split}-{self.grid}-{self.protocol}"
        return self.held.run.report / name

    def score_all(self) -> tuple[CaseResult, ...]:
        """Every case, in the order of the manifest."""
        count = CaseProgress(self.held.cases, self.progress)
        results = []
        for case in self.held.cases:
            results.append(self._score(case, count.of(case)))
            count.finish(case)
        return tuple(results)

    def _score(self, case: PreparedCase, progress: Progress) -> CaseResult:
        scan, reference = self.held.read(case)
        if self.grid == "native":
            kept = self.masks.find(case.id, scan)
            mask = self._predict(case, scan, progress)[1] if kept is None else kept
            return score_case(case.id, mask, reference, scan.spacing_mm, terms=self.terms)
        prediction, _ = self._predict(case, scan, progress)
        planes = self.held.reference_planes(case)
        if planes.shape != prediction.probability.shape:
            raise DataError(
                f"case {case.id}: prepared as {planes.shape}, now {prediction.probability.shape}.",
                "The scan was changed: run the same `sdseg prepare` command again.",
            )
        return score_case(
            case.id,
            prediction.probability > THRESHOLD,
            planes,
            None,
            grid="model",
            protocol=self.protocol,
        )

    def _predict(
        self, case: PreparedCase, scan: Volume, progress: Progress
    ) -> tuple[Prediction, NDArray[np.bool_]]:
        """Predict a case and keep its mask."""
        prediction = self.held.predictor.predict(
            scan,
            case_id=case.id,
            seed=self.masks.seed,
            sample=self.masks.sample,
            progress=progress,
        )
        mask = prediction.mask()
        self.masks.keep(case.id, mask, scan)
        return prediction, mask != 0

    def draw(self, results: tuple[CaseResult, ...]) -> tuple[Path, ...]:
        """Pictures of the best, the median and the worst case; none if no case has a Dice."""
        ranked = sorted(
            (result for result in results if result.values["dice"] is not None),
            key=lambda result: result.values["dice"] or 0.0,
        )
        if not ranked:
            return ()
        picks = {"best": ranked[-1], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[0]}
        cases = {case.id: case for case in self.held.cases}
        wanted = {result.case_id: result for result in picks.values()}
        count = CaseProgress([cases[name] for name in wanted], self.progress, "drawing case")
        drawn: dict[str, CasePlane] = {}
        for name, result in wanted.items():
            drawn[name] = self._plane(cases[name], result, count.of(cases[name]))
            count.finish(cases[name])
        pictures = {
            name: [replace(drawn[pick.case_id], heading=name)] for name, pick in picks.items()
        }
        pictures["cases"] = [
            replace(plane, heading=", ".join(n for n, pick in picks.items() if pick.case_id == id))
            for id, plane in drawn.items()
        ]
        files = {self.folder / f"{name}.png": rows for name, rows in pictures.items()}
        for file, rows in files.items():
            save_cases(file, rows)
        return tuple(files)

    def _plane(self, case: PreparedCase, result: CaseResult, progress: Progress) -> CasePlane:
        """The telling slice of a case; of its probability that slice is all that is predicted."""
        scan, reference = self.held.read(case)
        mask = self.masks.find(case.id, scan)
        if mask is None:  # somebody took it away since it was scored
            mask = self._predict(case, scan, progress)[1]
        predictor = self.held.predictor
        stack = predictor.stack(scan)
        plane = partial(predictor.plane, stack, seed=self.masks.seed, sample=self.masks.sample)
        limits = Normalisation.from_dict(self.held.manifest.normalisation).limits(scan)
        return case_plane(
            case.id,
            "",
            scan,
            reference,
            mask,
            plane,
            stack.restore,
            dice=result.values["dice"],
            window=(limits.low, limits.high),
        )
