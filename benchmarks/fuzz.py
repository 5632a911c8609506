"""Damage inputs at random and require one clear answer: never a traceback, never other voxels.

    python -m benchmarks.fuzz --seconds 180 --seed 0

Every input is a whole file of its kind (NIfTI, NRRD, MetaImage, zip, DICOM, pictures, JSON, TOML,
weights) with a few bytes flipped, cut, doubled or replaced, or with one token of its text replaced
by something absurd. A command reads it. What must hold:

- the exit code is 0, 1, 2 or 3, and an error is one line and a hint; no traceback, no "bug";
- nothing but our own lines reaches stderr, not even from the libraries in C++;
- no answer takes more than ten processor seconds;
- a volume whose voxels (not its header) were damaged is refused or read unchanged, where the format
  has a checksum.

Exit code 1 and the inputs under --keep if any of it fails; the seed repeats a run.
"""

# ruff: noqa: E501  (a table reads best with one row a line)
from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from sdseg_cli.cli.app import run_command
from sdseg_cli.core.errors import SdsegError
from sdseg_cli.imaging.io.files import read_image

SLOWEST_S = 10.0
ABSURD = [
    "1" * 5000, "-1", "0", "1e999", "NaN", "Infinity", "null", "true", "[" * 20000, "{}", '""', "[]",
    '"../../x"', '"\\ud800"', "\x00", "\x1b[31m", "2147483648", "-9223372036854775809", "é" * 300,
    "65535", "0.0000001", '"' + "A" * 100000 + '"', "[null]", '{"a": {"a": {"a": []}}}',
]  # fmt: skip
Mutate = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes:
        name: Of the kind.
        file: Which file of the scene is damaged.
        line: The command that reads it, typed in the scene's folder.
        text: Whether tokens are replaced as well as bytes.
        sealed: Where voxels with a checksum begin, as a share of the file; None without one.
    """

    name: str
    file: str
    line: str
    text: bool = False
    sealed: float | None = None


TARGETS = [
    Target("NIfTI", "a.nii", "check a.nii"),
    Target("NIfTI, gzip", "a.nii.gz", "check a.nii.gz", sealed=0.5),
    Target("NRRD", "a.nrrd", "check a.nrrd", text=True),
    Target("NRRD, gzip", "z.nrrd", "check z.nrrd", text=True, sealed=0.5),
    Target("MetaImage", "a.mha", "check a.mha", text=True),
    Target("MetaImage, zlib", "z.mha", "check z.mha", text=True, sealed=0.5),
    Target("MetaImage, detached", "d.mhd", "check d.mhd", text=True),
    Target("DICOM slice", "series/IM2", "check series"),
    Target("zip", "series.zip", "check series.zip"),
    Target("PNG", "p.png", "check p.png"),
    Target("JPEG", "p.jpg", "check p.jpg"),
    Target("dataset.json", "nnunet/dataset.json", "check nnunet --workers 1", text=True),
    Target("split file", "split.json", "check nnunet --workers 1 --split-file split.json", text=True),
    Target("label of a set", "nnunet/labelsTr/c_1.nii.gz", "check nnunet --workers 1"),
    Target("settings", "settings.toml", "train --config settings.toml --show-config", text=True),
    Target("manifest", "prepared/fuzz/manifest.json", "evaluate --run fuzz/run", text=True),
    Target("run settings", "runs/fuzz/run/config.toml", "runs", text=True),
    Target("run state", "runs/fuzz/run/status.json", "runs", text=True),
    Target("run log", "runs/fuzz/run/log.jsonl", "runs", text=True),
    Target("package", "p.sdseg/sdseg.json", "predict none.nii.gz -o m.nii.gz --model p.sdseg", text=True),
    Target("package of a scan", "p.sdseg/sdseg.json", "predict a.nii -o m.nii.gz --model p.sdseg", text=True),
    Target("package weights", "p.sdseg/model.safetensors", "predict a.nii -o m.nii.gz --model p.sdseg"),
    Target("ledger record", "cohort/.ledger/*", "predict scans -o cohort --model p.sdseg", text=True),
    Target("weights", "w.safetensors", "weights add w.safetensors"),
]  # fmt: skip


def make_scene(folder: Path) -> None:
    """Whole files of every kind, a prepared set, a run of two steps and a package of it."""
    rng = np.random.default_rng(0)
    voxels = rng.normal(40, 60, (24, 20, 6)).astype(np.int16)
    voxels[:, :4] = -1000
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    for name in ("a.nii", "a.nii.gz", "scans/a.nii.gz"):
        (folder / name).parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, affine), folder / name)
    image = SimpleITK.GetImageFromArray(voxels.T.copy())
    image.SetSpacing((2.0, 2.0, 3.0))
    for name, packed in (("a.nrrd", 0), ("z.nrrd", 1), ("a.mha", 0), ("z.mha", 1), ("d.mhd", 0)):
        SimpleITK.WriteImage(image, str(folder / name), bool(packed))
    _series(folder / "series", voxels)
    with zipfile.ZipFile(folder / "series.zip", "w") as packed_series:
        for path in sorted((folder / "series").iterdir()):
            packed_series.write(path, f"series/{path.name}")
    colours = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
    for name in ("p.png", "p.jpg"):
        Image.fromarray(colours).save(folder / name)
    labels = np.zeros(voxels.shape, np.uint8)
    labels[8:16, 8:16, 1:5] = 1
    for i in range(5):
        for kind, array, end in (
            ("images", voxels + 150 * labels, "_0000"),
            ("labels", labels, ""),
        ):
            path = folder / f"nnunet/{kind}Tr/c_{i}{end}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(np.roll(array, i, 0), affine), path)
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}}
    about |= {"numTraining": 5, "file_ending": ".nii.gz"}
    (folder / "nnunet/dataset.json").write_text(json.dumps(about))
    split = {"train": ["c_0", "c_1", "c_2"], "val": ["c_3"], "test": ["c_4"]}
    (folder / "split.json").write_text(json.dumps(split))
    small = "--set train.batch_size=1 --set train.validation_slices=2 --device cpu"
    for line in (
        "prepare nnunet --name fuzz --workers 1",
        f"train --dataset fuzz --run run --steps 2 {small}",
        "weights export fuzz/run -o p.sdseg",
        "predict scans -o cohort --model p.sdseg",
    ):
        code, _, err = answer(line.split())
        if code:
            raise SystemExit(f"sdseg {line}: {err}")
    shutil.copy(folder / "p.sdseg/model.safetensors", folder / "w.safetensors")
    shutil.copy(folder / "runs/fuzz/run/config.toml", folder / "settings.toml")


def _series(folder: Path, voxels: np.ndarray) -> None:
    folder.mkdir()
    for k in range(voxels.shape[2]):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"1.2.3.{k + 1}"
        ds.SeriesInstanceUID, ds.Modality = "1.2.3", "CT"
        ds.Rows, ds.Columns = voxels.shape[1], voxels.shape[0]
        ds.PixelSpacing, ds.SliceThickness = [2, 2], 3
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [0, 0, 3 * k]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        ds.PixelData = (voxels[:, :, k].T.astype(int) + 2048).astype("<u2").tobytes()
        ds.save_as(folder / f"IM{k}", enforce_file_format=True)


def damage(data: bytes, draw: random.Random, *, text: bool, start: int = 0) -> bytes:
    """One to three changes of bytes from `start` on, or of a token."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        how = draw.randrange(7 if text else 5)
        where = draw.randrange(start, max(len(data), start + 1))
        if how == 0 and where < len(data):
            flipped = data[where] ^ (1 << draw.randrange(8))
            data = data[:where] + bytes([flipped]) + data[where + 1 :]
        elif how == 1:
            data = data[:where]
        elif how == 2:
            data = data[:where] + draw.randbytes(draw.randrange(1, 9)) + data[where:]
        elif how == 3:
            end = where + draw.randrange(1, 65)
            data = data[:where] + data[end:]
        elif how == 4:
            end = where + draw.randrange(1, 65)
            data = data[:end] + data[where:]
        else:
            data = _token_replaced(data, draw)
    return data


