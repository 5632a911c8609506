"""Pictures in, masks as PNG out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdseg_cli.errors import DataError
from sdseg_cli.filenames import is_picture
from sdseg_cli.imaging.files import (
    check_writable,
    read_geometry,
    read_image,
    read_labels,
    write_mask,
    write_probability,
)
from sdseg_cli.imaging.intensity import Normalisation
from sdseg_cli.imaging.picture import Picture, read_picture
from sdseg_cli.imaging.slices import to_stack

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8)
GREY = np.array([[0, 63, 64], [128, 129, 255]], np.uint8)
ALL_COLOURS = Normalisation.for_modality("photograph")


def saved(path: Path, pixels: np.ndarray, **options) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".tif", ".tiff", ".bmp"])
def test_colours_come_in_as_they_are_stored(tmp_path, suffix):
    picture = read_image(saved(tmp_path / f"a{suffix}", COLOURS))
    assert isinstance(picture, Picture)
    assert (picture.array.shape, picture.array.dtype) == ((5, 7, 1, 3), np.uint8)
    assert np.array_equal(picture.array[:, :, 0], COLOURS)
    assert picture.geometry.shape == (5, 7, 1)
    assert picture.spacing_mm is None


def test_a_jpeg_comes_in_nearly_as_it_was(tmp_path):
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    picture = read_picture(saved(tmp_path / "a.jpg", flat, quality=95))
    assert np.abs(picture.array[:, :, 0].astype(int) - flat).max() <= 3


def test_grey_is_repeated_and_a_palette_looked_up(tmp_path):
    grey = read_picture(saved(tmp_path / "grey.png", GREY)).array[:, :, 0]
    assert np.array_equal(grey, np.repeat(GREY[:, :, None], 3, axis=2))
    image = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.save(tmp_path / "palette.png")
    found = read_picture(tmp_path / "palette.png").array[0, :, 0].tolist()
    assert found == [[10, 20, 30], [200, 100, 0]]


def test_transparency_lies_on_black(tmp_path):
    pixels = np.array([[[200, 100, 50, 255], [200, 100, 50, 0]]], np.uint8)
    found = read_picture(saved(tmp_path / "a.png", pixels)).array[0, :, 0].tolist()
    assert found == [[200, 100, 50], [0, 0, 0]]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_keep_their_high_byte_whatever_the_picture_holds(tmp_path, suffix):
    pixels = np.array([[0, 255, 256, 0x1234, 65535]], np.uint16)
    found = read_picture(saved(tmp_path / f"a{suffix}", pixels)).array[0, :, 0, 0].tolist()
    assert found == [0, 0, 1, 0x12, 255]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_exif_orientation_is_carried_out(tmp_path, suffix):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255  # left half white; 6 = turn by 90 degrees clockwise to show it
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / f"a{suffix}", pixels, exif=exif)
    picture = read_picture(path)
    assert picture.geometry.shape == (32, 16, 1)
    assert read_geometry(path).same_grid(picture.geometry)
    assert picture.array[:14].min() > 240  # the left half is now on top
    assert picture.array[18:].max() < 15


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp"])
def test_a_file_cut_short_is_refused_or_has_lost_nothing(tmp_path, suffix):
    pixels = RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = saved(tmp_path / f"a{suffix}", pixels)
    whole, content = read_picture(path).array, path.read_bytes()
    refused = 0
    for length in (0, 1, 10, len(content) // 3, len(content) * 2 // 3, len(content) - 40):
        path.write_bytes(content[:length])
        try:
            assert np.array_equal(read_picture(path).array, whole)
        except DataError as error:
            assert str(path) in error.message
            assert error.hint
            refused += 1
    assert refused >= 5


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_unpacked(tmp_path):
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    for read in (read_image, read_geometry, read_labels):
        with pytest.raises(DataError, match=r"bomb\.png: claims more than 89,478,485 pixels"):
            read(tmp_path / "bomb.png")


def test_several_pages_are_refused(tmp_path):
    pages = [Image.fromarray(GREY), Image.fromarray(GREY)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="2 pages") as caught:
        read_picture(tmp_path / "a.tif")
    assert "own file" in caught.value.hint


def test_what_is_no_picture_of_8_or_16_bits_is_refused(tmp_path):
    saved(tmp_path / "float.tif", GREY.astype(np.float32))
    with pytest.raises(DataError, match="32-bit"):
        read_picture(tmp_path / "float.tif")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=r"text\.png: cannot be read \(not a picture\)"):
        read_picture(tmp_path / "text.png")
    Image.fromarray(GREY).save(tmp_path / "gif.png", format="GIF")
    with pytest.raises(DataError, match="not a picture"):
        read_picture(tmp_path / "gif.png")


def test_a_png_mask_holds_labels_and_levels_say_otherwise(tmp_path):
    path = saved(tmp_path / "m.png", GREY)
    assert np.array_equal(read_labels(path).array[:, :, 0], GREY)
    above = read_labels(path, ((0, 0), (129, 1))).array[:, :, 0]
    assert above.tolist() == [[0, 0, 0], [0, 1, 1]]
    cup = read_labels(path, ((0, 1), (64, 2), (193, 0))).array[:, :, 0]
    assert cup.tolist() == [[1, 1, 2], [2, 2, 0]]


def test_a_jpeg_mask_is_foreground_above_128(tmp_path):
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8] = 255
    path = saved(tmp_path / "m.jpg", np.repeat(pixels[:, :, None], 3, axis=2), quality=60)
    assert len(np.unique(read_picture(path).array)) > 1
    assert np.array_equal(read_labels(path).array[:, :, 0], pixels // 255)


def test_a_colourful_palette_is_read_as_indices_and_a_grey_one_as_greys(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    image.save(tmp_path / "classes.png")
    assert read_labels(tmp_path / "classes.png").array.ravel().tolist() == [0, 1, 2]
    image.putpalette([0, 0, 0, 255, 255, 255, 7, 7, 7])
    image.save(tmp_path / "greys.png")
    assert read_labels(tmp_path / "greys.png").array.ravel().tolist() == [0, 255, 7]


def test_one_bit_and_sixteen_bit_masks(tmp_path):
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "bits.png")
    assert read_labels(tmp_path / "bits.png").array.ravel().tolist() == [0, 255]
    path = saved(tmp_path / "wide.png", np.array([[0, 300]], np.uint16))
    labels = read_labels(path).array
    assert (labels.dtype, labels.ravel().tolist()) == (np.uint16, [0, 300])


def test_a_mask_in_colours_is_refused(tmp_path):
    with pytest.raises(DataError, match="mask in colours"):
        read_labels(saved(tmp_path / "m.png", COLOURS))


def test_squares_are_value_over_127_5_minus_1_upright_and_padded(tmp_path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[0, 0] = (255, 51, 0)
    stack = to_stack(Picture.of(pixels), ALL_COLOURS, size=8)
    square = stack.pixels(0, 1)
    assert (square.shape, square.dtype) == ((1, 3, 8, 8), np.float32)
    # Two rows of padding above: the upper left pixel is at row 2.
    assert square[0, :, 2, 0] == pytest.approx([1, 51 / 127.5 - 1, -1], abs=1e-6)
    square[0, :, 2, 0] = -1
    assert (square == -1).all()


@pytest.mark.parametrize("shape", [(300, 200), (31, 64), (256, 256), (700, 1100)])
def test_a_mask_comes_back_onto_the_picture(shape):
    row, column = np.indices(shape)
    disc = np.hypot(row - shape[0] / 2 + 3, column - shape[1] / 2 - 5) < min(shape) / 4
    restore = to_stack(Picture.of(np.zeros((*shape, 3), np.uint8)), ALL_COLOURS).restore
    model = restore.labels_to_model(restore.canonical_plane(disc[:, :, None], 0), 0)
    back = np.zeros((*shape, 1), bool)
    restore.place(back, restore.to_native(model.astype(np.float32), 0) > 0.5, 0)
    assert 2 * (back[:, :, 0] & disc).sum() / (back.sum() + disc.sum()) > 0.98


def test_a_mask_goes_out_as_a_black_and_white_png(tmp_path):
    picture = Picture.of(COLOURS)
    mask = np.zeros((5, 7, 1), np.uint8)
    mask[1:3, 2:4] = 1
    write_mask(tmp_path / "new" / "m.png", mask, picture)
    with Image.open(tmp_path / "new" / "m.png") as image:
        assert (image.mode, image.size) == ("L", (7, 5))
        assert np.array_equal(np.array(image), mask[:, :, 0] * 255)
    assert np.array_equal(read_labels(tmp_path / "new" / "m.png").array != 0, mask != 0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["m.png"]


def test_a_probability_goes_out_as_grey(tmp_path):
    shares = np.array([[[0], [128], [255]]], np.uint8)
    write_probability(tmp_path / "p.png", shares, Picture.of(np.zeros((1, 3, 3), np.uint8)))
    with Image.open(tmp_path / "p.png") as image:
        assert np.array(image).tolist() == [[0, 128, 255]]


def test_a_picture_gets_a_png_and_a_volume_a_volume():
    check_writable(Path("m.png"), Path("a.jpg"))
    check_writable(Path("m.PNG"), Picture.of(COLOURS))
    check_writable(Path("m.nii.gz"), Path("a.nrrd"))
    for output, scan in (("m.nii.gz", "a.jpg"), ("m.jpg", "a.jpg"), ("m.png", "a.nii.gz")):
        with pytest.raises(DataError, match="cannot write") as caught:
            check_writable(Path(output), Path(scan))
        assert "End the name in" in caught.value.hint


def test_names_of_pictures():
    assert all(is_picture(Path(name)) for name in ("a.png", "a.b.JPG", "x.tiff"))
    assert not any(is_picture(Path(name)) for name in ("a.nii.gz", "png", "a.gif", "a.png.nii"))
