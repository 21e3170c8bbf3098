"""How things are printed: tables and a run's progress, on a terminal and in a log alike."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

if TYPE_CHECKING:
    from pipeline.cluster import Progress

__all__ = [
    "Console",
    "Pace",
    "ProgressView",
    "clock_text",
    "make_console",
    "print_pairs",
    "print_table",
    "progress_text",
]

_LOG_WIDTH = 100
_LOG_SECONDS = 10.0  # at first; a long run logs less often, at least once a minute
_MAX_LOG_SECONDS = 60.0
_PACE_CHANGES = 200  # steps of progress that say how fast it goes
_PACE_VIDEOS = 2  # finished since the first ones, before a time is promised


def make_console() -> Console:
    """A console that takes text literally; 100 columns where there is no terminal."""
    width = None if sys.stdout.isatty() else _LOG_WIDTH
    return Console(width=width, markup=False, emoji=False, highlight=False)


def print_table(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    right: Sequence[int] = (),
) -> None:
    """A titled table; ``right`` names the columns that hold numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, pad_edge=False)
    for number, column in enumerate(columns):
        is_label = number == 0 and not column  # row labels stay on one line
        justify: Literal["right", "left"] = "right" if number in right else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=is_label)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table)


def print_pairs(console: Console, pairs: Iterable[tuple[str, Any]]) -> None:
    """Aligned ``name  value`` lines."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(name, str(value))
    console.print(grid)


def clock_text(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def progress_text(progress: Progress, seconds_left: float | None = None) -> str:
    """One line: videos done, rate, time left where it is known, failures, workers."""
    counts = progress.counts
    done, wanted = _done_and_wanted(progress)
    parts = [f"{done}/{wanted if progress.listing_done else f'{wanted}+'} videos"]
    if done:
        parts.append(f"{progress.videos_per_second:.2f} videos/s")
    if seconds_left is not None:
        parts.append(f"{clock_text(seconds_left)} left")
    parts.append(f"{counts.failed} failed")
    skipped = counts.skipped_indexed + counts.skipped_failed
    if skipped:
        parts.append(f"{skipped} skipped")
    parts.append(_workers_text(progress.workers))
    return " · ".join(parts)


def _done_and_wanted(progress: Progress) -> tuple[int, int]:
    counts = progress.counts
    skipped = counts.skipped_indexed + counts.skipped_failed
    return counts.indexed + counts.failed, counts.listed - skipped


def _workers_text(workers: Mapping[str, int]) -> str:
    text = ", ".join(f"{number} {state}" for state, number in workers.items() if number and state != "left")
    return f"workers: {text or ('all have left' if workers.get('left') else 'none yet')}"


class Pace:
    """How long a run still takes, by what was finished lately.

    The first to be finished only start the clock: until then models were loading and pipelines filling.
    """

    def __init__(self) -> None:
        self._finished: deque[tuple[float, int]] = deque(maxlen=_PACE_CHANGES)  # when, how many in all

    def note(self, progress: Progress) -> None:
        """Take the newest state."""
        done, _ = _done_and_wanted(progress)
        # Not what was refused while no worker was ready.
        if progress.videos_per_second > 0 and (not self._finished or done != self._finished[-1][1]):
            self._finished.append((progress.seconds, done))

    def seconds_left(self, progress: Progress) -> float | None:
        """None while the corpus is still listed, and until enough is finished to tell."""
        done, wanted = _done_and_wanted(progress)
        since, before = self._finished[0] if self._finished else (progress.seconds, done)
        if not progress.listing_done or done - before < _PACE_VIDEOS:
            return None
        return (wanted - done) * (progress.seconds - since) / (done - before)


class ProgressView:
    """Shows a run's progress inside a ``with``: a bar on a terminal, else a line every ten seconds."""

    def __init__(self, console: Console, log_seconds: float = _LOG_SECONDS) -> None:
        self._console = console
        self._log_seconds = log_seconds
        self._next_line = 0.0
        self._said: set[str] = set()
        self._last: Progress | None = None
        self._printed = ""
        self._bar: Bar | None = None
        self._pace = Pace()
        if console.is_terminal:
            columns = (BarColumn(bar_width=24), TextColumn("{task.description}", markup=False))
            self._bar = Bar(*columns, console=console, transient=True)
            self._task = self._bar.add_task("starting Ray and the workers", total=None)

    def __enter__(self) -> ProgressView:
        if self._bar is not None:
            self._bar.start()
        else:
            self._console.print("starting Ray and the workers …")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._last is not None:
            self._line(self._last)

    def update(self, progress: Progress) -> None:
        """Take the newest state; what ``run_job`` calls about once a second."""
        self._say_once(progress)
        self._pace.note(progress)
        self._last = progress
        done, wanted = _done_and_wanted(progress)
        if self._bar is not None:
            total = wanted if progress.listing_done else None
            self._bar.update(self._task, description=self._text(progress), completed=done, total=total)
        elif time.monotonic() >= self._next_line:
            pause = min(_MAX_LOG_SECONDS, max(self._log_seconds, progress.seconds / 10))
            self._next_line = time.monotonic() + pause
            self._line(progress)

    def _say_once(self, progress: Progress) -> None:
        said = [f"metrics at {progress.metrics_url}"] if progress.metrics_url else []
        for text in (*said, *(f"warning: {warning}" for warning in progress.warnings)):
            if text not in self._said:
                self._said.add(text)
                self._console.print(text, soft_wrap=True)

    def _text(self, progress: Progress) -> str:
        return progress_text(progress, self._pace.seconds_left(progress))

    def _line(self, progress: Progress) -> None:
        line = f"[{clock_text(progress.seconds)}] {self._text(progress)}"
        if line != self._printed:
            self._printed = line
            self._console.print(line, soft_wrap=True)
