"""Case and DatasetSpec, the two nouns of a data set."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdseg_cli.core.errors import DataError
from sdseg_cli.core.filenames import natural_key, safe_id
from sdseg_cli.core.findings import Finding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
LONGEST_ID = 200
"""Bytes of a case id: file names may have 255, and suffixes and temporary names add to it."""


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


@dataclass(frozen=True)
class ClassRule:
    """The K classes that labels are segmented into.

    Attributes:
        groups: The labels of each class, which may share some; None = every label but 0.
        names: Name of each class.
    """

    groups: tuple[tuple[int, ...] | None, ...] = (None,)
    names: tuple[str, ...] = ("foreground",)

    def __post_init__(self) -> None:
        if not self.groups or len(self.groups) != len(self.names):
            raise ValueError(f"{len(self.groups)} groups of labels, {len(self.names)} names")

    @classmethod
    def of_target(cls, target: Sequence[int] | None) -> ClassRule:
        """One class: the target labels, or with None every label but 0."""
        return cls((None if target is None else tuple(target),))

    def __len__(self) -> int:
        """K, the number of classes."""
        return len(self.groups)

    def each(self) -> list[ClassRule]:
        """One rule for each class."""
        return [
            ClassRule((group,), (name,))
            for group, name in zip(self.groups, self.names, strict=True)
        ]

    def masks(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """The mask of each class.

        Args:
            labels: Integers of any shape, for example (H,W).

        Returns:
            (K,H,W) bool.
        """
        import numpy as np

        return np.stack(
            [labels != 0 if group is None else np.isin(labels, group) for group in self.groups]
        )

    def foreground(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """The pixels of any class, in the shape of `labels`."""
        import numpy as np

        mask: NDArray[np.bool_] = np.logical_or.reduce(self.masks(labels))
        return mask

    def slices(self, label_slices: Mapping[str, Sequence[int]]) -> list[int]:
        """The slices that hold any class, ascending.

        Args:
            label_slices: Label (as text) -> slices that hold it.
        """
        return sorted(
            {
                k
                for label, slices in label_slices.items()
                if any(group is None or int(label) in group for group in self.groups)
                for k in slices
            }
        )


@dataclass(frozen=True)
class DatasetSpec:
    """What the other packages need to know of a data set.

    Attributes:
        name: For `prepare --dataset`.
        summary: One line for `--help` and error hints: the layout.
        find_cases: Root folder -> cases, in natural order; empty when the layout is another.
        recognises: Whether a root folder plainly has this layout.
        modality: "CT", "photograph" or another; None = guessed from the first scan.
        target: Labels that count as foreground; None = every label but 0.
        labels: Labels the archive declares, whether they count or not; None = not said.
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
