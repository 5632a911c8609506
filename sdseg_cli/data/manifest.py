"""The manifest of a prepared data set: what was prepared, how, and who tests. Standard library."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from sdseg_cli.core.config import NO_FOLD, RunConfig
from sdseg_cli.core.errors import ConfigError, DataError, RunError
from sdseg_cli.core.filenames import natural_key, safe_id
from sdseg_cli.core.json_files import read_object
from sdseg_cli.data.spec import SPLITS, ClassRule
from sdseg_cli.data.split import split_sha256

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
LONGEST_NAME = 255
"""Bytes of a file name that every file system takes."""


@dataclass(frozen=True)
class PreparedCase:
    """One case of a manifest.

    Attributes:
        id: Case id.
        split: "train", "val" or "test".
        image: Absolute path of the scan.
        label: Absolute path of its label map.
        slices: Number of axial slices S.
        folder: Where the arrays lie, relative to the manifest.
        foreground_slices: Slices with at least one foreground pixel.
        spacing_mm: Distance between rows, columns and slices of the scan in mm; None for pictures.
        sha256: Of the prepared arrays.
        labelled: Names of the classes that were drawn in it, where some were not: then nothing is
            known of the others. None = all were.
        fold: The fold in which it validates, from 0; None of test cases, and in sets without folds.
    """

    id: str
    split: str
    image: Path
    label: Path
    slices: int
    folder: str
    foreground_slices: int
    spacing_mm: tuple[float, float, float] | None
    sha256: str
    labelled: tuple[str, ...] | None = None
    fold: int | None = None


@dataclass(frozen=True)
class Manifest:
    """A prepared data set.

    Attributes:
        root: Folder of the manifest (not part of the file).
        name: Name of the prepared set.
        adapter: Adapter that found the cases.
        modality: "CT", "MR/other", "photograph", ...
        source: Absolute path of the data set.
        target: Labels that count as foreground; None = every label but 0.
        labels: Labels that occur, ascending, without 0.
        normalisation: As `imaging.intensity.Normalisation.to_dict`.
        cleaning: What was removed from the label maps, as fields of `imaging.postprocess.Cleaning`;
            a reference read from its file has to lose it too.
        crop: "none" or "body".
        size: Side of the squares in pixels.
        split: Seed, rule and sha256 of the split.
        entries: Every case, sorted naturally by id.
        mask_levels: (lowest grey, label) of pictures' masks; None where masks hold labels.
        rule: Several classes, or pixels to ignore; None = one class, the target.
        fold: The fold whose cases validate here, see `of_fold` (not part of the file).
    """

    root: Path
    name: str
    adapter: str
    modality: str
    source: Path
    target: tuple[int, ...] | None
    labels: tuple[int, ...]
    normalisation: dict[str, Any]
    crop: str
    size: int
    split: dict[str, Any]
    entries: tuple[PreparedCase, ...]
    cleaning: dict[str, Any] = field(default_factory=dict)
    mask_levels: tuple[tuple[int, int], ...] | None = None
    rule: ClassRule | None = None
    fold: int = NO_FOLD

    @property
    def path(self) -> Path:
        """The manifest file."""
        return self.root / FILE_NAME

    def cases(self, split: str | None = None) -> tuple[PreparedCase, ...]:
        """Cases of one split, or all of them, sorted naturally by id."""
        return tuple(case for case in self.entries if split in (None, case.split))

    @property
    def folds(self) -> int:
        """Number of folds; 0 where the set has none."""
        return 1 + max((case.fold for case in self.entries if case.fold is not None), default=-1)

    def folds_listed(self) -> dict[str, int]:
        """Case id -> fold; empty where the set has none."""
        return {case.id: case.fold for case in self.entries if case.fold is not None}

    def of_fold(self, fold: int) -> Manifest:
        """The same set with one fold validating, all others training; -1: the set's own split.

        Raises:
            ConfigError: There is no such fold.
        """
        if fold == NO_FOLD:
            return self
        if not self.folds:
            raise ConfigError(
                f"{self.name} has no folds.",
                "Prepare it again with the same command and --folds 5; its slices are kept.",
            )
        if not 0 <= fold < self.folds:
            raise ConfigError(
                f"fold {fold}: {self.name} has the folds 0 to {self.folds - 1}.",
                "Give one of them, or all.",
            )
        roles = {case.fold: "train" for case in self.entries} | {fold: "val", None: "test"}
        entries = tuple(replace(case, split=roles[case.fold]) for case in self.entries)
        return replace(
            self,
            entries=entries,
            split={
                "seed": self.split["seed"],
                "rule": f"fold {fold} of {self.folds}: {self.split['rule']}",
                "sha256": split_sha256({case.id: case.split for case in entries}),
            },
            fold=fold,
        )

    def pixels_file(self, case: PreparedCase) -> Path:
        """(S, size, size), of pictures (1, 3, size, size), float16 in [-1, 1]."""
        return self.root / case.folder / "pixels.npy"

    def labels_file(self, case: PreparedCase) -> Path:
        """(S, size, size) uint8 or uint16: the original labels."""
        return self.root / case.folder / "labels.npy"

    def class_slices(self, case: PreparedCase) -> list[list[int]]:
        """Per class, the numbers of the slices that hold it, ascending, without opening the arrays.

        Raises:
            DataError: The case's record is missing or damaged.
        """
        file = self.root / case.folder / "case.json"
        hint = "Run the same `sdseg prepare` command again; it redoes what is damaged."
        record = read_object(file, hint)
        try:
            found = {
                str(_whole(int(label), 1)): [_whole(k, 0) for k in _listed(slices)]
                for label, slices in _mapping(record["label_slices"]).items()
            }
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file}: incomplete or damaged ({error!r:.200}).", hint) from error
        return [rule.slices(found) for rule in self.classes.each()]

    def foreground_slices(self, case: PreparedCase) -> list[int]:
        """Numbers of the slices that hold any class, ascending, as `class_slices` reads them."""
        return sorted(set().union(*self.class_slices(case)))

    @property
    def classes(self) -> ClassRule:
        """The names of the classes."""
        return ClassRule.of_target(self.target) if self.rule is None else self.rule

    def is_foreground(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """The pixels of any class, in the shape of `labels`."""
        return self.classes.foreground(labels)

    def data_sha256(self) -> str:
        """sha256 over ids, splits and arrays: equal = the same slices in the same roles."""
        cases = [
            (case.id, case.split, case.sha256)
            if case.labelled is None
            else (case.id, case.split, case.sha256, case.labelled)
            for case in self.entries
        ]
        return hashlib.sha256(json.dumps(cases).encode()).hexdigest()

    def inference_settings(self) -> dict[str, Any]:
        """The settings that prediction needs, and that a resumed run must find unchanged."""
        # Only pictures say so: runs of volumes keep the settings they were trained with.
        kind = {"modality": self.modality} if self.modality == "photograph" else {}
        return {
            **kind,
            "dataset": self.name,
            "normalisation": self.normalisation,
            "crop": self.crop,
            "size": self.size,
            "target": None if self.target is None else list(self.target),
            "split_sha256": self.split["sha256"],
            "data_sha256": self.data_sha256(),
            **({} if self.rule is None else self.rule.to_settings()),
        }

    def to_text(self) -> str:
        """The file's content."""
        settings = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("root", "entries", "rule", "fold")
        }
        if self.rule is not None:
            settings |= self.rule.to_settings()
        cases = [asdict(case) for case in self.entries]
        for case in cases:
            for name in ("labelled", "fold"):
                if case[name] is None:
                    del case[name]
        content = {"format_version": FORMAT_VERSION, **settings, "cases": cases}
        return json.dumps(content, indent=1, default=str) + "\n"

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest.

        Args:
            path: The file, or its folder.

        Raises:
            DataError: Missing, damaged, or of another version.
        """
        file = path / FILE_NAME if path.is_dir() else path
        hint = "Prepare the data set again with `sdseg prepare`."
        content = read_object(file, hint)
        if content.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{file}: format version {content.get('format_version')}, not {FORMAT_VERSION}.",
                hint,
            )
        try:
            return cls._from_content(file.absolute().parent, content)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file}: incomplete or damaged ({error!r:.200}).", hint) from error

    @classmethod
    def _from_content(cls, root: Path, content: dict[str, Any]) -> Manifest:
        """Every value is checked: ids become folders, paths are opened, numbers counted with."""
        target, levels = content["target"], content.get("mask_levels")
        entries = [_entry(case) for case in _listed(content["cases"])]
        _require_distinct([case.id for case in entries])
        name, split = _text(content["name"]), _mapping(content["split"])
        if name != safe_id(name) or not name:
            raise ValueError(f"name {name!r:.60} is no plain file name")
        for key in ("rule", "sha256"):
            _text(split[key])
        _whole(split["seed"], -(2**63), 2**63)
        if target == []:
            raise ValueError("the target names no label")
        rule = ClassRule.of_settings(content) if "classes" in content else None
        known = () if rule is None else rule.names
        for case in entries:
            for one in case.labelled or ():
                _one_of(one, known)
        _require_folds(entries)
        return cls(
            root=root,
            name=name,
            adapter=_text(content["adapter"]),
            modality=_text(content["modality"]),
            source=Path(_text(content["source"])),
            target=None if target is None else tuple(_whole(one, 1) for one in _listed(target)),
            labels=tuple(_whole(one, 1) for one in _listed(content["labels"])),
            normalisation=_normalisation(content["normalisation"]),
            crop=_one_of(content["crop"], ("none", "body")),
            size=_whole(content["size"], 8, 8192),
            split=split,
            cleaning=_cleaning(content.get("cleaning", {})),
            entries=tuple(sorted(entries, key=lambda case: natural_key(case.id))),
            # Absent in sets prepared before pictures were read.
            mask_levels=None if levels is None else tuple(map(_level, _listed(levels))),
            rule=rule,
        )

    @classmethod
    def find(cls, workspace: Path, dataset: str) -> Manifest:
        """The manifest of a prepared name, or of a path to a prepared folder.

        Raises:
            ConfigError: Nothing of that name is prepared; the hint lists what is.
            DataError: The manifest is damaged.
        """
        for folder in (workspace / "prepared" / dataset, Path(dataset)):
            if (folder / FILE_NAME).is_file():
                return cls.load(folder)
        if Path(dataset).name == FILE_NAME:
            return cls.load(Path(dataset))
        known = prepared_names(workspace)
        hint = f"Prepared here: {', '.join(known)}." if known else "Run `sdseg prepare SRC` first."
        if dataset and Path(dataset).is_dir():
            hint = f"That is a folder of scans: prepare it first: sdseg prepare {quote(dataset)}"
        raise ConfigError(
            f"No data set named {dataset!r} is prepared in {workspace / 'prepared'}.", hint
        )


def set_of(workspace: Path, config: RunConfig) -> Manifest:
    """The prepared set of a run, in the roles its cases had. For errors see `Manifest.find`."""
    return Manifest.find(workspace, config.dataset).of_fold(config.fold)


def lock_of(root: Path) -> Path:
    """The lock that a `prepare` of the set at `<workspace>/prepared/<name>` holds."""
    return root.with_name(f".{root.name}.lock")


@dataclass(frozen=True)
class Staging:
    """A prepared set is built beside its place and moved there whole."""

    final: Path
    """`<workspace>/prepared/<name>`."""

    @property
    def building(self) -> Path:
        """The folder in which it is built; a killed call leaves its finished cases here."""
        return self.final.with_name(f".{self.final.name}.part")

    def is_current(self, manifest: str) -> bool:
        """True if the existing set already has this manifest."""
        file = self.final / FILE_NAME
        return file.is_file() and file.read_bytes() == manifest.encode()

    def publish(self, manifest: str, built: Collection[str], kept: Collection[str]) -> None:
        """Complete the new set and put it in place of the old one.

        Args:
            manifest: Content of the manifest, written last.
            built: Cases that were built.
            kept: Cases taken over from the set in place, without a second copy.

        Raises:
            RunError: The disk refused.
        """
        cases = self.building / "cases"
        replaced = self.final.with_name(f".{self.final.name}.old")
        try:
            cases.mkdir(parents=True, exist_ok=True)
            for folder in list(cases.iterdir()):
                if folder.name not in built:
                    shutil.rmtree(folder)
            for id in kept:
                shutil.copytree(self.final / "cases" / id, cases / id, copy_function=link_or_copy)
            (self.building / FILE_NAME).write_text(manifest, encoding="utf-8")
            shutil.rmtree(replaced, ignore_errors=True)
            if self.final.exists():
                self.final.rename(replaced)
            self.building.rename(self.final)
            shutil.rmtree(replaced, ignore_errors=True)
        except OSError as error:
            raise RunError(
                f"{self.final}: cannot be written ({error.strerror or error}).",
                "Check the folder's permissions and the space left on the disk.",
            ) from error

    def discard(self) -> None:
        """Remove what was built, and the folders above if they are empty."""
        shutil.rmtree(self.building, ignore_errors=True)
        parent = self.final.parent
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def link_or_copy(source: str, target: str) -> str:
    """A second name of a file that never changes in place; a copy where there are no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def prepared_names(workspace: Path) -> list[str]:
    """Names of the prepared sets of a workspace, sorted."""
    found = (workspace / "prepared").glob(f"*/{FILE_NAME}")
    return sorted(path.parent.name for path in found if not path.parent.name.startswith("."))


