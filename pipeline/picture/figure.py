"""What a picture of tokens says and where it says it: texts, units drawn, geometry. Draws nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.picture.token_map import TokenMap

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Box", "Figure", "Page", "Run", "even_units", "lay_out", "seconds_text"]

MARGIN = 40
GAP = 14  # between panels; a segment border is drawn in it
LABEL_HEIGHT = 30  # above a row of panels: the segment's time range
CAPTION_HEIGHT = 30  # below: the unit's time
_GRID_WIDTH = 1520
_MIN_WIDTH = 1280
_MIN_CELL, _MIN_PANEL, _MAX_PANEL = 8, 130, 500
_MOST_COLUMNS = 10


class Box(NamedTuple):
    """Pixels, half-open: left <= x < right, top <= y < bottom."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Figure:
    """Everything that one picture shows.

    drawn: the units that get a panel, increasing. pictures: uint8 (len(drawn), H, W, 3), a frame of each.
    unit_seconds: when each of the T units begins; the last one ends at end_seconds.
    """

    tokens: TokenMap
    drawn: tuple[int, ...]
    pictures: NDArray[np.uint8]
    unit_seconds: tuple[float, ...]
    end_seconds: float
    title: str
    source: str
    settings: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.drawn) != len(self.pictures) or not self.drawn:
            raise ValueError(f"{len(self.drawn)} units and {len(self.pictures)} pictures; need one for each")
        if len(self.unit_seconds) != self.tokens.num_units:
            raise ValueError(f"{len(self.unit_seconds)} times for {self.tokens.num_units} units")

    @property
    def headline(self) -> str:
        kept, total = self.tokens.num_kept, self.tokens.num_tokens
        return f"{kept} of {total} visual tokens, {100 * kept / total:.3g} %"

    @property
    def account(self) -> dict[str, str]:
        """The sum that has to close, in words: every token is one of these."""
        tokens = self.tokens
        parts = {"chosen": f"{tokens.num_chosen} chosen, kept as they are"}
        if tokens.num_merged:
            parts["merged"] = f"{tokens.num_merged} merged"
            parts["absorbed"] = (
                f"{tokens.num_absorbed} absorbed by them ({tokens.num_trees} trees grown along time, "
                f"clustered into {tokens.num_merged})"
            )
        if tokens.num_dropped:
            parts["dropped"] = (
                f"{tokens.num_dropped} dropped: these settings leave no places for merged tokens"
            )
        return parts

    @property
    def units_note(self) -> str:
        """How many units have a panel."""
        total, drawn = self.tokens.num_units, len(self.drawn)
        if drawn == total:
            return f"Below: all {total} units." if total > 1 else "Below: the only unit."
        left = total - drawn
        verb = "is" if left == 1 else "are"
        return f"Below: {drawn} of {total} units, evenly chosen; {left} {verb} left out."

    def segment_seconds(self, segment: int) -> tuple[float, float]:
        """When a segment begins and ends."""
        first = sum(self.tokens.segment_lengths[:segment])
        after = first + self.tokens.segment_lengths[segment]
        end = self.unit_seconds[after] if after < self.tokens.num_units else self.end_seconds
        return self.unit_seconds[first], end

    def time_text(self, seconds: float, *, unit: str = " s") -> str:
        """Seconds, in hundredths where the video lasts less than ten of them."""
        return seconds_text(seconds, unit=unit, decimals=2 if self.end_seconds < 10 else 1)

    def segment_texts(self, segment: int, *, continued: bool = False) -> tuple[str, ...]:
        """A segment's label, the longest first, to take the first that fits."""
        start, end = self.segment_seconds(segment)
        name = f"Segment {segment + 1}"
        if continued:
            return f"{name}, continued", f"{segment + 1}, continued", f"{segment + 1} …", ""
        ranged = f"{self.time_text(start, unit='')} to {self.time_text(end)}"
        before, after = self.segment_counts(segment)
        return (
            f"{name}   {ranged}   {after} of {before} tokens kept",
            f"{name}   {ranged}   {after} of {before}",
            f"{name}   {ranged}",
            f"{segment + 1}   {ranged}",
            f"{segment + 1}",
            "",
        )

    def segment_counts(self, segment: int) -> tuple[int, int]:
        """Tokens of a segment before and after."""
        per_unit = self.tokens.chosen[0].size
        first = sum(self.tokens.segment_lengths[:segment])
        after = first + self.tokens.segment_lengths[segment]
        units = self.tokens.kept // per_unit
        return (after - first) * per_unit, int(((units >= first) & (units < after)).sum())


