"""How much the result depends on the noise: M seeded runs over the same cases.

Runs are compared on *Seg* (the mask, 0 or 255) and on *Score* (the probability, 0..255), both on
the model's 256 x 256 planes, slice n of a case with slice n of the same case:

    PSNR, SSIM, MS-SSIM   slices with a non-empty reference, averaged over all pairs
    LPIPS                 over all slices, averaged; needs weights that do not come with sdseg

once as the paper does, the first run with each of the others, and once every run with every other.
Beyond the paper, on the scan's own grid:

    Dice                  per run the mean over cases, and its spread over runs; per case likewise
    flipped               the voxels on which not all runs agree, counted and drawn as a map
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.files import replacing_folder
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.evaluation.evaluation_split import CaseProgress
from sdseg_cli.evaluation.page import write_report
from sdseg_cli.evaluation.stability_picture import stability_picture
from sdseg_cli.evaluation.stability_scores import StabilityReport
from sdseg_cli.evaluation.stability_trial import Trial, open_conditions
from sdseg_cli.evaluation.table5 import table5_rows, write_table5
from sdseg_cli.report import map_panels
from sdseg_cli.report.panels import save_panels

if TYPE_CHECKING:
    from sdseg_cli.inference.predictor import Predictor


def stability(
    run: Path | None,
    workspace: Path,
    *,
    runs: int = 5,
    split: str = "test",
    seed: int = 0,
    sample: SampleConfig | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    decoder: str = "auto",
    lpips_backbone: Path | None = None,
    lpips_linear: Path | None = None,
    predictor: Predictor | None = None,
    command: str = "",
    progress: Progress = no_op,
) -> StabilityReport:
    """Predict every case of a split several times and measure how far the results part.

    Args:
        run: The run folder; None for the newest finished run of the workspace.
        workspace: Folder that holds `prepared/` and `runs/`.
        runs: How often each case is predicted, at least 2; run m starts from seed + m - 1.
        split: "train", "val" or "test".
        seed: Of the first run's noise.
        sample: Reverse steps and samples; None is the run's setting.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        batch_size: Slices at a time; None for what suits the device.
        decoder: As `Predictor`.
        lpips_backbone: ImageNet AlexNet in torchvision's names; None for that of the weight store.
        lpips_linear: LPIPS v0.1 heads for AlexNet; None for those of the weight store.
        predictor: The run's model if it is loaded already.
        command: What was typed, for the report.
        progress: Told in slices.

    Returns:
        The averages and the files: report/<split>/stability.csv, stability_cases.csv,
        stability.json, stability.png, table5.csv, table5.tex, report.html and
        instability/<case>.nii.gz.

    Raises:
        ConfigError: Fewer than 2 runs, one LPIPS file without the other, or no such run or split.
        DataError: A scan, label or prepared array is missing or damaged.
        WeightsError: The checkpoint or a file of LPIPS is missing or damaged.
        RunError: The network answers with NaN, or the disk refused.
    """
    under = open_conditions(
        run,
        workspace,
        runs=runs,
        split=split,
        seed=seed,
        device=device,
        batch_size=batch_size,
        decoder=decoder,
        lpips_backbone=lpips_backbone,
        lpips_linear=lpips_linear,
        predictor=predictor,
    )
    folder = under.folder / "instability"
    with replacing_folder(folder) as maps_folder:
        trial = Trial.of_all_pairs(under, under.sampling(sample), maps_folder)
        report = trial.run(CaseProgress(under.held.cases, progress, repeats=runs))
    report = replace(
        report,
        maps=tuple(folder / path.relative_to(maps_folder) for path in report.maps),
        table5=tuple(row.to_json() for row in table5_rows(report, under.dataset)),
        provenance=under.held.provenance(command),
    )
    files = [*report.write(under.folder), *write_table5(under.folder, report, under.dataset)]
    picture = under.folder / "stability.png"
    if trial.shown is None:  # one of a former call would be shown as of this one
        picture.unlink(missing_ok=True)
    else:
        files.append(picture)
        stability_picture(picture, trial.shown, report.dice)
    save_panels(under.folder, trial.panels, map_panels.FILE)
    page = write_report(under.folder, title=under.held.title, config=under.held.config_text)
    return replace(report, files=(*files, page, *report.maps))
