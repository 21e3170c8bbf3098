"""Pillow, and all of it: a canvas in final pixels with smooth edges, fonts, and PNG or PDF files."""

from __future__ import annotations

import os
import secrets
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "SCALE",
    "Canvas",
    "Color",
    "Picture",
    "Point",
    "check_target",
    "fitting",
    "resized",
    "save_image",
    "shortened",
    "text_width",
    "wrapped",
]

Color = tuple[int, int, int]
Point = tuple[float, float]
Picture = Image.Image

SCALE = 2  # drawn at twice the size and reduced
_FORMATS = {".png": "PNG", ".pdf": "PDF"}
_SPELLED = str.maketrans("–—‘’“”", "--''\"\"")  # the font that comes with Pillow has ASCII and little more
_DOTS_PER_INCH = 220.0  # a page is about as wide as a sheet of paper


class Canvas:
    """A page that is drawn in final pixels and kept at twice the size."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), (255, 255, 255))
        self._draw = ImageDraw.Draw(self.image)

    def box(
        self, box: Sequence[float], fill: Color | None = None, line: Color | None = None, width: float = 1
    ) -> None:
        left, top, right, bottom = (round(value * SCALE) for value in box)
        if right > left and bottom > top:
            thick = max(1, round(width * SCALE))
            self._draw.rectangle((left, top, right - 1, bottom - 1), fill, line, thick if line else 0)

    def disc(
        self, center: Point, radius: float, fill: Color | None, line: Color | None = None, width: float = 1
    ) -> None:
        x, y = center
        box = tuple(value * SCALE for value in (x - radius, y - radius, x + radius, y + radius))
        self._draw.ellipse(box, fill, line, max(1, round(width * SCALE)) if line else 0)

    def pointer(self, tip: Point, size: float, fill: Color) -> None:
        """A triangle below its tip."""
        x, y = tip
        corners = ((x, y), (x - size, y + 1.5 * size), (x + size, y + 1.5 * size))
        self._draw.polygon([(a * SCALE, b * SCALE) for a, b in corners], fill)

    def text(self, at: Point, text: str, size: float, fill: Color, anchor: str = "ls") -> None:
        """By default `at` is where the base line begins."""
        self._draw.text((at[0] * SCALE, at[1] * SCALE), text, fill, _font(size), anchor)

    def paste(self, pixels: NDArray[np.uint8], x: int, y: int) -> None:
        """Pixels of the doubled size."""
        self.image.paste(Image.fromarray(pixels), (x * SCALE, y * SCALE))

    def finished(self, height: int) -> Picture:
        return self.image.crop((0, 0, self.image.width, height * SCALE)).reduce(SCALE)


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)


def text_width(text: str, size: float) -> float:
    return _font(size).getlength(text) / SCALE


def fitting(texts: Sequence[str], room: float, size: float) -> str:
    """The first that fits, else nothing."""
    return next((text for text in texts if text_width(text, size) <= room), "")


def shortened(text: str, room: float, size: float) -> str:
    """A text in the characters that the font has, its middle left out where it is too long."""
    parts = unicodedata.normalize("NFKD", text.translate(_SPELLED))
    plain = "".join(part for part in parts if not unicodedata.combining(part))
    plain = plain.encode("ascii", "replace").decode()
    shown, keep = plain, len(plain)
    while text_width(shown, size) > room and keep > 2:
        keep -= 1
        shown = f"{plain[: (keep + 1) // 2]}…{plain[-(keep // 2) :]}"
    return shown


def wrapped(parts: Sequence[str], room: float, size: float) -> list[str]:
    """Parts with commas between, as lines no wider than `room` where each part fits."""
    lines = [""]
    for number, part in enumerate(parts):
        text = f"{part}, " if number < len(parts) - 1 else part
        if lines[-1] and text_width(lines[-1] + text, size) > room:
            lines.append("")
        lines[-1] += text
    return lines


def resized(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """(H, W, 3) to (height, width, 3)."""
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def check_target(path: Path) -> None:
    """Raises UserError where no picture can be written under this name; before the work, not after it."""
    if path.suffix.lower() not in _FORMATS:
        raise UserError(
            f"{str(path)!r} must end in {' or '.join(_FORMATS)}, e.g. {path.stem or 'tokens'}.png"
        )
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:  # a name too long, or with a zero byte
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{str(path)!r} cannot be written: {why}; give another name with -o") from None
    if is_folder:
        raise UserError(f"{str(path)!r} is a folder; give the name of a file")
    folder = path.parent
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r} to write {path.name!r} to; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"the folder {str(folder)!r} cannot be written to; give another with -o")


def save_image(image: Picture, path: Path) -> None:
    """Write a picture under its name whole or not at all. Raises UserError where that fails."""
    check_target(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # no longer than a name that just fits
    try:
        with temporary.open("xb") as file:
            _encode(image, file, _FORMATS[path.suffix.lower()])
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _encode(image: Picture, file: BinaryIO, kind: str) -> None:
    if kind == "PNG":
        image.save(file, kind, optimize=True, dpi=(_DOTS_PER_INCH, _DOTS_PER_INCH))
    else:
        image.save(file, kind, resolution=_DOTS_PER_INCH, quality=95, subsampling=0)
