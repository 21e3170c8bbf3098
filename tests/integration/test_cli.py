"""``flashvid`` as its users run it: a folder of good and bad files, twice; status, verify and caption."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.errors import Reason
from tests import FLASHVID, ROOT, media
from tests.integration.conftest import write_namesakes

QUICK = ("frames.baseline=2", "prompts.caption_max_new_tokens=8", "workers.threads=1", "metrics.port=null")
REFUSED = {"empty.mp4": "empty_file", "text.mp4": "corrupt"}


def flashvid(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(FLASHVID), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=400
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    media.write_video(folder / "h264.mp4")
    for name, codec in (("hevc", "libx265"), ("av1", "libsvtav1")):
        if media.has_encoder(codec):
            media.write_video(folder / f"{name}.mp4", codec=codec)
    media.rotated_video(folder / "rotated.mp4")
    media.truncated_video(folder / "truncated.mp4", share=0.5, index_first=False)
    media.empty_file(folder / "empty.mp4")
    media.text_file(folder / "text.mp4")
    (folder / "notes.txt").write_text("not a video and not named like one")
    (folder / "._h264.mp4").write_bytes(b"\x00\x05\x16\x07" + bytes(4092))
    return folder


@pytest.fixture(scope="module")
def first_run(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    output = tmp_path_factory.mktemp("output") / "index"
    done = flashvid("index", "configs/demo.yaml", f"corpus.uri={corpus}", f"output.uri={output}", *QUICK)
    return output, done


@pytest.mark.ray
@pytest.mark.slow
def test_every_file_of_the_folder_is_a_row_or_a_failure(
    corpus: Path, first_run: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    output, done = first_run
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pq.read_table(output / "videos").to_pylist()
    failures = pq.read_table(output / "failures").to_pylist()
    indexed = [Path(row["uri"]).name for row in rows]
    failed = {Path(row["uri"]).name: row["reason"] for row in failures if row["is_final"]}
    named = {path.name for path in corpus.glob("*.mp4")} - {"._h264.mp4"}
    assert sorted([*indexed, *failed]) == sorted(named)
    (run,) = (json.loads(path.read_text()) for path in output.glob("_runs/*.json"))
    assert (run["not_videos"], run["unused_metadata"], run["counts"]["listed"]) == (1, 0, len(named))
    assert "passed over: 1 AppleDouble file" in done.stdout
    assert failed.items() >= REFUSED.items()
    assert set(failed.values()) <= {reason.value for reason in Reason}
    assert "rotated.mp4" in indexed
    for row in rows:
        assert [answer["question_id"] for answer in row["answers"]] == [
            "what_flashes",
            "how_many_flash",
            "when_flashes",
        ]
        assert row["visual_tokens_after"] <= row["baseline_visual_tokens"]
        assert row["num_frames"] > row["baseline_frames"]
    for expected in ("empty_file", "listed = indexed + failed + skipped", f"'{output}/videos/*.parquet'"):
        assert expected in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if str(output) not in line) <= 200


@pytest.mark.ray
@pytest.mark.slow
def test_modules_of_the_users_own_in_the_working_folder_are_not_in_the_way(tmp_path: Path) -> None:
    write_namesakes(tmp_path)
    media.write_video(tmp_path / "good.mp4")
    command = [str(FLASHVID), "index", str(ROOT / "configs/demo.yaml")]
    settings = ["corpus.uri=good.mp4", "output.uri=index", f"model.name={ROOT / 'demo/model'}", *QUICK]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *settings],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert pq.read_table(tmp_path / "index" / "videos").num_rows == 1


@pytest.mark.ray
@pytest.mark.slow
def test_a_second_run_does_nothing_and_the_checks_agree(
    corpus: Path, first_run: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    output, _ = first_run
    before = sorted(output.glob("videos/*"))
    again = flashvid("index", "configs/demo.yaml", f"corpus.uri={corpus}", f"output.uri={output}", *QUICK)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "nothing to do" in again.stdout
    assert sorted(output.glob("videos/*")) == before
    status = flashvid("status", output)
    assert f"{len(pq.read_table(output / 'videos'))} videos" in status.stdout
    assert "empty_file 1" in status.stdout
    verify = flashvid("verify", output)
    assert (verify.returncode, verify.stdout.startswith("sound")) == (0, True), verify.stdout
    part = next(output.glob("videos/*.parquet"))
    part.with_name(f"{part.stem.rpartition('-')[0]}-{'0' * 12}.parquet").write_bytes(part.read_bytes())
    verify = flashvid("verify", output)
    assert (verify.returncode, "more than once" in verify.stdout) == (1, True), verify.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_other_settings_into_the_same_table_are_refused_with_the_difference(
    corpus: Path, first_run: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    output, _ = first_run
    done = flashvid(
        "index",
        "configs/demo.yaml",
        f"corpus.uri={corpus}",
        f"output.uri={output}",
        *QUICK,
        "frames.baseline=3",
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "frames.baseline: 2 there, 3 here" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_one_video_is_captioned_without_ray(corpus: Path) -> None:
    done = flashvid("caption", corpus / "h264.mp4", "-q", "what flashes ?", "frames.baseline=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "what flashes ?" in done.stdout
    # 128 x 96 becomes 168 x 140 pixels, 30 tokens a unit; 20 frames are 10 units, 2 frames are one
    assert "300 visual tokens" in " ".join(done.stdout.split())
    assert "(2 frames uncompressed: 30)" in " ".join(done.stdout.split())
    assert "settings configs/demo.yaml" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_caption_refuses_a_model_that_cannot_answer_before_the_video(corpus: Path, tmp_path: Path) -> None:
    model = shutil.copytree(ROOT / "demo" / "model", tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    done = flashvid("caption", corpus / "text.mp4", "--model", model)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no chat template" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_caption_says_what_is_wrong_with_the_file(corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "joined.mp4"
    path.write_bytes((corpus / "h264.mp4").read_bytes() * 2)
    done = flashvid("caption", path, "frames.baseline=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "another file begins at byte" in " ".join(done.stdout.split())
