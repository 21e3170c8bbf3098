"""M-RoPE positions: the golden cases, and prompts that do not add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flashvid.inside.positions import Grid, VisionSpan, find_spans, mrope_positions

CASES = json.loads((Path(__file__).parents[2] / "golden" / "mrope_positions.json").read_text())["cases"]
TYPE = {"image": 1, "video": 2}


def types_of(parts: list[Any]) -> list[int]:
    types: list[int] = []
    for part in parts:
        if isinstance(part, int):
            types += [0] * part
        else:
            units, height, width = part["grid_thw"]
            types += [0, *[TYPE[part["kind"]]] * (units * height * width // 4), 0]
    return types


def spans_of(parts: list[Any]) -> list[VisionSpan]:
    visual = [part for part in parts if not isinstance(part, int)]
    images = (tuple(part["grid_thw"]) for part in visual if part["kind"] == "image")
    videos = (
        (tuple(part["grid_thw"]), part["second_per_grid"]) for part in visual if part["kind"] == "video"
    )
    return find_spans(types_of(parts), images, videos, merge_size=2)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_positions(case: dict[str, Any]) -> None:
    types = types_of(case["parts"])
    positions = mrope_positions(len(types), spans_of(case["parts"]), tokens_per_second=2)
    assert positions.tolist() == case["positions"]
    assert int(positions.max()) + 1 - len(types) == case["rope_delta"]


def test_there_are_eight_golden_cases() -> None:
    assert len(CASES) == 8


def test_text_after_a_video_follows_its_largest_axis() -> None:
    long = mrope_positions(82, [VisionSpan("video", 1, (20, 2, 2), 1.0)], tokens_per_second=2)
    assert long[:, 81].tolist() == [1 + 38 + 1] * 3
    wide = mrope_positions(82, [VisionSpan("video", 1, (2, 2, 20), 1.0)], tokens_per_second=2)
    assert wide[:, 81].tolist() == [1 + 19 + 1] * 3


def test_the_library_style_starts_text_inside_the_video() -> None:
    spans = [VisionSpan("video", 1, (20, 2, 2), 1.0)]
    theirs = mrope_positions(82, spans, tokens_per_second=2, style="transformers")
    assert theirs[:, 81].tolist() == [3, 3, 3]
    assert int(theirs[0, 80]) == 39


def test_text_only_counts_up() -> None:
    assert mrope_positions(5, [], tokens_per_second=2).tolist() == [list(range(5))] * 3


def test_adjacent_videos_without_text_between_are_told_apart() -> None:
    grids = iter([((1, 4, 4), 1.0), ((2, 2, 2), 1.0)])
    spans = find_spans([0, *[2] * 6, 0], iter(()), grids, merge_size=2)
    assert [(span.start, span.stop, span.grid) for span in spans] == [(1, 5, (1, 2, 2)), (5, 7, (2, 1, 1))]


def test_too_few_placeholders_name_the_wanted_number() -> None:
    with pytest.raises(ValueError, match="that is 8 tokens, but only 5"):
        find_spans([0, *[2] * 5, 0, 2, 2, 2], iter(()), iter([((2, 4, 4), 1.0)]), merge_size=2)


def test_a_placeholder_without_grid_is_refused() -> None:
    no_grids: list[Grid] = []
    with pytest.raises(ValueError, match="has no row in image_grid_thw"):
        find_spans([0, 1], iter(no_grids), iter(()), merge_size=2)


def test_unknown_token_type_is_refused() -> None:
    with pytest.raises(ValueError, match="token type 3"):
        find_spans([0, 3], iter(()), iter(()), merge_size=2)


def test_unknown_style_is_refused() -> None:
    with pytest.raises(ValueError, match="vllm"):
        mrope_positions(3, [], tokens_per_second=2, style="vllm")  # type: ignore[arg-type]


def test_positions_are_int64() -> None:
    assert mrope_positions(3, [], tokens_per_second=2).dtype == torch.int64
