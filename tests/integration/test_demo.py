"""``flashvid demo``: the tables, recomputed here from the Parquet and the truth beside the videos."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from demo.scoreboard import events_found
from tests import FLASHVID, ROOT

NUM_VIDEOS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    shutil.copytree(ROOT / "demo" / "model", folder / "model")
    return folder


def run_demo(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [str(FLASHVID), "demo", "--output", str(folder)]
    command += ["--videos", str(NUM_VIDEOS), f"model.name={folder / 'model'}", "workers.threads=1", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=580
    )


@pytest.fixture(scope="module")
def first_run(folder: Path) -> subprocess.CompletedProcess[str]:
    return run_demo(folder)


def rows_of(folder: Path, table: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "index" / table).to_pylist()
    return sorted(rows, key=lambda row: str(row["uri"]))


def line_with(text: str, label: str) -> str:
    return next(" ".join(line.split()) for line in text.splitlines() if line.strip().startswith(label))


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo_shows_what_was_measured(folder: Path, first_run: subprocess.CompletedProcess[str]) -> None:
    assert first_run.returncode == 0, first_run.stdout + first_run.stderr
    many, few = rows_of(folder, "videos"), rows_of(folder, "baseline")
    truth = json.loads((folder / "videos" / "truth.json").read_text())
    assert [len(many), len(few), len(truth)] == [NUM_VIDEOS] * 3
    assert {row["num_frames"] for row in many} == {160}
    assert {row["num_frames"] for row in few} == {16}
    for row, plain in zip(many, few, strict=True):
        assert row["visual_tokens_after"] <= plain["visual_tokens_after"] == row["baseline_visual_tokens"]
        assert plain["visual_tokens_after"] == plain["visual_tokens_before"]
        assert len(row["answers"]) >= 2
    tokens = line_with(first_run.stdout, "visual tokens in the language model")
    assert tokens.split()[-2:] == [str(few[0]["visual_tokens_after"]), str(many[0]["visual_tokens_after"])]
    found = [events_found(rows, truth) for rows in (few, many)]
    shown = re.findall(r"(\d+) of (\d+)", line_with(first_run.stdout, "events found"))
    assert shown == [(str(right), str(there)) for right, there, _ in found]
    assert found[1][0] >= found[0][0]


@pytest.mark.ray
@pytest.mark.slow
def test_every_answer_stands_beside_the_truth(
    folder: Path, first_run: subprocess.CompletedProcess[str]
) -> None:
    truth = json.loads((folder / "videos" / "truth.json").read_text())
    blocks = re.split(r"(video_\d+\.mp4): ", first_run.stdout.split("What was right")[0])
    shown = dict(zip(blocks[1::2], blocks[2::2], strict=True))
    for row in rows_of(folder, "videos"):
        block = shown[Path(row["uri"]).name]
        for answer in row["answers"]:
            asked = {
                entry["question"]: entry["answer"] for entry in truth[Path(row["uri"]).name]["questions"]
            }
            line = line_with(block, answer["question"])
            right = asked[answer["question"]].replace(" .", ".")
            assert right.split()[0] in line
            assert line.endswith(("right", "WRONG"))
            if answer["answer"] == right:
                assert line.endswith("right")


@pytest.mark.ray
@pytest.mark.slow
def test_run_again_it_shows_the_same_without_starting_ray(
    folder: Path, first_run: subprocess.CompletedProcess[str]
) -> None:
    parts = sorted((folder / "index").rglob("*.parquet"))
    again = run_demo(folder)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "starting Ray" not in again.stdout
    assert sorted((folder / "index").rglob("*.parquet")) == parts
    table = "What was right"
    assert again.stdout[again.stdout.index(table) :] == first_run.stdout[first_run.stdout.index(table) :]


@pytest.mark.ray
@pytest.mark.slow
def test_another_world_in_the_same_folder_is_refused(
    folder: Path, first_run: subprocess.CompletedProcess[str]
) -> None:
    assert first_run.returncode == 0
    other = run_demo(folder, "--seed", "7")
    assert other.returncode == 2
    assert "another --output" in other.stderr
