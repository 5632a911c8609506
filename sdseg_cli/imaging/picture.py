"""Pictures: photographs of one plane, without millimetres. Read with Pillow, masks out as PNG.

A picture is a scan of one plane that lies as it is looked at: rows run downwards, columns to the
right. So planes, squares and the way back are those of any scan.

What is read, and how:

    colours      8-bit RGB; grey is repeated, a palette looked up, CMYK converted
    transparency laid on black
    16 bits      the high byte: the full range 0..65535 becomes 0..255, whatever the picture holds
    orientation  EXIF's is carried out, so that a mask lies on the picture as it is shown
    masks        grey values as they are; of a colourful palette the indices
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sdseg_cli.atomic import replacing
from sdseg_cli.config import ABOVE_128
from sdseg_cli.errors import DataError, SdsegError
from sdseg_cli.filenames import JPEG_SUFFIXES
from sdseg_cli.imaging.volume import Array, Geometry, Volume

MaskLevels = tuple[tuple[int, int], ...]
"""(lowest grey, label), ascending from grey 0: ((0, 0), (129, 1)) reads "grey > 128 is label 1"."""

_GREY_WITHIN = 8
"""A grey picture saved as a colour JPEG has channels that differ by this much at most."""
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_EXIF_ORIENTATION = 0x0112
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
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


def read_picture(path: Path) -> Picture:
    """Read a picture in colour, the right way up.

    Args:
        path: A PNG, JPEG, TIFF or BMP file.

    Raises:
        DataError: Damaged, cut short, too large, of several pages, or of 32-bit numbers.
    """
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in _SIXTEEN_BITS:
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        colours = np.array(_on_black(upright).convert("RGB"))
    return Picture.of(colours, path)


def read_picture_geometry(path: Path) -> Geometry:
    """The size of a picture as it is shown, from its header alone.

    Raises:
        DataError: As for `read_picture`, as far as the header tells.
    """
    with _opened(path) as image:
        width, height = image.size
        # Pillow turns the size of a TIFF itself.
        if image.format != "TIFF" and image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8):
            width, height = height, width
    return pixel_grid(height, width)


def read_picture_labels(path: Path, levels: MaskLevels | None = None) -> Picture:
    """Read a mask as labels.

    Args:
        path: As for `read_picture`.
        levels: What the grey values mean. When absent a JPEG is read by `ABOVE_128`, and any other
            mask's values are its labels.

    Returns:
        (H, W, 1) uint8, or uint16 for 16-bit labels.

    Raises:
        DataError: As for `read_picture`, or the mask is in colours.
    """
    return labels_of(read_picture_greys(path), levels)


def read_picture_greys(path: Path) -> Picture:
    """The values of a mask before they are read as labels: (H, W, 1) uint8 or uint16.

    Raises:
        DataError: As for `read_picture_labels`.
    """
    with _opened(path) as image:
        return Picture.of(_grey(ImageOps.exif_transpose(image), path), path)


def labels_of(greys: Picture, levels: MaskLevels | None) -> Picture:
    """What `read_picture_labels` makes of the values of a mask."""
    levels = levels_of(greys, levels)
    if levels is None:
        return greys
    values = greys.array if greys.array.dtype == np.uint8 else (greys.array >> 8).astype(np.uint8)
    return replace(greys, array=_table(levels)[values])


def levels_of(greys: Picture, levels: MaskLevels | None) -> MaskLevels | None:
    """The levels a mask is read by: those given, or, for a JPEG, `ABOVE_128`."""
    is_jpeg = greys.name.lower().endswith(JPEG_SUFFIXES)
    return ABOVE_128 if levels is None and is_jpeg else levels


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a (H, W, 1) uint8 array as a grey PNG, atomically; the same pixels, the same bytes.

    Raises:
        RunError: The disk refused.
    """
    with replacing(path) as temporary:
        Image.fromarray(pixels[:, :, 0]).save(temporary, format="PNG")


def _table(levels: MaskLevels) -> NDArray[np.uint8]:
    """(256,) grey value -> label."""
    table = np.zeros(256, np.uint8)
    for lowest, label in levels:
        table[lowest:] = label
    return table


def _grey(image: Image.Image, path: Path) -> Array:
    """(H, W) uint8 or uint16: the one channel of a mask."""
    if image.mode in _SIXTEEN_BITS:
        return np.array(image, np.uint16)
    if image.mode == "P":
        palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        if np.ptp(palette, axis=1).any():
            return np.array(image)
    if image.mode == "1":
        return np.array(image.convert("L"))
    red, green, blue = (np.array(band) for band in _on_black(image).convert("RGB").split())
    for other in (red, blue):
        if np.abs(green.astype(np.int16) - other).max() > _GREY_WITHIN:
            raise DataError(
                f"{path}: a mask in colours says no labels.",
                "Save it in grey (0 background, 255 or class numbers), or with a palette.",
                "values",
            )
    return green


def _on_black(image: Image.Image) -> Image.Image:
    """Without transparency: what is see-through shows black."""
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An opened picture; whatever Pillow finds wrong, also within the block, becomes ours."""
    try:
        with warnings.catch_warnings():
            # Pillow's own limit, about 89 million pixels, as an error before memory is taken.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                _check_kind(image, path)
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
    if image.format in ("PNG", "TIFF") and getattr(image, "n_frames", 1) > 1:
        raise DataError(
            f"{path}: holds {getattr(image, 'n_frames', 1)} pages, not one picture.",
            "Save each page as its own file, for example with ImageMagick: convert in.tif p%d.png.",
            "dimensions",
        )
    if image.mode in ("I", "F"):
        raise DataError(
            f"{path}: holds 32-bit numbers, not grey values or colours.",
            "Save it with 8 or 16 bits a channel, or as a volume (NIfTI).",
            "values",
        )
