"""The table of docs/RELIABILITY.md: one entry a row; `tests/test_reliability.py` runs them.

A new row is one entry. After a change: `pytest tests/test_reliability.py --write-docs`.
"""

# ruff: noqa: E501  (a table reads best with one row a line)
from __future__ import annotations

import bz2
import gzip
import zlib
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch

from tests import odd_files as odd
from tests.odd_files import Build
from tests.raw_cases import AFFINE, SHAPE

PREDICT = "predict scan.nii.gz -o mask.nii.gz"
PREPARE = "prepare 'raw data' --workers 1"
MASKS = "evaluate --pred pred --ref ref"
MOVED = AFFINE + np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 3], [0, 0, 0, 0]])
DIM = [3, 12, 10, 2, 1, 1, 1, 1]


@dataclass(frozen=True)
class Row:
    """An input, and what comes of it.

    Attributes:
        what: It, in words; every row its own.
        build: Makes it in a folder, which holds an old mask.nii.gz where it predicts.
        command: What is typed after `sdseg` in that folder.
        code: Exit code.
        says: Part of the error, or of what is printed when all is well.
        home: "run": the workspace holds a trained run and its prepared set; else it is empty.
    """

    what: str
    build: Build
    command: str
    code: int
    says: str
    home: str = "empty"


def bad_scan(what: str, build: Build, says: str, name: str = "scan.nii.gz") -> Row:
    """Refused by its header: before torch is loaded, and before a run is looked for."""
    return Row(what, build, f"predict {name} -o mask.nii.gz", 2, says)


def bad_set(what: str, build: Build, says: str, command: str = PREPARE, code: int = 2) -> Row:
    return Row(what, build, command, code, says)


def with_run(what: str, build: Build, command: str, says: str, code: int = 2) -> Row:
    return Row(what, build, command, code, says, home="run")


