"""Case, ClassRule and DatasetSpec: scans, the classes of their labels, data sets."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.core.filenames import natural_key, safe_id
from sdseg_cli.core.findings import Finding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
LONGEST_ID = 200
"""Bytes of a case id: file names may have 255, and suffixes and temporary names add to it."""


_LEFT = frozenset(
    {"left", "l", "lt", "lft", "sinister", "sinistra", "sinistrum", "links", "gauche"}
)
_RIGHT = frozenset(
    {"right", "r", "rt", "rgt", "dexter", "dextra", "dextrum", "rechts", "droit", "droite"}
)
_LONGEST_SHORT = 3
"""Short words (l, rt) say a side at the beginning or the end of a name alone."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+|\d+")
_SAME_IN_A_MIRROR = re.compile(
    r"(?<!lateral[ _.-])ventric|atri(um|al|a)\b|[lr]v|heart", re.IGNORECASE
)


def side_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The side in the name of a structure, "left" or "right", and the rest of its words; None where
    it says none: "kidney_left", "Right Lung", "ParotidL", "ren dexter".
    """
    words = [
        word.lower()
        for word in _WORD.findall(name.replace("左", " left ").replace("右", " right "))
    ]
    for place, word in enumerate(words):
        if len(word) <= _LONGEST_SHORT and place not in (0, len(words) - 1):
            continue
        rest = (*words[:place], *words[place + 1 :])
        if rest and word in _LEFT | _RIGHT:
            return "left" if word in _LEFT else "right", rest
    return None


def are_twins(one: str, other: str) -> bool:
    """Whether two names say the left and the right of one structure, which change places in a
    mirror. The heart's chambers do not: each keeps its own form.
    """
    here, there = side_of(one), side_of(other)
    if here is None or there is None or _SAME_IN_A_MIRROR.search(one):
        return False
    return here[0] != there[0] and here[1] == there[1]


@dataclass(frozen=True)
class Case:
    """One scan and its label map.

    Attributes:
        id: Names the case in files and tables; one plain file name.
        image: The scan.
        label: Its label map, None when none was found.
        split: "test" where the data set says so; None before the split is drawn.
        group: Cases of one group (frames of a video) never come into two splits; None = its own.
        other_labels: Further label maps of this name: which is meant cannot be known.
    """

    id: str
    image: Path
    label: Path | None
    split: str | None = None
    group: str | None = None
    other_labels: tuple[Path, ...] = ()


MOST_REGIONS = 64
"""So many classes that overlap are held as the bits of a voxel."""


@dataclass(frozen=True)
class ClassRule:
    """The K classes that labels are segmented into.

    Attributes:
        groups: The labels of each class. Where classes share some they are regions, and may
            overlap; else a pixel has one class at most. None = every label but 0, of one class.
        names: Name of each class.
        ignore: Label of pixels that count neither in a loss nor in a metric.
        mirror_pairs: Numbers of classes, from 0, that change places in a left-right mirror image.
    """

    groups: tuple[tuple[int, ...] | None, ...] = (None,)
    names: tuple[str, ...] = ("foreground",)
    ignore: int | None = None
    mirror_pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.groups or len(self.groups) != len(self.names):
            raise ValueError(f"{len(self.groups)} groups of labels, {len(self.names)} names")

    @classmethod
    def of_target(cls, target: Sequence[int] | None) -> ClassRule:
        """One class: the target labels, or with None every label but 0."""
        return cls((None if target is None else tuple(target),))

    @classmethod
    def of_settings(cls, data: Mapping[str, Any]) -> ClassRule:
        """Read the rule from `Manifest.inference_settings`, which runs and packages keep.

        Raises:
            KeyError, TypeError, ValueError: They do not say it.
        """
        if "classes" not in data:
            return cls.of_target(data.get("target"))
        ignore, listed = data.get("ignore"), data["classes"]
        if not isinstance(listed, list) or not (ignore is None or type(ignore) is int):
            raise TypeError("classes")
        groups = [one["labels"] for one in listed]
        if not all(
            group is None or (group and all(type(label) is int and label > 0 for label in group))
            for group in groups
        ) or (None in groups and len(groups) > 1):
            raise ValueError(f"labels of classes {groups!r:.60}")
        names = tuple(one["name"] for one in listed)
        if not all(isinstance(name, str) and name for name in names):
            raise TypeError(f"names of classes {names!r:.60}")
        pairs = tuple((int(a), int(b)) for a, b in data.get("mirror_pairs", ()))
        if any(not 0 <= number < len(groups) for pair in pairs for number in pair):
            raise ValueError(f"pairs of classes {pairs!r:.60}")
        labels = tuple(None if group is None else tuple(group) for group in groups)
        return cls(labels, names, ignore, pairs)

    def to_settings(self) -> dict[str, Any]:
        """The JSON that `of_settings` reads."""
        classes = [
            {"name": name, "labels": None if group is None else list(group)}
            for name, group in zip(self.names, self.groups, strict=True)
        ]
        extra = {} if self.ignore is None else {"ignore": self.ignore}
        pairs = {"mirror_pairs": [list(pair) for pair in self.mirror_pairs]}
        return {"classes": classes, **extra, **(pairs if self.mirror_pairs else {})}

    def __len__(self) -> int:
        """K, the number of classes."""
        return len(self.groups)

    def each(self) -> list[ClassRule]:
        """One rule for each class."""
        return [
            replace(self, groups=(group,), names=(name,), mirror_pairs=())
            for group, name in zip(self.groups, self.names, strict=True)
        ]

    @property
    def overlapping(self) -> bool:
        """True if classes share a label, so that a pixel may have several."""
        labels = [label for group in self.groups if group is not None for label in group]
        return len(labels) != len(set(labels))

    @property
    def mirrored(self) -> tuple[int, ...]:
        """The number each class has in a left-right mirror image; () where all keep theirs."""
        if not self.mirror_pairs:
            return ()
        numbers = list(range(len(self)))
        for a, b in self.mirror_pairs:
            numbers[a], numbers[b] = b, a
        return tuple(numbers)

    @property
    def labels(self) -> tuple[int, ...] | None:
        """The labels of any class, ascending; None = every label but 0."""
        if None in self.groups:
            return None
        return tuple(sorted({label for group in self.groups for label in group or ()}))

    @property
    def mirror_safe(self) -> bool:
        """Whether a left-right mirror image shows the classes where their names say, once those of
        `mirror_pairs` change places: no name says a side without being in a pair.
        """
        paired = {number for pair in self.mirror_pairs for number in pair}
        return len(self) == 1 or self.sided <= paired

    @property
    def sided(self) -> set[int]:
        """Numbers of the classes whose names say a side. L1 to L6 are vertebrae, unless the right
        ones are there too.
        """
        return {
            number
            for number, name in enumerate(self.names)
            if side_of(name)
            and (
                not re.fullmatch(r"L[1-6]", name, re.IGNORECASE)
                or any(are_twins(name, other) for other in self.names)
            )
        }

    @property
    def values(self) -> tuple[int, ...]:
        """The value of each class in a label map: of one class 1; of several the first of its
        labels that no later class has, for there the later class is written. So a map that is read
        again by the same groups gives the same classes. A class without such a label, whose voxels
        all belong to later ones as well, has the smallest number that is no label.
        """
        if len(self) == 1:
            return (1,)
        labels = {label for group in self.groups for label in group or ()}
        values: list[int] = []
        for number, group in enumerate(self.groups):
            later = {label for other in self.groups[number + 1 :] for label in other or ()}
            own = [label for label in group or () if label not in later]
            unused = (n for n in itertools.count(1) if n not in labels | set(values))
            values.append(own[0] if own else next(unused))
        return tuple(values)

    def masks(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """The mask of each class.

        Args:
            labels: Integers of any shape, for example (H,W).

        Returns:
            (K,H,W) bool.
        """
        import numpy as np

        masks = np.stack(
            [labels != 0 if group is None else np.isin(labels, group) for group in self.groups]
        )
        return masks if self.ignore is None else masks & (labels != self.ignore)

    def foreground(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """The pixels of any class, in the shape of `labels`."""
        import numpy as np

        # In the order of the labels in memory: sums over their points round by it.
        mask: NDArray[np.bool_] = np.zeros_like(labels, np.bool_)
        for rule in self.each():  # one after the other: K masks of a scan are K times the memory
            mask |= rule.masks(labels)[0]
        return mask

    def decide(self, probabilities: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
        """The mask of each class where each has a probability.

        A pixel has a class where the probability of any, their sum, is above the threshold: the
        likeliest of them. Of classes that may overlap, and of one, each is decided by itself.

        Args:
            probabilities: (K,...) float32 in [0,1].
            threshold: Within 0 and 1.

        Returns:
            (K,...) bool.
        """
        import numpy as np

        if len(self) == 1 or self.overlapping:
            return np.asarray(probabilities > threshold)
        numbers = np.arange(len(self)).reshape(-1, *[1] * (probabilities.ndim - 1))
        likeliest = numbers == probabilities.argmax(axis=0)
        return np.asarray(likeliest & (probabilities.sum(axis=0) > threshold))

    def union(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """(K,...) -> the probability of any class, (...): their sum, of classes that may overlap
        the largest.
        """
        import numpy as np

        if len(self) == 1:
            return np.asarray(probabilities[0])
        if self.overlapping:
            return np.asarray(probabilities.max(axis=0))
        return np.asarray(probabilities.sum(axis=0).clip(0, 1))

    @property
    def held_type(self) -> np.dtype[Any]:
        """What `hold` makes of a voxel.

        Raises:
            ConfigError: More classes overlap than there are bits.
        """
        import numpy as np

        if not self.overlapping:
            return np.dtype(np.uint8 if max(self.values) <= 255 else np.uint16)
        if len(self) > MOST_REGIONS:
            raise ConfigError(
                f"{len(self)} classes that overlap: at most {MOST_REGIONS} are predicted at once.",
                "Prepare the set with fewer, or with classes that share no label.",
            )
        return np.dtype(f"u{next(size for size in (1, 2, 4, 8) if 8 * size >= len(self))}")

    def hold(self, masks: Iterable[NDArray[np.bool_]]) -> NDArray[Any]:
        """The masks of all classes in one array of `held_type`: the value of a voxel's class in a
        label map, of classes that overlap a bit for each. `mask_of` takes them out again.

        Args:
            masks: (K,...), or one after the other.
        """
        import numpy as np

        held: NDArray[Any] | None = None
        for number, mask in enumerate(masks):
            if held is None:
                held = np.zeros_like(mask, self.held_type)
            if self.overlapping:
                held |= mask.astype(held.dtype) << held.dtype.type(number)
            else:
                held[mask] = self.values[number]
        if held is None:
            raise ValueError("no masks")
        return held

    def mask_of(self, held: NDArray[Any], number: int) -> NDArray[np.bool_]:
        """The mask of class `number` in what `hold` answers, or of one class in its mask."""
        import numpy as np

        if self.overlapping:
            return np.asarray(held & held.dtype.type(1 << number), np.bool_)
        return np.asarray(held == self.values[number])

    def label_map(self, held: NDArray[Any]) -> NDArray[Any]:
        """What `hold` answers -> the `values`, uint8 or above 255 uint16; where classes overlap,
        the value of the last one. It may be the same memory.
        """
        import numpy as np

        if not self.overlapping:
            return held
        shown = np.zeros_like(held, np.uint8 if max(self.values) <= 255 else np.uint16)
        for number, value in enumerate(self.values):
            shown[self.mask_of(held, number)] = value
        return shown

    def slices(self, label_slices: Mapping[str, Sequence[int]]) -> list[int]:
        """The slices that hold any class, ascending.

        Args:
            label_slices: Label (as text) -> slices that hold it.
        """
        return sorted(
            {
                k
                for label, slices in label_slices.items()
                if int(label) != self.ignore
                and any(group is None or int(label) in group for group in self.groups)
                for k in slices
            }
        )


@dataclass(frozen=True)
class DatasetSpec:
    """A data set, as the other packages need to know it.

    Attributes:
        name: For `prepare --dataset`.
        summary: One line for `--help` and error hints: the layout.
        find_cases: Root folder -> cases, in natural order; empty when the layout is another.
        recognises: Whether a root folder plainly has this layout.
        modality: "CT", "photograph" or another; None = guessed from the first scan.
        target: Labels that count as foreground; None = every label but 0.
        labels: Labels the archive declares, whether they count or not; None = not said.
        published: A data set of the paper, which by default has the paper's one foreground.
        class_names: Label -> what the data set calls it.
        regions: Name and labels of each class, where the data set declares classes that overlap.
        ignore: Label of pixels that count neither in a loss nor in a metric.
        window_hu: What becomes -1 and +1; None = by modality.
        window_kind: How the window is used, see `imaging.intensity.Normalisation`.
        test_ids: Cases a published split keeps for testing.
        cleaning: What is removed from label maps, as fields of `imaging.postprocess.Cleaning`.
        refine: What a data set says of itself: root folder, spec -> spec.
        mask_levels: (lowest grey, label) of a picture's mask, ascending; None = it holds labels.
        split_sizes: Cases that train, validate and test in the whole published set.
        whole: Numbers of cases that make a recognised folder the published set and give it its
            name; a folder with others is called as it is. None = the layout is enough.
        check: What is odd about a data set by its own description: root folder, cases -> findings.
    """

    name: str
    summary: str
    find_cases: Callable[[Path], list[Case]]
    recognises: Callable[[Path], bool]
    modality: str | None = None
    target: tuple[int, ...] | None = None
    labels: tuple[int, ...] | None = None
    published: bool = False
    class_names: Mapping[int, str] = field(default_factory=dict)
    regions: tuple[tuple[str, tuple[int, ...]], ...] = ()
    ignore: int | None = None
    window_hu: tuple[float, float] | None = None
    window_kind: str = "window"
    test_ids: frozenset[str] = frozenset()
    cleaning: dict[str, Any] = field(default_factory=dict)
    refine: Callable[[Path, DatasetSpec], DatasetSpec] = lambda root, spec: spec
    mask_levels: tuple[tuple[int, int], ...] | None = None
    split_sizes: tuple[int, int, int] | None = None
    whole: tuple[int, ...] | None = None
    check: Callable[[Path, Sequence[Case]], Iterable[Finding]] = lambda root, cases: ()


def in_order(cases: list[Case]) -> list[Case]:
    """Cases with path-safe ids in natural order.

    Raises:
        DataError: Two cases come out with one id, or one is too long to be a file name.
    """
    safe = sorted(
        (replace(case, id=safe_id(case.id) or "case") for case in cases),
        key=lambda case: natural_key(case.id),
    )
    for case in safe:
        if len(case.id.encode()) > LONGEST_ID:
            raise DataError(
                f"{case.image}: its case would be called {case.id[:40]}..., "
                f"{len(case.id.encode())} bytes long.",
                "Give its folders and file shorter names, or start from a folder further in.",
            )
    # Case-insensitive file systems hold one folder for "A" and "a".
    for before, after in itertools.pairwise(safe):
        if before.id.lower() == after.id.lower():
            raise DataError(
                f"{before.image} and {after.image} are both case {after.id}.",
                "Rename one, or choose files with --image-glob and --label-glob.",
            )
    return safe
