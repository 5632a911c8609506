"""What the phantom is painted on: a body's coordinates, densities and labels, and simple shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Mask = NDArray[np.bool_]
Point = tuple[float, float, float]

AIR_HU = -1000.0
WARP_MM = 15.0
"""The warp moves no point further than this."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """A block of the body in the making. Coordinates are mm from the middle of the body.

    Attributes:
        rng: Draws this patient's sizes.
        x: (I, J, K) float32, towards the patient's left.
        y: Towards the back.
        z: Towards the head.
        hu: (I, J, K) float32 density.
        labels: (I, J, K) uint8.
        cavity: (I, J, K) bool, inside the abdominal wall.
    """

    rng: np.random.Generator
    x: Field
    y: Field
    z: Field
    hu: Field
    labels: NDArray[np.uint8]
    cavity: Mask

    @classmethod
    def empty(cls, rng: np.random.Generator, x: Field, y: Field, z: Field) -> Canvas:
        """Air everywhere."""
        air = np.full(x.shape, AIR_HU, np.float32)
        return cls(rng, x, y, z, air, np.zeros(x.shape, np.uint8), np.zeros(x.shape, bool))

    def around(self, centre: Point, reach: Point) -> Canvas:
        """The block that holds every point within reach of a centre; painting on it is shared.

        Saves most of the time: a kidney need not be looked for in the whole body.
        """
        block = []
        for axis, coordinates in enumerate((self.x, self.y, self.z)):
            middle = [n // 2 for n in coordinates.shape]
            line = np.moveaxis(coordinates, axis, 0)[(slice(None), *np.delete(middle, axis))]
            near = np.flatnonzero(np.abs(line - centre[axis]) <= reach[axis] + 2 * WARP_MM)
            block.append(slice(near[0], near[-1] + 1) if near.size else slice(0, 1))
        where = tuple(block)
        return replace(
            self,
            x=self.x[where],
            y=self.y[where],
            z=self.z[where],
            hu=self.hu[where],
            labels=self.labels[where],
            cavity=self.cavity[where],
        )

    def vary(self, value: float, share: float = 0.1) -> float:
        """A number drawn within a share around a value."""
        return float(value * self.rng.uniform(1 - share, 1 + share))

    def near(self, point: Point, mm: float = 6) -> Point:
        """A point drawn around another, each coordinate within `mm`."""
        x, y, z = point + self.rng.uniform(-mm, mm, size=3)
        return float(x), float(y), float(z)

    def ellipsoid(self, centre: Point, radii: Point, turn_deg: float = 0) -> Field:
        """Distance from a centre in radii: below 1 inside.

        Args:
            centre: In mm.
            radii: Along x, y and z in mm; infinite for a cylinder.
            turn_deg: Turns it in the axial plane.
        """
        along, across, up = self._turned(centre, turn_deg)
        total = (along / radii[0]) ** 2 + (across / radii[1]) ** 2 + (up / radii[2]) ** 2
        distance: Field = np.sqrt(total)
        return distance

    def boxy(self, centre: Point, radii: Point, turn_deg: float = 0) -> Field:
        """As `ellipsoid`, squarer: with exponent 2.4 a body's outline rather than an egg's."""
        along, across, up = self._turned(centre, turn_deg)
        parts = [
            np.exp(2.4 * np.log(np.abs(part / radius) + np.float32(1e-9)))
            for part, radius in zip((along, across, up), radii, strict=True)
            if np.isfinite(radius)
        ]
        distance: Field = np.exp(np.log(sum(parts)) / 2.4).astype(np.float32)
        return distance

    def tube(
        self, centre: tuple[float, float], radii: tuple[float, float], sway_mm: float
    ) -> Field:
        """Distance from an axis along the body in radii, swaying left and right with z."""
        phase = float(self.rng.uniform(0, 2 * np.pi))
        x = self.x - centre[0] - sway_mm * np.sin(self.z / 60 + phase)
        distance: Field = np.hypot(x / radii[0], (self.y - centre[1]) / radii[1])
        return distance

    def paint(self, where: Mask, hu: float | Field, label: int = 0) -> None:
        """Overwrite a region; a field of HU is cut to it."""
        self.hu[where] = hu[where] if isinstance(hu, np.ndarray) else np.float32(hu)
        self.labels[where] = label

    def _turned(self, centre: Point, turn_deg: float) -> tuple[Field, Field, Field]:
        x, y, z = self.x - centre[0], self.y - centre[1], self.z - centre[2]
        if turn_deg:
            cos, sin = float(np.cos(np.deg2rad(turn_deg))), float(np.sin(np.deg2rad(turn_deg)))
            x, y = cos * x + sin * y, cos * y - sin * x
        return x, y, z
