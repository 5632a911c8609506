"""What was measured of a case, in plain numbers. Standard library only.

Shelves ignore each other: `imaging` fills these from arrays, `datasets` judges them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class GridStatistics:
    """Where a volume lies; a picture has two numbers and no place.

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
        """Undo `to_dict`."""
        first, second = values["plane"]
        return cls(
            shape=tuple(values["shape"]),
            plane=(first, second),
            axis_codes=values["axis_codes"],
            spacing_mm=tuple(values["spacing_mm"]),
            shear_degrees=values["shear_degrees"],
            forms_apart_mm=values.get("forms_apart_mm", 0.0),
            says_place=values.get("says_place", True),
            unit_known=values.get("unit_known", True),
            spare_bytes=values.get("spare_bytes", 0),
        )


@dataclass(frozen=True)
class ScanStatistics:
    """What the voxels of a scan hold.

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
        return cls(**{field.name: values[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class LabelStatistics:
    """What the voxels of a label map hold.

    Attributes:
        voxels: Number of voxels.
        counts: Value -> number of voxels, 0 included where it occurs.
        centres: Value (not 0) -> mean place as shares of the grid, in 0..1, from the front to the
            back, the right to the left and the feet to the head.
        between_share: Share of a picture mask's pixels that are none of its own greys, black and
            white mostly; 0 for volumes and for masks of class numbers.
        graded: Each of a picture mask's greys is a label of its own.
    """

    voxels: int
    counts: dict[int, int]
    centres: dict[int, tuple[float, float, float]] = field(default_factory=dict)
    between_share: float = 0.0
    graded: bool = False

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
