"""Draw what Eq. 3 weighs each timestep by, for docs/METHOD.md.

    python scripts/draw_effective_weight.py --out docs/images/effective-weight.png

With eps and the L1 loss, L_latent = sqrt(1/alpha_bar_t - 1) L_noise. Eq. 3 is therefore the noise
loss times 1 + lambda sqrt(1/alpha_bar_t - 1).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from sdseg_cli.model.diffusion import ALPHA_BAR, LAST, TIMESTEPS
from sdseg_cli.report.drawing import (
    FAINT,
    INK,
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    chart,
    legend,
    new_figure,
    save_figure,
)

T = np.arange(TIMESTEPS)
LATE = 900
"""Timesteps from here on are shaded: the last tenth."""
OFF, ON, LATENT = "noise loss alone (λ = 0)", "Eq. 3 (λ = 1)", "latent loss alone"
COLOURS = {OFF: FAINT, ON: PREDICTION_COLOUR, LATENT: REFERENCE_COLOUR}


def main() -> None:
    """Two charts: the weight, and its share up to t."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images/effective-weight.png"))
    out: Path = parser.parse_args().out
    factor = np.sqrt(1 / ALPHA_BAR.numpy() - 1)
    weights = {OFF: np.ones(TIMESTEPS), ON: 1 + factor, LATENT: factor}
    figure = new_figure(10.5, 4.3)
    height, share = figure.subplots(1, 2)
    chart(height, "What an error of the noise weighs", "timestep t")
    chart(share, "Share of all weight that lies up to t", "timestep t")
    for name, weight in weights.items():
        style = {"color": COLOURS[name], "linestyle": "--" if name == LATENT else "-"}
        height.plot(T, weight, label=name, **style)
        cumulative = np.cumsum(weight) / weight.sum()
        late = 1 - cumulative[LATE - 1]
        share.plot(T, cumulative, label=f"{100 * late:.1f} % on t ≥ {LATE}", **style)
    height.set_yscale("log")
    height.set_yticks([0.1, 1, 10, 40], ["0.1", "1", "10", "40"])
    height.minorticks_off()
    for t, offset, side in (
        (0, (6, 17), "left"),
        (500, (-8, 7), "right"),
        (LAST, (-10, 4), "right"),
    ):
        value = weights[ON][t]
        height.plot(t, value, marker="o", markersize=5, color=INK, clip_on=False)
        note = {"color": INK, "fontsize": 9, "ha": side, "textcoords": "offset points"}
        height.annotate(f"{value:.2f}", (t, value), xytext=offset, **note)
    share.set_yticks(np.linspace(0, 1, 6), [f"{part} %" for part in range(0, 101, 20)])
    for axes, place in ((height, "lower right"), (share, "upper left")):
        axes.axvspan(LATE, LAST, color=INK, alpha=0.07, linewidth=0)
        axes.set_xlim(0, LAST)
        axes.set_xticks([0, 200, 400, 600, 800, LAST])
        legend(axes)
        axes.get_legend().set_loc(place)
    share.set_ylim(0, 1)
    save_figure(figure, out)


if __name__ == "__main__":
    main()
