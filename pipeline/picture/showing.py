"""Where the tokens of one video go: decoded and encoded as for a caption, planned, not answered."""

from __future__ import annotations

from pathlib import PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.config import JobConfig
from pipeline.errors import UserError
from pipeline.picture.figure import Figure, even_units
from pipeline.picture.token_map import TokenMap

if TYPE_CHECKING:
    from pipeline.indexing import VideoIndexer
    from pipeline.records import Frames, VideoRef

__all__ = ["check_shown", "figure_of"]

_SETTINGS = (
    "retention_ratio",
    "expansion",
    "alpha",
    "token_selection_method",
    "segment_threshold",
    "min_segment_num",
    "temporal_threshold",
)


def check_shown(config: JobConfig) -> None:
    """Raises UserError where these settings leave nothing to show; before a model is loaded."""
    if config.compression.is_bypass:
        raise UserError(
            "compression.retention_ratio=1 keeps every token, so there is nothing to show; "
            "lower it, e.g. compression.retention_ratio=0.1"
        )


def figure_of(
    indexer: VideoIndexer, config: JobConfig, ref: VideoRef, frames: Frames, max_panels: int
) -> Figure:
    """Plan one video and choose what to show of it: at most ``max_panels`` units, evenly.

    Raises VideoError where this video cannot be encoded.
    """
    plan, (_, rows, columns) = indexer.plan(frames)
    tokens = TokenMap.from_plan(plan, rows, columns)
    step = -(-len(frames.data) // tokens.num_units)  # frames per unit; the last may have fewer
    drawn = even_units(tokens.num_units, max_panels)
    return Figure(
        tokens=tokens,
        drawn=drawn,
        pictures=frames.data[[unit * step for unit in drawn]],
        unit_seconds=tuple(frames.pts_seconds[::step].tolist()),
        end_seconds=max(frames.duration_seconds, float(frames.pts_seconds[-1])),
        title=PurePosixPath(ref.uri).name or ref.uri,
        source=_source(frames, step, rows, columns),
        settings=_settings(config),
    )


def _source(frames: Frames, step: int, rows: int, columns: int) -> str:
    height, width = frames.data.shape[1:3]
    unit = f"{step} frames make a unit" if step > 1 else "each is a unit"
    return (
        f"{frames.duration_seconds:.1f} s, {frames.width} x {frames.height}, {frames.codec}.   "
        f"{len(frames.data)} frames at {width} x {height}; {unit} of {rows} x {columns} tokens"
        f"{', of which the first is shown' if step > 1 else ''}."
        f"{f'   Damaged: {frames.damage}.' if frames.damage else ''}"
    )


def _settings(config: JobConfig) -> tuple[str, ...]:
    given = config.compression
    named = [f"{name} {_short(getattr(given, name))}" for name in _SETTINGS]
    adaptive = ["adaptive"] if given.adaptive else []
    model = "/".join(PurePath(config.model.name).parts[-2:])
    return f"model {model}", f"baseline {config.frames.baseline} frames", *named, *adaptive


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
