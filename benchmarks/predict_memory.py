"""How much memory a prediction takes beyond the model and one batch of slices.

    python -m benchmarks.predict_memory --folder SCRATCH [--case NAME]... [--slices 2000]

Each case is a process of its own that loads a model with random weights (the `tiny` preset),
predicts a scan of one batch, sets the system's high-water mark back (Linux) and predicts the case's
scan. What the mark is higher then, is compared with what the contract allows: 1.5 times the scan's
stored bytes, and a byte per voxel each for mask and probability. Scans are int16 and written by
code, slice by slice. In the large ones one slice in a hundred shows a body and the network computes
it; the others are air, which is skipped: that saves time and no memory, since a slice's memory is
gone with its batch. SCRATCH needs 2 GB. MetaImage is written by SimpleITK, which holds what it
writes: it is measured, and exceeds the bound by that copy. Prints one JSON object; ends with an
error where a bound does not hold for NIfTI.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

SPACING_MM = (0.8, 0.8, 2.0)
SHORT, LONG, PLANE = 60, 600, 128
MOST_RATIO = 1.25
"""What a scan of ten times the slices may take more, where the scan itself is small."""
MB = 1e6


@dataclass(frozen=True)
class Case:
    """One prediction.

    Attributes:
        name: As `--case` has it.
        side: Of a square slice, in pixels.
        slices: How many.
        suffix: Of scan and outputs.
        every: Each so many slices show a body.
        options: `post` (of `PostProcess`), and which files are written besides the mask.
    """

    name: str
    side: int
    slices: int
    suffix: str = ".nii.gz"
    every: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def bound_bytes(self) -> int:
        """What the contract allows beyond the model and one batch."""
        voxels = self.side**2 * self.slices
        return 3 * voxels + voxels * (1 + ("probability" in self.options))


def cases(large: int) -> list[Case]:
    """All of them; `large` is the slices of the large ones."""
    prob = {"probability": "prob"}
    post = {"fill_holes": True, "min_size_ml": 0.5, "keep_largest": 2}
    return [
        Case("short", PLANE, SHORT, options=prob),
        Case("long", PLANE, LONG, options=prob),
        Case("large-nii", 512, large, ".nii", 100, prob),
        Case("large-nii.gz", 512, large, ".nii.gz", 100, prob),
        Case("large-post-preview", 512, large, ".nii", 100, {**prob, "post": post, "preview": "p"}),
        Case("large-mha", 512, large, ".mha", 100),
        Case("large-mha-prob", 512, large, ".mha", 100, prob),
    ]


def planes(case: Case) -> Iterator[NDArray[np.int16]]:
    """The slices of a scan, feet to head: noisy air, and now and then a body with an organ."""
    rng = np.random.default_rng(0)
    noise = rng.integers(-15, 15, (4, case.side, case.side)).astype(np.int16)
    along = (np.arange(case.side) - case.side / 2) / case.side
    distance = np.hypot(along[:, None], along[None])
    body = np.select([distance < 0.1, distance < 0.35], [180, 40], -1000).astype(np.int16)
    for k in range(case.slices):
        air = k % case.every != case.every // 2
        yield noise[k % 4] + (np.int16(-1000) if air else body)


def write_scan(path: Path, case: Case) -> None:
    """Write a case's scan; one slice is held at a time."""
    with ExitStack() as opened:
        file: Any = opened.enter_context(path.open("wb"))
        if case.suffix == ".nii.gz":
            file = opened.enter_context(gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1))
        file.write(header_of(case))
        file.writelines(plane.tobytes(order="F") for plane in planes(case))


def header_of(case: Case) -> bytes:
    """What stands before the voxels."""
    shape = (case.side, case.side, case.slices)
    if case.suffix == ".mha":
        sizes, spacing = (" ".join(map(str, three)) for three in (shape, SPACING_MM))
        fields = {
            "ObjectType": "Image",
            "NDims": 3,
            "BinaryData": True,
            "DimSize": sizes,
            "ElementSpacing": spacing,
            "ElementType": "MET_SHORT",
            "ElementDataFile": "LOCAL",
        }
        return "".join(f"{name} = {value}\n" for name, value in fields.items()).encode()
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_sform(np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1]), code="scanner")
    header["vox_offset"] = header.sizeof_hdr + 4
    block: bytes = header.binaryblock
    return block + b"\0\0\0\0"