def checked_name(name: str) -> str:
    """The name of a prepared set, unchanged.

    Raises:
        ConfigError: It is not one plain file name.
    """
    if not name or name != safe_id(name):
        raise ConfigError(
            f"{name!r} is no name for a prepared set.",
            f"Use letters, digits, . _ -, for example --name {safe_id(name) or 'mydata'}.",
        )
    return name


def checked_target(target: tuple[int, ...]) -> tuple[int, ...]:
    """Target labels, ascending, each once.

    Raises:
        ConfigError: There is none, or one is no label.
    """
    if not target or min(target) < 1:
        raise ConfigError(
            "--target needs labels of 1 or more.", "For example --target 1,2,5; 0 is background."
        )
    return tuple(sorted(set(target)))


def _entry(case: Any) -> PreparedCase:
    """A case; its id and folder stay below the set and below a run."""
    case = _mapping(case)
    id, folder, slices = _text(case["id"]), _text(case["folder"]), _whole(case["slices"], 1)
    if not id or id != safe_id(id) or len(id.encode()) > LONGEST_NAME:
        raise ValueError(f"case id {id!r:.60} is no plain file name")
    parts = folder.split("/")
    if any(part != safe_id(part) or not part for part in parts):
        raise ValueError(f"folder {folder!r:.60} of case {id} does not stay below the set")
    spacing, drawn = case["spacing_mm"], case.get("labelled")
    if spacing is not None:
        lengths = [_number(one) for one in _listed(spacing)]
        if len(lengths) != 3 or min(lengths) <= 0:
            raise ValueError(f"spacing {spacing!r:.60} of case {id}")
        spacing = (lengths[0], lengths[1], lengths[2])
    return PreparedCase(
        id=id,
        split=_one_of(case["split"], SPLITS),
        image=Path(_text(case["image"])),
        label=Path(_text(case["label"])),
        slices=slices,
        folder=folder,
        foreground_slices=_whole(case["foreground_slices"], 0, slices),
        spacing_mm=spacing,
        sha256=_text(case["sha256"]),
        labelled=None if drawn is None else tuple(map(_text, _listed(drawn))),
        fold=None if case.get("fold") is None else _whole(case["fold"], 0),
    )


