"""Pictures in, masks as PNG out."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdseg_cli.core.config import ABOVE_128
from sdseg_cli.core.errors import DataError, RunError
from sdseg_cli.core.filenames import is_picture
from sdseg_cli.imaging.intensity import Normalisation
from sdseg_cli.imaging.io.files import (
    check_writable,
    read_geometry,
    read_image,
    read_labels,
    write_mask,
    write_probability,
)
from sdseg_cli.imaging.io.picture import Picture, read_picture
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
            assert error.code == "damaged" or length <= 10
            refused += 1
    assert refused >= 5


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_unpacked(tmp_path):
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
    with pytest.raises(DataError, match=r"text\.png: cannot be read \(not a picture\)") as text:
        read_picture(tmp_path / "text.png")
    assert text.value.code == "kind"
    with pytest.raises(DataError) as missing:
        read_labels(tmp_path / "gone.png")
    assert missing.value.code == "missing"
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


def palette_mask(path: Path, indices: list[int], colours: list[int], **options) -> Path:
    """One row of indices with the palette of these colours."""
    image = Image.fromarray(np.array([indices], np.uint8), mode="P")
    image.putpalette(colours)
    image.save(path, **options)
    return path


def tiff(path: Path, row: np.ndarray, photometric: int, sample: int = 1, bits: int = 0) -> Path:
    """One row of grey values behind a header that says what they mean (262, 339, 258)."""
    data = row.tobytes()
    bits = bits or 8 * row.dtype.itemsize
    width = len(data) * 8 // bits
    numbers = ((256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 134),
               (277, 1), (278, 1), (279, len(data)), (339, sample))  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in numbers)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(numbers)) + entries + bytes(4)
    path.write_bytes(head + data)
    return path


def labels(path: Path, levels=None) -> list[int]:
    return read_labels(path, levels).array.ravel().tolist()


RED_BLACK = [255, 0, 0, 0, 0, 0]
CLASSES = [0, 0, 0, 128, 0, 0, 0, 128, 0]
CUP = ((0, 1), (64, 2), (193, 0))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_a_palette_that_does_not_begin_with_black_is_read_by_its_colours(tmp_path, suffix):
    path = palette_mask(tmp_path / f"m{suffix}", [0, 1, 1], RED_BLACK)
    assert labels(path) == [1, 0, 0]
    assert labels(path, ABOVE_128) == [1, 0, 0]
    white = palette_mask(tmp_path / f"w{suffix}", [0, 1, 1], [255, 255, 255, 0, 0, 0, 255, 0, 0])
    assert labels(white) == [255, 0, 0]  # the red is not used


def test_greys_of_a_data_set_are_looked_up_in_any_palette(tmp_path):
    one = palette_mask(tmp_path / "m.png", [0, 1, 1], CLASSES)
    assert labels(one) == [0, 1, 1]
    assert labels(one, ABOVE_128) == [0, 1, 1]  # 255 for the one colour
    with pytest.raises(DataError, match="in colours"):
        labels(palette_mask(tmp_path / "two.png", [0, 1, 2], CLASSES), ABOVE_128)
    with pytest.raises(DataError, match="in colours"):
        labels(one, CUP)
    mixed = [0, 0, 0, 255, 255, 255, 255, 0, 0, 128, 128, 128]  # the red is not used
    assert labels(palette_mask(tmp_path / "cup.bmp", [0, 1, 3], mixed), CUP) == [1, 0, 2]


@pytest.mark.parametrize(
    ("indices", "colours", "options", "says"),
    [
        ([0, 1, 2], [255, 255, 255, 128, 0, 0, 0, 128, 0], {}, "in colours"),
        ([0, 1, 2], [0, 0, 0, 255, 0, 0, 0, 0, 0], {}, r"\[0, 2\] all in black"),
        ([0, 1, 2], [0] * 9, {}, r"\[0, 1, 2\] all in black"),
        ([0, 1, 2], CLASSES, {"transparency": 1}, r"\[0, 1\] all in black"),
    ],
)
def test_a_palette_that_says_two_things_is_refused(tmp_path, indices, colours, options, says):
    path = palette_mask(tmp_path / "m.png", indices, colours, **options)
    with pytest.raises(DataError, match=says) as caught:
        labels(path)
    assert "Save it in grey" in caught.value.hint


def test_a_palette_whose_first_colour_is_transparent_begins_with_black(tmp_path):
    white = [255, 255, 255, 128, 0, 0, 0, 128, 0]
    path = palette_mask(tmp_path / "m.png", [0, 1, 2], white, transparency=0)
    assert labels(path) == [0, 1, 2]


def test_black_and_one_colour_are_background_and_foreground(tmp_path):
    red = np.array([[[255, 0, 0], [0, 0, 0], [255, 0, 0]]], np.uint8)
    path = saved(tmp_path / "m.png", red)
    assert labels(path) == [1, 0, 1]
    assert labels(path, ABOVE_128) == [1, 0, 1]
    with pytest.raises(DataError, match="in colours"):
        labels(saved(tmp_path / "all.png", red[:, ::2]))  # no background


def test_a_tiff_in_which_0_is_white_is_read_so(tmp_path):
    for row in (np.array([0, 255], "u1"), np.array([0, 65535], "<u2")):
        path = tiff(tmp_path / "m.tif", row, photometric=0)
        assert labels(path) == [int(row[1]), 0]
        assert labels(path, ABOVE_128) == [1, 0]
        assert read_picture(path).array[0, :, 0, 0].tolist() == [255, 0]
        classes = tiff(tmp_path / "c.tif", np.array([0, 1, 2], row.dtype), photometric=0)
        with pytest.raises(DataError, match="MinIsWhite"):
            labels(classes)
    bits = tiff(tmp_path / "b.tif", np.array([0b1000_0000], "u1"), photometric=0, bits=1)
    assert labels(bits) == [0, *[255] * 7]


def test_twelve_bits_are_scaled_by_their_own_white(tmp_path):
    path = tiff(tmp_path / "a.tif", np.array([0xFF, 0xF0, 0x00], "u1"), photometric=1, bits=12)
    assert read_picture(path).array[0, :, 0, 0].tolist() == [255, 0]
    assert (labels(path), labels(path, ABOVE_128)) == ([4095, 0], [1, 0])


@pytest.mark.parametrize(
    ("row", "sample"),
    [(np.array([0, 255], "u1"), 2), (np.array([0, 1], "<i2"), 2), (np.array([0, 1], "<u4"), 1)],
)
def test_signed_and_32_bit_numbers_are_refused(tmp_path, row, sample):
    path = tiff(tmp_path / "a.tif", row, photometric=1, sample=sample)
    for read in (read_picture, read_labels):
        with pytest.raises(DataError, match="32-bit or signed"):
            read(path)


@pytest.mark.parametrize(
    ("pixels", "options", "says"),
    [
        ([[0, 0, 0, 0], [0, 0, 0, 255]], {}, "transparency alone"),
        ([[1, 1, 1, 0], [2, 2, 2, 0]], {}, "transparency alone"),
        ([[2, 2, 2, 0], [1, 1, 1, 255], [0, 0, 0, 255]], {}, "transparent and others black"),
        ([[2, 2, 2, 128], [0, 0, 0, 255]], {}, "half transparent"),
    ],
)
def test_transparency_that_may_be_the_mask_is_refused(tmp_path, pixels, options, says):
    path = saved(tmp_path / "m.png", np.array([pixels], np.uint8), **options)
    with pytest.raises(DataError, match=says):
        labels(path)


def test_a_grey_value_that_is_transparent_is_refused_beside_black(tmp_path):
    for dtype in (np.uint8, np.uint16):
        path = saved(tmp_path / "m.png", np.array([[0, 1, 2]], dtype), transparency=2)
        with pytest.raises(DataError, match="transparent and others black"):
            labels(path)
    white = np.array([[[255, 255, 255, 0], [255, 255, 255, 255]]], np.uint8)
    assert labels(saved(tmp_path / "w.png", white)) == [0, 255]


def test_a_mask_without_levels_is_of_the_kind_its_name_says(tmp_path):
    saved(tmp_path / "m.png", GREY, format="JPEG")
    saved(tmp_path / "m.jpg", GREY, format="PNG")
    for name in ("m.png", "m.jpg"):
        with pytest.raises(DataError, match="file by its content"):
            labels(tmp_path / name)
    assert labels(tmp_path / "m.jpg", ABOVE_128) == [0, 0, 0, 0, 1, 1]


def test_a_picture_that_hides_all_it_holds_is_refused(tmp_path):
    path = saved(tmp_path / "a.png", np.array([[[9, 9, 9, 0], [200, 100, 50, 0]]], np.uint8))
    with pytest.raises(DataError, match="all transparent"):
        read_picture(path)
    with pytest.raises(DataError, match="palette is black"):
        read_picture(palette_mask(tmp_path / "p.png", [0, 1], [0] * 6))


def test_colours_that_are_not_read_are_named(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "rgb.tif")
    content = (tmp_path / "rgb.tif").read_bytes()
    place = content.index(struct.pack("<HHI", 262, 3, 1)) + 8
    for number, name in ((8, "LAB"), (6, "YCbCr")):  # YCbCr halves its colours unless it says so
        changed = content[:place] + struct.pack("<H", number) + content[place + 2 :]
        (tmp_path / "a.tif").write_bytes(changed)
        with pytest.raises(DataError, match=f"stored as {name}, which is not read"):
            read_picture(tmp_path / "a.tif")


def test_the_claim_is_told_before_anything_is_decoded(tmp_path, monkeypatch):
    told = []

    def on_header(geometry, pixel_bytes):
        told.append((geometry.shape, pixel_bytes))
        raise RunError("too large", "smaller")

    def decoded(*_):
        raise AssertionError("decoded")

    paths = [saved(tmp_path / f"a{end}", COLOURS) for end in (".png", ".jpg", ".tif", ".bmp")]
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(tmp_path / "turned.png", COLOURS, exif=exif).read_bytes()
    start = turned.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(turned[start : start + 4], "big")
    (tmp_path / "late.png").write_bytes(
        turned[:start] + turned[end:-12] + turned[start:end] + turned[-12:]
    )
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", decoded)
    assert [read_geometry(path).shape for path in paths] == [(5, 7, 1)] * 4
    assert read_geometry(tmp_path / "turned.png").shape == (7, 5, 1)
    assert read_geometry(tmp_path / "late.png").shape == (7, 5, 1)
    for path in paths:
        with pytest.raises(RunError, match="too large"):
            read_image(path, on_header=on_header)
    assert told == [((5, 7, 1), 3)] * 4


def test_a_picture_that_does_not_fit_into_memory_is_refused_before_it_is_decoded(
    tmp_path, monkeypatch
):
    path = saved(tmp_path / "wide.png", np.zeros((1, 60_000), np.uint8))
    monkeypatch.setattr("sdseg_cli.imaging.io.picture.available_bytes", lambda: 40_000_000_000)
    # 14 bytes for each of 60,000 pixels and 12 for each of the square around them.
    for read in (read_picture, read_labels):
        with pytest.raises(RunError, match=r"60000 x 1 pixels take 43\.20 GB .* 40\.00 GB are"):
            read(path)
    monkeypatch.setattr("sdseg_cli.imaging.io.picture.available_bytes", lambda: 44_000_000_000)
    assert read_picture(path).array.shape == (1, 60_000, 1, 3)


@pytest.mark.parametrize(("progressive", "frame"), [(False, b"\xff\xc0"), (True, b"\xff\xc2")])
def test_a_jpeg_that_claims_more_pixels_than_it_can_hold_is_refused(tmp_path, progressive, frame):
    how = {"progressive": progressive, "optimize": True}
    content = saved(tmp_path / "a.jpg", COLOURS, **how).read_bytes()
    place = content.index(frame) + 5
    size = struct.pack(">HH", 9000, 9000)
    (tmp_path / "a.jpg").write_bytes(content[:place] + size + content[place + 4 :])
    with pytest.raises(DataError, match="claims 9000 x 9000 pixels, more than the file can hold"):
        read_picture(tmp_path / "a.jpg")
    flat = saved(tmp_path / "flat.jpg", np.zeros((2000, 2000), np.uint8), **how)
    assert read_picture(flat).array.max() == 0


def test_what_the_library_of_tiffs_says_does_not_reach_the_terminal(tmp_path, capfd):
    path = saved(tmp_path / "a.tif", np.zeros((64, 64, 3), np.uint8), compression="tiff_deflate")
    content = path.read_bytes()
    path.write_bytes(content[:8] + bytes(12) + content[20:])
    for _ in range(2):
        with pytest.raises(DataError, match="cannot be read"):
            read_picture(path)
    assert capfd.readouterr() == ("", "")
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"
