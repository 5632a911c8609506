"""The phantom's anatomy: place and density of each organ, painted from the outside in."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[np.float32]
Mask = NDArray[np.bool_]
Point = tuple[float, float, float]

SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, GALLBLADDER = 1, 2, 3, 4
LIVER, STOMACH, AORTA, VENA_CAVA, PANCREAS = 6, 7, 8, 9, 11

AIR_HU, LUNG_HU, GAS_HU, FAT_HU, MUSCLE_HU = -1000.0, -850.0, -930.0, -100.0, 55.0
SPINE_MM = 50.0
"""How far behind the middle of the body the vertebrae lie."""
WARP_MM = 15.0
"""No point of the body is moved further than this."""
_LONG = float("inf")


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
        names = ("x", "y", "z", "hu", "labels", "cavity")
        return replace(self, **{name: getattr(self, name)[tuple(block)] for name in names})

    def draw(self, low: float, high: float) -> float:
        """A number drawn between two."""
        return float(self.rng.uniform(low, high))

    def vary(self, value: float, share: float = 0.1) -> float:
        """A number drawn within a share around a value."""
        return float(value * self.rng.uniform(1 - share, 1 + share))

    def near(self, point: Point, mm: float = 6) -> Point:
        """A point drawn around another, each coordinate within `mm`."""
        x, y, z = point + self.rng.uniform(-mm, mm, size=3)
        return float(x), float(y), float(z)

    def texture(self, sigma: Point, hu: float) -> Field:
        """Smooth noise over the whole block, of this standard deviation."""
        noise = ndimage.gaussian_filter(
            self.rng.standard_normal(self.x.shape, dtype=np.float32), sigma
        )
        scaled: Field = noise * np.float32(hu / noise.std())
        return scaled

    def ellipsoid(self, centre: Point, radii: Point, turn_deg: float = 0) -> Field:
        """Distance from a centre in radii (mm, infinite for a cylinder): below 1 inside.

        It is turned in the axial plane.
        """
        along, across, up = self._turned(centre, turn_deg)
        distance: Field = np.sqrt(
            (along / radii[0]) ** 2 + (across / radii[1]) ** 2 + (up / radii[2]) ** 2
        )
        return distance

    def boxy(self, centre: Point, radii: Point, turn_deg: float = 0) -> Field:
        """As `ellipsoid`, squarer: with exponent 2.4 a body's outline rather than an egg's."""
        parts = [
            np.exp(2.4 * np.log(np.abs(part / radius) + np.float32(1e-9)))
            for part, radius in zip(self._turned(centre, turn_deg), radii, strict=True)
            if np.isfinite(radius)
        ]
        distance: Field = np.exp(np.log(sum(parts)) / 2.4).astype(np.float32)
        return distance

    def tube(
        self, centre: tuple[float, float], radii: tuple[float, float], sway_mm: float
    ) -> Field:
        """Distance from an axis along the body in radii, swaying left and right with z."""
        x = self.x - centre[0] - sway_mm * np.sin(self.z / 60 + self.draw(0, 2 * np.pi))
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


def build_abdomen(rng: np.random.Generator, x: Field, y: Field, z: Field) -> Canvas:
    """Paint a patient on a grid of (I, J, K) coordinates, see `Canvas`."""
    air, unlabelled = np.full(x.shape, AIR_HU, np.float32), np.zeros(x.shape, np.uint8)
    body = Canvas(rng, x, y, z, air, unlabelled, np.zeros(x.shape, bool))
    for paint in (
        _wall, _bowel, _colon, _liver, _spleen, _stomach, _kidneys, _pancreas,
        _twigs, _lungs, _muscles, _vertebrae, _vessels,
    ):  # fmt: skip
        paint(body)
    return body


def _wall(c: Canvas) -> None:
    """Skin, fat, muscle, ribs, and the fat inside."""
    width, depth = c.vary(154, 0.05), c.vary(107, 0.05)
    fat, muscle = c.draw(9, 22), c.vary(12)
    outline = c.boxy((0, 0, 0), (width, depth, _LONG))
    c.paint(outline < 1, 10)
    c.paint(outline < 1 - 2.5 / depth, FAT_HU - 5)
    # The fat is thicker at the flanks than at the front and the back.
    inner = c.boxy((0, 2, 0), (width - 1.3 * fat, depth - fat, _LONG))
    c.paint(inner < 1, MUSCLE_HU)
    room = (width - 1.3 * fat - muscle, depth - fat - muscle - 4, _LONG)
    cavity = c.boxy((0, -3, 0), room)
    c.cavity[...] = cavity < 1
    c.paint(c.cavity, FAT_HU + c.texture((4, 4, 1), 12))
    # Ribs run downwards to the front, so that a slice cuts a row of them.
    angle = np.abs(np.arctan2(c.x / width, c.y / depth))
    middle = np.abs(0.5 * (inner + cavity) - 1) * depth
    height = c.z + 38 * angle + c.draw(0, 27)
    rib = np.hypot((np.mod(height, 27) - 13.5) / 6.5, middle / 4.2)
    ribbed = (angle < 2.5) & (angle > 0.3) & (c.z + 30 * angle > -15)
    c.paint((rib < 1) & ribbed, 420)
    c.paint((rib < 0.6) & ribbed, 180)


def _bowel(body: Canvas) -> None:
    """Loops of gut: wall, contents as dense as stomach or pancreas, maybe gas."""
    for _ in range(26):
        x, y, z = body.rng.uniform((-75, -66, -95), (85, 12, -8))
        centre, radius, stretch = (x, y, z), body.draw(10, 16), body.vary(1.5, 0.3)
        c = body.around(centre, (radius * stretch, radius * stretch, radius))
        turn = c.draw(0, 180)
        loop = c.ellipsoid(centre, (radius * stretch, radius, radius), turn)
        inside = c.cavity & (loop < 1)
        c.paint(inside, 68)
        lumen = inside & (loop < 0.78)
        c.paint(lumen, float(c.rng.choice([15, 30, 45, 60])))
        if c.rng.uniform() < 0.3:
            c.paint(lumen & (c.y < y - 0.25 * radius), GAS_HU)


def _colon(body: Canvas) -> None:
    """Up on the right, across the front, down on the left; gas over stool."""
    stool = body.texture((1.5, 1.5, 1), 60)
    for side, top in ((-1, -30), (1, 25)):
        radius = body.vary(17, 0.15)
        colon = body.tube((side * body.vary(96, 0.04), body.vary(22, 0.2)), (radius, radius), 6)
        inside = body.cavity & (colon < 1) & (body.z < top)
        body.paint(inside, 60)
        body.paint(inside & (colon < 0.84), stool - 20)
    # The transverse colon hangs across the front, pinched into pouches, full of gas.
    level_mm = body.draw(-60, -25)
    c = body.around((0, -55, level_mm), (95, 40, 25))
    phase = c.draw(0, 2 * np.pi)
    ends = np.sqrt(np.clip(1 - (c.x / 88) ** 4, 1e-3, 1))
    width = 16 * ends * (0.86 + 0.14 * np.sin(c.x / 6 + phase))
    colon = np.hypot(c.y + 60 - (c.x / 90) ** 2 * 20, c.z - level_mm) / width
    inside = c.cavity & (colon < 1) & (np.abs(c.x) < 88)
    c.paint(inside, 60)
    c.paint(inside & (colon < 0.84), GAS_HU)


def _liver(body: Canvas) -> None:
    centre = body.near((-62, -8, 34))
    right = body.boxy(centre, (body.vary(68), body.vary(74), body.vary(84)), 12)
    left = body.ellipsoid(
        body.near((2, -44, 48), 4), (body.vary(70), body.vary(27), body.vary(46)), 8
    )
    hollow = body.ellipsoid((-28, 48, -10), (36, 40, 70))
    liver = body.cavity & ((right < 1) | (left < 1)) & (hollow > 1)
    tissue = body.vary(104, 0.07)
    body.paint(liver, tissue, LIVER)
    for _ in range(14):
        # Branches of the portal and hepatic veins; part of the organ, as its label says.
        start = body.near((-55, -8, 40), 40)
        c = body.around(start, (28, 28, 28))
        way = c.rng.normal(size=3)
        way /= np.linalg.norm(way)
        offset = [c.x - start[0], c.y - start[1], c.z - start[2]]
        along = sum(part * float(w) for part, w in zip(offset, way, strict=True))
        apart = sum((part - along * float(w)) ** 2 for part, w in zip(offset, way, strict=True))
        vein = (apart < c.rng.uniform(2.5, 5) ** 2) & (np.abs(along) < 28)
        c.paint(vein & (c.labels == LIVER), tissue + 40, LIVER)
    sac = (centre[0] + 26, centre[1] - 28, centre[2] - 50)
    c = body.around(sac, (20, 20, 26))
    bladder = c.ellipsoid(sac, (c.vary(14), c.vary(17), c.vary(22)), 30)
    c.paint(c.cavity & (bladder < 1), 48, GALLBLADDER)
    c.paint(c.cavity & (bladder < 0.86), 8, GALLBLADDER)


def _spleen(body: Canvas) -> None:
    centre = body.near((92, 34, 34))
    c = body.around(centre, (60, 60, 56))
    whole = c.ellipsoid(centre, (c.vary(30), c.vary(50), c.vary(48)), 18)
    hilum = c.ellipsoid((centre[0] - 40, centre[1] - 8, centre[2]), (30, 42, 60), 18)
    c.paint(c.cavity & (whole < 1) & (hilum > 1), c.vary(116, 0.06), SPLEEN)


def _stomach(body: Canvas) -> None:
    """A bent sac: wall, contents, and gas that floats to the front in a patient on the back."""
    centre = body.near((52, -26, 38))
    c = body.around(centre, (90, 60, 70))
    fundus = c.ellipsoid(centre, (c.vary(36), c.vary(38), c.vary(40)), -20)
    antrum_centre = (centre[0] - 34, centre[1] - 20, centre[2] - 34)
    antrum = c.ellipsoid(antrum_centre, (c.vary(46), c.vary(23), c.vary(26)), -12)
    sac = np.minimum(fundus, antrum)
    stomach = c.cavity & (sac < 1) & (c.labels == 0)
    c.paint(stomach, 72, STOMACH)
    contents = stomach & (sac < 0.86)
    c.paint(contents, c.draw(10, 45), STOMACH)
    level_mm = centre[1] - c.draw(8, 24)
    c.paint(contents & (c.y < level_mm), GAS_HU, STOMACH)


def _kidneys(body: Canvas) -> None:
    enhancement = body.vary(175, 0.1)
    for side, label, height in ((-1, RIGHT_KIDNEY, -28), (1, LEFT_KIDNEY, -16)):
        centre = body.near((side * 64, 42, height), 5)
        c = body.around(centre, (42, 42, 72))
        kidney = c.ellipsoid(centre, (c.vary(27), c.vary(30), c.vary(56)), side * 35)
        # Clear of the liver and the spleen by a little fat.
        c.paint(c.cavity & (kidney < 1.16), FAT_HU)
        organ = c.cavity & (kidney < 1)
        c.paint(organ, enhancement, label)
        c.paint(organ & (kidney < 0.7), enhancement - 40, label)
        sinus = c.ellipsoid((centre[0] - side * 20, centre[1] - 8, centre[2]), (17, 12, 26))
        c.paint(organ & (sinus < 1), FAT_HU + 20)


def _pancreas(body: Canvas) -> None:
    centre = body.near((14, 2, 2), 4)
    c = body.around(centre, (60, 40, 50))
    slope = c.draw(0.25, 0.45)
    x = c.x - centre[0]
    arch = c.y - centre[1] - 14 * np.cos(x / 34)
    height = c.z - centre[2] - slope * x
    organ = np.sqrt((x / 58) ** 2 + (arch / c.vary(12)) ** 2 + (height / 20) ** 2)
    c.paint(c.cavity & (organ < 1) & (c.labels == 0), c.vary(88, 0.06), PANCREAS)


def _twigs(body: Canvas) -> None:
    """Vessels in the fat of the mesentery."""
    for _ in range(60):
        centre = body.near((5, -20, -25), 70)
        size = body.rng.uniform(2, 4, size=2)
        c = body.around(centre, (4, 4, 22))
        twig = c.ellipsoid(centre, (float(size[0]), float(size[1]), 22))
        c.paint(c.cavity & (twig < 1) & (c.hu < FAT_HU + 50) & (c.labels == 0), 110)


def _lungs(body: Canvas) -> None:
    """Part of the upper cavity outside the dome of the diaphragm."""
    reach = body.vary(1.0, 0.04)
    dome = body.boxy((0, -22, -20), (150 * reach, 104 * reach, 112 * reach))
    above = body.cavity & (body.z > 10) & (dome > 1)
    body.paint(above & (dome < 1.03), MUSCLE_HU)
    body.paint(above & (dome >= 1.03), LUNG_HU)
    for _ in range(40):
        _, y, z = body.near((0, 35, 50), 1)
        centre = (body.draw(-130, 130), y + body.draw(-55, 55), z)
        c = body.around(centre, (4, 4, 30))
        vessel = c.ellipsoid(centre, (c.vary(3, 0.3), c.vary(3, 0.3), 30))
        c.paint((c.hu == LUNG_HU) & (vessel < 1), 0)


def _muscles(body: Canvas) -> None:
    """Erector spinae on both sides of the spinous processes, psoas beside the vertebrae."""
    inside = (body.hu != AIR_HU) & (body.labels == 0)
    thickness = np.clip((20 - body.z) / 60, 0, 1) * 17 + 1
    for side in (-1, 1):
        erector = body.ellipsoid((side * 33, SPINE_MM + 26, 0), (31, 20, _LONG))
        body.paint(inside & (erector < 1), MUSCLE_HU)
        psoas = np.hypot(body.x - side * 34, body.y - SPINE_MM - 2) / thickness
        body.paint(inside & (psoas < 1), MUSCLE_HU)


def _vertebrae(body: Canvas) -> None:
    c = body.around((0, SPINE_MM + 20, 0), (42, 48, 1e3))
    disc_and_body = 34
    level = np.mod(c.z + c.draw(0, disc_and_body), disc_and_body)
    disc = level < 7
    vertebra = c.boxy((0, SPINE_MM, 0), (23, 18, _LONG))
    grain = 25 * np.sin(c.x / 2.3) * np.sin(c.y / 2.1 + c.z)
    c.paint(vertebra < 1, np.where(disc, 90, 480).astype(np.float32))
    c.paint((vertebra < 0.84) & ~disc, 200 + grain)
    arch = np.hypot(c.x / 16, (c.y - SPINE_MM - 26) / 14)
    c.paint((arch < 1) & ((level > 14) | (c.y > SPINE_MM + 30)), 430)
    behind = (c.y > SPINE_MM + 34) & (c.y < SPINE_MM + 58 - 0.2 * level)
    c.paint(behind & (np.abs(c.x) < 4) & (level > 8), 380)
    beside = (np.abs(c.y - SPINE_MM - 24) < 4) & (np.abs(c.x) < 38)
    c.paint(beside & (np.abs(level - 21) < 5), 360)
    canal = np.hypot(c.x / 9.5, (c.y - SPINE_MM - 25) / 8)
    c.paint(canal < 1, 12)
    c.paint(canal < 0.62, 42)


def _vessels(body: Canvas) -> None:
    c = body.around((0, 18, 0), (40, 20, 1e3))
    enhancement = c.vary(150, 0.12)
    aorta = c.tube((11, 20), (c.vary(11), c.vary(11)), 3)
    c.paint((aorta < 1.14) & (c.labels == 0), FAT_HU)
    c.paint(aorta < 1, enhancement, AORTA)
    if c.rng.uniform() < 0.5:
        # Calcified wall.
        c.paint((aorta < 1) & (aorta > 0.86) & (c.x > 14) & (np.sin(c.z / 7) > 0), 420, AORTA)
    cava = c.tube((-19, 16), (c.vary(12), c.vary(9)), 3)
    c.paint(cava < 1, enhancement - 25, VENA_CAVA)
