"""What users get, recorded and compared: masks, scores, logs, packages, exit codes and messages.

    python scripts/behaviour.py record FOLDER     # on the commit to start from; about ten minutes
    python scripts/behaviour.py compare FOLDER    # after each step; exit 1 and a list if bytes differ

FOLDER keeps the inputs (cut from ../shared/data), a workspace with prepared sets, runs, a package, a
store and a half-done cohort made by the recorded commit, and `answers.json`. `compare` makes the
sets, runs and packages anew and compares them, and lets today's code go on with those of the
recorded commit. Both on one machine: another processor may round otherwise.
"""

# ruff: noqa: E501  (a table reads best with one row a line)
from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import runpy
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

DATA = Path(__file__).resolve().parents[1] / "../shared/data"
HEAD_AND_NECK = [100, 109, 112, 115, 119, 122]
PICTURES = 8
DEPTH = 12
"""Slices of each head-and-neck CT, about those with most labels."""
VOLATILE = {"seconds", "created", "date", "time", "started", "finished", "elapsed_s", "machine"}
VOLATILE |= {
    "seconds_per_scan",
    "versions",
    "command",
    "commit",
    "lr_seconds",
    "host",
    "pid",
    "peak_mib",
}
SMALL = "--set train.validate_every=15 --set train.validation_slices=16 --set train.batch_size=4"


@dataclass(frozen=True)
class Step:
    """A command line below a folder, and what is kept of it.

    Attributes:
        name: Its own.
        line: What is typed after `sdseg`.
        files: Files whose bytes are kept (globs below the folder); JSON by its stable part.
    """

    name: str
    line: str
    files: tuple[str, ...] = ()


MAKE = [
    Step("prepare", "prepare in/hn --name hn --crop body --workers 1 --classes any --json", ("home/prepared/hn/cases/*/*.npy",)),
    Step("prepare pictures", "prepare in/polyps --name polyps --dataset folder --workers 1 --json", ("home/prepared/polyps/cases/*/*.npy",)),
    Step("train tiny", f"train --dataset hn --run a --steps 30 {SMALL} --json", ("home/runs/hn/a/log.jsonl",)),
    Step("train mask loss", f"train --dataset hn --run b --steps 30 --set train.mask_loss_weight=1 {SMALL} --json", ("home/runs/hn/b/log.jsonl",)),
    Step("train unet", f"train --dataset hn --run c --steps 30 --model unet {SMALL} --json", ("home/runs/hn/c/log.jsonl",)),
    Step("train pictures", f"train --dataset polyps --run p --steps 6 {SMALL} --json", ("home/runs/polyps/p/log.jsonl",)),
    Step("export", "weights export hn/a -o home/a.sdseg --json", ("home/a.sdseg/*.safetensors",)),
]  # fmt: skip
"""In an empty workspace; what they make is the workspace of the rest."""

