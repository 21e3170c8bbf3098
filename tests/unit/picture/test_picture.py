"""The picture of a video's tokens: what it counts, where it puts each token, and what colour that gets."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flashvid.compression.plan import CompressionPlan, plan_compression
from flashvid.config import FlashVidConfig
from pipeline.errors import UserError
from pipeline.picture.drawing import Picture, check_target, save_image, shortened, text_width, wrapped
from pipeline.picture.figure import Figure, Page, even_units, lay_out, seconds_text
from pipeline.picture.panels import CHOSEN, GROUPS
from pipeline.picture.rendering import draw_figure, page_of
from pipeline.picture.token_map import TokenMap

GREY = 90  # of all made-up frames, so that a panel shows nothing but marks and tints
UNITS, ROWS, COLS = 12, 4, 6


def plan_of(config: FlashVidConfig, seed: int = 0) -> CompressionPlan:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(1, ROWS * COLS, 32, generator=generator)
    drift = 0.2 * torch.randn(UNITS, ROWS * COLS, 32, generator=generator).cumsum(0)
    saliency = torch.rand(UNITS, ROWS * COLS, generator=generator)
    return plan_compression(start + drift, saliency, config)


def figure_of(config: FlashVidConfig | None = None, max_panels: int = UNITS) -> Figure:
    tokens = TokenMap.from_plan(
        plan_of(config or FlashVidConfig(retention_ratio=0.25, alpha=0.5)), ROWS, COLS
    )
    drawn = even_units(UNITS, max_panels)
    return Figure(
        tokens=tokens,
        drawn=drawn,
        pictures=np.full((len(drawn), ROWS * 14, COLS * 14, 3), GREY, np.uint8),
        unit_seconds=tuple(0.5 * unit for unit in range(UNITS)),
        end_seconds=6.0,
        title="clip.mp4",
        source="6.0 s",
        settings=("retention_ratio 0.25", "alpha 0.5"),
    )


@pytest.fixture(scope="module")
def drawn() -> tuple[Figure, Page, np.ndarray]:
    figure = figure_of()
    return figure, page_of(figure), np.asarray(draw_figure(figure)).astype(int)


def tint_of(pixels: np.ndarray, page: Page, panel: int, row: int, column: int) -> tuple[int, ...]:
    """The colour near a cell's corner, beside any mark and inside any border."""
    box = page.cell_box(panel, row, column)
    inset = max(4, page.cell // 8)
    return tuple(pixels[box.top + inset, box.left + inset].tolist())


def test_everything_drawn_adds_up_to_every_token() -> None:
    for config in (
        FlashVidConfig(retention_ratio=0.25, alpha=0.5),
        FlashVidConfig(retention_ratio=0.1, alpha=1.0),
        FlashVidConfig(retention_ratio=0.5, alpha=0.0),
    ):
        tokens = figure_of(config).tokens
        assert tokens.num_tokens == UNITS * ROWS * COLS
        assert tokens.sizes.sum() + tokens.num_dropped == tokens.num_tokens
        parts = (tokens.num_chosen, tokens.num_merged, tokens.num_absorbed, tokens.num_dropped)
        assert sum(parts) == tokens.num_tokens
        assert (tokens.is_place.sum(), tokens.chosen.sum()) == (tokens.num_merged, tokens.num_chosen)
        assert (tokens.num_dropped == 0) == (tokens.num_merged > 0)


def test_the_map_is_the_plan() -> None:
    plan = plan_of(FlashVidConfig(retention_ratio=0.25, alpha=0.5))
    tokens = TokenMap.from_plan(plan, ROWS, COLS)
    assert tokens.segment_lengths == plan.segment_lengths
    assert np.array_equal(tokens.chosen.reshape(UNITS, -1), plan.selected.numpy())
    assert np.array_equal(tokens.group.ravel(), plan.group.numpy())
    own = torch.arange(len(plan.root))
    roots = (plan.root == own) & ~plan.selected.view(-1)
    assert np.array_equal(tokens.is_root.ravel(), roots.numpy())
    assert (tokens.is_root | ~tokens.is_place).all(), "a merged token is kept at the place of a root"
    assert tokens.num_trees > tokens.num_merged > 0, "else this plan shows no clustering"


def test_texts_count_what_the_plan_kept() -> None:
    figure, plan = figure_of(), plan_of(FlashVidConfig(retention_ratio=0.25, alpha=0.5))
    kept, total, chosen = len(plan.kept), UNITS * ROWS * COLS, int(plan.selected.sum())
    assert figure.headline == f"{kept} of {total} visual tokens, {100 * kept / total:.3g} %"
    assert figure.account["chosen"].startswith(f"{chosen} chosen")
    assert figure.account["merged"] == f"{kept - chosen} merged"
    assert figure.account["absorbed"].startswith(f"{total - kept} absorbed")
    counts = [figure.segment_counts(segment) for segment in range(len(plan.segment_lengths))]
    assert [sum(part) for part in zip(*counts, strict=True)] == [total, kept]


def test_segments_follow_one_another_to_the_end() -> None:
    figure = figure_of()
    ranges = [figure.segment_seconds(segment) for segment in range(len(figure.tokens.segment_lengths))]
    assert len(ranges) >= 4, "else there is no border to look at"
    assert [start for start, _ in ranges[1:]] == [end for _, end in ranges[:-1]]
    assert (ranges[0][0], ranges[-1][1]) == (0.0, 6.0)
    assert "   0.00 to " in figure.segment_texts(0)[0]
    widths = [len(text) for text in figure.segment_texts(0)]
    assert widths == sorted(widths, reverse=True)


def test_chosen_tokens_are_outlined_and_shown_as_they_are(drawn: tuple[Figure, Page, np.ndarray]) -> None:
    figure, page, pixels = drawn
    for panel, unit in enumerate(figure.drawn):
        for row, column in np.ndindex(ROWS, COLS):
            box = page.cell_box(panel, row, column)
            center = pixels[(box.top + box.bottom) // 2, (box.left + box.right) // 2].tolist()
            edge = pixels[box.top + 1, (box.left + box.right) // 2].tolist()
            is_chosen = bool(figure.tokens.chosen[unit, row, column])
            assert (edge == list(CHOSEN)) == is_chosen
            assert (center == [GREY] * 3) == is_chosen


def test_members_of_a_group_have_one_colour_in_all_units(drawn: tuple[Figure, Page, np.ndarray]) -> None:
    figure, page, pixels = drawn
    colors = figure.tokens.colors(len(GROUPS))
    seen: dict[int, set[tuple[int, ...]]] = {}
    for panel, unit in enumerate(figure.drawn):
        for row, column in np.argwhere(~figure.tokens.chosen[unit]).tolist():
            color = int(colors[figure.tokens.group[unit, row, column]])
            seen.setdefault(color, set()).add(tint_of(pixels, page, panel, row, column))
    assert len(seen) > 3
    assert all(len(tints) == 1 for tints in seen.values())
    assert len({next(iter(tints)) for tints in seen.values()}) == len(seen)


def test_touching_groups_differ_in_colour() -> None:
    tokens = figure_of().tokens
    colors = tokens.colors(len(GROUPS))
    assert (colors[tokens.group[tokens.chosen]] == -1).all()
    shade = np.where(tokens.chosen, -1, colors[tokens.group])
    for axis in range(3):
        group, shown = np.moveaxis(tokens.group, axis, 0), np.moveaxis(shade, axis, 0)
        touching = (group[1:] != group[:-1]) & (shown[1:] >= 0) & (shown[:-1] >= 0)
        assert touching.any()
        assert (shown[1:] != shown[:-1])[touching].all()


def test_merged_tokens_and_roots_are_marked_in_the_middle(drawn: tuple[Figure, Page, np.ndarray]) -> None:
    figure, page, pixels = drawn
    tokens = figure.tokens
    marked = tokens.is_place | tokens.is_root
    for panel, unit in enumerate(figure.drawn):
        for row, column in np.argwhere(~tokens.chosen[unit]).tolist():
            box = page.cell_box(panel, row, column)
            middle = pixels[box.top + 6 : box.bottom - 6, box.left + 6 : box.right - 6]
            is_flat = bool((middle == middle[0, 0]).all())
            assert is_flat != bool(marked[unit, row, column])


def test_dropped_tokens_are_pale_and_said_to_be_dropped() -> None:
    figure = figure_of(FlashVidConfig(retention_ratio=0.1, alpha=1.0))
    assert "dropped" in figure.account
    page, pixels = page_of(figure), np.asarray(draw_figure(figure)).astype(int)
    row, column = np.argwhere(~figure.tokens.chosen[0])[0].tolist()
    red, green, blue = tint_of(pixels, page, 0, row, column)
    assert red == green == blue > 170


def test_segment_borders_are_dark_lines_left_of_their_first_panel(
    drawn: tuple[Figure, Page, np.ndarray],
) -> None:
    figure, page, pixels = drawn
    segments = figure.tokens.segment_of_unit
    for panel, unit in enumerate(figure.drawn):
        box = page.panel(panel)
        is_border = pixels[box.top + 5, box.left - 7].max() < 60
        assert is_border == (unit == 0 or segments[unit] != segments[unit - 1])


def test_another_count_is_another_header() -> None:
    one = np.asarray(draw_figure(figure_of()))
    few = np.asarray(draw_figure(figure_of(FlashVidConfig(retention_ratio=0.5, alpha=0.5))))
    assert (one[40:80, 600:] != few[40:80, 600:]).any()
    assert np.array_equal(one, np.asarray(draw_figure(figure_of()))), "the same picture every time"


def test_units_left_out_are_said_to_be() -> None:
    assert figure_of().units_note == f"Below: all {UNITS} units."
    figure = figure_of(max_panels=5)
    assert figure.units_note == f"Below: 5 of {UNITS} units, evenly chosen; {UNITS - 5} are left out."
    assert draw_figure(figure).height < draw_figure(figure_of()).height + 400


@given(st.integers(1, 500), st.integers(1, 400))
def test_even_units_are_distinct_in_order_and_as_many_as_wanted(num_units: int, wanted: int) -> None:
    units = even_units(num_units, wanted)
    assert len(units) == min(num_units, wanted)
    assert list(units) == sorted(set(units))
    assert 0 <= units[0] <= units[-1] < num_units
    if wanted > 1:
        assert (units[0], units[-1]) == (0, num_units - 1)
        gaps = np.diff(units)
        assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


@given(st.integers(1, 320), st.integers(1, 60), st.integers(1, 60))
def test_panels_lie_side_by_side_on_the_page(num_panels: int, rows: int, cols: int) -> None:
    page = lay_out(num_panels, rows, cols, top=300)
    boxes = [page.panel(number) for number in range(num_panels)]
    for before, after in itertools.pairwise(boxes):
        assert after.left >= before.right + 7 or after.top >= before.bottom + 30
    assert all(box.top > 300 and box.bottom < page.bottom and box.right < page.width for box in boxes)
    assert page.cell_box(0, rows - 1, cols - 1)[2:] == boxes[0][2:]
    assert page.width <= 1700 or cols > 60 or num_panels == 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_runs_cover_every_panel_once_and_begin_each_segment_once(lengths: list[int]) -> None:
    segments = tuple(np.repeat(np.arange(len(lengths)), lengths).tolist())
    page = lay_out(len(segments), 4, 4, top=0)
    runs = page.runs(segments)
    assert [number for run in runs for number in range(run.first, run.last + 1)] == list(range(len(segments)))
    assert [run.segment for run in runs if not run.continued] == list(range(len(lengths)))
    assert all(run.first // page.columns == run.last // page.columns for run in runs)


def test_a_plan_that_does_not_add_up_is_refused() -> None:
    tokens = figure_of().tokens
    with pytest.raises(ValueError, match="number of tokens in each group"):
        replace(tokens, sizes=tokens.sizes + 1)
    with pytest.raises(ValueError, match="units are not the 12"):
        replace(tokens, segment_lengths=(UNITS + 1,))
    with pytest.raises(ValueError, match="cells are not the 24 tokens"):
        TokenMap.from_plan(plan_of(FlashVidConfig(retention_ratio=0.25)), ROWS, COLS + 1)


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".pdf"])
def test_a_picture_is_written_whole_and_nothing_beside_it(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"tokens{suffix}"
    target.write_text("what was there before")
    picture: Picture = Image.new("RGB", (30, 20), (1, 2, 3))
    save_image(picture, target)
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes()[:4] in (b"\x89PNG", b"%PDF")
    if suffix != ".pdf":
        with Image.open(target) as read:
            assert (read.size, read.getpixel((5, 5))) == ((30, 20), (1, 2, 3))
    (tmp_path / "plain").touch()
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_longest_possible_name_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 251 + ".png")
    save_image(Image.new("RGB", (30, 20)), target)
    assert list(tmp_path.iterdir()) == [target]


def test_a_picture_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "tokens.png"
    target.write_text("what was there before")
    broken = Image.new("F", (30, 20))  # no PNG of floats
    with pytest.raises(UserError, match="cannot be written: cannot write mode F"):
        save_image(broken, target)
    assert [target.read_text(), *tmp_path.iterdir()] == ["what was there before", target]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tokens.gif", "must end in .png or .pdf, e.g. tokens.png"),
        ("tokens", "must end in .png or .pdf"),
        ("nowhere/tokens.png", "no folder"),
        ("folder.png", "is a folder"),
        ("n" * 300 + ".png", "File name too long; give another name"),
        pytest.param(
            "locked/tokens.png",
            "cannot be written to",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere"),
        ),
    ],
)
def test_a_name_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match=said):
        check_target(tmp_path / name)


def test_texts_fit_their_room() -> None:
    long = "a_very_long_file_name_" * 20 + ".mp4"
    short = shortened(long, 300, 20)
    assert text_width(short, 20) <= 300
    assert (short[:6], short[-4:], "…" in short) == ("a_very", ".mp4", True)
    assert shortened("Fußball – Müller.mp4", 900, 20) == "Fu?ball - Muller.mp4"
    parts = [f"setting_{number} {number}" for number in range(40)]
    lines = wrapped(parts, 400, 17)
    assert "".join(lines) == ", ".join(parts)
    assert all(text_width(line, 17) <= 400 for line in lines)
    assert [seconds_text(value) for value in (1.25, 599.9, 754.4, 3723.0)] == [
        "1.2 s",
        "599.9 s",
        "12:34",
        "1:02:03",
    ]
