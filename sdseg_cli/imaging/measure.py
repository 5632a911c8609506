"""Measure a scan, a picture, a label map or a whole case: from arrays to plain numbers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.errors import DataError, GeometryError, RunError
from sdseg_cli.imaging.io.files import read_image, read_labels
from sdseg_cli.imaging.io.picture import (
    MaskLevels,
    Picture,
    labels_of,
    levels_of,
    read_picture,
    read_picture_greys,
)
from sdseg_cli.imaging.volume import Geometry, Planes, Volume, reorient_to, require_same_grid

if TYPE_CHECKING:
    from hashlib import _Hash as Digest

AIR_BELOW_HU = -200.0
SHIFTED_TISSUE = (850.0, 1150.0)
ABOVE_SHIFTED_AIR = 300.0
WRAPPED = (64512.0, 65535.0)
BEYOND_HU = (-32768.0, 20000.0)
MANY_GREYS = 16
"""A mask of more values than these, white among them, is a soft edge and no list of classes."""


@dataclass(frozen=True)
class GridStatistics:
    """Statistics of a volume's grid; a picture has two sizes and no place.

    Attributes:
        shape: Voxels along the stored axes, or rows and columns of a picture.
        plane: Rows and columns of an axial plane.
        axis_codes: For example "LPS"; "" for a picture.
        spacing_mm: Along the stored axes; empty for a picture.
        shear_degrees: What was straightened on reading.
        forms_apart_mm: How far a NIfTI header's sform and qform lie apart; 0 where they agree.
        says_place: False where a NIfTI header says neither.
        unit_known: False where a NIfTI header's unit of length has no meaning.
        spare_bytes: What a NIfTI file holds behind the voxels that its header claims.
    """

    shape: tuple[int, ...]
    plane: tuple[int, int]
    axis_codes: str = ""
    spacing_mm: tuple[float, ...] = ()
    shear_degrees: float = 0.0
    forms_apart_mm: float = 0.0
    says_place: bool = True
    unit_known: bool = True
    spare_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For a case's record: what JSON gives back."""
        values = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GridStatistics:
        """Undo `to_dict`; what records of older versions lack has its default."""
        known: dict[str, Any] = {}
        for name in {one.name for one in fields(cls)} & values.keys():
            known[name] = tuple(values[name]) if isinstance(values[name], list) else values[name]
        return cls(**known)


