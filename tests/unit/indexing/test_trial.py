"""The made-up video before the first real one, and whether a worker has the run's own weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flashvid.generation.answers import VideoAnswers, VideoInput
from flashvid.generation.engine import Engine
from pipeline.config.job import JobConfig
from pipeline.config.sections import ModelConfig, SummaryConfig, WindowsConfig
from pipeline.errors import PipelineError, Reason, Stage, UserError, VideoError
from pipeline.indexing.indexer import VideoIndexer, load_indexer
from pipeline.indexing.model_revision import check_model, check_revision, resolve_revision, unknown_revision
from tests import ROOT
from tests.tiny_model import VISION, hooks_of, tiny_model, tiny_tokenizer
from tests.unit.engines import PlainEngine
from tests.unit.indexing.test_indexer import clip, job
from tests.unit.samples import make_ref

DEMO_MODEL = ROOT / "demo" / "model"
SUMMARY = WindowsConfig(length_seconds=5, summary=SummaryConfig())
COMPRESSIONS: dict[str, dict[str, Any]] = {
    "plain": {"retention_ratio": 1.0},
    "a tenth": {"retention_ratio": 0.1, "expansion": 1.0, "llm_retention_ratio": 1.0},
    "pruned inside": {"retention_ratio": 0.2, "pruning_layer": 2, "llm_retention_ratio": 0.3},
    "adaptive": {"retention_ratio": 0.1, "adaptive": True, "pruning_layer": 2},
    "few": {"retention_ratio": 0.02, "pruning_layer": 2},
}


class RecordingEngine(PlainEngine):
    """Keeps what it was asked, and may raise."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error
        self.asked: list[tuple[Any, Any]] = []

    def answer(self, video: VideoInput, prompts: Sequence[str], **options: Any) -> VideoAnswers:
        self.asked.append((video, options["max_new_tokens"]))
        if self.error is not None:
            raise self.error
        return super().answer(video, prompts, **options)


def indexer(engine: Any, config: JobConfig | None = None) -> VideoIndexer:
    return VideoIndexer(engine, config or job(), model_revision="r1", run_id="run-1", clock=lambda: 12.5)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def real_engine(model: Any, config: JobConfig, tokenizer: Any = None) -> Engine:
    return Engine(model, tokenizer or tiny_tokenizer(), config.compression, vision=VISION)


def test_it_asks_all_prompts_of_the_job_for_one_token_each_at_the_size_of_real_frames() -> None:
    engine = RecordingEngine()
    indexer(engine).try_out()
    ((video, limits),) = engine.asked
    assert engine.prompts == [["what moves ?", "what flashes ?", "when ?"]]
    assert limits == [1, 1, 1]
    assert (video.frames.dtype, video.frames.shape[0], video.frames.shape[3]) == (np.uint8, 4, 3)
    height, width = video.frames.shape[1:3]
    assert 7056 <= height * width <= 9408
    assert len(np.unique(video.frames)) > 100, "a picture with something in it"
    assert not np.array_equal(video.frames[0], video.frames[1]), "that changes over time"


def test_a_summary_is_tried_too() -> None:
    engine = RecordingEngine()
    indexer(engine, job().model_copy(update={"windows": SUMMARY})).try_out()
    assert (len(engine.asked), len(engine.written)) == (2, 1)


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("frames", [{}, {"baseline": 1, "multiplier": 1}, {"baseline": 1}])
def test_every_sound_job_passes(model: Any, name: str, frames: dict[str, Any]) -> None:
    config = job(COMPRESSIONS[name], **frames)
    indexer(real_engine(model, config), config).try_out()