def write_run(folder: Path) -> None:
    """A run of the `tiny` preset with random weights that was never trained."""
    import torch

    from sdseg_cli.core.config_file import to_toml
    from sdseg_cli.core.presets import PRESETS
    from sdseg_cli.imaging.intensity import Normalisation
    from sdseg_cli.model.sdseg import build_sdseg
    from sdseg_cli.runs.checkpoint import Checkpoint
    from sdseg_cli.runs.run_folder import RunDir

    torch.manual_seed(0)
    config, run = PRESETS["tiny"], RunDir(folder)
    model = build_sdseg(config.model)
    last: Any = model.unet.out[2]
    torch.nn.init.normal_(last.weight, std=0.3)  # else every answer is the same
    window = Normalisation.for_modality("CT").to_dict()
    data = {"normalisation": window, "crop": "none", "size": 256, "dataset": "made up"}
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    Checkpoint.begin(config, model, data).save(run.best)
    run.config_file.write_text(to_toml(config), encoding="utf-8")


def high_water(*, back: bool = False) -> int:
    """Most memory this process has held, in bytes; `back`: from here on (Linux)."""
    if back:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)


def predict(folder: Path, case: Case) -> dict[str, Any]:
    """Predict one batch, then the case; in a process that has done nothing else."""
    from sdseg_cli.imaging.postprocess import PostProcess
    from sdseg_cli.inference.engine import DEFAULT_BATCH
    from sdseg_cli.inference.options import OutputPaths, PredictOptions
    from sdseg_cli.inference.predict import predict_file
    from sdseg_cli.inference.predictor import Predictor

    options = PredictOptions(post=PostProcess(**case.options.get("post", {})))
    predictor = Predictor(folder / "run", device="cpu")
    batch = Case("batch", case.side, DEFAULT_BATCH["cpu"], case.suffix)
    scan, named = folder / f"{case.name}{case.suffix}", folder / case.name
    outputs = OutputPaths(
        Path(f"{named}-mask{case.suffix}"),
        Path(f"{named}-probability{case.suffix}") if "probability" in case.options else None,
        preview=Path(f"{named}-preview.png") if "preview" in case.options else None,
    )
    write_scan(first := folder / f"batch{case.suffix}", batch)
    model = high_water(back=True)
    predict_file(first, outputs, predictor, options)
    one_batch = high_water()
    high_water(back=True)
    report = predict_file(scan, outputs, predictor, options)
    peak = high_water()
    return {
        "slices": report.slices,
        "model_mb": round(model / MB),
        "and_one_batch_mb": round(one_batch / MB),
        "peak_mb": round(peak / MB),
        "beyond_mb": round((peak - one_batch) / MB),
        "allowed_mb": round(case.bound_bytes / MB),
        "holds": peak - one_batch <= case.bound_bytes,
        "foreground_voxels": report.foreground_voxels,
        "seconds": round(report.seconds, 1),
    }


def measure(folder: Path, case: Case, large: int) -> dict[str, Any]:
    """Make the scan, predict it in another process, and clear up."""
    scan = folder / f"{case.name}{case.suffix}"
    write_scan(scan, case)
    again = [sys.executable, "-m", "benchmarks.predict_memory", "--inside", case.name]
    again += ["--folder", str(folder), "--slices", str(large)]
    try:
        done = subprocess.run(again, stdout=subprocess.PIPE, check=True)
    finally:
        for path in folder.glob(f"{case.name}*{case.suffix}"):
            path.unlink()
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def main() -> None:
    """Measure, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--slices", type=int, default=2000)
    parser.add_argument("--case", action="append")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    named = {case.name: case for case in cases(options.slices)}
    if options.inside is not None:
        print(json.dumps(predict(options.folder, named[options.inside])))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    write_run(options.folder / "run")
    rows = {}
    for name in options.case or named:
        rows[name] = measure(options.folder, named[name], options.slices)
        print(name, rows[name], file=sys.stderr, flush=True)
    streamed = [row["holds"] for name, row in rows.items() if named[name].suffix != ".mha"]
    result: dict[str, Any] = {"cases": rows, "holds": all(streamed)}
    if {"short", "long"} <= set(rows):
        result["long_over_short"] = round(rows["long"]["peak_mb"] / rows["short"]["peak_mb"], 3)
        result["holds"] &= result["long_over_short"] <= MOST_RATIO
    print(json.dumps(result, indent=1))
    if not result["holds"]:
        raise SystemExit("a bound does not hold")


if __name__ == "__main__":
    main()
