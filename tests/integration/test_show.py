"""``flashvid show``: a real video and the demo model to a picture, and what cannot be shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from pipeline.cli.app import app
from pipeline.cli.commands import caption_config
from pipeline.indexing.indexer import VideoIndexer, load_indexer
from pipeline.indexing.out_of_memory import Step
from pipeline.records import Frames
from tests import ROOT, media
from tests.unit.samples import make_ref

QUICK = ("frames.baseline=4", "compression.retention_ratio=0.25", "compression.alpha=0.5")


@pytest.fixture(autouse=True)
def _in_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return media.write_video(tmp_path_factory.mktemp("show") / "clip.mp4")


def show(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["show", *map(str, arguments)])


def test_a_video_becomes_a_picture(video: Path, tmp_path: Path) -> None:
    target = tmp_path / "tokens.png"
    result = show(video, "-o", target, *QUICK)
    assert result.exit_code == 0, result.output
    # 168 x 140 pixels, 30 tokens a unit; 16 frames are 8 units of 7 places, which cost what 4 frames do
    assert "56 of 240 visual tokens, 23.3 %: 32 chosen" in " ".join(result.stdout.split())
    assert "8 of 8 units drawn" in result.stdout
    assert list(tmp_path.iterdir()) == [target]
    with Image.open(target) as picture:
        assert picture.width >= 1280
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 100


def test_a_few_units_of_a_pdf(video: Path, tmp_path: Path) -> None:
    result = show(video, "-o", tmp_path / "tokens.pdf", "--units", "3", *QUICK)
    assert result.exit_code == 0, result.output
    assert "3 of 8 units drawn" in result.stdout
    assert (tmp_path / "tokens.pdf").read_bytes().startswith(b"%PDF")


def test_what_is_shown_is_what_a_caption_is_made_from(video: Path) -> None:
    config = caption_config(str(video), [], None, None, [*QUICK, "compression.expansion=1.25"])
    indexer = load_indexer(config, run_id="test")
    frames = _frames(indexer)
    plan, cells = indexer.plan(frames)
    _, answers = indexer.start(make_ref(), 1)._ask(frames, Step(1, len(frames.data)))
    assert torch.equal(plan.kept, answers.kept)
    assert cells == (8, 6, 6)
    assert plan.shape == (8, 36)


def _frames(indexer: VideoIndexer) -> Frames:
    generator = np.random.default_rng(0)
    data = generator.integers(0, 255, (16, 168, 168, 3), np.uint8)
    return Frames(data, np.arange(16) / 2.0, 2.0, 16, 8.0, 168, 168, "h264", "pyav", 0.0)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["demo/samples/video_000.mp4", "compression.retention_ratio=1"], 2, "nothing to show"),
        (["demo/samples/video_000.mp4", "-o", "tokens.svg"], 2, "must end in .png or .pdf"),
        (["demo/samples/video_000.mp4", "-o", "no/such/folder/tokens.png"], 2, "no folder"),
        (["demo/samples", "-o", "{tmp}/t.png"], 2, "is not one video"),
        (["no/such/video.mp4", "-o", "{tmp}/t.png"], 2, "no/such/video.mp4"),
        (["README.md", "-o", "{tmp}/t.png"], 1, "decoding"),
        (["README.md", "--units", "0"], 2, "--units"),
    ],
)
def test_what_cannot_be_shown_is_said(arguments: list[str], status: int, said: str, tmp_path: Path) -> None:
    result = show(*(text.replace("{tmp}", str(tmp_path)) for text in arguments))
    assert result.exit_code == status, result.output
    assert said in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_another_budget_says_why_nothing_fits(video: Path, tmp_path: Path) -> None:
    result = show(video, "-o", tmp_path / "t.png", *QUICK, "compression.max_visual_tokens=3")
    assert result.exit_code == 1, result.output
    assert "max_visual_tokens=3" in " ".join(result.stdout.split())
    assert list(tmp_path.iterdir()) == []