def test_it_changes_nothing_of_what_is_answered_later(model: Any) -> None:
    config = job(COMPRESSIONS["pruned inside"])
    untouched = indexer(real_engine(model, config), config).index(make_ref(), clip(8), 1)
    tried = indexer(real_engine(model, config), config)
    before, state = hooks_of(model), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    tried.try_out()
    assert hooks_of(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[arg-type]
    row = tried.index(make_ref(), clip(8), 1)
    same = ("caption", "answers", "visual_tokens_after", "visual_tokens_mean", "output_tokens", "fingerprint")
    assert [getattr(row, name) for name in same] == [getattr(untouched, name) for name in same]


def test_no_chat_template_is_the_jobs_mistake(model: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"during generation with ValueError: .* no chat template.*json"):
        indexer(real_engine(model, job(), tokenizer)).try_out()


@pytest.mark.parametrize(
    "template", ["{{ messages[0].role }}", "{% for", "{{ raise_exception('no videos') }}"]
)
def test_a_chat_template_that_knows_no_videos_is_the_jobs_mistake(model: Any, template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(UserError, match="no video was tried"):
        indexer(real_engine(model, job(), tokenizer)).try_out()


@pytest.mark.parametrize("error", [ValueError("not so"), RuntimeError("shapes"), KeyError("q")])
def test_what_the_engine_raises_is_named_with_its_stage(error: Exception) -> None:
    with pytest.raises(UserError, match=f"during generation with {type(error).__name__}: "):
        indexer(RecordingEngine(error)).try_out()


def test_too_few_answers_are_the_jobs_mistake() -> None:
    engine = RecordingEngine()
    engine.answer = lambda *_, **__: PlainEngine().answer(  # type: ignore[method-assign]
        VideoInput(clip(2).data, 0.5), ["one"], max_new_tokens=1
    )
    with pytest.raises(UserError, match="1 texts for 3 prompts"):
        indexer(engine).try_out()


def test_frames_that_cannot_be_asked_for_are_the_jobs_mistake() -> None:
    with pytest.raises(UserError, match=r"max_pixels = 100.* less than one cell"):
        indexer(RecordingEngine(), job(min_pixels=100, max_pixels=100)).try_out()


def test_memory_and_a_lost_device_are_the_machines() -> None:
    with pytest.raises(VideoError) as caught:
        indexer(RecordingEngine(MemoryError("full"))).try_out()
    assert caught.value.reason is Reason.OUT_OF_MEMORY
    if hasattr(torch, "AcceleratorError"):
        with pytest.raises(torch.AcceleratorError):
            indexer(RecordingEngine(torch.AcceleratorError("lost", 710))).try_out()


@pytest.mark.parametrize("reason", [Reason.NO_FRAMES, Reason.GENERATION_FAILED])
def test_an_engine_that_judges_the_made_up_video_is_no_mistake_of_the_job(reason: Reason) -> None:
    judgement = VideoError(Stage.GENERATION, reason, "nothing to see")
    judgement.__cause__ = ValueError("no face found")
    engine = RecordingEngine(judgement)
    indexer(engine).try_out()
    assert len(engine.asked) == 1


@pytest.mark.parametrize(
    ("least", "num_frames", "asked"), [(8, 64, [4, 32]), (8, 16, [4, 16]), (9, 8, [4, 8])]
)
def test_an_engine_that_needs_more_frames_gets_more(least: int, num_frames: int, asked: list[int]) -> None:
    engine = RecordingEngine(ValueError(f"needs {least} frames"))

    def answer(video: VideoInput, prompts: Sequence[str], **options: Any) -> VideoAnswers:
        engine.asked.append((video, prompts))
        assert engine.error is not None
        if len(video.frames) < least:
            raise engine.error
        return PlainEngine.answer(engine, video, prompts, **options)

    engine.answer = answer  # type: ignore[method-assign]
    tried = indexer(engine, job(baseline=num_frames, multiplier=1))
    if least > num_frames:
        with pytest.raises(UserError, match="needs 9 frames"):
            tried.try_out()
    else:
        tried.try_out()
    assert [len(video.frames) for video, _ in engine.asked] == asked


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(DEMO_MODEL, folder))


def demo_job(folder: Path) -> JobConfig:
    return job().model_copy(update={"model": ModelConfig(name=str(folder), dtype="float32")})


def replace_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")


def test_weights_replaced_before_they_are_loaded_are_refused(tmp_path: Path) -> None:
    config = demo_job(copied(tmp_path / "ckpt"))
    revision = resolve_revision(config.model)
    load_indexer(config, run_id="r", model_revision=revision)
    replace_weights(tmp_path / "ckpt")
    with pytest.raises(PipelineError, match=f"now, not {revision} as when the run began") as caught:
        load_indexer(config, run_id="r", model_revision=revision)
    assert not isinstance(caught.value, UserError), "another machine may have them"


@pytest.mark.parametrize("of_run", [True, False])
def test_weights_replaced_while_they_are_loaded_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_run: bool
) -> None:
    folder = copied(tmp_path / "ckpt")
    config = demo_job(folder)
    load = Engine.from_pretrained

    def load_slowly(*arguments: Any, **options: Any) -> Engine:
        replace_weights(folder)
        return load(*arguments, **options)

    revision = resolve_revision(config.model) if of_run else None
    monkeypatch.setattr(Engine, "from_pretrained", load_slowly)
    with pytest.raises(PipelineError, match="it was replaced, or copies differ"):
        load_indexer(config, run_id="r", model_revision=revision)