def _require_folds(entries: Sequence[PreparedCase]) -> None:
    """Either no case has a fold, or all but the test cases have, and no fold is empty."""
    folds = {case.fold for case in entries} - {None}
    if not folds:
        return
    if folds != set(range(len(folds))) or len(folds) < 2:
        raise ValueError(f"folds {sorted(map(str, folds))}")
    for case in entries:
        if (case.fold is None) != (case.split == "test"):
            raise ValueError(f"case {case.id} of {case.split} has fold {case.fold}")


def _require_distinct(ids: Sequence[str]) -> None:
    """Case-insensitive file systems hold one folder for "A" and "a"."""
    seen: set[str] = set()
    for id in ids:
        if id.lower() in seen:
            raise ValueError(f"case {id} is there twice")
        seen.add(id.lower())
    if not ids:
        raise ValueError("no case")


def _normalisation(value: Any) -> dict[str, Any]:
    settings = _mapping(value)
    kind = _one_of(settings["kind"], ("window", "window-range", "percentile"))
    low, high = _number(settings["low"]), _number(settings["high"])
    if low >= high or (kind == "percentile" and not 0 <= low < high <= 100):
        raise ValueError(f"normalisation {low:g}..{high:g} is empty")
    return {"kind": kind, "low": settings["low"], "high": settings["high"]}


