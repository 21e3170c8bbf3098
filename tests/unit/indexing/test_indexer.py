"""Frames to a row with a real model of random weights: prompts, budget, errors, revisions of the weights."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from flashvid.generation.engine import Engine
from pipeline.config.job import JobConfig
from pipeline.config.sections import ModelConfig, SummaryConfig, WindowsConfig
from pipeline.errors import Reason, Stage, UserError, VideoError
from pipeline.indexing.engine_interface import AnswersVideos
from pipeline.indexing.indexer import VideoIndexer, load_indexer
from pipeline.indexing.model_revision import resolve_revision
from pipeline.output.schemas import VIDEO_SCHEMA, video_schema
from pipeline.records import Frames, Question
from tests import ROOT
from tests.tiny_model import VISION, random_frames, tiny_model, tiny_tokenizer
from tests.unit.engines import PlainEngine
from tests.unit.samples import make_ref

DEMO_MODEL = ROOT / "demo" / "model"
TENTH = {"retention_ratio": 0.1, "expansion": 1.0, "llm_retention_ratio": 1.0}


def job(compression: dict[str, Any] | None = None, **frames: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "corpus": {"uri": "videos"},
            "output": {"uri": "index"},
            "model": {"name": str(DEMO_MODEL), "dtype": "float32"},
            "compression": compression or TENTH,
            "frames": {"baseline": 4, "min_pixels": 7056, "max_pixels": 9408, **frames},
            "prompts": {
                "caption": "what moves ?",
                "questions": ["what flashes ?", "when ?"],
                "caption_max_new_tokens": 7,
                "answer_max_new_tokens": 3,
            },
            "workers": {"num_gpus": 0},
        }
    )


def clip(num_frames: int = 40, seconds_apart: float = 0.5) -> Frames:
    return Frames(
        data=random_frames(num_frames).numpy(),
        pts_seconds=np.arange(num_frames) * seconds_apart,
        source_fps=30.0,
        source_num_frames=600,
        duration_seconds=20.0,
        width=336,
        height=448,
        codec="h264",
        decoder="decord",
        decode_seconds=0.25,
    )


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def indexer(model: Any, config: JobConfig, engine: Any = None) -> VideoIndexer:
    engine = engine or Engine(model, tiny_tokenizer(), config.compression, vision=VISION)
    return VideoIndexer(engine, config, model_revision="r1", run_id="run-7", clock=lambda: 12.5)


def test_a_row_says_what_was_asked_seen_and_saved(model: Any) -> None:
    config = job()
    row = indexer(model, config).index(make_ref(3), clip(), attempt=2)
    assert row.key == make_ref(3).key
    assert [answer.question for answer in row.answers] == ["what flashes ?", "when ?"]
    assert [answer.question_id for answer in row.answers] == ["q1", "q2"]
    assert (row.num_frames, row.baseline_frames) == (40, 4)
    # 112 x 84 pixels are 4 x 3 tokens a unit; 40 frames are 20 units, 4 frames are 2
    assert (row.visual_tokens_before, row.baseline_visual_tokens) == (240, 24)
    assert 0 < row.visual_tokens_mean <= row.visual_tokens_after <= row.baseline_visual_tokens
    assert (row.fingerprint, row.model_revision) == (config.fingerprint("r1"), "r1")
    assert (row.run_id, row.attempt, row.indexed_at_us) == ("run-7", 2, 12_500_000)
    assert (row.width, row.height, row.decode_seconds) == (336, 448, 0.25)
    assert pa.Table.from_pylist([row.to_record()], schema=VIDEO_SCHEMA).num_rows == 1


def test_a_row_says_that_the_file_was_damaged(model: Any) -> None:
    cut = replace(clip(), damage="ends at 43.8 s of 80.0 s")
    rows = [indexer(model, job()).index(make_ref(), frames, 1) for frames in (clip(), cut)]
    assert [row.degraded for row in rows] == [None, "ends at 43.8 s of 80.0 s"]


def test_caption_and_answers_have_limits_of_their_own(model: Any) -> None:
    row = indexer(model, job()).index(make_ref(), clip(), attempt=1)
    counts = [answer.output_tokens for answer in row.answers]
    assert max(counts) <= 3
    assert row.output_tokens <= 7 + sum(counts)
    caption_tokens = row.output_tokens - sum(counts)
    assert (row.caption_finish_reason == "length") == (caption_tokens == 7)
    assert caption_tokens > 3, "the caption stopped at the answers' limit"


def test_pruning_inside_the_model_is_held_to_the_baseline_on_average(model: Any) -> None:
    row = indexer(model, job({"retention_ratio": 0.1, "expansion": 1.25})).index(make_ref(), clip(), 1)
    assert row.visual_tokens_mean <= row.baseline_visual_tokens


def test_without_adaptive_retention_the_budget_is_used_up(model: Any) -> None:
    for compression in (TENTH, {"retention_ratio": 1.0}):
        row = indexer(model, job(compression)).index(make_ref(), clip(), 1)
        assert row.visual_tokens_budget == row.visual_tokens_after


def test_a_row_shows_what_adaptive_retention_did(model: Any) -> None:
    still = clip()
    still = replace(still, data=np.repeat(still.data[:1], len(still.data), axis=0))
    settings = {"retention_ratio": 0.25, "expansion": 1.0, "llm_retention_ratio": 1.0, "min_segment_num": 1}
    config = job({**settings, "adaptive": True}, baseline=40, multiplier=1)
    moving, standing = (indexer(model, config).index(make_ref(), frames, 1) for frames in (clip(), still))
    assert moving.visual_tokens_budget == standing.visual_tokens_budget == 20 * 3
    assert moving.visual_tokens_after <= moving.visual_tokens_budget
    assert standing.visual_tokens_after == 3
    assert standing.retention_ratio == 0.25, "the setting, not what came of it"


def test_uncompressed_sees_every_token(model: Any) -> None:
    row = indexer(model, job({"retention_ratio": 1.0})).index(make_ref(), clip(4), 1)
    assert row.visual_tokens_after == row.visual_tokens_before == row.baseline_visual_tokens == 24


def test_questions_of_the_video_follow_those_of_the_job(model: Any) -> None:
    ref = make_ref(questions=(Question("own", "where ?"),))
    row = indexer(model, job()).index(ref, clip(), 1)
    assert [answer.question_id for answer in row.answers] == ["q1", "q2", "own"]


def test_a_question_of_the_video_takes_the_place_of_the_jobs_with_its_id() -> None:
    ref = make_ref(questions=(Question("q1", "what else ?"),))
    row = indexer(None, job(), PlainEngine()).index(ref, clip(), 1)
    assert [(one.question_id, one.question) for one in row.answers] == [
        ("q1", "what else ?"),
        ("q2", "when ?"),
    ]
    assert row.answers[0].answer.startswith("what else ?")


def test_columns_of_the_manifest_are_carried_over() -> None:
    ref = make_ref(extra=(("channel", "news"), ("views", 7)))
    row = indexer(None, job(), PlainEngine()).index(ref, clip(), 1)
    schema = video_schema({"channel": "string", "views": "int64"})
    table = pa.Table.from_pylist([row.to_record()], schema=schema)
    assert (table["channel"].to_pylist(), table["views"].to_pylist()) == (["news"], [7])


def test_a_clip_is_one_window_from_its_start_to_its_end() -> None:
    config = job().model_copy(update={"windows": WindowsConfig(length_seconds=60)})
    ref = make_ref(start_seconds=3.0, end_seconds=99.0)
    (segment,) = indexer(None, config, PlainEngine()).index(ref, clip(), 1).segments
    assert (segment.start_seconds, segment.end_seconds) == (3.0, 20.0)


def test_the_same_frames_give_the_same_row(model: Any) -> None:
    first, second = (indexer(model, job()).index(make_ref(), clip(), 1) for _ in range(2))
    assert (first.caption, first.answers) == (second.caption, second.answers)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((7056, 9408), (7056, 9408)),
        ((784, 10**6), (784, 168 * 168)),  # the model's own limits are the outer ones
        ((10**5, 10**6), (168 * 168, 168 * 168)),
    ],
)
def test_frames_are_decoded_as_the_model_will_see_them(
    model: Any, given: tuple[int, int], expected: tuple[int, int]
) -> None:
    config = job(min_pixels=given[0], max_pixels=given[1], multiplier=3)
    request = indexer(model, config).frame_request
    assert (request.min_pixels, request.max_pixels) == expected
    assert (request.num_frames, request.multiple, request.sampling) == (12, 28, "uniform")


@pytest.mark.parametrize("most", [1, 2])
def test_a_real_engine_out_of_memory_takes_fewer_prompts_and_says_the_same(model: Any, most: int) -> None:
    """Its adapter raises where a real one would: when the cache is copied for each prompt."""
    wanted = indexer(model, job()).index(make_ref(), clip(), 1)
    engine = Engine(model, tiny_tokenizer(), job().compression, vision=VISION)
    fork = engine._adapter.fork_cache

    def forked(cache: Any, copies: int) -> Any:
        if copies > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return fork(cache, copies)

    engine._adapter.fork_cache = forked  # type: ignore[method-assign]
    row = indexer(model, job(), engine).index(make_ref(), clip(), 1)
    assert row.degraded == "out of memory: 1 prompt at once instead of 3"
    assert (row.caption, row.answers, row.num_frames) == (wanted.caption, wanted.answers, 40)


def test_a_real_engine_out_of_memory_takes_fewer_frames(model: Any) -> None:
    engine = Engine(model, tiny_tokenizer(), job().compression, vision=VISION)
    encode = engine._adapter.encode_units

    def encoded(chunks: Any, *args: Any, **kwargs: Any) -> Any:
        patches = list(chunks)
        if sum(map(len, patches)) > 10 * 48:  # ten units of 8 x 6 patches: 20 frames
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return encode(patches, *args, **kwargs)

    engine._adapter.encode_units = encoded  # type: ignore[method-assign]
    row = indexer(model, job(), engine).index(make_ref(), replace(clip(), damage="cut short"), 1)
    assert row.degraded == "cut short; out of memory: 1 prompt at once instead of 3, 20 of 40 frames"
    assert (row.num_frames, row.visual_tokens_before) == (20, 120)
    half = clip()
    half = replace(half, data=half.data[1::2], pts_seconds=half.pts_seconds[1::2])
    assert row.caption == indexer(model, job()).index(make_ref(), half, 1).caption, "every second frame"


class FailingEngine:
    """An engine that fails; what the indexer makes of it is under test."""

    vision = VISION

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def answer(self, *_: Any, **__: Any) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("2 GiB"), Reason.OUT_OF_MEMORY),
        (MemoryError("host"), Reason.OUT_OF_MEMORY),
        (ValueError("odd"), Reason.GENERATION_FAILED),
        (RuntimeError("shape"), Reason.GENERATION_FAILED),
    ],
)
def test_errors_of_the_engine_are_failures_of_the_video(model: Any, error: Exception, reason: Reason) -> None:
    with pytest.raises(VideoError, match=str(error)) as caught:
        indexer(model, job(), FailingEngine(error)).index(make_ref(), clip(2), 1)
    assert (caught.value.stage, caught.value.reason) == (Stage.GENERATION, reason)


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="torch before 2.8 has no such class")
def test_a_broken_device_is_not_the_videos_fault(model: Any) -> None:
    broken = torch.AcceleratorError("device-side assert", 710)
    with pytest.raises(torch.AcceleratorError):
        indexer(model, job(), FailingEngine(broken)).index(make_ref(), clip(), 1)


def test_a_budget_below_one_token_a_unit_fails_the_video_and_says_why(model: Any) -> None:
    config = job(min_pixels=784, max_pixels=784, baseline=2, multiplier=20)
    frames = clip()
    small = Frames(**{**frames.__dict__, "data": frames.data[:, :28, :28]})
    with pytest.raises(VideoError, match=r"baseline_tokens=1, .* is too few for 40 frames") as caught:
        indexer(model, config).index(make_ref(), small, 1)
    assert caught.value.reason is Reason.GENERATION_FAILED


def test_the_demo_checkpoint_loads_by_name() -> None:
    loaded = load_indexer(job(), run_id="run-1")
    row = loaded.index(make_ref(), clip(), 1)
    assert row.model_revision == resolve_revision(ModelConfig(name=str(DEMO_MODEL)))
    assert row.visual_tokens_after <= row.baseline_visual_tokens


def test_an_engine_of_another_package_needs_no_torch() -> None:
    code = (
        "import sys; from pipeline.config import load_config\n"
        "from pipeline.indexing import load_indexer, resolve_revision\n"
        "import pipeline.cluster.worker\n"
        "config = load_config(None, ['corpus.uri=v', 'output.uri=o', 'model.name=any name at all',\n"
        "    'workers.num_gpus=0', 'model.engine=tests.unit.engines:made'])\n"
        "indexer = load_indexer(config, run_id='r')\n"
        "print(indexer._engine.device, resolve_revision(config.model), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "cpu for any name at all engine False"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("tests.unit.no_such_file:made", "ModuleNotFoundError"),
        ("tests.unit.engines:no_such_function", "AttributeError"),
        ("tests.unit.engines:not_a_function", "is no function but a int"),
        ("tests.unit.engines:lacking", "lacks vision, answer, write, count_tokens, plan"),
    ],
)
def test_a_wrong_name_of_an_engine_is_the_users_to_mend(name: str, why: str) -> None:
    config = job().model_copy(update={"model": ModelConfig(name="x", engine=name)})
    with pytest.raises(UserError, match=r"package\.module:function") as caught:
        load_indexer(config, run_id="run-1")
    assert f"model.engine={name!r}" in str(caught.value)
    assert why in str(caught.value)


def test_a_derived_engine_has_no_plan_and_misses_nothing_else() -> None:
    with pytest.raises(VideoError, match="PlainEngine has no plan"):
        indexer(None, job(), PlainEngine()).plan(clip())

    class Speechless(AnswersVideos):
        vision = VISION

    with pytest.raises(TypeError, match="answer, count_tokens, write"):
        Speechless()  # type: ignore[abstract]


def test_the_revision_of_another_engine_is_what_the_user_says() -> None:
    named = ModelConfig(name="any name", engine="a.b:c")
    assert resolve_revision(named) == "engine"
    assert resolve_revision(named.model_copy(update={"revision": "7"})) == "7"


def test_a_summary_prompt_without_room_is_refused_when_the_model_is_loaded() -> None:
    summary = SummaryConfig(prompt="word " * 200, max_input_tokens=256)
    update = {
        "windows": WindowsConfig(length_seconds=5, summary=summary),
        "model": ModelConfig(name="x", engine="tests.unit.engines:made"),
    }
    with pytest.raises(UserError, match=r"windows\.summary\.prompt is 200 tokens"):
        load_indexer(job().model_copy(update=update), run_id="run-1")


def test_a_gpu_that_is_not_there_is_the_users_to_mend() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = job().model_copy(update={"workers": job().workers.model_copy(update={"num_gpus": 1.0})})
    with pytest.raises(UserError, match=r"workers\.num_gpus=0"):
        load_indexer(config, run_id="run-1")


def copied(folder: Path) -> Path:
    shutil.copytree(DEMO_MODEL, folder)
    return folder


def test_a_folder_is_known_by_its_content_not_its_place(tmp_path: Path) -> None:
    first, second = copied(tmp_path / "a"), copied(tmp_path / "b")
    before = resolve_revision(ModelConfig(name=str(first)))
    assert before == resolve_revision(ModelConfig(name=str(second)))
    weights = second / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert resolve_revision(ModelConfig(name=str(second))) != before


def test_another_fine_tune_of_the_same_shape_is_another_revision(tmp_path: Path) -> None:
    """Weights too large to be read whole: a region of one part in fifty is enough to tell them apart."""
    weights, num_bytes = tmp_path / "model.safetensors", 80 * 2**20
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with weights.open("wb") as file:
        file.truncate(num_bytes)  # a sparse file costs no disk
    seen = {resolve_revision(ModelConfig(name=str(tmp_path)))}
    for start in (0, 31 * 2**20, num_bytes - 2**19):
        with weights.open("r+b") as file:
            file.seek(start)
            file.write(b"\x01" * min(num_bytes // 50, num_bytes - start))
        seen.add(resolve_revision(ModelConfig(name=str(tmp_path))))
    assert len(seen) == 4


def test_the_model_card_is_no_part_of_the_revision(tmp_path: Path) -> None:
    folder = copied(tmp_path / "a")
    before = resolve_revision(ModelConfig(name=str(folder)))
    (folder / "README.md").write_text("What it can do, said better.")
    assert resolve_revision(ModelConfig(name=str(folder))) == before


def test_a_pinned_hub_model_needs_no_network() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert resolve_revision(ModelConfig(name="someone/some-model", revision=commit)) == commit


def test_an_unknown_hub_model_says_what_to_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no folder here") as caught:
        resolve_revision(ModelConfig(name="nobody/no-such-model"))
    assert "model.revision" in str(caught.value)


@pytest.mark.parametrize("name", ["no such folder", "/nowhere/model", "a/b/c"])
def test_a_name_that_is_neither_folder_nor_hub_id(name: str) -> None:
    with pytest.raises(UserError, match="give a checkpoint folder"):
        resolve_revision(ModelConfig(name=name))


def test_folders_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        resolve_revision(ModelConfig(name=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="holds no weights"):
        resolve_revision(ModelConfig(name=str(tmp_path)))
    with pytest.raises(UserError, match=r"remove model\.revision"):
        resolve_revision(ModelConfig(name=str(tmp_path), revision="main"))


def test_another_family_is_refused_by_name(tmp_path: Path) -> None:
    folder = copied(tmp_path / "bert")
    (folder / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    config = job().model_copy(update={"model": ModelConfig(name=str(folder))})
    with pytest.raises(UserError, match="qwen2_5_vl"):
        load_indexer(config, run_id="run-1")
