r"""Everything we want to know from a GPU, in one resumable script.

    python -m benchmarks.gpu_suite --out results.json            # the paper's widths, CUDA
    python -m benchmarks.gpu_suite --preset tiny --device cpu --out results.json

Each measurement is stored as soon as it is done, and skipped when the same command is run again.

    train        a whole step of `sdseg train`, per batch size and setting (precision, TF32 in the
                 U-Net, compiled): slices/s, peak memory, the share of the time the GPU is busy, and
                 the hours that the paper's 100,000 steps of batch 4
                 take; and the same by the plain loop of train_speed.py, for the ratio
    bench        `sdseg bench`: slices/s of prediction by decoder, precision and batch size, each
                 part alone, and the plain loop
    file         a CT of 128 slices from file to file, exact and fast; needs nibabel
    precision    error of z0, Dice and speed by part and format: the table of precision.py
    baselines    SDSeg beside each network of `sdseg train --model`: milliseconds and memory of a
                 training step by batch size, slices/s and memory of prediction, weights, GFLOP per
                 slice, and the table of them; needs MONAI (and einops for swin-unetr)
    table2       with --datasets: SDSeg of a middle size (on the autoencoder that ships with sdseg),
                 U-Net and DynUNet, trained on prepared sets for the same seconds: table2.py

Weights are random in all but precision and table2: speed and memory do not depend on them.
Precision does, so it needs a trained run, named with --run and --workspace, and is left out without
one. What needs a package that is not installed is left out too and not stored: a later run makes
it. --parts names the parts to run; without, all are. For table2 alone, 25 minutes a training:

    python -m benchmarks.gpu_suite --parts table2 --workspace FOLDER --datasets kseg,cvc \
        --seconds 1500 --out results.json

For other sizes, models and seeds it is `python -m benchmarks.table2 --device cuda`, with --set.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import torch

from benchmarks.gpu_baselines import compare, table
from benchmarks.gpu_steps import (
    ALL,
    FASTEST,
    PAPER_SLICES,
    Setting,
    peak_gib,
    plain,
    training,
)
from benchmarks.made_up import SIZE
from benchmarks.precision import run_table
from benchmarks.results import Results, Row, command, machine, told
from sdseg_cli.core.config import SDSEG, RunConfig
from sdseg_cli.core.errors import SdsegError
from sdseg_cli.core.presets import preset
from sdseg_cli.demo.bench import GPU_BATCHES, bench
from sdseg_cli.demo.phantom import make_phantom
from sdseg_cli.imaging.intensity import CT_WINDOW_HU, Normalisation
from sdseg_cli.inference.decoders import stored_decoder
from sdseg_cli.model.mask_decoder import autoencoder_hash, build_mask_decoder
from sdseg_cli.model.runtime import choose_device
from sdseg_cli.model.sdseg import build_sdseg
from sdseg_cli.model.tensor_files import write_tensors
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.package import write_package

MIDDLE = (
    "train.batch_size=16",
    "train.flips=hv",
    "train.learning_rate=3e-4",
    "sdseg:model.unet.model_channels=96",
    "sdseg:model.unet.blocks_per_level=2",
    "unet:model.scale=sd",
    "dynunet:model.scale=sd",
)
"""Over the preset `tiny`: 30 to 40 million weights each. SDSeg in the preset `sd` cannot train from
scratch: its autoencoder, which is frozen, is none that ships with the package.
"""


def summary(rows: dict[str, Row], preset_name: str, batch_size: int) -> str:
    """The fastest training with this batch, against the plain loop and the paper."""
    start = f"{preset_name}/train/batch{batch_size}/"
    speed = {
        n: row["slices_per_s"]
        for n, row in rows.items()
        if n.startswith(start) and "slices_per_s" in row
    }
    if not speed:
        return f"batch {batch_size}: nothing measured"
    best = max(speed, key=lambda name: speed[name])
    text = (
        f"batch {batch_size}: {best.removeprefix(start)} is fastest, {speed[best]:.1f} slices/s; "
    )
    text += f"the paper's {PAPER_SLICES:,} slices in {rows[best]['paper_hours']:.2f} hours"
    slow = rows.get(f"{preset_name}/plain/batch{batch_size}", {}).get("slices_per_s")
    return text + (f"; {speed[best] / slow:.2f} times the plain loop" if slow else "")


def file_to_file(config: RunConfig, decoder: str, device: torch.device) -> Row:
    """A scan of 128 slices of 512x512, from a NIfTI file to its mask's, by an untrained model."""
    import nibabel as nib

    from sdseg_cli.inference.options import OutputPaths
    from sdseg_cli.inference.predict import predict_file
    from sdseg_cli.inference.predictor import Predictor

    torch.manual_seed(0)
    data = {
        "normalisation": Normalisation("window", *CT_WINDOW_HU).to_dict(),
        "crop": "none",
        "size": SIZE,
        "dataset": "made-up",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build_sdseg(config.model)
        write_package(Checkpoint.begin(config, model, data), folder / "package")
        key = autoencoder_hash(model.autoencoder)
        own = stored_decoder(WeightStore(folder / "store"), key)
        own.parent.mkdir(parents=True)
        write_tensors(build_mask_decoder(config.model.autoencoder).state_dict(), own)
        os.environ["SDSEG_WEIGHTS"] = str(folder / "store")
        scan = make_phantom(0, 1, (512, 512, 128), (0.7, 0.7, 1.6)).scan
        nib.save(nib.Nifti1Image(scan.array, scan.geometry.affine), folder / "scan.nii.gz")
        started = time.perf_counter()
        predictor = Predictor(folder / "package", device=device.type, decoder=decoder)
        loaded = time.perf_counter()
        report = predict_file(
            folder / "scan.nii.gz", OutputPaths(folder / "mask.nii.gz"), predictor
        )
        return {
            "load_s": loaded - started,
            "predict_s": report.seconds,
            "slices_per_s": report.slices / report.seconds,
            "peak_gib": peak_gib(device),
        }


def _batches(device: torch.device) -> tuple[int, ...]:
    return (4, 16, 64) if device.type == "cuda" else (2, 8)


def train_part(args: Namespace, results: Results, device: torch.device) -> None:
    """Whole training steps, and the plain loop's."""
    config, batches = preset(args.preset), _batches(device)
    for batch in batches:
        if device.type != "cuda":
            settings: tuple[Setting, ...] = (Setting(),)  # a CPU lowers nothing
        else:
            settings = ALL if batch == batches[0] else FASTEST
        for setting in settings:
            results.measure(
                f"{args.preset}/train/batch{batch}/{setting.name}",
                partial(training, config, batch, device, args.budget, setting),
            )
        results.measure(
            f"{args.preset}/plain/batch{batch}", partial(plain, config, batch, device, args.budget)
        )
    for batch in batches:
        print(summary(results.rows, args.preset, batch))


def bench_part(args: Namespace, results: Results, device: torch.device) -> None:
    """`sdseg bench`."""
    slices = 128 if device.type == "cuda" else 2
    results.measure(
        f"{args.preset}/bench",
        lambda: bench(preset_name=args.preset, slices=slices, device=device.type).to_json(),
    )


def file_part(args: Namespace, results: Results, device: torch.device) -> None:
    """A CT from file to file."""
    if importlib.util.find_spec("nibabel") is None:
        print("file to file: left out, nibabel is not installed.")
        return
    for decoder in ("exact", "fast"):
        results.measure(
            f"{args.preset}/file/{decoder}",
            partial(file_to_file, preset(args.preset), decoder, device),
        )


def precision_part(args: Namespace, results: Results, device: torch.device) -> None:
    """The table of precision.py."""
    if args.run is None:
        print("precision: left out, it needs a trained model; give --run and --workspace.")
    else:
        run_table(results, args.run, args.workspace, args.split, args.slices, args.device)


def baselines_part(args: Namespace, results: Results, device: torch.device) -> None:
    """SDSeg beside the networks it is compared with."""
    batches = _batches(device)
    compare(
        results,
        args.preset,
        device,
        batches=batches,
        predict_batches=GPU_BATCHES if device.type == "cuda" else batches[:1],
        budget_s=args.budget,
    )
    print(table(results.rows, args.preset, batches))


def table2_part(args: Namespace, results: Results, device: torch.device) -> None:
    """Models of the same budget on prepared sets; what cannot be trained here is left out."""
    if not args.datasets:
        print("table2: left out, it needs prepared sets; give --datasets and --workspace.")
        return
    try:
        from benchmarks.comparison_table import table as compared
        from benchmarks.table2 import Task, row_of, settings_of
    except ImportError as error:
        print(f"table2: left out, {error}")
        return
    rows: list[Row] = []
    for dataset, model in product(args.datasets.split(","), (SDSEG, "unet", "dynunet")):
        own = settings_of(model, MIDDLE)
        task = Task(args.workspace, dataset, model, 0, "tiny", args.seconds, device, own)
        try:
            row = row_of(task, results)
            rows += [row] if "error" not in row else []
        except (ImportError, SdsegError) as error:
            print(f"{task.name}: left out, {error}", flush=True)
    print(compared(rows))


Part = Callable[[Namespace, Results, torch.device], None]
PARTS: dict[str, Part] = {
    "train": train_part,
    "bench": bench_part,
    "file": file_part,
    "precision": precision_part,
    "baselines": baselines_part,
    "table2": table2_part,
}


def main() -> None:
    """Run what is missing in the results file."""
    parser = command(__doc__, workspace=True)
    parser.add_argument("--preset", default="sd")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--budget", type=float, default=8.0, help="seconds per measurement")
    parser.add_argument("--parts", default=",".join(PARTS), help="with commas; default: all")
    parser.add_argument("--run", type=Path, help="a trained run, for the precision table")
    parser.add_argument("--split", default="val", help="whose slices the precision table is of")
    parser.add_argument("--slices", type=int, default=48, help="how many of them")
    parser.add_argument("--datasets", help="prepared sets for table2, with commas")
    parser.add_argument("--seconds", type=float, default=1500.0, help="table2: of each training")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    parts = args.parts.split(",")
    if unknown := [name for name in parts if name not in PARTS]:
        parser.error(f"--parts: there is no {', '.join(unknown)}; there are {', '.join(PARTS)}.")
    device, results = choose_device(args.device), Results(args.out)
    results.measure(f"{args.preset}/machine", lambda: machine(device))
    for name in parts:
        PARTS[name](args, results, device)


if __name__ == "__main__":
    with told():
        main()