def _token_replaced(data: bytes, draw: random.Random) -> bytes:
    tokens = list(re.finditer(rb'"[^"\n]*"|[\w.+-]+|[=:,{}\[\]]', data[:4000]))
    if not tokens:
        return data
    token = draw.choice(tokens)
    absurd = draw.choice(ABSURD).encode("utf-8", "surrogatepass")
    return data[: token.start()] + absurd + data[token.end() :]


def answer(arguments: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, libraries' output included."""
    out = io.StringIO()
    with _stderr_file() as seen, contextlib.redirect_stdout(out):
        code = run_command(arguments)
    return code, out.getvalue(), seen.getvalue()


@contextlib.contextmanager
def _stderr_file() -> Iterator[io.StringIO]:
    """What reaches file descriptor 2, Python's own lines included."""
    seen = io.StringIO()
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        try:
            with open(2, "w", encoding="utf-8", closefd=False) as stream:
                with contextlib.redirect_stderr(stream):
                    yield seen
                stream.flush()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            seen.write(file.read().decode("utf-8", "replace"))


OURS = re.compile(r"^(Error: |Hint: |Warning: |Note: |next: |\s|$)", re.IGNORECASE)


def verdict(code: int, err: str, seconds: float) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if code not in (0, 1, 2, 3):
        return f"exit code {code}"
    if "Traceback" in err or "This is a bug" in err:
        return f"a crash: {err[-300:]}"
    if code in (1, 2) and "Error: " in err and "Hint: " not in err:
        return f"no hint: {err[-300:]}"
    if seconds > SLOWEST_S:
        return f"took {seconds:.1f} processor seconds"
    if any(ord(c) < 32 and c not in "\n\r\t" for c in re.sub(r"\x1b\[[0-9;]*m", "", err)):
        return f"control characters: {err[-300:]!r}"
    return None


def voxels_changed(path: Path, whole: np.ndarray) -> str | None:
    """Of a volume with a checksum, damaged behind its header: refused, or as it was."""
    try:
        found = read_image(path)
    except SdsegError:
        return None
    return None if np.array_equal(found.array, whole) else "other voxels, and no error"


def fuzz(folder: Path, seconds: float, seed: int, keep: Path | None) -> Counter[str]:
    """Damage and answer until the time is over.

    Returns:
        How many inputs of each kind were tried, and under "faults" what did not hold.
    """
    counts: Counter[str] = Counter()
    originals = {target.name: _the_file(folder, target.file) for target in TARGETS}
    volumes = {t.name: read_image(originals[t.name]).array.copy() for t in TARGETS if t.sealed}
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        target = TARGETS[number % len(TARGETS)]
        draw = random.Random(f"{seed}/{number}")
        path = originals[target.name]
        whole = path.read_bytes()
        sealed = target.sealed is not None and draw.random() < 0.5
        start = int(len(whole) * (target.sealed or 0)) if sealed else 0
        path.write_bytes(damage(whole, draw, text=target.text and not sealed, start=start))
        try:
            began = time.process_time()
            fault: str | None
            try:
                code, _, err = answer(target.line.split())
                fault = verdict(code, err, time.process_time() - began)
                counts[f"{target.name}, exit {code}"] += 1
            except BaseException:  # noqa: BLE001, whatever it is, it is the finding
                fault = traceback.format_exc()[-500:]
            if fault is None and sealed:
                fault = voxels_changed(path, volumes[target.name])
            if fault:
                counts["faults"] += 1
                print(f"{target.name} number {number}: {fault}", flush=True)
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, keep / f"{number}-{path.name}")
        finally:
            path.write_bytes(whole)
            for left in ("m.nii.gz",):
                (folder / left).unlink(missing_ok=True)
        number += 1
    counts["inputs"] = number
    return counts


def _the_file(folder: Path, pattern: str) -> Path:
    return min(path for path in folder.glob(pattern) if path.is_file())


def main() -> int:
    """Run for some seconds and say what was found."""
    parser = argparse.ArgumentParser(description="Damage inputs at random.")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="where inputs that failed are copied")
    options = parser.parse_args()
    keep = options.keep.resolve() if options.keep else None
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        os.environ |= {"SDSEG_HOME": name, "SDSEG_WEIGHTS": f"{name}/store"}
        make_scene(Path(name))
        counts = fuzz(Path(name), options.seconds, options.seed, keep)
    for what, count in sorted(counts.items()):
        print(f"{count:6d}  {what}")
    return int(counts["faults"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
