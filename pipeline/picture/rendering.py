"""The whole picture of what became of a video's tokens: counts, strip of all units, panels, legend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.picture.drawing import Canvas, Color, Picture, fitting, shortened, text_width, wrapped
from pipeline.picture.figure import CAPTION_HEIGHT, GAP, LABEL_HEIGHT, MARGIN, Box, Figure, Page, lay_out
from pipeline.picture.panels import (
    CHOSEN,
    GROUPS,
    LEAST_NUMBERED,
    PAPER,
    PanelPainter,
    draw_place,
    draw_root,
    tinted,
)

__all__ = ["draw_figure", "page_of"]

MERGED: Color = (44, 78, 156)
ABSORBED: Color = (206, 212, 222)
DROPPED: Color = (240, 241, 244)
INK: Color = (24, 28, 36)
MUTED: Color = (98, 106, 120)
BANDS: tuple[Color, Color] = ((226, 231, 240), (244, 246, 249))
_TITLE, _SMALL = 34, 17
_STRIP_TOP, _STRIP_BOTTOM = 204, 268
_GRID_TOP = 316
_SAMPLE = 26  # pixels of a cell in the legend
_Sample = Callable[[Canvas, Box], None]
_FOOT = 420  # room for legend and settings; cut to what they take


def page_of(figure: Figure) -> Page:
    """Where the panels of a figure are, in pixels of the drawn picture."""
    _, rows, cols = figure.tokens.chosen.shape
    return lay_out(len(figure.drawn), rows, cols, top=_GRID_TOP)


def draw_figure(figure: Figure) -> Picture:
    """One page: counts, strip of all units, a panel for each unit drawn, legend, settings."""
    page = page_of(figure)
    right = page.width - MARGIN
    canvas = Canvas(page.width, page.bottom + _FOOT)
    _draw_header(canvas, figure, right)
    _draw_strip(canvas, figure, right)
    _draw_segments(canvas, figure, page)
    painter = PanelPainter(figure, page)
    for number in range(len(figure.drawn)):
        painter.draw(canvas, number)
    bottom = _draw_legend(canvas, _legend(figure, page.cell >= LEAST_NUMBERED), page.bottom + 16, right)
    for line in wrapped(figure.settings, right - MARGIN, _SMALL):
        bottom += 24
        canvas.text((MARGIN, bottom), line, _SMALL, MUTED)
    return canvas.finished(bottom + MARGIN - 12)


def _draw_header(canvas: Canvas, figure: Figure, right: int) -> None:
    canvas.text((right, 68), figure.headline, _TITLE, INK, "rs")
    room = right - MARGIN - text_width(figure.headline, _TITLE) - 40
    canvas.text((MARGIN, 68), shortened(figure.title, room, _TITLE), _TITLE, INK)
    canvas.text((MARGIN, 98), shortened(figure.source, right - MARGIN, _SMALL), _SMALL, MUTED)
    tokens = figure.tokens
    counts = (tokens.num_chosen, tokens.num_merged, tokens.num_absorbed, tokens.num_dropped)
    left = float(MARGIN)
    for count, color in zip(counts, (CHOSEN, MERGED, ABSORBED, DROPPED), strict=True):
        width = (right - MARGIN) * count / tokens.num_tokens
        canvas.box((left, 114, left + width, 128), color)
        left += width
    _draw_account(canvas, figure)


def _draw_account(canvas: Canvas, figure: Figure) -> None:
    """The sum under its bar, each part with the bar's colour."""
    swatches = {"chosen": CHOSEN, "merged": MERGED, "absorbed": ABSORBED, "dropped": DROPPED}
    left = float(MARGIN)
    for name, text in figure.account.items():
        canvas.box((left, 141, left + 13, 154), swatches[name], MUTED if name == "dropped" else None, 0.5)
        canvas.text((left + 20, 153), text, _SMALL, INK)
        left += text_width(text, _SMALL) + 46


def _draw_strip(canvas: Canvas, figure: Figure, right: int) -> None:
    """Tokens kept per unit, for all units, with the segments and their times."""
    tokens = figure.tokens
    step = (right - MARGIN) / tokens.num_units
    start = 0
    for segment, length in enumerate(tokens.segment_lengths):
        left, end = MARGIN + start * step, MARGIN + (start + length) * step
        canvas.box((left, _STRIP_TOP, end, _STRIP_BOTTOM), BANDS[segment % 2])
        canvas.box((left - 1, _STRIP_TOP - 22, left + 1, _STRIP_BOTTOM), INK)
        label = fitting(figure.segment_texts(segment), end - left - 12, _SMALL)
        canvas.text((left + 7, _STRIP_TOP - 8), label, _SMALL, INK)
        start += length
    tallest = _draw_bars(canvas, figure, step)
    if len(figure.drawn) < tokens.num_units:
        for unit in figure.drawn:
            canvas.pointer((MARGIN + (unit + 0.5) * step, _STRIP_BOTTOM + 3), 4, INK)
    note = f"Tokens kept in each unit, {tallest} at most.   {figure.units_note}"
    canvas.text((MARGIN, _STRIP_BOTTOM + 30), note, _SMALL, MUTED)


