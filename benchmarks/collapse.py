r"""The collapse of a latent loss on sparse masks, and what cures it.

    python -m benchmarks.collapse --workspace FOLDER --datasets openkbp,ibsi --steps 150 \
        --seeds 0,1 --split '' --out collapse.json

Where a few latent pixels of a thousand hold the structure, the median of what z0 may be is the
empty mask, and the mean absolute error, which asks for the median, is content with that. From there
each variant changes as little as it can. All predict z0 at t = 999.
"""

from __future__ import annotations

from benchmarks.ablations import Ablation, run_study

PAPER = {"latent_loss": "l1", "foreground_weight": 0.0, "foreground_fraction": 0.0}
COLLAPSE = Ablation(
    "collapse",
    {
        "L1 (the paper)": {"train": PAPER},
        "L1, slices with foreground oversampled": {"train": {**PAPER, "foreground_fraction": 0.75}},
        "L1, foreground weighs 21": {"train": {**PAPER, "foreground_weight": 20.0}},
        "L2": {"train": {**PAPER, "latent_loss": "l2"}},
        "L1 and the mask's Dice": {"train": {**PAPER, "mask_loss_weight": 1.0}},
        "L2, oversampled, foreground weighs 21 (tiny)": {},
        "L2, oversampled": {"train": {"foreground_weight": 0.0}},
        "tiny and the mask's Dice": {"train": {"mask_loss_weight": 1.0}},
        "L2, oversampled, and the mask's Dice": {
            "train": {"foreground_weight": 0.0, "mask_loss_weight": 1.0}
        },
        "the mask's Dice alone, oversampled": {
            "train": {"latent_loss_weight": 0.0, "mask_loss_weight": 1.0}
        },
    },
)

if __name__ == "__main__":
    run_study(COLLAPSE, "What cures the collapse of a latent loss on sparse masks.")