def _cleaning(value: Any) -> dict[str, Any]:
    cleaning = _mapping(value)
    for key, setting in cleaning.items():
        _one_of(key, ("smallest_voxels", "inside_field"))
        if not (isinstance(setting, bool) if key == "inside_field" else _whole(setting, 0) >= 0):
            raise TypeError(f"{key} is {setting!r:.40}")
    return cleaning


def _level(value: Any) -> tuple[int, int]:
    grey, label = _listed(value)
    return _whole(grey, 0, 255), _whole(label, 0, 255)


def _text(value: Any) -> str:
    """A text that can be part of a path, or a path."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    if "\0" in value or any("\ud800" <= character <= "\udbff" for character in value):
        raise ValueError(f"{value!r:.40} is no text")
    return value


def _one_of(value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{value!r:.40} is none of {', '.join(known)}")
    return str(value)


def _whole(value: Any, low: int, high: int = 2**31) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{value!r:.40} is no whole number within {low}..{high}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.40} is no number")
    return float(value)


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.40} is no list")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r:.40} is no object")
    return dict(value)


def open_array(path: Path) -> NDArray[np.generic]:
    """A prepared .npy file, memory-mapped: only its header is read; a pickle in it is refused.

    Raises:
        DataError: Missing or damaged.
    """
    import numpy as np

    hint = "Run the same `sdseg prepare` command again; it redoes what is missing."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a header that is none of ours
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header is parsed as Python and may raise anything
        raise DataError(f"{path}: missing or damaged.", hint) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        raise DataError(f"{path}: damaged (no array of numbers).", hint)
    return array