CT = "predict in/hn/pt_100/image.nii.gz --run hn/a"
USE = [
    Step("fast", f"{CT} -o o/fast.nii.gz --decoder fast --prob o/fast_p.nii.gz --preview o/fast.png --json", ("o/fast*",)),
    Step("exact", f"{CT} -o o/exact.nii.gz --decoder exact --prob o/exact_p.nii.gz --prob-dtype float32 --json", ("o/exact*",)),
    Step("runs", f"{CT} -o o/runs.nii.gz --runs 3 --uncertainty o/unc.nii.gz --json", ("o/runs*", "o/unc*")),
    Step("tta", f"{CT} -o o/tta.nii.gz --tta --seed 3 --json", ("o/tta*",)),
    Step("ddim", f"{CT} -o o/ddim.nii.gz --steps 2 --samples 2 --eta 1 --json", ("o/ddim*",)),
    Step("no noise", f"{CT} -o o/det.nii.gz --deterministic --json", ("o/det*",)),
    Step("post-processing", f"{CT} -o o/post.nii.gz --fill-holes --min-size 0.5 --keep-largest 2 --threshold 0.4 --json", ("o/post*",)),
    Step("nrrd out", f"{CT} -o o/hn.nrrd --prob o/hn_p.mha --json", ("o/hn*",)),
    Step("mask loss run", "predict in/hn/pt_109/image.nii.gz --run hn/b -o o/b.nii.gz --json", ("o/b.nii.gz",)),
    Step("baseline run", "predict in/hn/pt_109/image.nii.gz --run hn/c -o o/c.nii.gz --json", ("o/c.nii.gz",)),
    Step("package", "predict in/hn/pt_100/image.nii.gz --model home/a.sdseg -o o/package.nii.gz --json", ("o/package*",)),
    Step("CT, LPS", "predict in/sts.nii.gz --run hn/a -o o/sts.nii.gz --crop none --json", ("o/sts*",)),
    Step("CT, RAS", "predict in/sm_ct.nii.gz --run hn/a -o o/sm.nii.gz --json", ("o/sm*",)),
    Step("MR", "predict in/mr/hippocampus_001.nii.gz --run hn/a -o o/mr.nii.gz --json", ("o/mr*",)),
    Step("NRRD", "predict in/lung.nrrd --run hn/a -o o/lung.nrrd --json", ("o/lung*",)),
    Step("MetaImage", "predict in/lung.mha --run hn/a -o o/lung.mha --prob o/lung_p.nii.gz --json", ("o/lung*",)),
    Step("DICOM", "predict in/series --run hn/a -o o/dicom.nii.gz --preview o/dicom.png --json", ("o/dicom*",)),
    Step("zip", "predict in/series.zip --run hn/a -o o/zip.nrrd --json", ("o/zip*",)),
    Step("picture", "predict in/polyps/images/p0.jpg --run polyps/p -o o/p0.png --prob o/p0_p.png --preview o/p0_v.png --json", ("o/p0*",)),
    Step("cohort", "predict in/mr -o o/cohort --run hn/a --prob o/probs --json", ("o/cohort/*.nii.gz", "o/cohort/ledger.csv", "o/probs/*.nii.gz")),
    Step("half a cohort goes on", "predict in/mr -o home/half --run hn/a --json", ("home/half/*.nii.gz", "home/half/ledger.csv")),
    Step("evaluate", "evaluate --run hn/a --json", ("home/runs/hn/a/report/test/evaluate.json", "home/runs/hn/a/report/test/evaluate.csv")),
    Step("evaluate official", "evaluate --run hn/a --protocol official --split val --json", ("home/runs/hn/a/report/val/evaluate.json",)),
    Step("evaluate pictures", "evaluate --run polyps/p --json", ("home/runs/polyps/p/report/test/evaluate.json",)),
    Step("evaluate folders", "evaluate --pred in/pred --ref in/ref --classes 1,2 --report o/folders --workers 1 --json", ("o/folders/*.json", "o/folders/*.csv")),
    Step("stability", "stability --run hn/a --runs 3 --json", ("home/runs/hn/a/report/test/stability.json",)),
    Step("sweep", "stability --run hn/a --runs 2 --steps 1,2 --json", ("home/runs/hn/a/report/test/stability_sweep.json",)),
    Step("compare", "compare hn/a hn/c --json", ("home/runs/hn/c/report/test/compare*.json",)),
    Step("compare folders", "compare in/pred in/ref --ref in/ref --report o/compared --workers 1 --json", ("o/compared/*.json",)),
    Step("check", "check in/hn --json"),
    Step("check file", "check in/sts.nii.gz --json"),
    Step("runs list", "runs --json"),
    Step("weights list", "weights list --json"),
    Step("resume a finished run", f"train --dataset hn --run a --steps 30 {SMALL} --json", ("home/runs/hn/a/log.jsonl",)),
    Step("train further", f"train --dataset hn --run a --steps 32 {SMALL} --json", ("home/runs/hn/a/log.jsonl",)),
]  # fmt: skip
"""In a copy of the recorded workspace."""

