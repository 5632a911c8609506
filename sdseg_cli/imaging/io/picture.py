"""Pictures: photographs of one plane, without millimetres. Read with Pillow, masks out as PNG.

A picture is a scan of one plane that lies as it is looked at: rows run downwards, columns to the
right. So planes, squares and the way back are those of any scan.

What is read, and how:

    colours      8-bit RGB; grey is repeated, a palette looked up, CMYK and YCbCr converted
    transparency laid on black
    16 bits      the high byte: the full range 0..65535 becomes 0..255, whatever the picture holds;
                 of 12 bits likewise 0..4095
    orientation  EXIF's is carried out, so that a mask lies on the picture as it is shown
    masks        grey values as they are shown; black and one colour as 0 and 1; of a colourful
                 palette that begins with black the indices

What the format says its values mean decides, a TIFF in which 0 is white included. A file that says
two things at once, or what is not read here, is refused.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sdseg_cli.core.config import ABOVE_128
from sdseg_cli.core.errors import DataError, RunError, SdsegError
from sdseg_cli.core.filenames import JPEG_SUFFIXES
from sdseg_cli.core.files import replacing
from sdseg_cli.core.processes import available_bytes
from sdseg_cli.imaging.io.native import silenced
from sdseg_cli.imaging.volume import Array, Geometry, OnHeader, Volume

MaskLevels = tuple[tuple[int, int], ...]
"""(lowest grey, label), ascending from grey 0: ((0, 0), (129, 1)) reads "grey > 128 is label 1"."""

_GREY_WITHIN = 8
"""A grey picture saved as a colour JPEG has channels that differ by this much at most."""
_HELD_BYTES = 3
"""Of a pixel, as read."""
_DECODING_BYTES, _CONVERTED_BYTES = 14, 24
"""Per pixel, at most: what Pillow holds, the array, and what lies between; of pictures that have
transparency, or are stored as neither RGB nor 8-bit greys, more.
"""
_SQUARE_BYTES = 12
"""Per pixel of the square around it: a channel on its way to the model's plane."""
_UNASKED_BYTES = 50_000_000
"""So little is taken without asking the system what is free."""
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_EXIF_ORIENTATION = 0x0112
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _SUBSAMPLING = 258, 259, 262, 339, 530
"""Tags of a TIFF."""
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_SAVE_GREY = "Save it in grey: 0 background, 255 or class numbers."
_SAVE_PLAIN = "Save it in grey without transparency: 0 background, 255 or class numbers."
_AS_SEEN = np.array([[0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float64)
"""Rows run from front to back and columns from right to left, as in an axial slice on a screen."""


@dataclass(frozen=True, eq=False)
class Picture(Volume):
    """A picture, or a mask on one; `geometry` counts in pixels.

    Attributes:
        array: (H, W, 1, 3) uint8 colours, or (H, W, 1) uint8 or uint16 labels.
    """

    def __post_init__(self) -> None:
        if self.array.shape not in (self.geometry.shape, (*self.geometry.shape, 3)):
            raise ValueError(f"array is {self.array.shape}, geometry {self.geometry.shape}")

    @classmethod
    def of(cls, pixels: Array, source: Path | None = None) -> Picture:
        """A picture of (H, W, 3) colours or (H, W) labels."""
        return cls(pixels[:, :, None], pixel_grid(*pixels.shape[:2]), source=source)

    @property
    def spacing_mm(self) -> None:
        """A picture knows no millimetres."""
        return


def pixel_grid(height: int, width: int) -> Geometry:
    """The grid of a picture: one plane as it is looked at, a pixel being the unit of length."""
    return Geometry((height, width, 1), _AS_SEEN)


def read_picture(path: Path, on_header: OnHeader | None = None) -> Picture:
    """Read a picture in colour, the right way up.

    Raises:
        DataError: Damaged, cut short, too large, of several pages, or of numbers that are neither
            grey values nor colours.
        RunError: It does not fit into the memory that is free.
    """
    with _opened(path, on_header) as image:
        ImageOps.exif_transpose(image, in_place=True)
        upright: Image.Image = image
        if upright.mode in _SIXTEEN_BITS:
            upright = Image.fromarray((_sixteen_bits(image) >> 8).astype(np.uint8))
        _require_something_seen(upright, path)
        colours = _colours(upright)
    return Picture.of(colours, path)


def read_picture_geometry(path: Path) -> Geometry:
    """The size of a picture as it is shown, from its header alone; errors as of `read_picture`."""
    with _opened(path) as image:
        width, height = image.size
        if image.format == "PNG" and "exif" not in image.info:  # Pillow would decode it to look
            image.info["exif"] = _late_exif(path)
        # Pillow turns the size of a TIFF itself.
        if image.format != "TIFF" and image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8):
            width, height = height, width
    return pixel_grid(height, width)


def read_picture_labels(path: Path, levels: MaskLevels | None = None) -> Picture:
    """Read a mask as labels.

    Args:
        path: A picture.
        levels: What the grey values mean. When absent a JPEG is read by `ABOVE_128`, and any other
            mask's values are its labels.

    Returns:
        (H, W, 1) uint8, or uint16 for 16-bit labels.

    Raises:
        DataError: As for `read_picture`, or the mask is in colours.
    """
    return labels_of(read_picture_greys(path, levels), levels)


def read_picture_greys(path: Path, levels: MaskLevels | None = None) -> Picture:
    """The values of a mask before they are read as labels: (H, W, 1) uint8 or uint16.

    Args, and errors, as of `read_picture_labels`; levels are of greys, so a palette's indices are
    none.
    """
    with _opened(path) as image:
        _check_mask_kind(image, path, levels)
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in _SIXTEEN_BITS:
            greys = _sixteen_bit_greys(image, path, levels)
        else:
            greys = _grey(image, path, levels)
        if (
            levels is None
            and _white_is_zero(image)
            and not np.isin(greys, (0, np.iinfo(greys.dtype).max)).all()
        ):
            raise DataError(
                f"{path}: white is stored as 0 (MinIsWhite), so its {greys.min()} to "
                f"{greys.max()} are greys and no labels.",
                "Save it with black as 0 (MinIsBlack): 0 background, 255 or class numbers.",
                "values",
            )
    return Picture.of(greys, path)


def labels_of(greys: Picture, levels: MaskLevels | None) -> Picture:
    """Labels from the values of a mask, as `read_picture_labels` returns them."""
    levels = levels_of(greys, levels)
    if levels is None:
        return greys
    values = greys.array if greys.array.dtype == np.uint8 else (greys.array >> 8).astype(np.uint8)
    label_of = np.zeros(256, np.uint8)
    for lowest, label in levels:
        label_of[lowest:] = label
    return replace(greys, array=label_of[values])


def levels_of(greys: Picture, levels: MaskLevels | None) -> MaskLevels | None:
    """The levels a mask is read by: those given, or, for a JPEG, `ABOVE_128`."""
    is_jpeg = greys.name.lower().endswith(JPEG_SUFFIXES)
    return ABOVE_128 if levels is None and is_jpeg else levels


def write_png(path: Path, pixels: Array) -> None:
    """Write a (H, W, 1) uint8 or uint16 array as a grey PNG of 8 or 16 bits, atomically; the same
    pixels, the same bytes.
    """
    with replacing(path) as temporary:
        Image.fromarray(pixels[:, :, 0]).save(temporary, format="PNG")


def _late_exif(path: Path) -> bytes:
    """The EXIF of a PNG that stands behind its pixels; empty where there is none."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return b"Exif\0\0" + file.read(length)
            file.seek(length + 4, os.SEEK_CUR)
    return b""


def _sixteen_bits(image: Image.Image) -> NDArray[np.uint16]:
    """(H, W): 0 black, 65535 white, whatever the file stores."""
    stored = np.array(image, np.uint16)
    stored <<= 16 - int(_tags(image).get(_BITS, (16,))[0])
    return np.invert(stored) if _white_is_zero(image) else stored


def _tags(image: Image.Image) -> dict[int, Any]:
    """Tags of a TIFF; none for other pictures."""
    return getattr(image, "tag_v2", {})


def _white_is_zero(image: Image.Image) -> bool:
    return _tags(image).get(_PHOTOMETRIC) == 0


def _sixteen_bit_greys(image: Image.Image, path: Path, levels: MaskLevels | None) -> Array:
    """(H, W) uint16: as shown by levels, which are of the full range; else as stored."""
    if levels is not None or _white_is_zero(image):
        return _sixteen_bits(image)
    stored = np.array(image, np.uint16)
    hidden = image.info.get("transparency")
    if isinstance(hidden, int) and hidden and (stored == hidden).any():
        raise _hidden_values(path)
    return stored


def _grey(image: Image.Image, path: Path, levels: MaskLevels | None) -> Array:
    """(H, W) uint8: the one channel of a mask."""
    if image.mode == "P":
        indices, shown = np.array(image), _palette_on_black(image)
        used = np.flatnonzero(np.bincount(indices.ravel(), minlength=len(shown)))
        if used[-1] >= len(shown):
            raise DataError(
                f"{path}: holds value {used[-1]}, and its palette ends at {len(shown) - 1}.",
                _SAVE_GREY,
                "values",
            )
        black = shown.max(axis=1) == 0
        if black[0] and any(black[used[used > 0]]):
            raise DataError(
                f"{path}: its palette shows {used[black[used]].tolist()} all in black, so which "
                "are background is not known.",
                _SAVE_GREY,
                "values",
            )
        begins_black = bool(shown[0].max() <= _GREY_WITHIN)
        if levels is None and begins_black and np.ptp(shown, axis=1).any():
            return indices
        return _one_channel(shown[indices], path, levels)
    if image.mode == "1":
        return np.array(image.convert("L"))
    if image.has_transparency_data:
        _check_transparency(np.array(image.convert("RGBA")), path)
    return _one_channel(_colours(image), path, levels)


def _palette_on_black(image: Image.Image) -> NDArray[np.uint8]:
    """(N, 3): the colours of a palette, what is see-through in them black."""
    colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    clear = image.info.get("transparency")
    opaque = np.full(len(colours), 255, np.uint16)
    if isinstance(clear, bytes):
        count = min(len(clear), len(opaque))
        opaque[:count] = np.frombuffer(clear, np.uint8)[:count]
    elif isinstance(clear, int) and clear < len(opaque):
        opaque[clear] = 0
    return (colours * opaque[:, None] // 255).astype(np.uint8)


def _one_channel(colours: NDArray[np.uint8], path: Path, levels: MaskLevels | None) -> Array:
    """(H, W) of (H, W, 3): its greys, or black and one colour as 0 and 1 (255 with levels)."""
    green = colours[..., 1]
    coloured = np.zeros(green.shape, bool)
    for other in (0, 2):
        coloured |= np.abs(green.astype(np.int16) - colours[..., other]) > _GREY_WITHIN
    if not coloured.any():
        return np.ascontiguousarray(green)
    black = colours.max(axis=-1) <= _GREY_WITHIN
    one = colours[~black]
    if (one == one[0]).all() and black.any() and len(levels or ()) < 3:
        return np.where(black, 0, 1 if levels is None else 255).astype(np.uint8)
    raise DataError(
        f"{path}: a mask in colours says no labels.",
        "Save it in grey (0 background, 255 or class numbers), or with a palette whose index 0 is "
        "black, the background, and whose other indices are the classes.",
        "values",
    )


def _check_transparency(pixels: NDArray[np.uint8], path: Path) -> None:
    """Refuse a mask, (H, W, 4), that means one thing on black and another thing elsewhere."""
    opaque, bright = pixels[..., 3], pixels[..., :3].max(axis=-1)
    clear = opaque == 0
    nothing_seen = not ((bright > 0) & ~clear).any()
    varies = bool(np.ptp(opaque) or np.ptp(bright[clear] if clear.any() else 0))
    if (clear & (bright > 0)).any() and ((opaque == 255) & (bright == 0)).any():
        raise _hidden_values(path)
    if nothing_seen and varies:
        raise DataError(
            f"{path}: its shape lies in the transparency alone, in which nothing says what is "
            "foreground.",
            _SAVE_PLAIN,
            "values",
        )
    if (~clear & (opaque < 255) & (bright > 0) & (bright < 255)).any():
        raise DataError(
            f"{path}: labels that are half transparent are no labels.",
            _SAVE_PLAIN,
            "values",
        )


def _hidden_values(path: Path) -> DataError:
    return DataError(
        f"{path}: some values are transparent and others black; which are background is not known.",
        _SAVE_PLAIN,
        "values",
    )


def _require_something_seen(image: Image.Image, path: Path) -> None:
    """Refuse a picture whose transparency or palette hides all that it holds."""
    if image.mode == "P" and not _palette_on_black(image).any():
        hidden = len(np.unique(np.asarray(image))) > 1
    elif image.mode == "RGBA":
        bands = np.asarray(image)
        hidden = not bands[..., 3].any() and bool(bands.any())
    else:
        return
    if hidden:
        kind = "palette is black" if image.mode == "P" else "pixels are all transparent"
        raise DataError(
            f"{path}: its {kind}, so nothing of it is seen.",
            "Save it without transparency, in colour or grey.",
            "values",
        )


def _colours(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W, 3): what is see-through shows black."""
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


@contextmanager
def _opened(path: Path, on_header: OnHeader | None = None) -> Iterator[Image.Image]:
    """A picture not decoded yet; what Pillow finds wrong, also in the block, becomes ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow says of odd tags
            # Pillow's own limit, about 89 million pixels, as an error before memory is taken.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                _check_kind(image, path)
                _require_room(path, image, on_header)
                # What libtiff prints of a packed TIFF is raised as well.
                packed = image.format == "TIFF" and image.info.get("compression") != "raw"
                with silenced() if packed else nullcontext():
                    yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: claims more than {Image.MAX_IMAGE_PIXELS:,} pixels.",
            "Cut it into tiles, or make it smaller.",
            "dimensions",
        ) from error
    except SdsegError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.", "Check the path.", "missing") from error
    except Exception as error:  # Pillow's decoders raise many kinds on arbitrary bytes
        strange = isinstance(error, UnidentifiedImageError)
        reason = "not a picture" if strange else error
        raise DataError(
            f"{path}: cannot be read ({reason}).",
            "Copy or export it again: a whole PNG, JPEG, TIFF or BMP file.",
            "kind" if strange else "damaged",
        ) from error


def _check_kind(image: Image.Image, path: Path) -> None:
    # In a JPEG a block of 8 x 8 pixels takes 2 bits at least, in one of several passes 1; what is
    # not there would be made up.
    per_byte = 512 if "progressive" in image.info else 256
    least = image.width * image.height // per_byte if image.format in ("JPEG", "MPO") else 0
    if path.stat().st_size < least:
        raise DataError(
            f"{path}: its header claims {image.width} x {image.height} pixels, more than the file "
            "can hold.",
            "Copy or export it again.",
            "damaged",
        )
    if image.format in ("PNG", "TIFF") and getattr(image, "n_frames", 1) > 1:
        raise DataError(
            f"{path}: holds {getattr(image, 'n_frames', 1)} pages, not one picture.",
            "Save each page as its own file, for example with ImageMagick: convert in.tif p%d.png.",
            "dimensions",
        )
    tags = _tags(image)
    if image.mode in ("I", "F") or any(kind not in (1, 4) for kind in tags.get(_SAMPLES, ())):
        raise DataError(
            f"{path}: holds 32-bit or signed numbers, not grey values or colours.",
            "Save it with 8 or 16 bits a channel, or as a volume (NIfTI).",
            "values",
        )
    raw_halved = tags.get(_PHOTOMETRIC) == 6 and tags.get(_COMPRESSION, 1) == 1
    if image.mode in ("LAB", "HSV") or (raw_halved and tags.get(_SUBSAMPLING, (2, 2)) != (1, 1)):
        raise DataError(
            f"{path}: its colours are stored as {image.mode}, which is not read.",
            "Save it with RGB colours or in grey, as PNG for example.",
            "values",
        )


def _check_mask_kind(image: Image.Image, path: Path, levels: MaskLevels | None) -> None:
    """Refuse a mask whose values could only be guessed at, by its header."""
    stored = str([tile.args for tile in getattr(image, "tile", ())])
    if ";16" in stored and image.mode not in _SIXTEEN_BITS:
        raise DataError(
            f"{path}: a mask of 16-bit colours or with 16-bit transparency says no labels.",
            _SAVE_PLAIN,
            "values",
        )
    named = path.name.lower().endswith(JPEG_SUFFIXES)
    if levels is None and named != (image.format in ("JPEG", "MPO")):
        raise DataError(
            f"{path}: is a {image.format} file by its content, and masks are read otherwise in "
            "JPEG.",
            "Give it the suffix of what it is.",
            "kind",
        )


def _require_room(path: Path, image: Image.Image, on_header: OnHeader | None) -> None:
    """Refuse a picture that cannot be held, before it is decoded."""
    columns, rows = image.size
    if on_header is not None:  # what is held; decoding takes less than the plane's way to the model
        on_header(pixel_grid(rows, columns), _HELD_BYTES)
        return
    plain = image.mode in ("RGB", "L", "P", "1") and not image.has_transparency_data
    pixel_bytes = _DECODING_BYTES if plain else _CONVERTED_BYTES
    need = rows * columns * pixel_bytes + max(rows, columns) ** 2 * _SQUARE_BYTES
    if need <= _UNASKED_BYTES:
        return
    free = available_bytes()
    if need > free:
        raise RunError(
            f"{path}: {columns} x {rows} pixels take {need / 1e9:.2f} GB of memory, and "
            f"{free / 1e9:.2f} GB are free.",
            "Make it smaller or cut it into tiles, end other programs, or use fewer --workers.",
        )
