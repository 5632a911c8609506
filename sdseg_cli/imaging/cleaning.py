"""What some data sets' label maps have to lose before they are a reference."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from sdseg_cli.imaging.intensity import extent
from sdseg_cli.imaging.volume import Array, Volume, bounding_box


@dataclass(frozen=True)
class Cleaning:
    """Removes labels that are slips of the annotation, in this order.

    Attributes:
        smallest_voxels: Connected components of the labelled voxels (26 neighbours, whatever
            their labels) with fewer voxels than this are removed.
        inside_field: Labels where the scan is at its minimum, outside the scanned field, are
            removed.
    """

    smallest_voxels: int = 0
    inside_field: bool = False

    def apply(self, label: Volume, scan: Volume) -> Volume:
        """The label map without what is to be removed; itself when nothing is.

        Args:
            label: (I, J, K) labels.
            scan: The scan on the same grid.
        """
        if self == Cleaning():
            return label
        array = label.array.copy(order="K")
        if self.smallest_voxels > 1:
            remove_small(array, self.smallest_voxels)
        if self.inside_field:
            minimum = np.float32(extent(scan).minimum)
            for k in range(array.shape[2]):
                array[:, :, k][scan.values(scan.array[:, :, k]) <= minimum] = 0
        return replace(label, array=array)

    def to_dict(self) -> dict[str, Any]:
        """For the manifest; empty when nothing is removed."""
        return {} if self == Cleaning() else asdict(self)

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Cleaning:
        """Undo `to_dict`."""
        return cls(**settings)


def remove_small(labels: Array, smallest_voxels: int) -> None:
    """Set connected components (26 neighbours) below a size to 0, in place."""
    from scipy import ndimage

    labelled = labels > 0
    box = bounding_box(labelled)
    if box is None:
        return
    # The numbered components take four bytes a voxel: only where there is something to number.
    numbers, _ = ndimage.label(labelled[box], structure=np.ones((3, 3, 3)))
    small = np.bincount(numbers.ravel()) < smallest_voxels
    small[0] = False
    labels[box][small[numbers]] = 0