WRONG = """
predict
predict none.nii.gz -o m.nii.gz
predict in/text.nii.gz -o m.nii.gz
predict in/text.nrrd -o m.nii.gz
predict in/text.mha -o m.nii.gz
predict in/text.png -o m.png
predict in/empty -o m.nii.gz
predict in/cut.nii.gz -o m.nii.gz --run hn/a
predict in/notes.docx -o m.nii.gz
predict in/sts.nii.gz -o m.docx
predict in/sts.nii.gz -o in
predict in/sts.nii.gz -o in/sts.nii.gz
predict in/sts.nii.gz -o m.nii.gz --prob m.nii.gz
predict in/sts.nii.gz -o m.nii.gz --prob p.docx
predict in/sts.nii.gz -o m.nii.gz --prob-dtype half
predict in/sts.nii.gz -o m.nii.gz --batch-size 0
predict in/sts.nii.gz -o m.nii.gz --steps 0
predict in/sts.nii.gz -o m.nii.gz --device tpu
predict in/sts.nii.gz -o m.nii.gz --threshold 2
predict in/sts.nii.gz -o m.nii.gz --min-size -1
predict in/sts.nii.gz -o m.nii.gz --keep-largest 0
predict in/sts.nii.gz -o m.nii.gz --runs 1
predict in/sts.nii.gz -o m.nii.gz --runs 3 --samples 3
predict in/sts.nii.gz -o m.nii.gz --run nowhere
predict in/sts.nii.gz -o m.nii.gz --run hn/nowhere
predict in/sts.nii.gz -o m.nii.gz --model in
predict in/sts.nii.gz -o m.nii.gz --model home/a.sdseg --run hn/a
predict in/sts.nii.gz -o m.nii.gz --crop head
predict in/sts.nii.gz -o m.nii.gz --decoder slow
predict in/sts.nii.gz -o m.nii.gz --shard 3/2
predict in/sts.nii.gz -o m.nii.gz --series 2
predict in/sts.nii.gz -o m.nii.gz --nonsense
predict in/mr -o m.nii.gz
predict in/mr -o o2 --shard 2/2
predict in/mr -o o2 --engine slurm
prepare
prepare none
prepare in/empty
prepare in/hn --target x
prepare in/hn --window 5
prepare in/hn --crop head
prepare in/hn --dataset btcv
prepare in/hn --split-file none.json
prepare in/hn --image-glob '*.nii'
train
train --dataset none
train --dataset hn --preset big
train --dataset hn --model resnet
train --dataset hn --set train.batchsize=4
train --dataset hn --set train.batch_size=x
train --dataset hn --set nonsense
train --dataset hn --config none.toml
train --dataset hn --init none
train --dataset hn --steps 0
train --dataset hn --run b --set train.batch_size=3
evaluate --run none
evaluate --split all
evaluate --pred in/pred
evaluate --pred in/none --ref in/ref
evaluate --pred in/pred --ref in/empty
evaluate --run hn/a --grid world
evaluate --run hn/a --protocol own
stability --runs 1
stability --run none
stability --run hn/a --steps 1,x
compare hn/a
compare hn/a hn/none
compare hn/a polyps/p
check none
check in/notes.docx
weights add none
weights export none
weights fetch none
distill --preset big
bench --preset big
nonsense
""".strip().splitlines()
"""Each ends in one error and a hint: exit code and both lines are kept."""


