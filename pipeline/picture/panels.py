"""The panels of a picture of tokens: one frame each, its tokens tinted and marked by what became of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.picture.drawing import SCALE, Canvas, Color, resized
from pipeline.picture.figure import Box, Figure, Page

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CHOSEN", "GROUPS", "LEAST_NUMBERED", "PAPER", "PanelPainter", "draw_place", "draw_root", "tinted"]

PAPER: Color = (255, 255, 255)
CHOSEN: Color = (214, 15, 60)
_THICK_LINES, LEAST_NUMBERED, _LARGEST_MARK = 12, 22, 32  # pixels of a cell
# far apart for neighbours, none of them near CHOSEN
GROUPS: tuple[Color, ...] = (
    (31, 119, 180),
    (255, 158, 27),
    (44, 160, 44),
    (148, 103, 189),
    (23, 190, 207),
    (140, 86, 75),
    (244, 211, 94),
    (227, 119, 194),
    (11, 122, 117),
    (67, 97, 238),
    (124, 181, 24),
    (94, 84, 142),
    (199, 125, 10),
    (87, 117, 144),
)


class PanelPainter:
    """Paints the panels of one figure: pale, tinted by group, chosen tokens in full."""

    def __init__(self, figure: Figure, page: Page) -> None:
        self._figure, self._page, self._tokens = figure, page, figure.tokens
        self._colors = self._tokens.colors(len(GROUPS))
        self._largest = int(self._tokens.sizes.max())
        self._line = min(3.0, max(1.0, page.cell / 11))

    def draw(self, canvas: Canvas, number: int) -> None:
        unit, panel = self._figure.drawn[number], self._page.panel(number)
        canvas.paste(self._tinted(number, unit), panel.left, panel.top)
        marked = (self._tokens.chosen | self._tokens.is_root | self._tokens.is_place)[unit]
        for row, column in np.argwhere(marked).tolist():
            self._mark(canvas, (unit, row, column), self._page.cell_box(number, row, column))

    def _tinted(self, number: int, unit: int) -> NDArray[np.uint8]:
        """The frame at twice the panel's size."""
        side = self._page.cell * SCALE
        picture = resized(
            self._figure.pictures[number], self._page.panel_width * SCALE, self._page.panel_height * SCALE
        )
        group = self._tokens.group[unit]
        colors = np.asarray(GROUPS, np.float64)[self._colors[group]]
        colors[group < 0] = PAPER
        mixed = tinted(picture, _spread(colors, side))
        mixed[_borders(_spread(group, side), thin=self._page.cell < _THICK_LINES)] = 255
        whole = _spread(self._tokens.chosen[unit], side)[..., None]
        return np.asarray(np.where(whole, picture, mixed.round()), np.uint8)

    def _mark(self, canvas: Canvas, token: tuple[int, int, int], box: Box) -> None:
        if self._tokens.chosen[token]:
            canvas.box(box, None, CHOSEN, self._line)
            return
        group = int(self._tokens.group[token])
        color = GROUPS[self._colors[group]]
        if self._tokens.is_place[token]:
            numbered = self._page.cell >= LEAST_NUMBERED
            size = int(self._tokens.sizes[group])
            draw_place(canvas, box, color, size, largest=self._largest, numbered=numbered)
        else:
            draw_root(canvas, box, color)


def tinted(picture: NDArray[Any], colors: NDArray[np.float64]) -> NDArray[np.float64]:
    """A picture (H, W, 3) made grey and pale, in the tone of one colour per pixel."""
    light = 0.6 + 0.4 * picture.mean(axis=2, keepdims=True) / 255
    return np.asarray(255 - (1 - 0.45 * light) * (255 - colors * light))


def draw_place(canvas: Canvas, box: Box, color: Color, size: int, *, largest: int, numbered: bool) -> None:
    """A disc with the number of tokens, or without numbers one that is larger for more of them."""
    side = min(box.right - box.left, _LARGEST_MARK)
    center = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    radius = 0.44 * side if numbered else side * (0.2 + 0.28 * (size / largest) ** 0.5)
    canvas.disc(center, radius, _darker(color), PAPER, max(0.5, side / 24))
    if numbered:
        text = str(size)
        canvas.text(center, text, side * min(0.5, 1.25 / max(2, len(text))), PAPER, "mm")


def draw_root(canvas: Canvas, box: Box, color: Color) -> None:
    side = min(box.right - box.left, _LARGEST_MARK)
    center = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    canvas.disc(center, 0.2 * side, None, _darker(color), max(0.75, side / 18))


def _darker(color: Color) -> Color:
    red, green, blue = (round(0.62 * value) for value in color)
    return red, green, blue


def _spread(cells: NDArray[Any], side: int) -> NDArray[Any]:
    return cells.repeat(side, axis=0).repeat(side, axis=1)


def _borders(group: NDArray[Any], *, thin: bool) -> NDArray[np.bool_]:
    """Pixels beside another group; of two such the second only where lines are to be thin."""
    found = np.zeros(group.shape, np.bool_)
    across, down = group[:, 1:] != group[:, :-1], group[1:] != group[:-1]
    found[:, 1:] |= across
    found[1:] |= down
    if not thin:
        found[:, :-1] |= across
        found[:-1] |= down
    return found