@dataclass(frozen=True)
class ScanStatistics:
    """Statistics of the voxels of a scan.

    Attributes:
        minimum: Of the finite values.
        maximum: Of the finite values.
        not_finite: Number of voxels that are NaN or infinite.
        distinct: Number of different values where all are whole numbers in 0..255, else None.
        zero_share: Share of voxels that are 0, in 0..1.
        air_share: Share below -200, where in CT only air lies.
        shifted_share: Of the voxels above 300, those in 850..1150: soft tissue, were 1024 added.
        wrapped_share: Share in 64512..65535: -1024..-1 as unsigned 16-bit numbers.
        beyond_share: Share beyond -32768..20000 HU that is not wrapped.
    """

    minimum: float
    maximum: float
    not_finite: int
    distinct: int | None
    zero_share: float
    air_share: float
    shifted_share: float
    wrapped_share: float
    beyond_share: float

    def to_dict(self) -> dict[str, Any]:
        """For a case's record."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ScanStatistics:
        """Undo `to_dict`."""
        return cls(**{one.name: values[one.name] for one in fields(cls)})


@dataclass(frozen=True)
class LabelStatistics:
    """Statistics of the voxels of a label map.

    Attributes:
        voxels: Number of voxels.
        counts: Value -> number of voxels, 0 included where it occurs.
        centres: Value (not 0) -> mean place as shares of the grid, in 0..1, from the front to the
            back, the right to the left and the feet to the head.
        between_share: Share of a picture mask's pixels that are none of its own greys, black and
            white mostly; 0 for volumes and for masks of class numbers.
        graded: Each of a picture mask's greys is a label of its own.
        areas: Value (not 0) -> most voxels it has in one axial plane; empty where not measured.
    """

    voxels: int
    counts: dict[int, int]
    centres: dict[int, tuple[float, float, float]] = field(default_factory=dict)
    between_share: float = 0.0
    graded: bool = False
    areas: dict[int, int] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[int, ...]:
        """Values that occur, ascending, without 0."""
        return tuple(sorted(value for value, count in self.counts.items() if value and count))


@dataclass(frozen=True)
class Fault:
    """Why a file of a case could not be measured.

    Attributes:
        code: The finding's code, for example "label-damaged".
        message: What happened.
        hint: What to do.
    """

    code: str
    message: str
    hint: str


@dataclass(frozen=True)
class CaseFacts:
    """Everything measured of one case; None where a file could not be read.

    Attributes:
        id: Case id.
        image: The scan.
        label: Its label map, if one was found.
        grid: Of the scan.
        scan: Values of the scan.
        labels: Values of the label map.
        faults: What could not be read, or does not fit together.
        sha256: Of the decoded image in canonical order: equal = the same pixels; "" = unread.
    """

    id: str
    image: Path
    label: Path | None = None
    grid: GridStatistics | None = None
    scan: ScanStatistics | None = None
    labels: LabelStatistics | None = None
    faults: tuple[Fault, ...] = ()
    sha256: str = ""


@dataclass(frozen=True)
class Pair:
    """The two files of a case to measure.

    Attributes:
        id: Case id.
        image: The scan or picture.
        label: Its label map, None when none was found.
        levels: (lowest grey, label) of a picture's mask, ascending; None = it says so itself.
    """

    id: str
    image: Path
    label: Path | None
    levels: tuple[tuple[int, int], ...] | None = None


def measure_case(pair: Pair) -> CaseFacts:
    """Measure one case; what cannot be read becomes a fault. Holds one volume at a time."""
    faults: list[Fault] = []
    grid = scan = labels = geometry = None
    digest = hashlib.sha256()
    try:
        volume = read_image(pair.image)
        geometry = volume.geometry
        grid, scan = measure_grid(geometry), measure_scan(volume, digest)
        del volume
    except DataError as error:
        faults.append(_fault_of("image", error))
    if pair.label is not None:
        role = "label"
        try:
            mask = read_labels(pair.label)
            labels = measure_labels(mask)
            role = "grid"
            if geometry is not None:
                mask = reorient_to(mask, geometry)
                names = f"scan {pair.image.name}", f"label {pair.label.name}"
                require_same_grid(geometry, mask.geometry, *names)
        except DataError as error:
            faults.append(_fault_of(role, error))
    content = digest.hexdigest() if scan else ""
    return CaseFacts(pair.id, pair.image, pair.label, grid, scan, labels, tuple(faults), content)


def measure_pictures(pair: Pair) -> CaseFacts:
    """Measure one picture and its mask; what cannot be read becomes a fault."""
    faults: list[Fault] = []
    grid = labels = None
    digest = ""
    try:
        pixels = read_picture(pair.image).array
        rows, columns = pixels.shape[:2]
        grid = GridStatistics(shape=(rows, columns), plane=(rows, columns))
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    except (DataError, RunError) as error:
        faults.append(_fault_of("image", error))
    if pair.label is not None:
        role = "label"
        try:
            mask = read_picture_greys(pair.label, pair.levels)
            labels = measure_mask(mask, pair.levels)
            role = "grid"
            rows, columns = mask.array.shape[:2]
            if grid is not None and (rows, columns) != grid.plane:
                raise GeometryError(
                    f"image {pair.image.name} has {grid.plane[1]}x{grid.plane[0]} pixels, mask "
                    f"{pair.label.name} has {columns}x{rows}.",
                    "Export both at one size, without resizing either.",
                    "shape",
                )
        except (DataError, RunError) as error:
            faults.append(_fault_of(role, error))
    return CaseFacts(pair.id, pair.image, pair.label, grid, None, labels, tuple(faults), digest)


def measure_mask(greys: Picture, levels: MaskLevels | None = None) -> LabelStatistics:
    """The labels of a mask of `read_picture_greys`, and how much of it is none of its own greys."""
    values, counts = np.unique(labels_of(greys, levels).array, return_counts=True)
    found = {int(value): int(count) for value, count in zip(values, counts, strict=True)}
    used = levels_of(greys, levels)
    own = [0, 255] if used is None or len(used) < 3 else [0, 128, 255]
    is_soft = used is not None or (len(found) > MANY_GREYS and values[-1] == 255)
    between = float(np.isin(greys.array, own, invert=True).mean()) if is_soft else 0.0
    return LabelStatistics(greys.array.size, found, between_share=between, graded=used is None)


def _fault_of(role: str, error: DataError | RunError) -> Fault:
    """An error as a fault, for example "label-damaged"; a RunError is a lack of memory."""
    kind = error.code if isinstance(error, DataError) else "memory"
    return Fault(f"{role}-{kind}" if kind else role, error.message, error.hint)


def measure_grid(geometry: Geometry) -> GridStatistics:
    """Measure a volume's grid."""
    return GridStatistics(
        shape=geometry.shape,
        plane=Planes.of(geometry).shape,
        axis_codes=geometry.axis_codes,
        spacing_mm=geometry.spacing_mm,
        shear_degrees=geometry.shear_degrees,
        forms_apart_mm=geometry.forms_apart_mm,
        says_place=geometry.says_place,
        unit_known=geometry.unit_known,
        spare_bytes=geometry.spare_bytes,
    )


