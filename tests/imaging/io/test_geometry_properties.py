"""Where a mask lies, for any grid: axes permuted and flipped, spacing, oblique, sizes, headers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from sdseg_cli.data.spec import ClassRule
from sdseg_cli.imaging.intensity import Normalisation
from sdseg_cli.imaging.io.files import read_image, write_mask
from sdseg_cli.imaging.slices import SliceStack, SliceTransform, to_stack
from sdseg_cli.imaging.volume import Geometry, Volume
from sdseg_cli.inference.options import OutputPaths, PredictOptions
from sdseg_cli.inference.predict import predict_file
from sdseg_cli.inference.predictor import Prediction, Predictor
from tests.imaging.io.test_files import GRID_FIELDS
from tests.imaging.test_slices import ORDERS, SIGNS, restored
from tests.inference.conftest import lively

DIAGONALS = [(1, 1, 0), (1, -1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1), (1, -1, 1), (0, 0, 1)]
ANY_TURN = st.floats(-180, 180)
WINDOW = Normalisation("window", -1000, 1000)


class StandIn:
    """Instead of a network: a rule on the model's planes that nothing symmetric would survive."""

    run = Path("stand-in")
    runs = (run,)
    normalisation = WINDOW
    decoder = "exact"
    run_threshold = None

    def __init__(self, size: int = 32, crop: str = "none") -> None:
        self.size, self.crop = size, crop

    batch_size = None
    classes = ClassRule()

    def require_kind(self, name: str, *, picture: bool) -> None:
        """Any kind will do."""

    def batch_bytes(self, draws: int, batch_size: int | None) -> int:
        return 0

    def stack(self, volume: Volume) -> SliceStack:
        return to_stack(volume, WINDOW, size=self.size, crop=self.crop)

    def planes(self, stack: SliceStack, **_: object) -> Iterator[tuple[int, np.ndarray]]:
        down, across = np.mgrid[: self.size, : self.size] / self.size
        for k in range(len(stack)):
            lean = 0.9 * down + 0.6 * across + 0.3 * np.sin(k)
            yield k, (stack.pixels(k, k + 1) * 0.5 + lean - 0.25).astype(np.float32)[:, None]

    def mask(self, volume: Volume) -> np.ndarray:
        stack = self.stack(volume)
        probability = np.concatenate([planes[:, 0] for _, planes in self.planes(stack)])[None]
        return Prediction("scan", probability, stack.restore, 0, 0.0).mask()


@st.composite
def grids(draw: st.DrawFn, turns: st.SearchStrategy[float] = ANY_TURN) -> Geometry:
    """Any rotation, anisotropic spacing, any shape up to 9 voxels a side."""
    angles = [draw(turns) for _ in range(3)]
    spacing = [draw(st.floats(0.2, 6)) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, 3] = [draw(st.floats(-500, 500)) for _ in range(3)]
    shape = tuple(draw(st.integers(1, 9)) for _ in range(3))
    return Geometry((shape[0], shape[1], shape[2]), affine)


@st.composite
def awkward_grids(draw: st.DrawFn) -> Geometry:
    """Turned about a diagonal of the cube, so that axes are equally near to several directions."""
    diagonal = np.array(draw(st.sampled_from(DIAGONALS)), float)
    angle = np.deg2rad(draw(st.sampled_from([45, 60, 90, 120, 180])))
    affine = np.eye(4)
    turn = Rotation.from_rotvec(diagonal / np.linalg.norm(diagonal) * angle).as_matrix()
    affine[:3, :3] = np.where(np.abs(turn) < 1e-12, 0, turn) * (1.0, 2.0, 3.0)
    return Geometry((4, 5, 6), affine)


ANY_GRID = st.one_of(
    grids(), grids(st.sampled_from([0.0, 30.0, 45.0, 90.0, 135.0, 180.0, -90.0])), awkward_grids()
)