SCANS = [
    bad_scan("a scan that is not there", odd.nothing, "does not exist"),
    bad_scan("a pipe called .nii.gz", odd.pipe("scan.nii.gz"), "is a pipe or a device"),
    bad_scan("a link to a device", odd.link("scan.mha", "/dev/zero"), "is a pipe or a device", "scan.mha"),
    Row("a list of scans in another coding", odd.content("list.txt", "scan.nii.gz\n".encode("utf-16")), "predict list.txt -o out", 2, "a NUL character in line 1"),
    bad_scan("a scan that is a link to nowhere", odd.link("scan.nii.gz"), "a link to /not/there, which is not there"),
    bad_scan("a scan that is a link to itself", odd.link("scan.nii.gz", "scan.nii.gz"), "a link to scan.nii.gz, which is not there"),
    bad_scan("a folder that is no scan", odd.subfolder("scan"), "scan", "scan"),
    bad_scan("a text file called .nii.gz", odd.text("scan.nii.gz"), "not a gzip file"),
    bad_scan("a text file called .nii", odd.text("scan.nii", "no scan\n" * 99), "not a NIfTI file", "scan.nii"),
    bad_scan("a CSV, gzipped", odd.content("scan.nii.gz", gzip.compress(b"id,volume\n" * 99, mtime=0)), "not a NIfTI file"),
    bad_scan("an empty .nii.gz", odd.content("scan.nii.gz", b""), "not a NIfTI file"),
    bad_scan("an empty .nii", odd.content("scan.nii", b""), "not a NIfTI file", "scan.nii"),
    with_run("a .nii.gz cut short", odd.together(odd.scan(), odd.cut("scan.nii.gz", 0.7)), PREDICT, "cannot be read"),
    with_run("a .nii.gz with a wrong checksum", odd.together(odd.scan(), odd.flip("scan.nii.gz", -6)), PREDICT, "damaged"),
    with_run("a .nii.gz with other bytes after its end", odd.together(odd.scan(), odd.appended("scan.nii.gz", b"garbage")), PREDICT, "other bytes follow the end of its compressed data"),
    bad_scan("a scan packed by gzip twice", odd.together(odd.scan(), odd.gzipped("scan.nii.gz")), "compressed by gzip twice"),
    bad_scan("a bzip2 file called .nii.gz", odd.content("scan.nii.gz", b"BZh91AY&SY" + bytes(400)), "but a bzip2 file"),
    bad_scan("a web page called .nii.gz", odd.text("scan.nii.gz", "<!DOCTYPE html>"), "but a web page"),
    bad_scan("a quaternion that is no turn", odd.header(sform_code=0, qform_code=1, quatern_b=0.8, quatern_c=0.8), "no usable orientation", "scan.nii"),
    bad_scan("a .nii cut short", odd.together(odd.scan("scan.nii"), odd.cut("scan.nii", 0.9)), "claims", "scan.nii"),
    bad_scan("a time series", odd.scan(array=odd.hu((4, 4, 2, 3))), "not one 3D volume"),
    bad_scan("a colour NIfTI", odd.scan(array=np.zeros((4, 4, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])), "not grey values"),
    bad_scan("complex voxels", odd.scan(array=np.zeros((4, 4, 2), np.complex64)), "not grey values"),
    bad_scan("an sform without a third direction", odd.header(srow_z=0), "no usable grid", "scan.nii"),
    bad_scan("NaN in the sform", odd.header(srow_x=np.nan), "no usable grid", "scan.nii"),
    bad_scan("a header that claims 2 GB in 832 bytes", odd.header(dim=[3, 1024, 1024, 1024, 1, 1, 1, 1]), "its header claims 2,147,483,648 bytes", "scan.nii"),
    bad_scan("the same, gzipped", odd.header("scan.nii.gz", dim=[3, 1024, 1024, 1024, 1, 1, 1, 1]), "its header claims 2,147,483,648 bytes"),
    bad_scan("2^31 voxels along each axis", odd.header(kind=nib.Nifti2Header, dim=[3, 2**31, 2**31, 2**31, 1, 1, 1, 1]), "its header claims", "scan.nii"),
    bad_scan("a negative size", odd.header(dim=[3, 12, -10, 2, 1, 1, 1, 1]), "not one 3D volume", "scan.nii"),
    bad_scan("a size of zero", odd.header(dim=[3, 12, 0, 2, 1, 1, 1, 1]), "not one 3D volume", "scan.nii"),
    bad_scan("bits that are not the type's", odd.header(bitpix=32), "int16 voxels of 32 bits", "scan.nii"),
    bad_scan("voxels that begin beyond the end", odd.header(vox_offset=9e6), "the file holds 0", "scan.nii"),
    bad_scan("voxels that begin nowhere", odd.header(vox_offset=np.nan), "not a NIfTI file", "scan.nii"),
    bad_scan("an unknown type of voxel", odd.header(datatype=77), "scan.nii", "scan.nii"),
    bad_scan("a header whose voxels are in an .img file", odd.header(magic=b"ni1"), ".img", "scan.nii"),
    bad_scan("a detached header", odd.header("scan.hdr", magic=b"ni1"), "scan.hdr", "scan.hdr"),
    bad_scan("a kind of file that is no scan", odd.text("notes.docx"), "notes.docx", "notes.docx"),
    bad_scan("a text file called .nrrd", odd.text("scan.nrrd"), "cannot be read", "scan.nrrd"),
    bad_scan("an NRRD that claims 240 GB", odd.itk("scan.nrrd", None, b"sizes: 12 10 2", b"sizes: 6000 5000 4000"), "claims 240,000,000,000 bytes", "scan.nrrd"),
    bad_scan("an NRRD with an axis outside space", odd.itk("scan.nrrd", None, b"(1,0,0)", b"none"), "no direction in space", "scan.nrrd"),
    bad_scan("an NRRD whose voxels are elsewhere", odd.itk("scan.nrrd", None, b"encoding: raw", b"encoding: raw\ndata file: ../other.raw"), "outside its folder", "scan.nrrd"),
    bad_scan("a colour NRRD", odd.itk("scan.nrrd", np.zeros((2, 5, 6, 3), np.uint8)), "3 value(s) per voxel", "scan.nrrd"),
    bad_scan("a MetaImage with a size of zero", odd.itk("scan.mha", None, b"DimSize = 12 10 2", b"DimSize = 12 0 2"), "no usable grid", "scan.mha"),
    bad_scan("a MetaImage with no distance between slices", odd.itk("scan.mha", None, b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 1 0"), "scan.mha", "scan.mha"),
    bad_scan("a flat MetaImage", odd.itk("scan.mha", np.zeros((4, 4), np.int16)), "2 axes", "scan.mha"),
    bad_scan("an .mhd without its .raw", odd.together(odd.itk("scan.mhd"), odd.lost("scan.raw")), "no file beside it", "scan.mhd"),
    bad_scan("an .mhd that points at /etc/passwd", odd.itk("scan.mhd", None, b"scan.raw", b"/etc/passwd"), "outside its folder", "scan.mhd"),
    bad_scan("an .mhd that climbs out of its folder", odd.itk("scan.mhd", None, b"scan.raw", b"../scan.raw"), "outside its folder", "scan.mhd"),
    with_run("a packed MetaImage with one bit turned", odd.meta("scan.mha", data=odd.damaged(odd.stored, turn=300), CompressedData="True"), "predict scan.mha -o mask.nii.gz", "cannot be read"),
    with_run("a packed MetaImage of fewer slices than its header says", odd.meta("scan.mha", data=odd.damaged(zlib.compress, drop=240), CompressedData="True"), "predict scan.mha -o mask.nii.gz", "240 of 480 bytes of voxels"),
    with_run("a packed MetaImage of more voxels than its header says", odd.meta("scan.mha", data=odd.damaged(zlib.compress), CompressedData="True", DimSize="12 10 1"), "predict scan.mha -o mask.nii.gz", "more voxels than its header claims"),
    with_run("a packed MetaImage cut short", odd.meta("scan.mha", data=odd.damaged(zlib.compress)[:-3], CompressedData="True"), "predict scan.mha -o mask.nii.gz", "have no end"),
    bad_scan("a CompressedDataSize that is not the file's", odd.meta("scan.mha", data=odd.damaged(zlib.compress), CompressedData="True", CompressedDataSize="99"), "claims 99 packed bytes", "scan.mha"),
    with_run("a gzipped NRRD with one bit turned", odd.nrrd("scan.nrrd", data=odd.damaged(lambda data: gzip.compress(data, 0, mtime=0), turn=300), encoding="gzip"), "predict scan.nrrd -o mask.nii.gz", "cannot be read"),
    with_run("a gzipped NRRD of fewer slices than its header says", odd.nrrd("scan.nrrd", data=odd.damaged(gzip.compress, drop=240), encoding="gzip"), "predict scan.nrrd -o mask.nii.gz", "240 of 480 bytes of voxels"),
    with_run("a bzip2 NRRD with one bit turned", odd.nrrd("scan.nrrd", data=odd.damaged(bz2.compress, turn=200), encoding="bzip2"), "predict scan.nrrd -o mask.nii.gz", "cannot be read"),
    bad_scan("a raw NRRD of more voxels than its header says", odd.nrrd("scan.nrrd", sizes="12 10 1"), "claims 240 bytes of voxels, the file holds 480", "scan.nrrd"),
    bad_scan("a raw MetaImage of more voxels than its header says", odd.meta("scan.mha", DimSize="12 9 2"), "claims 432 bytes of voxels, the file holds 480", "scan.mha"),
    with_run("an NRRD written out as text, a number short", odd.nrrd("scan.nrrd", data=b"7 " * 239, encoding="ascii"), "predict scan.nrrd -o mask.nii.gz", "239 of 240 voxels"),
    bad_scan("an .mhd that points elsewhere behind an empty line", odd.meta("scan.mhd", "", "ElementDataFile = /etc/passwd"), "outside its folder", "scan.mhd"),
    bad_scan("an .mhd that points elsewhere behind a line of tabs", odd.meta("scan.mhd", "\t\t", "ElementDataFile = /etc/passwd"), "outside its folder", "scan.mhd"),
    bad_scan("an .mhd that points elsewhere with a colon", odd.meta("scan.mhd", "ElementDataFile : /etc/passwd"), "outside its folder", "scan.mhd"),
    bad_scan("an .mhd that names no file", odd.meta("scan.mhd", "ElementDataFile = ", data=b""), "no file beside it", "scan.mhd"),
    bad_scan("an NRRD that points elsewhere behind a key of that name", odd.nrrd("scan.nrrd", "data file:=LOCAL", "data file: /etc/passwd"), "outside its folder", "scan.nrrd"),
    bad_scan("an NRRD that points at itself", odd.nrrd("scan.nrrd", "byte skip: -1", "data file: scan.nrrd"), "no file beside it", "scan.nrrd"),
    bad_scan("a MetaImage with 10^9 axes", odd.meta("scan.mha", NDims="1000000000"), "1000000000 axes", "scan.mha"),
    bad_scan("a MetaImage with a field in other letters", odd.meta("scan.mha", "elementspacing = 1 1 3", "ElementDataFile = LOCAL"), "is written ElementSpacing", "scan.mha"),
    bad_scan("an NRRD that says a field twice", odd.nrrd("scan.nrrd", "sizes: 12 10 2"), "says sizes twice", "scan.nrrd"),
    bad_scan("an NRRD in micrometres", odd.nrrd("scan.nrrd", "space: LPS", 'space units: "um" "um" "um"'), "'um', not mm", "scan.nrrd"),
    bad_scan("a MetaImage in centimetres", odd.meta("scan.mha", DistanceUnits="cm"), "'cm', not mm", "scan.mha"),
    bad_scan("an NRRD whose space does not say where left is", odd.nrrd("scan.nrrd", "space: scanner-xyz", "space directions: (1,0,0) (0,1,0) (0,0,1)"), "does not say where left", "scan.nrrd"),
    bad_scan("a detached NRRD header", odd.nrrd("scan.nhdr", "data file: scan.raw"), "not a kind of file", "scan.nhdr"),
]  # fmt: skip

OUTPUTS = [
    with_run("an output that is a folder", odd.scan(), "predict scan.nii.gz -o .", "is a folder"),
    with_run("an output of another kind", odd.scan(), "predict scan.nii.gz -o mask.docx", "cannot write this kind"),
    with_run("an output without a suffix", odd.scan(), "predict scan.nii.gz -o mask", "cannot write this kind"),
    Row("a series and a mistyped suffix", odd.series(), "predict ct -o mask.nii.gzz", 2, ".gzz is no suffix of a mask"),
    Row("a folder and a version as its masks' folder", odd.series(), "predict ct -o v1.2", 2, "there is no folder of this name"),
    Row("a folder that is called as a mask is", odd.series(), "predict ct -o mask.nii.gz/", 2, "called as a mask is"),
    with_run("a folder for one scan's mask", odd.scan(), "predict scan.nii.gz -o out/", "out/ is a folder"),
    with_run("a folder for one scan's probability", odd.scan(), f"{PREDICT} --prob maps/", "maps/ is a folder"),
    Row("a mistyped suffix of many scans' maps", odd.scan("in/a.nii.gz"), "predict in -o out --prob p.nii.gzz", 2, "--prob p.nii.gzz"),
    with_run("an output of two files", odd.scan(), "predict scan.nii.gz -o mask.mhd", "cannot write this kind"),
    with_run("the scan as its own output", odd.scan(), "predict scan.nii.gz -o scan.nii.gz", "is the scan itself"),
    with_run("the scan as its own output, by another path", odd.scan(), "predict scan.nii.gz -o home/../scan.nii.gz", "is the scan itself"),
    with_run("mask and probability in one file", odd.scan(), f"{PREDICT} --prob mask.nii.gz", "both mask and --prob"),
    with_run("a probability of another kind", odd.scan(), f"{PREDICT} --prob p.docx", "cannot write this kind"),
    with_run("an unknown type of probability", odd.scan(), f"{PREDICT} --prob p.nii.gz --prob-dtype half", "half"),
    with_run("an output below a file", odd.together(odd.scan(), odd.text("notes")), "predict scan.nii.gz -o notes/mask.nii.gz", "cannot be written", 1),
    with_run("an output name of 300 letters", odd.scan(), f"predict scan.nii.gz -o {'m' * 300}.nii.gz", "cannot be a file name"),
    with_run("a pipe as output", odd.together(odd.scan(), odd.pipe("m.nii.gz")), "predict scan.nii.gz -o m.nii.gz", "is a pipe or a device"),
    with_run("a run's name of 300 letters", odd.scan(), f"{PREDICT} --run {'r' * 300}", "cannot be a file's name"),
    Row("an output below a file, before a run is looked for", odd.together(odd.scan(), odd.text("notes")), "predict scan.nii.gz -o notes/mask.nii.gz", 1, "cannot be written"),
    Row("an output below a link to nowhere", odd.together(odd.scan(), odd.link("out")), "predict scan.nii.gz -o out/mask.nii.gz", 1, "is a link that leads nowhere"),
    Row("a preview that cannot be written", odd.together(odd.scan(), odd.text("notes")), f"{PREDICT} --preview notes/look.png", 1, "cannot be written"),
    with_run("an sform and a qform that disagree, NRRD out", odd.header(qform_code=1, qoffset_x=30), "predict scan.nii -o mask.nrrd", "mm apart"),
    with_run("neither sform nor qform in use, MetaImage out", odd.header(sform_code=0), "predict scan.nii -o mask.mha", "both codes are 0"),
    with_run("no slice at a time", odd.scan(), f"{PREDICT} --batch-size 0", "--batch-size is 0"),
    with_run("no reverse step", odd.scan(), f"{PREDICT} --steps 0", "--steps"),
    with_run("a device that is none", odd.scan(), f"{PREDICT} --device tpu", "tpu"),
    with_run("a threshold of 1", odd.scan(), f"{PREDICT} --threshold 1", "--threshold is 1"),
    with_run("a threshold that is no number", odd.scan(), f"{PREDICT} --threshold nan", "--threshold is nan"),
    with_run("a smallest size below nothing", odd.scan(), f"{PREDICT} --min-size -1", "--min-size is -1"),
    with_run("no part to keep", odd.scan(), f"{PREDICT} --keep-largest 0", "--keep-largest is 0"),
    with_run("a single run to compare", odd.scan(), f"{PREDICT} --uncertainty u.nii.gz --runs 1", "greater than or equal to 2"),
    with_run("runs and samples", odd.scan(), f"{PREDICT} --runs 3 --samples 3", "--runs and --samples"),
    with_run("mask and uncertainty in one file", odd.scan(), f"{PREDICT} --uncertainty mask.nii.gz", "both mask and --uncertainty"),
    with_run("a preview that is no PNG", odd.scan(), f"{PREDICT} --preview look.jpg", "a preview is a PNG"),
    with_run("runs without noise", odd.scan(), f"{PREDICT} --runs 2 --deterministic", "Without noise"),
    with_run("samples without noise", odd.scan(), f"{PREDICT} --samples 3 --deterministic", "without noise"),
    with_run("a file name where each class has a file", odd.scan(), f"{PREDICT} --per-class x.nii.gz", "names a folder, in which each class has a file"),
    with_run("a label file that is no text", odd.scan(), f"{PREDICT} --legend x.pdf", "a label file of ITK-SNAP is a text"),
    with_run("a run of other classes for masks begun before", odd.together(odd.scan("in/a.nii.gz"), odd.text("out/.ledger/model", '{"model": "gone", "sha256": "0", "classes": ["liver", "spleen"]}'), odd.content("out/.ledger/in-use.lock", b""), odd.content("out/.ledger/table.lock", b"")), "predict in -o out --run tiny/run", "its masks show the classes liver, spleen"),
    with_run("no thread", odd.scan(), f"{PREDICT} --threads 0", "--threads is 0"),
]  # fmt: skip

RUNS = [
    Row("no run yet", odd.scan(), PREDICT, 2, "no run yet"),
    with_run("a run that is not there", odd.scan(), f"{PREDICT} --run gone", "gone: no run there"),
    with_run("a checkpoint cut short", odd.together(odd.scan(), odd.cut("home/runs/tiny/run/checkpoints/best.pt", 0.5)), PREDICT, "best.pt"),
    with_run("a checkpoint that is a text", odd.together(odd.scan(), odd.text("home/runs/tiny/run/checkpoints/best.pt")), PREDICT, "best.pt"),
    with_run("no checkpoint that is whole", odd.together(*(odd.text(f"home/runs/tiny/run/checkpoints/step-0000000{n}.pt") for n in (2, 4))), "train --dataset tiny --run run", "whole"),
    with_run("a run without settings", odd.together(odd.scan(), odd.lost("home/runs/tiny/run/config.toml")), f"{PREDICT} --run tiny/run", "run"),
    with_run("settings that are no TOML", odd.text("home/runs/tiny/run/config.toml", "[model"), "evaluate", "config.toml"),
    with_run("a package that is none", odd.together(odd.scan(), odd.subfolder("model")), f"{PREDICT} --model model", "no package there"),
    with_run("a package whose description is damaged", odd.together(odd.scan(), odd.text("model/sdseg.json", "{")), f"{PREDICT} --model model", "no package of sdseg, or damaged"),
    with_run("a run with a layout of references", odd.nothing, "evaluate --run tiny/run --dataset btcv", "--dataset does not go with a run"),
    Row("nothing to export", odd.nothing, "weights export", 2, "Missing argument 'RUN'"),
    with_run("a run and a package", odd.scan(), f"{PREDICT} --run tiny/run --model model", "--run and --model"),
    with_run("a run whose set is gone", odd.lost("home/prepared/tiny/manifest.json"), "evaluate", "tiny"),
    with_run("a manifest cut short", odd.cut("home/prepared/tiny/manifest.json", 0.5), "evaluate", "manifest.json"),
    Row("one of two runs with settings nested 100,000 deep", odd.together(odd.text("home/runs/a/good/config.toml", 'preset = "tiny"\n'), odd.text("home/runs/a/bad/config.toml", f"seed = {odd.DEEP}")), "runs", 0, "damaged"),
    with_run("a package whose description is nested 100,000 deep", odd.together(odd.scan(), odd.text("model/sdseg.json", odd.DEEP)), f"{PREDICT} --model model", "no package of sdseg, or damaged"),
    with_run("a package that says a key twice", odd.together(odd.scan(), odd.text("model/sdseg.json", '{"format_version": 1, "format_version": 1}')), f"{PREDICT} --model model", "no package of sdseg, or damaged"),
    Row("one of the store's descriptions nested 100,000 deep", odd.text("home/weights/kl-f8.json", odd.DEEP), "weights list", 0, "kl-f8.json: damaged description of weights"),
    Row("weights of eight bits", odd.weights(torch.float8_e4m3fn), "weights add w.ckpt", 2, "is of float8_e4m3fn, not a plain tensor of weights"),
    Row("complex weights", odd.weights(torch.complex64), "weights add w.ckpt", 2, "is of complex64, not a plain tensor of weights"),
    Row("whole numbers for weights", odd.weights(torch.int32), "weights add w.ckpt", 2, "holds int32, not floating point"),
    Row("a safetensors header longer than its file", odd.content("w.safetensors", b"\xff" * 7 + b"\x00{}"), "weights add w.safetensors", 2, "damaged, or not a file of weights"),
    with_run("a manifest whose case climbs out", odd.swapped("home/prepared/tiny/manifest.json", '"id": "case_1"', '"id": "../../x"'), "evaluate", "is no plain file name"),
    with_run("a manifest whose arrays lie elsewhere", odd.swapped("home/prepared/tiny/manifest.json", '"folder": "cases/case_1"', '"folder": "../other"'), "evaluate", "does not stay below the set"),
    with_run("a manifest that has a case twice", odd.swapped("home/prepared/tiny/manifest.json", '"id": "case_1"', '"id": "case_2"'), "evaluate", "is there twice"),
    with_run("a manifest of words for numbers", odd.swapped("home/prepared/tiny/manifest.json", '"size": 64', '"size": "256"'), "train --dataset tiny --run new --steps 1", "no whole number"),
    with_run("a manifest nested 100,000 deep", odd.text("home/prepared/tiny/manifest.json", '{"a":' * 100_000), "evaluate", "nested too deeply"),
    with_run("a case's record that is damaged", odd.text("home/prepared/tiny/cases/case_1/case.json", "{}"), "train --dataset tiny --run new --steps 1", "case.json: incomplete or damaged"),
    with_run("an array whose header is damaged", odd.flip("home/prepared/tiny/cases/case_1/pixels.npy", 60), "train --dataset tiny --run new --steps 1", "pixels.npy"),
    Row("weights that are a text", odd.text("notes.ckpt"), "weights add notes.ckpt", 2, "notes.ckpt"),
    Row("weights nobody publishes", odd.nothing, "weights fetch vgg", 2, "vgg"),
]  # fmt: skip

SETTINGS = [
    Row("a set that is not prepared", odd.nothing, "train --dataset sts", 2, "sts"),
    with_run("an unknown preset", odd.nothing, "train --dataset tiny --preset big", 'no preset "big"'),
    with_run("an unknown setting", odd.nothing, "train --dataset tiny --set train.lr=1", "lr"),
    Row("an option that no other is like", odd.nothing, "train --zzz 1", 2, "No such option: --zzz"),
    with_run("a setting that no other is like", odd.nothing, "train --dataset tiny --set foo=1", 'unknown key "foo"'),
    with_run("a number of 5,000 digits", odd.text("c.toml", f"seed = {'9' * 5000}"), "train --dataset tiny --config c.toml", "c.toml: no valid TOML"),
    with_run("a number beyond 64 bits", odd.nothing, f"train --dataset tiny --set train.steps={'9' * 30}", "number of at most 64 bits"),
    with_run("a value nested 100,000 deep", odd.text("c.toml", f"seed = {odd.DEEP}"), "train --dataset tiny --config c.toml", "nested too deep"),
    Row("every setting, shown", odd.nothing, "train --show-config --preset sd", 0, "checkpoint_every = 5000"),
    Row("a GPU without a number", odd.nothing, "bench --device cuda:", 2, 'no device "cuda:"'),
    Row("a scan given twice", odd.scan(), "predict scan.nii.gz -i scan.nii.gz -o mask.nii.gz", 2, "are both given"),
    with_run("an augmentation there is not", odd.nothing, "train --dataset tiny --set train.augment=heavy", 'train.augment is "heavy"'),
    with_run("a contact sheet that is no PNG", odd.nothing, "train --dataset tiny --show-augmentation sheet.jpg", "sheet.jpg: is not the name of a PNG file."),
    with_run("a word for a number", odd.nothing, "train --dataset tiny --set train.batch_size=many", "batch_size"),
    with_run("settings that are not there", odd.nothing, "train --dataset tiny --config c.toml", "c.toml"),
    with_run("a file of settings that is no TOML", odd.text("c.toml", "[train"), "train --dataset tiny --config c.toml", "c.toml"),
    with_run("other settings for an old run", odd.nothing, "train --dataset tiny --run run --set train.batch_size=3", "batch_size"),
    with_run("a set that has lost its arrays", odd.lost("home/prepared/tiny/cases/case_1/pixels.npy"), "train --dataset tiny --run new --steps 1", "pixels.npy"),
]  # fmt: skip

SETS = [
    bad_set("a data set that is not there", odd.nothing, "does not exist"),
    bad_set("an empty folder", odd.subfolder("raw data"), "no cases in a layout"),
    bad_set("a file for a data set", odd.text("raw data"), "is a file, not a folder"),
    bad_set("an unknown layout", odd.raw(), "Unknown data set adapter 'btvc'", f"{PREPARE} --dataset btvc"),
    bad_set("another layout than the one named", odd.raw(), "no cases in the layout of sts", f"{PREPARE} --dataset sts"),
    bad_set("a layout that fits two adapters", odd.raw(odd.scan("raw data/img/img0001.nii.gz"), odd.scan("raw data/label/label0001.nii.gz")), "looks like btcv, folder"),
    bad_set("a scan without label", odd.raw(odd.lost("raw data/pt_3/label.nii.gz")), "case pt_3: no label map"),
    bad_set("two scans in one case", odd.raw(odd.scan("raw data/pt_3/ct.nii.gz")), "2 scans and 1 label maps"),
    bad_set("a label map of another shape", odd.raw(odd.label_of("pt_3", np.ones((20, 24, 4), np.uint8))), "has shape (20, 24, 4)"),
    bad_set("a label map that lies elsewhere", odd.raw(odd.label_of("pt_3", np.ones(SHAPE, np.uint8), MOVED)), "voxels apart"),
    bad_set("a label map of shares", odd.raw(odd.label_of("pt_3", odd.labels(0.5))), "not a label map"),
    bad_set("a label map with negative labels", odd.raw(odd.label_of("pt_3", odd.labels(-1))), "not a label map"),
    bad_set("labels beyond 65535", odd.raw(odd.label_of("pt_3", odd.labels(70000))), "not a label map"),
    bad_set("a label map cut short", odd.raw(odd.cut("raw data/pt_3/label.nii.gz", 0.5)), "case pt_3: "),
    bad_set("NaN in a scan", odd.raw(odd.image_of("pt_3", np.full(SHAPE, np.nan, np.float32))), "NaN or infinite"),
    bad_set("infinity in a scan", odd.raw(odd.image_of("pt_3", np.full(SHAPE, np.inf, np.float32))), "NaN or infinite"),
    bad_set("only empty label maps", odd.raw(odd.all_labels_empty), "has foreground"),
    bad_set("a target that does not occur", odd.raw(), "has foreground (labels: 1, 300)", f"{PREPARE} --target 7"),
    bad_set("the background as target", odd.raw(), "--target needs labels of 1 or more", f"{PREPARE} --target 0"),
    bad_set("a target in words", odd.raw(), "no list of whole numbers", f"{PREPARE} --target liver"),
    bad_set("a window upside down", odd.raw(), "empty or endless", f"{PREPARE} --window 250,-175"),
    bad_set("an unknown crop", odd.raw(), "--crop head", f"{PREPARE} --crop head"),
    bad_set("a class that no case has", odd.raw(), "no case has class liver (6)", f"{PREPARE} --classes liver=6,b=1"),
    bad_set("two classes of the same labels", odd.raw(), "a and b are the same: label 1", f"{PREPARE} --classes a=1,b=1"),
    bad_set("two classes of one name", odd.raw(), "two classes are called b", f"{PREPARE} --classes b=1,b=300"),
    bad_set("300 classes", odd.raw(), "300 classes: a run has at most 128", f"{PREPARE} --classes {','.join(f'c{n}={n}' for n in range(1, 301))}"),
    bad_set("a comma in the name of a class", odd.raw(), "'lobe' is no label and no known name", f"{PREPARE} --classes 'lobe, left=1,b=300'"),
    bad_set("a comma in the name of a class, checked", odd.raw(), "'lobe' is no label and no known name", "check 'raw data' --workers 1 --classes 'lobe, left=1,b=300'"),
    bad_set("a line break in the name of a class", odd.raw(), "has a control character", f"{PREPARE} --classes 'lobe\nleft=1,b=300'"),
    bad_set("a line break in the name of a class, checked", odd.raw(), "has a control character", "check 'raw data' --workers 1 --classes 'lobe\nleft=1,b=300'"),
    bad_set("two classes of the same labels, checked", odd.raw(), "a and b are the same: label 1", "check 'raw data' --workers 1 --classes a=1,b=1"),
    bad_set("300 classes, checked", odd.raw(), "300 classes: a run has at most 128", f"check 'raw data' --workers 1 --classes {','.join(f'c{n}={n}' for n in range(1, 301))}"),
    bad_set("mirror pairs of one foreground", odd.raw(), "--mirror-pairs has no effect on one foreground", f"{PREPARE} --classes any --mirror-pairs 1:300"),
    bad_set("names of classes of one foreground", odd.together(odd.raw(), odd.text("names.csv", "1,a\n")), "--class-names has no effect on one foreground", f"{PREPARE} --classes any --class-names names.csv"),
    bad_set("an equals sign in the name of a class", odd.raw(), "two equals signs", f"{PREPARE} --classes a=b=1"),
    bad_set("a class without labels", odd.raw(), "liver has no labels", f"{PREPARE} --classes liver="),
    bad_set("the background as a class", odd.raw(), "label 0 is the background", f"{PREPARE} --classes a=0,b=1"),
    bad_set("a negative label of a class", odd.raw(), "-3 is no label", f"{PREPARE} --classes a=-3,b=1"),
    bad_set("a class by a name that nothing has", odd.raw(), "'spleen' is no label and no known name", f"{PREPARE} --classes spleen,b=1"),
    bad_set("classes and a target", odd.raw(), "--target and --classes are both given", f"{PREPARE} --classes all --target 1"),
    bad_set("a label to ignore that is a class", odd.raw(), "--ignore 1 is also a label of a class", f"{PREPARE} --classes a=1,b=300 --ignore 1"),
    bad_set("a mirror pair of an unknown label", odd.raw(), "label 9 is in no class", f"{PREPARE} --mirror-pairs 1:9"),
    bad_set("a mirror pair of one label", odd.raw(), "'1' is no pair", f"{PREPARE} --mirror-pairs 1"),
    bad_set("names of classes in a file that is not there", odd.raw(), "names.csv", f"{PREPARE} --class-names names.csv"),
    bad_set("a control character in the name of a class", odd.together(odd.raw(), odd.text("names.csv", "1,a\ab\n")), "control character", f"{PREPARE} --class-names names.csv"),
    bad_set("a split file that names drawn classes that are none", odd.together(odd.raw(), odd.text("split.json", '{"train": ["pt_1", "pt_2"], "val": ["pt_3"], "labelled": {"pt_1": ["liver"]}}')), "'liver', which is no class", f"{PREPARE} --split-file split.json"),
    bad_set("a name that is a path", odd.raw(), "no name for a prepared set", f"{PREPARE} --name ../x"),
    bad_set("two cases", odd.raw(), "2 case(s) cannot be split", f"{PREPARE} --image-glob 'pt_[12]/image.nii.gz' --label-glob 'pt_[12]/label.nii.gz'"),
    bad_set("a pattern that matches nothing", odd.raw(), "no file matches", f"{PREPARE} --image-glob '*/ct.nii.gz' --label-glob '*/label.nii.gz'"),
    bad_set("a pattern that leaves the folder", odd.raw(), "does not stay inside", f"{PREPARE} --image-glob '../*.nii' --label-glob '*/label.nii.gz'"),
    bad_set("an nnU-Net set of two channels", odd.nnunet(channels=2), "several channels (CT, PET)", "prepare data --workers 1"),
    bad_set("a Decathlon task of two channels", odd.decathlon(modality={"0": "T2", "1": "ADC"}), "4D, with 2 channels", "prepare data --workers 1"),
    bad_set("a dataset.json cut short", odd.together(odd.decathlon(), odd.cut("data/dataset.json", 0.5)), "dataset.json", "prepare data --workers 1"),
    bad_set("a dataset.json without labels", odd.together(odd.nnunet(), odd.text("data/dataset.json", "{}")), "dataset.json", "prepare data --workers 1"),
    bad_set("a dataset.json that points elsewhere", odd.decathlon(training=[{"image": "../scan.nii.gz", "label": "../mask.nii.gz"}]), "leaves the data set's folder", "prepare data --workers 1"),
    bad_set("a dataset.json that lists a missing scan", odd.together(odd.decathlon(), odd.lost("data/imagesTr/la_002.nii.gz")), "la_002.nii.gz does not exist", "prepare data --workers 1"),
    bad_set("two masks of one case", odd.raw(odd.scan("raw data/pt_3/label.nii", odd.labels(1, np.uint8))), "several label maps: label.nii, label.nii.gz"),
    bad_set("a dataset.json in UTF-16 without its mark", odd.together(odd.nnunet(), odd.coded("data/dataset.json", "utf-16-le")), "UTF-16 without its mark", "prepare data --workers 1"),
    bad_set("a dataset.json nested 100,000 deep", odd.together(odd.nnunet(), odd.text("data/dataset.json", '{"a":' * 100_000)), "nested too deeply", "prepare data --workers 1"),
    bad_set("a dataset.json with a number of 5000 digits", odd.together(odd.nnunet(), odd.text("data/dataset.json", f'{{"numTraining": {"9" * 5000}}}')), "a number of 5000 digits", "prepare data --workers 1"),
    bad_set("a dataset.json with NaN", odd.nnunet(numTraining=float("nan")), "NaN is no number of JSON", "prepare data --workers 1"),
    bad_set("a dataset.json with half a label", odd.nnunet(labels={"a": 1.5}), "1.5 is no label", "prepare data --workers 1"),
    bad_set("a dataset.json that points to another drive", odd.decathlon(training=[{"image": r"C:\\scan.nii.gz", "label": "mask.nii.gz"}]), "leaves the data set's folder", "prepare data --workers 1"),
    bad_set("scans and masks in folders of other names", odd.pairs("CTs/p{}", "segs/p{}"), "it holds CTs/ and segs/ with equal names, 8 volumes", "prepare data --workers 1"),
    bad_set("nnU-Net's folders without dataset.json", odd.pairs("imagesTr/p{}_0000", "labelsTr/p{}"), "it holds imagesTr/ and labelsTr/ without dataset.json", "prepare data --workers 1"),
    bad_set("case folders with files of other names", odd.pairs("pt_{}/CT", "pt_{}/tumour"), "no scan has a label map", "prepare data --workers 1"),
    bad_set("DICOM as training data", odd.series(), "DICOM files", "prepare ct --workers 1"),
    bad_set("a split file that is not there", odd.raw(), "split.json does not exist", f"{PREPARE} --split-file split.json"),
    bad_set("a split file that is no JSON", odd.raw(odd.text("split.json", "train: pt_1")), "split.json", f"{PREPARE} --split-file split.json"),
    bad_set("a split file with another split", odd.raw(odd.split(train=["pt_1", "pt_2"], validation=["pt_3"])), "unknown split 'validation'", f"{PREPARE} --split-file split.json"),
    bad_set("a split file with an unknown case", odd.raw(odd.split(train=["pt_1", "pt_9"], val=["pt_3"])), "such as pt_9", f"{PREPARE} --split-file split.json"),
    bad_set("a case that trains and tests", odd.raw(odd.split(train=["pt_1", "pt_2"], test=["pt_2"])), "pt_2 is in train and in test", f"{PREPARE} --split-file split.json"),
    bad_set("a split file without training cases", odd.raw(odd.split(test=["pt_1"])), "too few training cases", f"{PREPARE} --split-file split.json"),
    Row("masks without references", odd.masks(pred=(3, 3, 2)), "evaluate --pred pred", 2, "--pred and --ref"),
    Row("a mask of another shape than its reference", odd.masks(pred=(3, 3, 2), ref=(3, 4, 2)), "evaluate --pred pred --ref ref", 2, "has shape (3, 4, 2)"),
    Row("a reference without mask", odd.together(odd.masks(pred=(3, 3, 2), ref=(3, 3, 2)), odd.scan("ref/b.nii.gz")), "evaluate --pred pred --ref ref", 2, "no mask for 1 of 2 cases: b"),
    Row("two masks of one reference, one named as nnU-Net's scan", odd.together(odd.masks(pred=(3, 3, 2), ref=(3, 3, 2)), odd.scan("pred/a_0000.nii.gz")), "evaluate --pred pred --ref ref", 2, "both masks of case a"),
    Row("scans beside label maps as references", odd.together(odd.scan("pred/a.nii.gz", np.ones((3, 3, 2), np.uint8)), odd.scan("ref/images/a.nii.gz"), odd.scan("ref/labels/a.nii.gz", np.ones((3, 3, 2), np.uint8))), "evaluate --pred pred --ref ref", 2, "scans in images/ beside label maps in labels/"),
    Row("case folders as references, one with two label maps", odd.together(odd.scan("pred/a.nii.gz", np.ones((3, 3, 2), np.uint8)), *(odd.scan(f"ref/{name}.nii.gz", np.ones((3, 3, 2), np.uint8)) for name in ("a/image", "a/label", "b/image", "b/label", "b/mask"))), "evaluate --pred pred --ref ref", 2, "not one label map beside its scan"),
    Row("a mask beyond a cut reference, on the model's planes", odd.cut_reference, "evaluate --pred pred --ref ref --resample --grid model", 2, "248 voxels"),
    Row("a mask that lies elsewhere than its reference", odd.together(odd.masks(pred=(3, 3, 2)), odd.scan("ref/a.nii.gz", np.ones((3, 3, 2), np.uint8), affine=np.diag([1.0, 1, 4, 1]))), "evaluate --pred pred --ref ref", 2, "voxels apart"),
    Row("labels of no class", odd.together(odd.scan("pred/a.nii.gz", np.full((3, 3, 2), 7, np.uint8)), odd.masks(ref=(3, 3, 2))), "evaluate --pred pred --ref ref --classes 1,2", 0, "labels in no class of --classes are background: 7"),
    bad_set("a scan that is a link to nowhere, in a set", odd.raw(odd.link("raw data/pt_3/image.nii.gz")), "pt_3/image.nii.gz: a link to /not/there"),
    bad_set("a case folder that is a link to nowhere", odd.raw(odd.link("raw data/pt_9")), "pt_9: a link to /not/there"),
    Row("a reference that is a link to nowhere", odd.together(odd.masks(pred=(3, 3, 2), ref=(3, 3, 2)), odd.scan("pred/b.nii.gz"), odd.link("ref/b.nii.gz")), "evaluate --pred pred --ref ref", 2, "b.nii.gz: a link to /not/there"),
    Row("a folder of references that is a link to nowhere", odd.together(odd.masks(pred=(3, 3, 2), ref=(3, 3, 2)), odd.link("ref/more")), "evaluate --pred pred --ref ref", 2, "more: a link to /not/there"),
    Row("probabilities with NaN as masks", odd.together(odd.scan("pred/a.nii.gz", np.full((3, 3, 2), np.nan, np.float32)), odd.masks(ref=(3, 3, 2))), "evaluate --pred pred --ref ref", 2, "NaN"),
    Row("probabilities as masks", odd.together(odd.scan("pred/a.nii.gz", np.full((3, 3, 2), 0.7, np.float32)), odd.masks(ref=(3, 3, 2))), "evaluate --pred pred --ref ref", 2, "not a label map"),
    Row("a folder compared with itself", odd.masks(pred=(3, 3, 2), ref=(3, 3, 2)), "compare pred pred --ref ref", 2, "both A and B"),
    Row("folders of masks compared without references", odd.masks(pred=(3, 3, 2), ref=(3, 3, 2)), "compare pred ref", 2, "but no run"),
    Row("one run compared with nothing", odd.nothing, "compare tiny/run", 2, "Missing argument"),
    with_run("a run compared with itself", odd.nothing, "compare tiny/run tiny/run", "both A and B"),
    with_run("one run of a model instead of several", odd.nothing, "stability --runs 1", "nothing to compare"),
    with_run("a list of steps that is none", odd.nothing, "stability --steps 1,x", "no list of whole numbers"),
    with_run("a tolerance below nothing", odd.nothing, "evaluate --tolerance -1", "--tolerance is -1"),
]  # fmt: skip

FINE = [
    with_run("a run that learned next to nothing, taken by default", odd.together(odd.scan(), odd.text("home/runs/tiny/run/status.json", '{"state": "finished", "best": {"step": 4, "val_dice": 0.1}}')), PREDICT, "run-weak, tiny/run: validation Dice 0.100, below 0.3", 0),
    with_run("scans named as nnU-Net names them", odd.scan("in/a_0000.nii.gz"), "predict in -o out", "masks are called without _0000", 0),
    with_run("a folder of masks with a dot, ended by a slash", odd.scan("in/a.nii.gz"), "predict in -o v1.2/", "wrote v1.2/ledger.csv", 0),
    with_run("a name that is no UTF-8 among many scans", odd.together(odd.scan(), odd.latin_1), "predict in -o out --json", "ledger", 0),
    with_run("a batch larger than memory, for a scan of two slices", odd.scan(), f"{PREDICT} --batch-size 100000000", "wrote mask.nii.gz", 0),
    with_run("one slice", odd.scan(array=odd.hu((12, 10, 1))), PREDICT, "wrote mask.nii.gz", 0),
    with_run("a plane as NIfTI keeps one", odd.scan(array=odd.hu((12, 10))), PREDICT, "wrote mask.nii.gz", 0),
    with_run("a series of one volume", odd.scan(array=odd.hu((12, 10, 1, 1))), PREDICT, "wrote mask.nii.gz", 0),
    with_run("a single voxel", odd.scan(array=odd.hu((1, 1, 1))), PREDICT, "wrote mask.nii.gz", 0),
    with_run("a scan 40 times as wide as deep", odd.scan(array=odd.hu((200, 5, 1))), PREDICT, "wrote mask.nii.gz", 0),
    with_run("a constant scan", odd.scan(array=np.zeros((6, 6, 1), np.int16)), PREDICT, "wrote mask.nii.gz", 0),
    with_run("big-endian voxels", odd.big_endian, "predict scan.nii -o mask.nii.gz", "wrote mask.nii.gz", 0),
    with_run("NIfTI-2", odd.scan(kind=nib.Nifti2Image), PREDICT, "wrote mask.nii.gz", 0),
    with_run("the scan after -i", odd.scan(), "predict -i scan.nii.gz -o mask.nii.gz", "wrote mask.nii.gz", 0),
    with_run("an sform and a qform that disagree", odd.header(qform_code=1, qoffset_x=30), "predict scan.nii -o mask.nii.gz", "place-twofold", 0),
    with_run("neither sform nor qform in use", odd.header(sform_code=0), "predict scan.nii -o mask.nii.gz", "place-unsaid", 0),
    with_run("a quaternion a hair over unit length", odd.header(sform_code=0, qform_code=1, quatern_b=0.70711, quatern_c=0.70711), "predict scan.nii -o mask.nii.gz", "wrote mask.nii.gz", 0),
    with_run("a header that claims one slice of two", odd.header(dim=[3, 12, 10, 1, 1, 1, 1, 1]), "predict scan.nii -o mask.nii.gz", "bytes-unread", 0),
    with_run("a unit that means nothing", odd.header(xyzt_units=5), "predict scan.nii -o mask.nii.gz", "unit-unknown", 0),
    with_run("millimetres said to be metres", odd.header(xyzt_units=1), "predict scan.nii -o mask.nii.gz", "spacing-implausible", 0),
    Row("a header with three faults nibabel would mend aloud", odd.header(pixdim=[7, -1, 0, 2, 0, 0, 0, 0], sform_code=44), "check scan.nii", 0, "place-unsaid"),
    with_run("a packed scan called .nii", odd.together(odd.scan(), odd.moved("scan.nii.gz", "scan.nii")), "predict scan.nii -o mask.nii.gz", "wrote mask.nii.gz", 0),
    with_run("an unpacked scan called .nii.gz", odd.together(odd.scan("scan.nii"), odd.moved("scan.nii", "scan.nii.gz")), PREDICT, "wrote mask.nii.gz", 0),
    with_run("zeros after a .nii.gz's end", odd.together(odd.scan(), odd.appended("scan.nii.gz", bytes(512))), PREDICT, "wrote mask.nii.gz", 0),
    Row("a reference cut to what it shows", odd.cut_reference, "evaluate --pred pred --ref ref --resample", 0, "predicted voxels beyond the reference's grid, counted as false: a (248)"),
    Row("a mask named as nnU-Net names its scan", odd.together(odd.masks(pred=(3, 3, 2), ref=(3, 3, 2)), odd.moved("pred/a.nii.gz", "pred/a_0000.nii.gz")), "evaluate --pred pred --ref ref", 0, "masks named as nnU-Net names a scan"),
    with_run("a suffix in capitals", odd.scan("SCAN.NII.GZ"), "predict SCAN.NII.GZ -o MASK.NII.GZ", "wrote MASK.NII.GZ", 0),
    with_run("spaces and umlauts in every name, a new folder", odd.scan("größe 1/mein scan.nii.gz"), "predict 'größe 1/mein scan.nii.gz' -o 'neu 2/maske ß.nii.gz'", "wrote neu 2/maske ß.nii.gz", 0),
    with_run("NRRD in, NIfTI out", odd.itk("scan.nrrd"), "predict scan.nrrd -o mask.nii.gz", "wrote mask.nii.gz", 0),
    with_run("NIfTI in, MetaImage out", odd.scan(), "predict scan.nii.gz -o mask.mha", "wrote mask.mha", 0),
    with_run("a DICOM series, contours beside it", odd.together(odd.series(), odd.contours), "predict ct -o mask.nii.gz", "wrote mask.nii.gz", 0),
    with_run("a zip of a DICOM series", odd.zipped_series, "predict scan.zip -o mask.nii.gz", "wrote mask.nii.gz", 0),
    with_run("half a series in a linked folder, with a way back", odd.half_linked, "predict ct -o mask.nii.gz", "wrote mask.nii.gz", 0),
    with_run("a zip that macOS packed", odd.mac_zip, "predict scan.zip -o mask.nii.gz", "wrote mask.nii.gz", 0),
    Row("references in linked folders, and a loop", odd.linked_masks, "evaluate --pred pred --ref ref", 0, "no file was written"),
    with_run("one of two series, chosen", odd.two_series, "predict ct --series 1 -o mask.nii.gz", "wrote mask.nii.gz", 0),
    with_run("axes a degree off right angles", odd.sheared, PREDICT, "wrote mask.nii.gz", 0),
    with_run("MR for a run of CT", odd.scan(array=np.abs(odd.hu())), PREDICT, "this does not look like CT", 0),
    with_run("a mask given as scan", odd.scan(array=np.eye(12, 10, dtype=np.int16)[:, :, None]), PREDICT, "mask", 0),
    bad_set("label maps of whole floats, labels beyond 255", odd.raw(odd.label_of("pt_3", odd.labels(300))), "labels 1, 300", code=0),
    bad_set("a faulty case with --skip-bad", odd.raw(odd.cut("raw data/pt_3/image.nii.gz", 0.5)), "skipped pt_3: ", f"{PREPARE} --skip-bad", 0),
    bad_set("macOS's ._ twins beside the scans", odd.raw(odd.text("raw data/pt_1/._image.nii.gz")), "labels 1, 300", code=0),
    bad_set("names of classes in another script", odd.raw(), "肝臓 (1)", f"{PREPARE} --classes 肝臓=1,печень=300", 0),
    bad_set("names of classes in another script, checked", odd.raw(), "in 5 cases", "check 'raw data' --workers 1 --classes 肝臓=1,печень=300", 0),
    bad_set("labels in no class", odd.raw(), "labels in no class become background (share of labelled voxels): label_300 (300) 33.3%", f"{PREPARE} --target 1", 0),
    bad_set("a structure on one side alone", odd.raw(), "left-right mirrors are off", f"{PREPARE} --classes kidney_left=1,b=300", 0),
    bad_set("regions that share a label", odd.raw(), "regions that overlap", f"{PREPARE} --classes whole=1+300,core=300", 0),
    bad_set("an nnU-Net set with an ignore label", odd.nnunet(labels={"background": 0, "crown": 2, "ignore": 1}), "labels 1, 2: 2 count as foreground", "prepare data --workers 1", 0),
    bad_set("a dataset.json that begins with a mark (BOM)", odd.together(odd.nnunet(), odd.coded("data/dataset.json", "utf-8-sig")), "labels 1, 2", "prepare data --workers 1", 0),
    bad_set("a dataset.json in UTF-16", odd.together(odd.nnunet(), odd.coded("data/dataset.json", "utf-16")), "labels 1, 2", "prepare data --workers 1", 0),
    bad_set("a split file that begins with a mark (BOM)", odd.raw(odd.split(train=["pt_1", "pt_2"], val=["pt_3"]), odd.coded("split.json", "utf-8-sig")), "file split.json", f"{PREPARE} --split-file split.json", 0),
    bad_set("backslashes in dataset.json", odd.decathlon(training=[{"image": rf".\imagesTr\la_00{n}.nii.gz", "label": rf".\labelsTr\la_00{n}.nii.gz"} for n in range(1, 5)]), "labels 1, 2", "prepare data --workers 1", 0),
    bad_set("pictures of three channels in one file each", odd.colours, "photograph", "prepare data --workers 1", 0),
    bad_set("an nnU-Net case of another ending", odd.together(odd.nnunet(numTraining=5), odd.scan("data/imagesTr/case_005_0000.nii", odd.hu((12, 10, 6))), odd.scan("data/labelsTr/case_005.nii", np.eye(12, 10, dtype=np.uint8)[:, :, None].repeat(6, 2))), "file-ending", "prepare data --workers 1", 0),
    bad_set("another number of cases than dataset.json says", odd.nnunet(numTraining=6), "cases-count", "prepare data --workers 1", 0),
    bad_set("a scan that Decathlon's list leaves out", odd.decathlon(training=[{"image": f"imagesTr/la_00{n}.nii.gz", "label": f"labelsTr/la_00{n}.nii.gz"} for n in range(1, 4)]), "scan-not-used", "prepare data --workers 1", 0),
    bad_set("the first of two nnU-Net channels", odd.nnunet(channels=2), "labels 1, 2", "prepare data --workers 1 --image-glob 'imagesTr/*_0000.nii.gz' --label-glob 'labelsTr/*.nii.gz'", 0),
    Row("masks whose palette begins with their own colour", odd.palette(255, 0, 0, 0, 0, 0), MASKS, 0, "1.000"),
    Row("masks whose palette begins with black", odd.palette(0, 0, 0, 128, 0, 0, inside=1, outside=0), MASKS, 0, "1.000"),
    Row("masks of white and black, in this order", odd.palette(255, 255, 255, 0, 0, 0), MASKS, 0, "1.000"),
    Row("TIFF masks in which 0 is white", odd.white_is_zero(0), MASKS, 0, "1.000"),
]  # fmt: skip

DICOM = [
    bad_scan("a series without its third slice", odd.series(leave_out=(2,)), "missing", "ct"),
    bad_scan("two image series in one folder", odd.two_series, "holds 2 image series", "ct"),
    bad_scan("a series number that is none", odd.two_series, "is none of its image series", "ct --series 7"),
    bad_scan("--series for a NIfTI scan", odd.scan(), "--series has no meaning", "scan.nii.gz --series 1"),
    bad_scan("contours without a scan", odd.contours, "holds no DICOM images", "ct"),
    bad_scan("slices of two sizes", odd.series(change=odd.smaller), "has another size than", "ct"),
    bad_scan("two slices at one place", odd.series(change=odd.same_place), "ct", "ct"),
    bad_scan("a tilted gantry", odd.series(change=odd.tilted), "ct", "ct"),
    bad_scan("a zip whose entry climbs out", odd.climbing_zip, "scan.zip", "scan.zip"),
    bad_scan("a zip without DICOM", odd.zip_of_text, "scan.zip", "scan.zip"),
    bad_scan("a zip cut short", odd.together(odd.zipped_series, odd.cut("scan.zip", 0.5)), "scan.zip", "scan.zip"),
    bad_scan("one slice without slope and intercept", odd.series(change=odd.without_slope), "no RescaleSlope, which 5 of 6 slices have", "ct"),
    bad_scan("inverted grey values", odd.series(change=odd.inverted), "are inverted (MONOCHROME1)", "ct"),
    bad_scan("an end slice that is empty", odd.together(odd.series(leave_out=(5,)), odd.content("ct/IM9", b"")), "it is empty", "ct"),
    bad_scan("an end slice of 100 bytes", odd.together(odd.series(leave_out=(5,)), odd.content("ct/IM9", bytes(100))), "it ends after 100 bytes", "ct"),
    bad_scan("an end slice that is a web page", odd.together(odd.series(leave_out=(5,)), odd.text("ct/IM9", "<html>" * 99)), "not a DICOM file, whatever its name says", "ct"),
    bad_scan("an end slice that is a link to nowhere", odd.together(odd.series(leave_out=(5,)), odd.link("ct/IM9")), "IM9: a link to /not/there, which is not there", "ct"),
    bad_scan("a folder of slices that is a link to nowhere", odd.together(odd.series(leave_out=(5,)), odd.link("ct/more")), "more: a link to /not/there", "ct"),
    bad_scan("a zip entry without a name", odd.zip_entry("x", b"x", b"\0"), "entry 1 has no name", "scan.zip"),
    bad_scan("a zip entry whose name is no UTF-8", odd.zip_entry("ä", "ä".encode(), b"\xff\xfe"), "an entry's name is not UTF-8", "scan.zip"),
    with_run("a DICOM SEG of a series without PatientID", odd.series(change=odd.nameless), "predict ct -o mask.dcm", "have no PatientID"),
    Row("a DICOM SEG of a NIfTI scan", odd.scan(), "predict scan.nii.gz -o mask.dcm", 2, "mask.dcm"),
]  # fmt: skip

PICTURES = [
    with_run("a JPEG cut short", odd.together(odd.picture("p.jpg"), odd.cut("p.jpg", 0.5)), "predict p.jpg -o m.png", "p.jpg"),
    Row("a text file called .png", odd.text("p.png"), "predict p.png -o m.png", 2, "p.png"),
    Row("a TIFF of two pages", odd.two_pages, "predict p.tif -o m.png", 2, "p.tif"),
    Row("a NIfTI mask of a picture", odd.picture("p.png"), "predict p.png -o mask.nii.gz", 2, "for a picture"),
    with_run("a picture for a run of scans", odd.picture("p.png"), "predict p.png -o m.png", "p.png"),
    with_run("a JPEG that claims more pixels than it can hold", odd.claiming_jpeg, "predict p.jpg -o m.png", "claims 9000 x 9000 pixels"),
    Row("masks whose palette begins with a background of white", odd.palette(255, 255, 255, 128, 0, 0, inside=1, outside=0), MASKS, 2, "says no labels"),
    Row("masks whose palette is black", odd.palette(*[0] * 6), MASKS, 2, "all in black"),
    Row("TIFF masks of classes in which 0 is white", odd.white_is_zero(254), MASKS, 2, "MinIsWhite"),
    Row("masks in their transparency", odd.transparent_masks, MASKS, 2, "transparency alone"),
    with_run("millilitres of a picture", odd.picture("p.png"), "predict p.png -o m.png --min-size 1", "a picture knows none"),
]  # fmt: skip

ROWS = {
    "Scans": SCANS,
    "DICOM series": DICOM,
    "Pictures": PICTURES,
    "Outputs and options of predict": OUTPUTS,
    "Runs and weights": RUNS,
    "Settings": SETTINGS,
    "Data sets, splits and masks": SETS,
    "Odd, but fine": FINE,
}
"""Heading -> rows, in the order of the page."""
