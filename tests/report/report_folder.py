"""A report folder made by code, as `evaluate` and `stability` leave it, with hostile names."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdseg_cli.report.panels import MAP_FILE, CasePanel, case_panel, save_panels

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "\"&'",
    "</script><script>alert(2)</script>",
    "{{ 7 * 7 }}<!--",
)
PLAIN = ("case_2", "case_10")
IDS = (*PLAIN, *HOSTILE)
DICE = (0.9, 0.8, 0.7, 0.6, 0.5, None)
"""Of `IDS`; the last is undefined."""


def panel(case_id: str, seed: int = 0) -> CasePanel:
    """A bright square in noise, and a prediction that is two pixels off."""
    plane = np.random.default_rng(seed).normal(0, 20, (40, 48))
    reference = np.zeros((40, 48), bool)
    reference[10:20, 12:24] = True
    plane[reference] += 200
    caption = "slice 3 of 9 <b>bold</b>"
    prediction = np.roll(reference, 2, axis=1)
    return case_panel(case_id, caption, plane, reference, prediction, (-100, 300), (2.0, 1.0))


@cache
def case_panels() -> tuple[list[CasePanel], list[CasePanel]]:
    """A slice of each case, and where its runs disagree."""
    maps = [replace(panel(case_id), caption="where 3 runs disagree") for case_id in IDS]
    return [panel(case_id, seed) for seed, case_id in enumerate(IDS)], maps


def summary(mean: float) -> dict[str, Any]:
    """Of one metric over five of six cases."""
    low, high = mean - 0.1, mean + 0.1
    return {
        "mean": mean, "median": mean, "sd": 0.1, "ci95": [low, high], "n": 5, "undefined": 1,
    }  # fmt: skip


def evaluation() -> dict[str, Any]:
    """The object of evaluate.json."""
    cases = [
        {
            "id": case_id,
            "dice": dice,
            "hd95_mm": None if dice is None else 10 * (1 - dice),
            "volume_difference_ml": -1.5,
            "reference_voxels": 1234,
        }
        for case_id, dice in zip(IDS, DICE, strict=True)
    ]
    metrics = {c: summary(0.7) for c in ("dice", "hd95_mm", "volume_difference_ml")}
    dice = metrics["dice"]
    return {
        "run": "runs/<b>set</b>/a&b",
        "split": "test",
        "seed": 0,
        "sample": {"steps": 1, "eta": 0.0},
        "decoder": "fast",
        "grid": "native",
        "protocol": "standard",
        "metrics": metrics,
        "cases": cases,
        "classes": {"1": metrics, "<i>2</i>": metrics},
        "worst": [IDS[4], IDS[3]],
        "excluded": ["empty <u>case</u>"],
        "missing": ["missing <u>case</u>"],
        "units": {"dice": "1", "hd95_mm": "mm", "volume_difference_ml": "ml"},
        "better": {"dice": "higher", "hd95_mm": "lower", "volume_difference_ml": "zero"},
        "tolerance": {"value": 2.0, "unit": "mm"},
        "protocols": [
            {"protocol": "standard", "grid": "native", "dice": dice, "iou": dice, "excluded": 1},
            {
                "protocol": "official",
                "grid": "model",
                "dice": {**dice, "mean": 0.655},
                "iou": dice,
                "excluded": 0,
            },
        ],
        "notes": ["a <u>note</u>"],
        "provenance": {
            "command": "sdseg evaluate --run 'a <b>'",
            "date": "2026-01-02T03:04:05+00:00",
            "sdseg": "0.1.0",
            "versions": {"torch": "2.13.0", "monai": None},
            "sha256": {"best.pt": "ab" * 32},
        },
    }


def stability() -> dict[str, Any]:
    """The object of stability.json."""
    values = {"psnr": 27.5, "ssim": 0.98, "ms_ssim": 0.97, "lpips": None}
    return {
        "run": "runs/<b>set</b>/a&b",
        "split": "test",
        "runs": 3,
        "seeds": [0, 1, 2],
        "seg": values,
        "score": values,
        "all_pairs": {"seg": values, "score": values},
        "pairs": 1200,
        "identical": {"seg": 12, "score": 0},
        "dice": {
            "mean": 0.7,
            "sd": 0.002,
            "by_case": [
                {"id": name, "mean": 0.7, "sd": 0.01, "min": 0.6, "max": 0.8} for name in IDS
            ],
        },
        "flipped": {
            "fraction": 0.0125,
            "of_foreground": 0.5,
            "by_case": [{"id": name, "fraction": 0.01, "of_foreground": 0.5} for name in IDS],
        },
        "most_unstable": [IDS[2]],
        "maps": ["maps/<u>a</u>.nii.gz"],
        "table5": [{"method": "<u>ours</u>", "data": "set", "seg": values, "score": values}],
        "notes": ["lpips is absent"],
    }


def sweep() -> dict[str, Any]:
    """The object of sweep.json."""
    rows = [
        {"steps": steps, "eta": 0.0, "samples": 1, "dice": {"mean": 0.7 + steps / 100, "sd": 0.01}}
        for steps in (1, 2, 5)
    ]
    return {"runs": 3, "sweep": rows, "notes": []}


def write_folder(folder: Path) -> Path:
    """All of it: JSON, panels and a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"evaluate": evaluation(), "stability": stability(), "sweep": sweep()}
    for name, content in parts.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    panels, maps = case_panels()
    save_panels(folder, panels)
    save_panels(folder, maps, MAP_FILE)
    Image.new("RGB", (8, 6), (20, 40, 60)).save(folder / "stability.png")
    return folder


CLASSES = ("brainstem", "cord", "<b>parotid</b> r", "parotid l", "esophagus", "larynx", "mandible")


def class_evaluation() -> dict[str, Any]:
    """The object of evaluate.json of a run of seven classes; the last is undefined in `IDS[0]`."""
    found = evaluation()
    classes = []
    for number, name in enumerate(CLASSES):
        cases = [
            {**case, "dice": None if case["dice"] is None else case["dice"] - number / 20}
            for case in found["cases"]
        ]
        if number == 6:
            cases[0]["dice"] = None
        metrics = {**found["metrics"], "dice": summary(0.7 - number / 20)}
        classes.append({"name": name, "labels": [number + 1], "metrics": metrics, "cases": cases})
    union = {"metrics": found["metrics"], "cases": found["cases"]}
    return found | {"classes": classes, "union": union}


def class_panel(case_id: str) -> CasePanel:
    """Seven squares in noise, each predicted a pixel off."""
    plane = np.random.default_rng(0).normal(0, 20, (40, 48))
    masks = np.zeros((7, 40, 48), bool)
    for number in range(7):
        masks[number, 8 : 14 + number, 2 + 6 * number : 7 + 6 * number] = True
    return case_panel(
        case_id, "slice 3", plane, masks, np.roll(masks, 1, axis=2), (-100, 300), (2.0, 1.0)
    )


def write_class_folder(folder: Path) -> Path:
    """The report of a run of seven classes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluate.json").write_text(json.dumps(class_evaluation()), encoding="utf-8")
    spread = {"mean": 0.7, "sd": 0.01}
    classes = [{"name": n, "dice": spread, "flipped": {"fraction": 0.01}} for n in CLASSES]
    found = stability() | {"classes": classes}
    (folder / "stability.json").write_text(json.dumps(found), encoding="utf-8")
    save_panels(folder, [class_panel(case_id) for case_id in IDS])
    save_panels(folder, [class_panel(IDS[2])], MAP_FILE)
    return folder