def noise(geometry: Geometry, seed: int = 0) -> Volume:
    values = np.random.default_rng(seed).integers(-1000, 1000, geometry.shape).astype(np.int16)
    return Volume(values, geometry)


def moved(mask: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """A mask flipped and permuted as `restored` does it with a scan."""
    for axis, sign in enumerate(signs):
        mask = np.flip(mask, axis) if sign < 0 else mask
    return mask.transpose(order)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    geometry=ANY_GRID,
    order=st.sampled_from(ORDERS),
    signs=st.sampled_from(SIGNS),
    crop=st.sampled_from(["none", "body"]),
)
def test_a_permuted_and_flipped_copy_gets_the_permuted_and_flipped_mask(
    geometry, order, signs, crop
):
    scan, stand_in = noise(geometry), StandIn(crop=crop)
    mask = stand_in.mask(scan)
    assert mask.shape == geometry.shape
    assert np.array_equal(stand_in.mask(restored(scan, order, signs)), moved(mask, order, signs))


def test_the_stand_in_tells_left_from_right_front_from_back_and_feet_from_head():
    mask = StandIn().mask(noise(Geometry((7, 8, 9), np.diag([-1.0, -1.0, 2.0, 1.0]))))
    assert 0.2 < mask.mean() < 0.8
    assert all(not np.array_equal(mask, np.flip(mask, axis)) for axis in range(3))


@settings(max_examples=200, deadline=None)
@given(geometry=ANY_GRID)
def test_every_stored_axis_has_one_direction_and_a_sign_that_turns_with_it(geometry):
    assert sorted(geometry.axes) == [0, 1, 2]
    for axis, world in ((axis, world) for world, axis in enumerate(geometry.axes)):
        flip = np.eye(4)
        flip[axis, axis] = -1
        turned = Geometry(geometry.shape, geometry.affine @ flip)
        assert turned.axes == geometry.axes
        assert turned.signs[world] == -geometry.signs[world]


@settings(max_examples=30, deadline=None)
@given(order=st.sampled_from(ORDERS), signs=st.sampled_from(SIGNS), slices=st.integers(1, 3))
def test_planes_of_the_models_size_go_there_and_back_exactly(order, signs, slices):
    axial = Geometry((256, 256, slices), np.diag([-1.0, -1.0, 3.0, 1.0]))
    scan = restored(noise(axial), order, signs)
    stack = to_stack(scan, WINDOW)
    back = np.full(scan.array.shape, np.nan, np.float32)
    for k in range(slices):
        stack.restore.place(back, stack.restore.to_native(stack.pixels(k, k + 1)[0], k), k)
    assert np.array_equal(back, stack.limits.rescale(scan.values()))


def disc(radius: float, row: float, column: float, side: int = 512) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


WAY = SliceTransform.of(Geometry((512, 512, 1), np.diag([-1.0, -1.0, 1.0, 1.0])))


@settings(max_examples=50, deadline=None)
@given(radius=st.floats(8, 200), row=st.floats(210, 300), column=st.floats(210, 300))
def test_a_mask_resized_to_256_and_back_keeps_dice_098(radius, row, column):
    mask = disc(radius, row, column)
    there = WAY.to_model(mask.astype(np.float32), 0, background=0.0)
    assert dice(WAY.to_native(there, 0) > 0.5, mask) >= 0.98


def test_labels_shrunk_to_256_stay_where_they_are():
    # A label of 256 x 256 is a staircase: no single disc keeps 0.98 at 8 px. But none may drift.
    rng, shifts = np.random.default_rng(0), []
    for _ in range(30):
        mask = disc(rng.uniform(8, 20), *rng.uniform(30, 480, 2))
        there = WAY.labels_to_model(mask.astype(np.uint8), 0)
        back = WAY.to_native(there.astype(np.float32), 0) > 0.5
        shifts.append(np.subtract(ndimage.center_of_mass(back), ndimage.center_of_mass(mask)))
        assert dice(back, mask) > 0.9
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.1


