"""The checks find what they are there to find: planted double rows, losses, mixed-up rows, broken parts."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flashvid.generation.engine import Engine
from pipeline.indexing.engine_interface import AnswersVideos
from tests.chaos.checks import (
    Output,
    Witness,
    blameless_victims,
    problems_at_any_time,
    problems_at_the_end,
    read_output,
)
from tests.chaos.corpus import Expected, colour_number
from tests.chaos.stub_engine import StubEngine
from tests.integration.hostile import ROW

pytestmark = pytest.mark.chaos

CORPUS = "/corpus"
EXPECTED = Expected(
    good={"a.mp4": colour_number(1), "b.mp4": colour_number(2)},
    hostile={"c.mp4": frozenset({"corrupt"}), "d.mp4": frozenset({ROW, "no_frames"})},
)


def row(name: str, number: int) -> dict[str, Any]:
    caption = "colour {} {} {}".format(*colour_number(number))
    key = {"video_id": name, "version": "v", "fingerprint": "f", "uri": f"{CORPUS}/{name}"}
    return {**key, "caption": caption, "answers": [{"answer": caption}]}


def failure(name: str, reason: str, is_final: bool = True) -> dict[str, Any]:
    return {"uri": f"{CORPUS}/{name}", "reason": reason, "is_final": is_final}


def whole() -> Output:
    rows = [row("a.mp4", 1), row("b.mp4", 2), row("d.mp4", 3)]
    return Output(rows, [failure("c.mp4", "corrupt")], [])


def found(output: Output) -> list[str]:
    return problems_at_the_end(output, EXPECTED, CORPUS)


def test_nothing_is_found_where_all_is_well() -> None:
    assert found(whole()) == []


def test_planted_double_row() -> None:
    output = whole()
    output.rows.append(row("a.mp4", 1))
    assert len(problems_at_any_time(output)) == 1
    assert any("has 2 rows" in text for text in found(output))


def test_planted_loss_of_a_good_video() -> None:
    output = whole()
    del output.rows[0]
    assert found(output) == ["'a.mp4' is lost: no row; final failure None"]


def test_good_video_that_failed_is_a_loss() -> None:
    output = whole()
    del output.rows[0]
    output.failures.append(failure("a.mp4", "crashed_worker"))
    assert found(output) == ["'a.mp4' is lost: no row; final failure crashed_worker"]


def test_planted_loss_of_a_hostile_video() -> None:
    output = whole()
    output.failures.clear()
    assert found(output) == ["'c.mp4' ended as None, allowed: corrupt"]


def test_hostile_video_that_was_not_refused() -> None:
    output = whole()
    output.rows.append(row("c.mp4", 5))
    assert found(output) == ["'c.mp4' ended as row, allowed: corrupt"]


def test_rows_that_changed_places() -> None:
    output = whole()
    for one, number in zip(output.rows[:2], (2, 1), strict=True):
        one["caption"] = row("x", number)["caption"]
    assert len(found(output)) == 2


def test_one_answer_of_another_video() -> None:
    output = whole()
    output.rows[0]["answers"] = row("x", 2)["answers"]
    assert len(found(output)) == 1


def test_row_of_no_input() -> None:
    output = whole()
    output.rows.append(row("z.mp4", 1))
    assert found(output) == ["'z.mp4' is in no corpus"]


def test_failed_for_good_without_its_tries() -> None:
    output = whole()
    output.failures.append(failure("a.mp4", "decode_crashed"))
    assert len(blameless_victims(output, EXPECTED, CORPUS)) == 1
    output.failures[:0] = [failure("a.mp4", "decode_crashed", is_final=False)] * 2
    assert blameless_victims(output, EXPECTED, CORPUS) == []


def test_part_that_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist([row("a.mp4", 1)]), folder / "part-1.parquet")
    (folder / "part-2.parquet").write_bytes((folder / "part-1.parquet").read_bytes()[:-100])
    output = read_output(str(tmp_path))
    assert len(output.rows) == 1
    assert len(problems_at_any_time(output)) == 1


def test_wrong_segment_of_a_video() -> None:
    output = whole()
    output.rows[0]["segments"] = [{"caption": row("x", 1)["caption"], "answers": row("x", 2)["answers"]}]
    assert len(found(output)) == 1


@pytest.mark.parametrize(
    ("numbers", "is_well"), [((3,), True), ((1, 3), True), ((1,), False), ((3, 3), False)]
)
def test_rows_of_a_replaced_video(numbers: tuple[int, ...], is_well: bool) -> None:
    expected = Expected(replaced={"a.mp4": (colour_number(1), colour_number(3))})
    rows = [{**row("a.mp4", number), "version": f"v{at}"} for at, number in enumerate(numbers)]
    assert (problems_at_the_end(Output(rows, [], []), expected, CORPUS) == []) == is_well


def test_row_that_was_there_and_is_gone(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4"):
        pq.write_table(pa.Table.from_pylist([row(name, 1)]), tmp_path / "videos" / f"{name}.parquet")
    witness = Witness(str(tmp_path))
    assert witness.look() == []
    (tmp_path / "videos" / "b.mp4.parquet").unlink()
    assert witness.look() == ["the row of b.mp4 v is gone"]


@pytest.mark.parametrize("name", ["answer", "write", "count_tokens", "plan"])
def test_the_stub_takes_what_an_engine_takes(name: str) -> None:
    wanted, real, got = (
        [(each.name, each.kind, each.default) for each in inspect.signature(method).parameters.values()]
        for method in (getattr(kind, name) for kind in (AnswersVideos, Engine, StubEngine))
    )
    assert wanted == real == got
