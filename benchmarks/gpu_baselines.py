"""SDSeg beside the networks it is compared with: time, memory, weights and arithmetic.

All are built by `presets.for_network`, trained and asked as `sdseg train --model` and `sdseg
predict` do it, on the same made-up slices. Weights are random: speed and memory do not depend on
them. SDSeg has a second line for its fast decoder, which only predictions use.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from benchmarks.gpu_steps import Setting, forget_peak, peak_gib, training
from benchmarks.made_up import SIZE
from benchmarks.results import Results, Row, seconds_per_call
from sdseg_cli.core.config import SDSEG, RunConfig, models
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.presets import for_network, preset
from sdseg_cli.inference.engine import Inference, optimize_for_inference, predict_planes
from sdseg_cli.model.baselines import build_model
from sdseg_cli.model.interface import SliceModel
from sdseg_cli.model.mask_decoder import build_mask_decoder
from sdseg_cli.model.runtime import gflop, to_device

FAST = f"{SDSEG}, fast decoder"
SETTING = Setting()
"""The default computation of `sdseg train`."""
FULL = "out of memory"


def training_row(preset_name: str, network: str, batch_size: int) -> str:
    """Name of a row; SDSeg's is among those of the suite's part `train`."""
    if network == SDSEG:
        return f"{preset_name}/train/batch{batch_size}/{SETTING.name}"
    return f"{preset_name}/baselines/{network}/train/batch{batch_size}"


def compare(
    results: Results,
    preset_name: str,
    device: torch.device,
    *,
    batches: Sequence[int],
    predict_batches: Sequence[int],
    budget_s: float,
) -> None:
    """Measure what is missing. A network that cannot be built here is left out, and nothing is
    stored for it, so that a later run can make it.

    Args:
        results: The file of measurements.
        preset_name: "tiny" or "sd".
        device: That computes.
        batches: Slices of a training step.
        predict_batches: Slices predicted at a time.
        budget_s: Seconds per measurement.
    """
    for network in models():
        try:
            config = for_network(preset(preset_name), network)
            for batch in batches:
                results.measure(
                    training_row(preset_name, network, batch),
                    partial(training, config, batch, device, budget_s, SETTING),
                )
            for name in (network, FAST) if network == SDSEG else (network,):
                start = f"{preset_name}/baselines/{name}"
                results.measure(f"{start}/size", partial(size, config, device, name == FAST))
                for batch in predict_batches:
                    results.measure(
                        f"{start}/predict/batch{batch}",
                        partial(prediction, config, batch, device, budget_s, name == FAST),
                    )
        except (ImportError, ConfigError) as error:  # MONAI, or what one of its networks needs
            print(f"{network}: left out, {error}", flush=True)


def _untrained(config: RunConfig, device: torch.device, fast: bool) -> SliceModel:
    torch.manual_seed(0)
    model = build_model(config.model)
    if fast:
        model.mask_decoder = build_mask_decoder(config.model.autoencoder)
    return to_device(model.eval().requires_grad_(False), device)


def size(config: RunConfig, device: torch.device, fast: bool = False) -> Row:
    """Weights that a prediction uses, and its GFLOP per slice."""
    model = _untrained(config, device, fast)
    pixels = torch.zeros(1, SIZE, SIZE)
    ask = partial(predict_planes, model, pixels, [0], seed=0, sample=config.sample)
    return {
        "parameters": sum(
            v.numel() for part in model.predicting_parts() for v in part.parameters()
        ),
        "gflop_per_slice": gflop(ask),
    }


def prediction(
    config: RunConfig, batch_size: int, device: torch.device, budget_s: float, fast: bool = False
) -> Row:
    """Slices/s from pixels to probabilities, both in the machine's memory, a batch at a time."""
    model = _untrained(config, device, fast)
    optimize_for_inference(model)
    ask = Inference(model, batch_size=batch_size)
    noise = np.random.default_rng(0).random((batch_size, SIZE, SIZE), dtype=np.float32) * 2 - 1
    whole = partial(ask, predict_planes, noise, range(batch_size), seed=0, sample=config.sample)
    forget_peak(device)
    taken = seconds_per_call(whole, device, budget_s)
    if ask.batch_size < batch_size:  # it helps itself where memory runs out
        return {"error": f"{FULL}: {ask.batch_size} slices at a time fit"}
    return {"slices_per_s": batch_size / taken, "peak_gib": peak_gib(device)}


def table(rows: dict[str, Row], preset_name: str, batches: Sequence[int]) -> str:
    """In Markdown, a line per network that was measured; predictions in the fastest batch."""
    head = ["network", "weights (M)", "GFLOP/slice"]
    head += [text for b in batches for text in (f"step of {b} (ms)", "its peak (GiB)")]
    head += ["predicted slices/s", "at a time", "their peak (GiB)"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    first, *others = models()
    for name in (first, FAST, *others):
        start = f"{preset_name}/baselines/{name}/"
        sizes = rows.get(f"{start}size")
        if sizes is None:
            continue
        cells = [name, _cell(sizes, "parameters", 1e-6), _cell(sizes, "gflop_per_slice")]
        for batch in batches:
            row = {} if name == FAST else rows.get(training_row(preset_name, name, batch), {})
            cells += [_cell(row, "s_per_step", 1000), _cell(row, "peak_gib")]
        asked = {key: row for key, row in rows.items() if key.startswith(f"{start}predict/batch")}
        best = max(asked, key=lambda key: asked[key].get("slices_per_s", 0.0), default="batch-")
        row = asked.get(best, {})
        cells += [_cell(row, "slices_per_s"), best.split("batch")[-1], _cell(row, "peak_gib")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Row, key: str, factor: float = 1.0) -> str:
    if "error" in row:
        return FULL
    value = row.get(key)
    return "-" if value is None else f"{value * factor:.2f}"