def make_inputs(folder: Path) -> None:
    """Cut the inputs from the real data, the same bytes each time."""
    import SimpleITK

    for number in HEAD_AND_NECK:
        source = DATA / f"openkbp-hn-ct/pt_{number}"
        labels: Any = nib.load(source / "label.nii.gz")
        planes = (np.asarray(labels.dataobj) > 0).sum(axis=(0, 1))
        start = int(np.convolve(planes, np.ones(DEPTH), "valid").argmax())
        for name in ("image", "label"):
            whole: Any = nib.load(source / f"{name}.nii.gz")
            part = whole.slicer[:, :, start : start + DEPTH]
            (folder / f"hn/pt_{number}").mkdir(parents=True, exist_ok=True)
            nib.save(part, folder / f"hn/pt_{number}/{name}.nii.gz")
    image: Any = nib.load(sorted(DATA.glob("ibsi-sts-ct/STS_0*/CT_image.nii.gz"))[0])
    nib.save(image.slicer[:, :, 10:22], folder / "sts.nii.gz")
    image = nib.load(DATA / "totalsegmentator-tests/sm_ct/image.nii.gz")
    nib.save(image.slicer[:, :, 5:15], folder / "sm_ct.nii.gz")
    (folder / "mr").mkdir()
    for path in sorted((DATA / "msd-hippocampus/images").glob("*.nii.gz"))[:4]:
        shutil.copy(path, folder / "mr" / path.name)
    first = min((folder / "mr").iterdir())
    first.rename(folder / "mr/hippocampus_001.nii.gz")
    bad = max((folder / "mr").iterdir())
    bad.write_bytes(bad.read_bytes()[:2000])
    lung = SimpleITK.ReadImage(str(next((DATA / "pyradiomics-lung1").rglob("*image*.nrrd"))))
    for name in ("lung.nrrd", "lung.mha"):
        SimpleITK.WriteImage(lung[::3, ::3, 10:18], str(folder / name), True)
    series = sorted(p for p in (DATA / "ibsi-sts-ct/STS_002_dicom").rglob("*") if p.is_file())
    (folder / "series").mkdir()
    for path in series:
        shutil.copy(path, folder / "series" / path.name)
    shutil.make_archive(str(folder / "series"), "zip", folder / "series")
    pictures = sorted((DATA / "kvasir-seg/images").glob("*.jpg"))[:PICTURES]
    for kind in ("images", "masks"):
        (folder / "polyps" / kind).mkdir(parents=True)
        for i, path in enumerate(pictures):
            shutil.copy(DATA / "kvasir-seg" / kind / path.name, folder / f"polyps/{kind}/p{i}.jpg")
    _folders_of_masks(folder)
    _no_scans(folder)


def _folders_of_masks(folder: Path) -> None:
    """Five references, and the same moved by 0 to 4 voxels."""
    for kind in ("pred", "ref"):
        (folder / kind).mkdir()
    for i, path in enumerate(sorted((DATA / "msd-hippocampus/labels").glob("*.nii.gz"))[:5]):
        shutil.copy(path, folder / "ref" / path.name)
        labels = nib.load(path)
        moved = np.roll(np.asarray(labels.dataobj), i, axis=0)
        nib.save(nib.Nifti1Image(moved, labels.affine, labels.header), folder / "pred" / path.name)


def _no_scans(folder: Path) -> None:
    """Files that are refused."""
    (folder / "empty").mkdir()
    for name in ("text.nii.gz", "text.nrrd", "text.mha", "text.png", "notes.docx"):
        (folder / name).write_text("these are words, no voxels\n" * 40)
    (folder / "cut.nii.gz").write_bytes((folder / "sts.nii.gz").read_bytes()[:9000])