def test_a_checkpoint_of_another_machine_is_held_against_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is a folder for the driver may be none here, and a hub model of the run a folder here."""
    monkeypatch.chdir(tmp_path)
    model = ModelConfig(name="owner/name")
    with pytest.raises(PipelineError, match="is not there on this machine now"):
        check_revision(model, "sha256-0123")
    check_revision(model, "0123456789abcdef0123456789abcdef01234567")
    (tmp_path / "owner").mkdir()
    copied(tmp_path / "owner" / "name")
    with pytest.raises(PipelineError, match=r"is sha256-[0-9a-f]{32} on this machine now"):
        check_revision(model, "0123456789abcdef0123456789abcdef01234567")
    check_revision(model, resolve_revision(model))


def test_an_engine_without_a_revision_is_warned_of() -> None:
    engine = ModelConfig(name="x", engine="a.b:c")
    assert "without model.revision" in str(unknown_revision(engine))
    assert unknown_revision(engine.model_copy(update={"revision": "7"})) is None
    assert unknown_revision(ModelConfig(name="x")) is None


@pytest.mark.parametrize(
    "name", ["./nosuch", "../nosuch", "nosuch/", "./", "~nobody/nosuch", "a--b/c", ".hidden/x", "a" * 5000]
)
@pytest.mark.parametrize("revision", [None, "0123456789abcdef0123456789abcdef01234567"])
def test_a_path_that_is_no_folder_is_no_hub_id(
    name: str, revision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"give a checkpoint folder|without a readable|is a folder"):
        resolve_revision(ModelConfig(name=name, revision=revision))


def test_a_mistyped_folder_is_told_the_one_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("demo/modle", "./demo/modle"):
        with pytest.raises(UserError, match=r"beside it is '(\S*/)?demo/model'"):
            resolve_revision(ModelConfig(name=name))


def test_a_folder_below_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied(tmp_path / "ckpt")
    monkeypatch.setenv("HOME", str(tmp_path))
    config = demo_job(Path("~/ckpt"))
    load_indexer(config, run_id="r", model_revision=resolve_revision(config.model))


def test_a_broken_checkpoint_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    folder = copied(tmp_path / "ckpt")
    check_model(ModelConfig(name=str(folder)))
    (folder / "tokenizer.json").write_text("")
    with pytest.raises(UserError, match=r"tokenizer\.json' is empty"):
        check_model(ModelConfig(name=str(folder)))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="holds a bert model; supported: qwen2_5_vl"):
        check_model(ModelConfig(name=str(folder)))
    check_model(ModelConfig(name=str(folder), engine="a.b:c"))


def test_a_checkpoint_that_may_not_be_read_is_the_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(tmp_path / "ckpt")
    weights, opened = folder / "model.safetensors", Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:  # root may read anything
        if path == weights:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"cannot be used: .*Permission denied: .*model\.safetensors"):
        check_model(ModelConfig(name=str(folder)))
