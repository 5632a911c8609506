"""The figures of the paper (arXiv 2406.18361), as it prints them: what ours are put beside.

Dice and IoU are percent. They are of the paper's data and its runs, so beside figures of other
data they say how large such numbers are, and not who is better.
"""

from __future__ import annotations

from dataclasses import dataclass

OURS = "SDSeg"
"""The method of the paper, and of this tool."""


@dataclass(frozen=True)
class DiceRow:
    """A row of Table 2: Dice, percent; None where the paper has no figure."""

    method: str
    refuge2: float | None
    btcv: float
    sts: float


@dataclass(frozen=True)
class Overlap:
    """Dice and IoU, percent."""

    dice: float
    iou: float


@dataclass(frozen=True)
class Table3Row:
    """A method on one data set of Table 3."""

    dataset: str
    method: str
    overlap: Overlap


@dataclass(frozen=True)
class SpeedRow:
    """A row of Table 4: BTCV, 1568 test slices, one 16 GB V100."""

    method: str
    training_h: float
    inference_h: float
    samples_per_s: float
    sampler: str
    """"DPM", "DDIM", or "" for a single step."""
    steps: int
    samples: int
    dice: float
    """Percent."""


@dataclass(frozen=True)
class Likeness:
    """How alike the results of several runs are."""

    lpips: float
    psnr: float
    """dB."""
    ssim: float
    ms_ssim: float


@dataclass(frozen=True)
class StabilityRow:
    """A row of Table 5: BTCV."""

    method: str
    seg: Likeness
    score: Likeness


@dataclass(frozen=True)
class AblationRow:
    """A row of Table 6."""

    latent_estimation: bool
    concatenation: bool
    trainable_encoder: bool
    btcv: Overlap
    refuge2: Overlap


TABLE2 = (
    DiceRow("U-Net", 80.1, 75.9, 85.4),
    DiceRow("U-Net (R50)", 87.2, 90.5, 88.4),
    DiceRow("Swin-UNETR", None, 91.3, 88.3),
    DiceRow("nnU-Net", None, 91.4, 88.9),
    DiceRow("TransU-Net", 85.6, 89.1, 88.1),
    DiceRow("SwinU-Net", 84.3, 86.5, 85.8),
    DiceRow(OURS, 89.4, 92.8, 89.4),
)
TABLE3 = (
    Table3Row("CVC", "SSFormer", Overlap(94.4, 89.9)),
    Table3Row("CVC", "Li-SegPNet", Overlap(92.5, 86.0)),
    Table3Row("CVC", "Diff-Trans", Overlap(95.4, 92.0)),
    Table3Row("CVC", OURS, Overlap(95.8, 92.6)),
    Table3Row("KSEG", "SSFormer", Overlap(93.5, 89.0)),
    Table3Row("KSEG", "Li-SegPNet", Overlap(90.5, 82.8)),
    Table3Row("KSEG", "Diff-Trans", Overlap(94.6, 91.6)),
    Table3Row("KSEG", OURS, Overlap(94.9, 92.1)),
    Table3Row("REF", "MedSegDiff-V1", Overlap(86.3, 78.2)),
    Table3Row("REF", "MedSegDiff-V2", Overlap(85.9, 79.6)),
    Table3Row("REF", "Diff-Trans", Overlap(88.7, 81.5)),
    Table3Row("REF", OURS, Overlap(89.4, 81.8)),
)
TABLE4 = (
    SpeedRow("MedSegDiff-V1", 48, 7, 0.30, "DPM", 50, 25, 79.24),
    SpeedRow("MedSegDiff-V2", 49, 7, 0.31, "DPM", 50, 25, 83.52),
    SpeedRow("Diff-U-Net", 16, 1 / 2, 0.87, "DDIM", 10, 1, 91.89),
    SpeedRow(OURS, 12, 1 / 4, 2.01, "DDIM", 10, 1, 92.09),
    SpeedRow(OURS, 12, 1 / 13, 8.36, "", 1, 1, 92.76),
)
TABLE5 = (
    StabilityRow(
        "MedSegDiff-V2",
        seg=Likeness(0.3139, 11.93, 0.578, 0.640),
        score=Likeness(0.2904, 14.45, 0.466, 0.623),
    ),
    StabilityRow(
        "Diff-U-Net",
        seg=Likeness(0.0633, 23.72, 0.967, 0.944),
        score=Likeness(0.0672, 24.67, 0.967, 0.940),
    ),
    StabilityRow(
        OURS,
        seg=Likeness(0.0199, 27.63, 0.9796, 0.9897),
        score=Likeness(0.0143, 31.55, 0.9764, 0.9909),
    ),
)
TABLE6 = (
    AblationRow(False, False, False, Overlap(32.67, 23.69), Overlap(28.31, 20.36)),
    AblationRow(False, True, False, Overlap(80.31, 72.27), Overlap(76.79, 69.37)),
    AblationRow(False, True, True, Overlap(91.89, 85.41), Overlap(88.79, 80.29)),
    AblationRow(True, True, True, Overlap(92.76, 85.49), Overlap(89.36, 81.68)),
)