def measure_scan(volume: Volume, digest: Digest | None = None) -> ScanStatistics:
    """Measure the voxels of a scan, one plane converted at a time.

    A digest is fed with the values in canonical order, so that they can be known again.
    """
    planes = Planes.of(volume.geometry)
    low, high, not_finite = np.inf, -np.inf, 0
    counts = np.zeros(6, np.int64)
    levels: NDArray[np.bool_] | None = np.zeros(256, np.bool_)
    if digest is not None:
        digest.update(repr((planes.count, planes.shape)).encode())
    for k in range(planes.count):
        plane = volume.values(planes.get(volume.array, k))
        if digest is not None:
            digest.update(plane.data)
        finite = plane.ravel()
        if not np.isfinite(finite).all():
            finite = finite[np.isfinite(finite)]
            not_finite += plane.size - finite.size
            if not finite.size:
                continue
        low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        levels = _seen(levels, finite, low, high)
        counts += _shares(finite)
    if low > high:
        low = high = 0.0
    zero, air, shifted, above, wrapped, beyond = (int(count) for count in counts)
    total = volume.array.size
    return ScanStatistics(
        minimum=low,
        maximum=high,
        not_finite=not_finite,
        distinct=None if levels is None else int(levels.sum()),
        zero_share=zero / total,
        air_share=air / total,
        shifted_share=shifted / max(above, 1),
        wrapped_share=wrapped / total,
        beyond_share=beyond / total,
    )


def measure_labels(volume: Volume) -> LabelStatistics:
    """Measure the voxels of a label map, uint8 or uint16."""
    planes = Planes.of(volume.geometry)
    each = (planes.get(volume.array, k) for k in range(planes.count))
    return measure_planes(each, (planes.count, *planes.shape), int(volume.array.max()))


def measure_planes(
    planes: Iterable[NDArray[Any]], shape: tuple[int, int, int], largest: int
) -> LabelStatistics:
    """Measure the axial planes of a label map, feet to head.

    Args:
        planes: (rows, columns) uint8 or uint16, front to back and right to left.
        shape: Number of planes, rows, columns.
        largest: The largest label.
    """
    size, voxels = largest + 1, math.prod(shape)
    counts, sums = np.zeros(size, np.int64), np.zeros((3, size))
    areas = np.zeros(size, np.int64)
    for k, plane in enumerate(planes):
        rows, columns = np.nonzero(plane)  # little of a label map is foreground
        values = plane[rows, columns]
        here = np.bincount(values, minlength=size)
        counts += here
        np.maximum(areas, here, out=areas)
        sums[0] += np.bincount(values, rows, size)
        sums[1] += np.bincount(values, columns, size)
        sums[2] += here * k
    counts[0] = voxels - counts.sum()
    extent = np.maximum([*shape[1:], shape[0]], 2) - 1
    return LabelStatistics(
        voxels=voxels,
        counts={int(value): int(counts[value]) for value in np.flatnonzero(counts)},
        centres={
            int(value): _triple(sums[:, value] / counts[value] / extent)
            for value in np.flatnonzero(counts)
            if value
        },
        areas={int(value): int(areas[value]) for value in np.flatnonzero(areas)},
    )


def facts_record(
    scan: ScanStatistics | None, labels: LabelStatistics, grid: GridStatistics | None
) -> dict[str, Any]:
    """The measures a prepared case keeps, as JSON; `statistics_in` undoes it. Of a picture
    there is no `scan`.
    """
    counts = {str(value): count for value, count in labels.counts.items()}
    values = {} if scan is None else {"scan": scan.to_dict()}
    if grid is not None:
        values["grid"] = grid.to_dict()
    return {**values, "voxels": labels.voxels, "label_voxels": counts}


def statistics_in(pair: Pair, record: Mapping[str, Any]) -> CaseFacts:
    """The statistics in a prepared case's record; records of older versions have none."""
    scan = labels = None
    grid = GridStatistics.from_dict(record["grid"]) if "grid" in record else None
    if "scan" in record:
        scan = ScanStatistics.from_dict(record["scan"])
    if "voxels" in record:
        counts = {int(value): int(count) for value, count in record["label_voxels"].items()}
        labels = LabelStatistics(int(record["voxels"]), counts)
    content = str(record.get("pixels_sha256", ""))
    return CaseFacts(pair.id, pair.image, pair.label, grid, scan, labels, (), content)


def _seen(
    levels: NDArray[np.bool_] | None, values: NDArray[np.float32], low: float, high: float
) -> NDArray[np.bool_] | None:
    """Mark which of 0..255 occur; None once a value is none of them."""
    if levels is None or low < 0 or high > 255:
        return None
    whole = values.astype(np.uint8)
    if not np.array_equal(whole, values):
        return None
    levels[whole] = True
    return levels


def _shares(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Counts: zero, air, shifted tissue, above 300, wrapped, beyond any HU."""
    wrapped = _within(values, *WRAPPED)
    inside = _within(values, *BEYOND_HU)
    return np.array(
        [
            np.count_nonzero(values == 0),
            np.count_nonzero(values < AIR_BELOW_HU),
            _within(values, *SHIFTED_TISSUE),
            np.count_nonzero(values > ABOVE_SHIFTED_AIR),
            wrapped,
            values.size - inside - wrapped,
        ],
        np.int64,
    )


def _within(values: NDArray[np.float32], low: float, high: float) -> int:
    return int(np.count_nonzero((values >= low) & (values <= high)))


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    first, second, third = (round(float(value), 4) for value in values)
    return first, second, third
