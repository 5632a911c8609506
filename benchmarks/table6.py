r"""Table 6 of the paper, on one's own data: does each part help?

    python -m benchmarks.table6 --workspace FOLDER --datasets msd-hippocampus,kseg --steps 300 \
        --seeds 0,1 --out table6.json

The paper's four rows at the sizes of the `tiny` preset, by the paper's loss, Eq. 3 at uniform t,
with the velocity in place of the noise: eps, from scratch, finds next to nothing in minutes
(docs/PERFORMANCE.md, "What reaches a Dice soonest"). The last two, lambda 0 and 1, are the runs
`fig3.py` is meant for. Then the same four by the recipe of `tiny` (z0, t = 999), where L_noise is
L_latent as L1, 39 times smaller: its fourth row shows the weighted L2, and no branch of its own.

    latent estimation   L_latent of Eq. 3; without it L_noise alone
    concatenation       the image's latent is concatenated to zt; without it, cross-attention
    trainable encoder   of the image; without it, it stays as the autoencoder's was
"""

from __future__ import annotations

from typing import Any

from benchmarks.ablations import Ablation, run_study

NOISE_ALONE = {"noise_loss_weight": 1.0, "latent_loss_weight": 0.0}
EQ_3 = {"noise_loss_weight": 1.0, "latent_loss": "l1", "foreground_weight": 0.0}
PARTS: dict[str, dict[str, Any]] = {
    "none": {
        "model": {"fusion": "cross-attention", "train_encoder": False},
        "train": NOISE_ALONE,
    },
    "concatenation": {"model": {"train_encoder": False}, "train": NOISE_ALONE},
    "concatenation, trainable encoder": {"train": NOISE_ALONE},
    "all three": {},
}


def at_uniform_t(values: dict[str, Any]) -> dict[str, Any]:
    """The same row by the paper's loss."""
    model = {**values.get("model", {}), "parameterisation": "v"}
    return {"model": model, "train": {"timesteps": "uniform", **EQ_3, **values.get("train", {})}}


TABLE6 = Ablation(
    "table6",
    {name: at_uniform_t(values) for name, values in PARTS.items()}
    | {f"{name} (z0, t = 999)": values for name, values in PARTS.items()},
)

if __name__ == "__main__":
    run_study(TABLE6, "Table 6: latent estimation, concatenation, trainable encoder.")