@dataclass(frozen=True)
class Run:
    """Panels first..last (inclusive, numbers within the drawn ones) of one segment in one row."""

    segment: int
    first: int
    last: int
    continued: bool


@dataclass(frozen=True)
class Page:
    """Where the panels are: `cell` pixels per token, `columns` panels per row, the first row at `top`."""

    rows: int
    cols: int
    num_panels: int
    cell: int
    columns: int
    top: int

    @property
    def width(self) -> int:
        return max(_MIN_WIDTH, self.columns * (self.panel_width + GAP) - GAP) + 2 * MARGIN

    @property
    def panel_width(self) -> int:
        return self.cell * self.cols

    @property
    def panel_height(self) -> int:
        return self.cell * self.rows

    @property
    def bottom(self) -> int:
        """Where the last row ends, its captions included."""
        return self.top + math.ceil(self.num_panels / self.columns) * self._row_height

    @property
    def _row_height(self) -> int:
        return LABEL_HEIGHT + self.panel_height + CAPTION_HEIGHT + GAP // 2

    def panel(self, number: int) -> Box:
        """The picture of a drawn unit."""
        row, column = divmod(number, self.columns)
        left = MARGIN + column * (self.panel_width + GAP)
        top = self.top + row * self._row_height + LABEL_HEIGHT
        return Box(left, top, left + self.panel_width, top + self.panel_height)

    def cell_box(self, number: int, row: int, column: int) -> Box:
        """One token of a drawn unit."""
        panel = self.panel(number)
        left, top = panel.left + column * self.cell, panel.top + row * self.cell
        return Box(left, top, left + self.cell, top + self.cell)

    def runs(self, segments: tuple[int, ...]) -> list[Run]:
        """Panels in one segment and one row belong together; `segments` has the segment of each panel."""
        found: list[Run] = []
        for number, segment in enumerate(segments):
            continued = number > 0 and segments[number - 1] == segment
            if continued and number % self.columns:
                last = found.pop()
                found.append(Run(segment, last.first, number, last.continued))
            else:
                found.append(Run(segment, number, number, continued))
        return found


def lay_out(num_panels: int, rows: int, cols: int, *, top: int) -> Page:
    """The fewest panels per row, so the largest, that keep the grid's height within two thirds of its width.

    rows, cols: cells of a unit. Cells are whole pixels, at least 8 of them where a panel may be that large.
    """
    widest = max(_MIN_PANEL, _MIN_CELL * cols)
    most = max(1, min(num_panels, _MOST_COLUMNS, (_GRID_WIDTH + GAP) // (widest + GAP)))
    fewest = min(most, math.ceil((_GRID_WIDTH + GAP) / (_MAX_PANEL + GAP)))
    for columns in range(fewest, most + 1):
        room = (_GRID_WIDTH + GAP) // columns - GAP
        cell = max(2, min(room, _MAX_PANEL) // cols)
        cell = max(2, min(cell, _MAX_PANEL // rows))
        page = Page(rows, cols, num_panels, cell, columns, top)
        if page.bottom - top <= 2 * _GRID_WIDTH // 3:
            break
    return page


def even_units(num_units: int, wanted: int) -> tuple[int, ...]:
    """At most `wanted` units spread evenly, first and last among them; one alone is the middle one."""
    if wanted >= num_units:
        return tuple(range(num_units))
    if wanted == 1:
        return (num_units // 2,)
    return tuple(round(number * (num_units - 1) / (wanted - 1)) for number in range(wanted))


def seconds_text(seconds: float, *, unit: str = " s", decimals: int = 1) -> str:
    """12.3 s; from ten minutes on 12:34 or 1:02:03."""
    if seconds < 600:
        return f"{seconds:.{decimals}f}{unit}"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