def test_of_several_labels_the_one_that_covers_most_wins():
    labels = np.zeros((512, 512), np.uint16)
    labels[:, 256:] = 300
    labels[100:300, 100:256] = 7
    small = WAY.labels_to_model(labels, 0)
    assert small.dtype == np.uint16
    assert set(np.unique(small)) == {0, 7, 300}
    assert (small[:, 128:] == 300).all()
    assert (small[51:149, 51:128] == 7).all()


SIZES = [(64, 64, 1), (64, 64, 2), (1024, 1024, 1), (200, 90, 2), (90, 200, 2), (1, 50, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [*SIZES, (8, 6, 1000)])
def test_planes_of_every_size_go_through_predict(tmp_path, shape):
    affine = np.diag([-0.8, -0.8, 2.5, 1.0])
    scan = nib.Nifti1Image(noise(Geometry(shape, affine)).array, affine)
    nib.save(scan, tmp_path / "scan.nii.gz")
    report = predict_file(
        tmp_path / "scan.nii.gz",
        OutputPaths(tmp_path / "mask.nii.gz", probability=tmp_path / "prob.nii.gz"),
        StandIn(size=256),
        PredictOptions(sample=object()),
    )
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert (mask.shape, report.slices) == (shape, shape[2])
    assert 0 < report.foreground_voxels < np.prod(shape)
    assert np.array_equal(mask.affine, nib.load(tmp_path / "scan.nii.gz").affine)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sform=grids(),
    qform=grids(),
    codes=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    units=st.sampled_from([0, 1, 2, 3, 10, 18, 26]),
    scaling=st.sampled_from([(0, 0), (1, 0), (2.5, -1000), (np.nan, 0)]),
    axes=st.sampled_from([2, 3, 4]),
    kind=st.sampled_from([nib.Nifti1Header, nib.Nifti2Header]),
)
def test_a_nifti_mask_copies_the_header_bit_for_bit(
    tmp_path, sform, qform, codes, units, scaling, axes, kind
):
    shape = {2: sform.shape[:2], 3: sform.shape, 4: (*sform.shape, 1)}[axes]
    header = kind()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_qform(qform.affine, code=1)
    header.set_sform(sform.affine, code=1)
    header["qform_code"], header["sform_code"] = codes
    header["xyzt_units"] = units
    header["scl_slope"], header["scl_inter"] = scaling
    header["vox_offset"] = header.sizeof_hdr + 4
    voxels = np.arange(np.prod(shape), dtype=np.int16)
    (tmp_path / "scan.nii").write_bytes(header.binaryblock + bytes(4) + voxels.tobytes())
    scan = read_image(tmp_path / "scan.nii")
    slope, intercept = scaling if np.isfinite(scaling[0]) and scaling[0] else (1, 0)
    assert scan.values().max() == np.float32(slope * (len(voxels) - 1) + intercept)
    write_mask(tmp_path / "mask.nii", (scan.array % 2).astype(np.uint8), scan)
    content = (tmp_path / "mask.nii").read_bytes()
    mask = kind(content[: header.sizeof_hdr], check=False)
    for field in GRID_FIELDS:
        assert mask[field].tobytes() == header[field].tobytes(), field
    assert np.array_equal(np.frombuffer(content[-len(voxels) :], np.uint8), voxels % 2)


@pytest.mark.slow
def test_a_real_model_masks_permuted_and_flipped_copies_alike(tiny_run):
    predictor = lively(Predictor(tiny_run.run.path, device="cpu"))
    scan = read_image(tiny_run.scan)
    mask = predictor.predict(scan).mask()
    assert 0 < mask.mean() < 1
    for order, signs in itertools.islice(zip(ORDERS, reversed(SIGNS), strict=False), 6):
        copy = predictor.predict(restored(scan, order, signs)).mask()
        assert np.array_equal(copy, moved(mask, order, signs)), (order, signs)