def sdseg(line: str, folder: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command typed in a folder, in a forked process.

    The libraries are loaded once, in this process; sdseg itself is loaded anew each time.
    """
    import shlex

    out, err = folder / ".stdout", folder / ".stderr"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.chdir(folder)
            for number, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
            os.environ |= {"SDSEG_HOME": "home", "SDSEG_WEIGHTS": "home/store", "COLUMNS": "100"}
            sys.argv = ["sdseg", *shlex.split(line)]
            runpy.run_module("sdseg_cli", run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in (out, err))
    return (os.waitstatus_to_exitcode(status), *texts)  # type: ignore[return-value]


def stable(value: Any) -> Any:
    """A JSON value without what differs from run to run."""
    if isinstance(value, dict):
        return {k: stable(v) for k, v in value.items() if k not in VOLATILE}
    return [stable(v) for v in value] if isinstance(value, list) else value


def digest(path: Path, folder: Path) -> Any:
    """What is kept of a file: text formats by their stable part, the rest by sha256."""
    if path.suffix == ".json":
        return stable(json.loads(path.read_text().replace(str(folder), "FOLDER")))
    if path.suffix == ".jsonl":
        return [stable(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        rows = path.read_text().replace(str(folder), "FOLDER").splitlines()
        drop = [i for i, name in enumerate(rows[0].split(",")) if name in VOLATILE]
        return [[c for i, c in enumerate(r.split(",")) if i not in drop] for r in sorted(rows)]
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return {
            k: hashlib.sha256(np.ascontiguousarray(v).tobytes()).hexdigest()[:16]
            for k, v in sorted(load_file(path).items())
        }
    return hashlib.sha256(path.read_bytes()).hexdigest()


def answer(step: Step, folder: Path) -> dict[str, Any]:
    """What a step gives: exit code, JSON or last lines, files."""
    began = time.monotonic()
    code, out, err = sdseg(step.line, folder)
    said = re.sub(r"\s+\d+(\.\d+)? s\b", "", err.replace(str(folder), "FOLDER"))
    kept: dict[str, Any] = {"code": code}
    if "--json" in step.line.split():
        try:
            kept["json"] = stable(json.loads(out.replace(str(folder), "FOLDER")))
        except ValueError:
            kept["stdout"] = out
    if code:
        kept["error"] = [line for line in said.splitlines() if line.startswith(("Error", "Hint"))]
    kept["files"] = {
        str(path.relative_to(folder)): digest(path, folder)
        for pattern in step.files
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }
    print(f"{time.monotonic() - began:7.1f} s  {code}  {step.name}", flush=True)
    return kept


def run_all(folder: Path, kept: Path, wanted: Callable[[str], bool]) -> dict[str, Any]:
    """All answers: sets and runs made anew in `folder/new`, the rest in a copy of the workspace."""
    new, old = folder / "new", folder / "old"
    for place in (new, old):
        place.mkdir()
        shutil.copytree(kept / "in", place / "in")
    (new / "home").mkdir()
    answers = {f"make: {s.name}": answer(s, new) for s in MAKE if wanted(f"make: {s.name}")}
    if not (kept / "home").exists():
        half = Step("half", "predict in/mr -o home/half --run hn/a --shard 0/2 --json")
        answers["make: half a cohort"] = answer(half, new)
        shutil.copytree(new / "home", kept / "home")
    shutil.copytree(kept / "home", old / "home")
    answers |= {f"use: {s.name}": answer(s, old) for s in USE if wanted(f"use: {s.name}")}
    for line in WRONG:
        if wanted(f"wrong: {line}"):
            answers[f"wrong: {line}"] = answer(Step(line, line), old)
    return answers


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Where two JSON values part, one line each."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after})
        return [
            line
            for k in keys
            for line in differences(before.get(k), after.get(k), f"{where} > {k}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for i, (b, a) in pairs for line in differences(b, a, f"{where}[{i}]")]
    if before == after:
        return []
    return [f"{where}\n    before: {str(before)[:300]}\n    after:  {str(after)[:300]}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Record or compare; exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="names that contain this, such as 'use:'")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
    kept: Path = options.folder.resolve()
    if options.action == "record":
        kept.mkdir(parents=True)
        make_inputs_folder = kept / "in"
        make_inputs_folder.mkdir()
        make_inputs(make_inputs_folder)
    scratch = kept.with_name(f"{kept.name}-work")  # the same each time: sets know their sources
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    answers = run_all(scratch, kept, lambda name: options.only in name)
    if options.action == "record":
        (kept / "answers.json").write_text(json.dumps(answers, indent=1))
        print(f"{len(answers)} answers in {kept / 'answers.json'}")
        return 0
    before = json.loads((kept / "answers.json").read_text())
    before = {name: kept_ for name, kept_ in before.items() if name in answers}
    found = differences(before, answers)
    print("\n".join(found) or f"all {len(answers)} answers are as recorded")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
