"""Whether leaving out slices of pure air changes anything.

    python -m benchmarks.air --dataset openkbp --run openkbp/tiny

Of every case of a prepared CT set: slices without a body (`imaging.slices.shows_body`), foreground
in their reference, and, with --run, what the run finds in them when they are computed all the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.results import command
from sdseg_cli.core.config import THRESHOLD, SampleConfig
from sdseg_cli.data.manifest import Manifest, open_array
from sdseg_cli.imaging.slices import shows_body
from sdseg_cli.inference.engine import Inference, predict_planes
from sdseg_cli.inference.predictor import Predictor
from sdseg_cli.runs.run_folder import find_run


def main() -> None:
    """Print one line per set."""
    parser = command(__doc__, workspace=True)
    parser.add_argument("--dataset", required=True, help="a prepared CT set")
    parser.add_argument("--run", type=Path, help="a run trained on it")
    args = parser.parse_args()
    manifest = Manifest.find(args.workspace, args.dataset)
    run = None if args.run is None else find_run(args.workspace, args.run).path
    predictor = None if run is None else Predictor(run, device="cpu")
    slices = air = labelled = found = 0
    for case in manifest.cases():
        pixels = open_array(manifest.pixels_file(case)).astype(np.float32)
        hidden = np.flatnonzero(~shows_body(pixels))
        labels = manifest.is_foreground(open_array(manifest.labels_file(case))[hidden])
        slices, air = slices + len(pixels), air + len(hidden)
        labelled += int(labels.any(axis=(1, 2)).sum())
        if predictor is not None and len(hidden):
            ask = Inference(predictor.model)
            numbers = [int(k) for k in hidden]
            drawn = ask(predict_planes, pixels[hidden], numbers, seed=0, sample=SampleConfig())
            found += int((drawn > THRESHOLD).any(axis=(1, 2)).sum())
    text = f"{args.dataset}: {air} of {slices:,} slices show no body; {labelled} have foreground"
    print(text + ("" if run is None else f"; the run finds something in {found}"))


if __name__ == "__main__":
    main()