def _draw_bars(canvas: Canvas, figure: Figure, step: float) -> int:
    """One bar per unit, chosen below merged; the largest sum, which is as tall as the strip."""
    chosen = figure.tokens.chosen.sum(axis=(1, 2))
    both = chosen + figure.tokens.is_place.sum(axis=(1, 2))
    pixels = (_STRIP_BOTTOM - _STRIP_TOP - 6) / int(both.max())
    for unit, (few, many) in enumerate(zip(chosen.tolist(), both.tolist(), strict=True)):
        left, end = MARGIN + (unit + 0.12) * step, MARGIN + (unit + 0.88) * step
        canvas.box((left, _STRIP_BOTTOM - few * pixels, end, _STRIP_BOTTOM), CHOSEN)
        canvas.box((left, _STRIP_BOTTOM - many * pixels, end, _STRIP_BOTTOM - few * pixels), MERGED)
    return int(both.max())


def _draw_segments(canvas: Canvas, figure: Figure, page: Page) -> None:
    """Band, label and border of each segment in each row; under every panel its unit and time."""
    segments = tuple(figure.tokens.segment_of_unit[unit] for unit in figure.drawn)
    for run in page.runs(segments):
        first, last = page.panel(run.first), page.panel(run.last)
        top, bottom = first.top - LABEL_HEIGHT, first.bottom + CAPTION_HEIGHT
        canvas.box((first.left - GAP / 2, top, last.right + GAP / 2, bottom), BANDS[run.segment % 2])
        if not run.continued:
            canvas.box((first.left - GAP / 2 - 2, top, first.left - GAP / 2 + 2, bottom), INK)
        texts = figure.segment_texts(run.segment, continued=run.continued)
        canvas.text((first.left, first.top - 9), fitting(texts, last.right - first.left, _SMALL), _SMALL, INK)
    for number, unit in enumerate(figure.drawn):
        panel = page.panel(number)
        canvas.text((panel.left, panel.bottom + 21), f"unit {unit}", _SMALL, MUTED)
        time = figure.time_text(figure.unit_seconds[unit])
        canvas.text((panel.right, panel.bottom + 21), time, _SMALL, INK, "rs")


def _legend(figure: Figure, numbered: bool) -> list[tuple[_Sample, str]]:
    """The marks that occur, and what they mean."""
    tokens = figure.tokens
    entries: list[tuple[_Sample, str]] = [(_sample_chosen, "chosen (ADTS), kept as it is")]
    if tokens.num_merged:
        entries += [
            (_sample_numbered, "merged token (TSTM), the mean of that many tokens")
            if numbered
            else (_sample_disc, "merged token (TSTM), larger the more tokens it is the mean of"),
            (_sample_absorbed, "part of the merged token of the same colour, in any unit of the segment"),
        ]
    if bool((tokens.is_root & ~tokens.is_place).any()):
        entries.append((_sample_root, "root of a tree that joined a merged token (DPC-kNN)"))
    if tokens.num_dropped:
        entries.append((_sample_dropped, "dropped, nothing stands for it"))
    return [*entries, (_sample_border, "segment border (DySeg)")]


def _draw_legend(canvas: Canvas, entries: list[tuple[_Sample, str]], top: int, right: int) -> int:
    """The marks in as many lines as it takes; the lower edge of the last."""
    left = float(MARGIN)
    for draw, text in entries:
        width = _SAMPLE + 10 + text_width(text, _SMALL)
        if left + width > right:
            left, top = float(MARGIN), top + _SAMPLE + 12
        draw(canvas, Box(round(left), top, round(left) + _SAMPLE, top + _SAMPLE))
        canvas.text((left + _SAMPLE + 10, top + _SAMPLE - 7), text, _SMALL, INK)
        left += width + 32
    return top + _SAMPLE + 6


def _sample_chosen(canvas: Canvas, box: Box) -> None:
    canvas.box(box, (120, 126, 134), CHOSEN, _SAMPLE / 10)


def _sample_numbered(canvas: Canvas, box: Box) -> None:
    _sample_absorbed(canvas, box)
    draw_place(canvas, box, GROUPS[0], 12, largest=12, numbered=True)


def _sample_disc(canvas: Canvas, box: Box) -> None:
    _sample_absorbed(canvas, box)
    draw_place(canvas, box, GROUPS[0], 4, largest=12, numbered=False)


def _sample_absorbed(canvas: Canvas, box: Box) -> None:
    canvas.box(box, _pale(GROUPS[0]))


def _sample_root(canvas: Canvas, box: Box) -> None:
    _sample_absorbed(canvas, box)
    draw_root(canvas, box, GROUPS[0])


def _sample_dropped(canvas: Canvas, box: Box) -> None:
    canvas.box(box, _pale(PAPER), ABSORBED)


def _sample_border(canvas: Canvas, box: Box) -> None:
    middle = (box.left + box.right) / 2
    canvas.box((box.left, box.top, middle, box.bottom), BANDS[0])
    canvas.box((middle, box.top, box.right, box.bottom), BANDS[1])
    canvas.box((middle - 2, box.top, middle + 2, box.bottom), INK)


def _pale(color: Color) -> Color:
    """A medium grey frame under the tint of a group."""
    red, green, blue = (
        tinted(np.full((1, 1, 3), 128.0), np.array([[color]], np.float64))[0, 0].round().tolist()
    )
    return int(red), int(green), int(blue)
