"""Job configuration: overrides as people type them, refusals that help, fingerprints that stay put."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pydantic
import pytest

from flashvid.config import FlashVidConfig
from flashvid.profiles import PROFILES, profile
from pipeline.config.job import JobConfig, load_config
from pipeline.errors import UserError
from pipeline.records import Question
from tests import ROOT

NEEDED = ("corpus.uri=/videos", "output.uri=/index", "model.name=demo/model")


def config(*overrides: str) -> JobConfig:
    return load_config(None, (*NEEDED, *overrides))


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        config(*overrides)
    return str(error.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_configurations_that_come_with_it_are_valid(path: Path) -> None:
    needed = [text for text in NEEDED if text.split("=")[0] not in ("model.name",)]
    assert load_config(path, needed).corpus.uri == "/videos"


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("frames.baseline=8", "frames", "baseline", 8),
        ("frames.fps=1e-1", "frames", "fps", 0.1),
        ("frames.multiplier=auto", "frames", "multiplier", "auto"),
        ("frames.multiplier=4", "frames", "multiplier", 4.0),
        ("compression.retention_ratio=0.2", "compression", "retention_ratio", 0.2),
        ("corpus.limit=null", "corpus", "limit", None),
        ("corpus.include=*.mp4", "corpus", "include", ("*.mp4",)),
        ("corpus.include=['*.mp4', 'a/*']", "corpus", "include", ("*.mp4", "a/*")),
        ("corpus.uri=s3://bucket/a=b", "corpus", "uri", "s3://bucket/a=b"),
        ("corpus.uri=2026-01-01", "corpus", "uri", "2026-01-01"),
        ("model.revision='0123456'", "model", "revision", "0123456"),
        ("prompts.caption=Say: what is item #1?", "prompts", "caption", "Say: what is item #1?"),
        ("prompts.caption=@all, *speak*", "prompts", "caption", "@all, *speak*"),
        ('prompts.caption="null"', "prompts", "caption", "null"),
        ("decoding.decoders=[pyav]", "decoding", "decoders", ("pyav",)),
        ("limits.retry_failed=true", "limits", "retry_failed", True),
    ],
)
def test_overrides(override: str, section: str, name: str, value: object) -> None:
    assert getattr(getattr(config(override), section), name) == value


def test_later_overrides_win_and_the_file_is_below(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("corpus: {uri: /a}\noutput: {uri: /b}\nmodel: {name: m}\nframes: {baseline: 4, fps: 3}\n")
    loaded = load_config(path, ["frames.baseline=8", "frames.baseline=12"])
    assert (loaded.frames.baseline, loaded.frames.fps, loaded.corpus.uri) == (12, 3.0, "/a")


@pytest.mark.parametrize(
    ("override", "texts"),
    [
        (
            "compression.retention=0.2",
            ["compression.retention: no such setting", "compression.retention_ratio?"],
        ),
        ("frames.baselin=3", ["frames.baselin: no such setting; did you mean frames.baseline?"]),
        ("framess.baseline=3", ["framess: no such setting; did you mean frames"]),
        ("workers.zzzzzz=3", ["workers has count, num_gpus, num_cpus"]),
        ("profile=action", ["profile: no such setting; did you mean compression.profile?"]),
        ("compression.profil=action", ["did you mean compression.profile?"]),
        (
            "compression.profile=acton",
            ["'acton' is unknown; profiles are summary, general, action, counting"],
        ),
        ("compression.profile=[action]", ["profile=['action'] is unknown"]),
        ("compression=action", ["compression: Input should be a dictionary"]),
        (
            "compression={adaptive: true, budget: reference}",
            ["compression: adaptive=True must be False with budget='reference'"],
        ),
        (
            "corpus.manifest.uri_colum=path",
            ["corpus.manifest.uri_colum: no such setting; did you mean corpus.manifest.uri_column?"],
        ),
        ("uri_column=path", ["did you mean corpus.manifest.uri_column?"]),
        ("windows.lenght_seconds=3", ["windows.lenght_seconds", "did you mean windows.length_seconds?"]),
        (
            "windows={length_seconds: 9, summary: {promt: a}}",
            ["windows.summary.promt: no such setting; did you mean windows.summary.prompt?"],
        ),
        ("corpus.columns={title: text}", ["corpus.columns.title: Input should be 'string'", "got 'text'"]),
        ("zzzzzz=3", ["sections are corpus, output, model, compression"]),
        ("compression.retention_ratio=2", ["compression: retention_ratio=2.0 must be in (0, 1]"]),
        ("compression.budget=foo", ["compression.budget: Input should be 'exact' or 'reference', got 'foo'"]),
        ("frames.baseline=0", ["frames.baseline", "greater than or equal to 1, got 0"]),
        ("frames.multiplier=x", ["frames.multiplier: Input should be 'auto', got 'x' or"]),
        ("frames.min_pixels=10000000", ["frames.min_pixels=10000000 exceeds max_pixels"]),
        ("frames=3", ["frames", "got 3"]),
        ("model.revision=0123456", ["model.revision", "got 42798; put it in quotes to mean text"]),
        ("prompts.caption=no", ["prompts.caption", "got False; put it in quotes to mean text"]),
        ("prompts.caption=", ["prompts.caption", "at least 1 character, got ''"]),
        ("corpus.uri=", ["corpus.uri", "at least 1 character, got ''"]),
        ("prompts.questions=Who speaks?", ["must be a list of questions, e.g. ['Who speaks?']"]),
        ("prompts.questions=['']", ["question 1 is ''; write a text"]),
        ("prompts.questions=[{text: null}]", ["question 1 is {'text': None}"]),
        ("prompts.questions=[{id: a, question_id: b, text: c}]", ["question 1 is"]),
        ("prompts.questions=[{id: q2, text: x}, y]", ["id 'q2' more than once"]),
        ("output.table=failures", ["where failures go; choose another name"]),
        ("output.table=_runs", ["output.table", "got '_runs'"]),
        ("workers.num_gpus=1.5", ["workers.num_gpus: 1.5 must be a whole number or below 1"]),
        ("decoding.decoders=[]", ["decoding.decoders", "at least 1 item"]),
        ("decoding.timeout_seconds=.inf", ["decoding.timeout_seconds", "finite number, got inf"]),
        ("decoding.timeout_seconds=.nan", ["decoding.timeout_seconds", "finite number, got nan"]),
        ("corpus.include=[a, 3]", ["corpus.include.1", "got 3; put it in quotes"]),
        ("frames.baseline", ["'frames.baseline' is not understood; write section.key=value"]),
        ("=3", ["write section.key=value"]),
        ("frames..baseline=3", ["write section.key=value"]),
        ("corpus.uri.x=3", ["corpus.uri is the value '/videos', not a section"]),
        ("prompts.questions=[a", ["the value is not valid YAML"]),
    ],
)
def test_refusals_name_key_value_rule_and_way_out(override: str, texts: list[str]) -> None:
    said = refusal(override)
    for text in texts:
        assert text in said


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("prompts.caption={0}", "prompts.caption"),
        ("prompts.questions=[Who, {0}]", "prompts.questions, 'q2'"),
        ("windows={{length_seconds: 5, summary: {{prompt: {0}}}}}", "windows.summary.prompt"),
    ],
)
def test_a_prompt_that_is_too_long_is_refused(override: str, name: str) -> None:
    text = refusal(override.format("x" * 16_385))
    assert name in text
    assert "has 16385 characters, more than corpus.max_question_chars=16384; shorten or raise it" in text
    assert len(text) < 500
    assert config(override.format("x" * 16_384)).fingerprint("r")
    assert config(override.format("x" * 16_385), "corpus.max_question_chars=20000").fingerprint("r")


def test_the_length_of_questions_is_not_in_the_fingerprint() -> None:
    assert config("corpus.max_question_chars=99").fingerprint("r") == config().fingerprint("r")


def test_what_must_be_given_is_said() -> None:
    with pytest.raises(UserError) as error:
        load_config(None)
    for text in ("corpus: not given; add corpus.uri=", "output.uri=<folder", "model.name=<checkpoint"):
        assert text in str(error.value)


def test_a_mistake_is_laid_to_where_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("corpus: {uri: 5}\noutput: {uri: /b}\nmodel: {name: m}\ncompression: {alpha: 0.5}\n")
    with pytest.raises(UserError) as error:
        load_config(path, ["prompts.caption=no", "compression.retention_ratio=2"])
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        f"configuration {path} is not valid",
        "  corpus.uri",
        f"configuration {path}, with what the command line says, is not valid",
        "  compression",
        "what the command line says is not valid",
        "  prompts.caption",
    ]


def test_all_mistakes_are_told_at_once() -> None:
    said = refusal("frames.baseline=0", "workers.count=0", "compression.x=1")
    assert said.count("\n  ") == 3


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "got an empty file"),
        ("- a\n- b\n", "must be a mapping of sections, got list"),
        ("a: [", "cannot read configuration"),
        ("frames: {fps: 1}\noutput: {}\nframes: {fps: 2}\n", "'frames' is given twice, again in line 3"),
        ("corpus: {uri: 5}\n", "corpus.uri"),
    ],
)
def test_broken_files(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"job\.yaml") as error:
        load_config(path)
    assert text in str(error.value)


def test_a_missing_file_and_a_binary_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no configuration file"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read configuration"):
        load_config(tmp_path / "binary.yaml")
    with pytest.raises(UserError, match="cannot read configuration"):
        load_config(tmp_path)


def test_configuration_is_frozen() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config().frames.baseline = 3  # type: ignore[misc]


def test_questions_are_named() -> None:
    made = config("prompts.questions=[a, {id: colour, text: b}, {text: c}]").prompts.questions
    assert made == (Question("q1", "a"), Question("colour", "b"), Question("q3", "c"))


@pytest.mark.parametrize(
    ("baseline", "retention_ratio", "multiplier", "frames"),
    [
        (16, 0.1, "auto", 160),
        (16, 0.15, "auto", 106),
        (16, 0.3, "auto", 53),
        (7, 0.7, "auto", 10),
        (16, 1, "auto", 16),
        (16, 0.1, "2.5", 40),
        (16, 1, "10", 160),
        (1, 0.9, "auto", 1),
    ],
)
def test_ten_times_the_frames_and_never_more_tokens(
    baseline: int, retention_ratio: float, multiplier: str, frames: int
) -> None:
    made = config(
        f"frames.baseline={baseline}",
        f"compression.retention_ratio={retention_ratio}",
        f"frames.multiplier={multiplier}",
    )
    assert made.num_frames == frames


# Changing this value re-does every corpus ever indexed: do it only where answers change.
PINNED = "b7165b28987e60cc"


def test_the_fingerprint_is_the_same_in_every_release() -> None:
    assert config().fingerprint("revision") == PINNED


@pytest.mark.parametrize(
    "override",
    [
        "corpus.uri=/elsewhere",
        "output.uri=/elsewhere",
        "output.table=other",
        "workers.count=8",
        "workers.num_gpus=0",
        "decoding.processes=4",
        "limits.attempts=1",
        "metrics.port=9000",
        "compression.alpha=0.70",
        "compression.profile=general",
        "compression.adaptive=false",
        "frames.fps=7",
        "frames.baseline=16.0",
    ],
)
def test_what_changes_no_answer_keeps_the_fingerprint(override: str) -> None:
    assert config(override).fingerprint("r") == config().fingerprint("r")


@pytest.mark.parametrize(
    "override",
    [
        "model.name=other",
        "model.dtype=float32",
        "model.positions=transformers",
        "compression.alpha=0.6",
        "compression.adaptive=true",
        "frames.baseline=8",
        "frames.sampling=fps",
        "frames.max_pixels=200000",
        "prompts.caption=What happens?",
        "prompts.questions=[a]",
        "prompts.answer_max_new_tokens=3",
        "decoding.decoders=[pyav]",
    ],
)
def test_what_may_change_an_answer_changes_the_fingerprint(override: str) -> None:
    assert config(override).fingerprint("r") != config().fingerprint("r")


def test_a_profile_is_its_values_and_fields_beside_it_override_them() -> None:
    made = config("compression.profile=action", "compression.temporal_threshold=0.8").compression
    assert made == profile("action", temporal_threshold=0.8)
    earlier = config("compression.temporal_threshold=0.8", "compression.profile=action").compression
    assert earlier == made, "the order of settings does not matter"
    assert config("compression.profile=action", "compression.profile=counting").compression == profile(
        "counting"
    )


def test_a_profile_on_the_command_line_replaces_the_files_choice(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("compression: {profile: general, retention_ratio: 0.3, min_segment_num: 2, alpha: 0.6}\n")
    given = ["compression.min_segment_num=5", "compression.profile=action"]
    assert load_config(path, NEEDED).compression == profile(
        "general", retention_ratio=0.3, min_segment_num=2, alpha=0.6
    )
    made = load_config(path, [*NEEDED, *given]).compression
    assert made == profile("action", min_segment_num=5, alpha=0.6)


def test_values_are_taken_as_they_are_above_everything() -> None:
    made = load_config(None, [*NEEDED, "prompts.caption=a"], {"prompts.caption": " 1: #🙂 "})
    assert made.prompts.caption == " 1: #🙂 "
    with pytest.raises(UserError, match=r"corpus\.uri='v': corpus is the value 'x', not a section"):
        load_config(None, ["corpus=x"], {"corpus.uri": "v"})


def test_frames_follow_the_profile() -> None:
    assert [config(f"compression.profile={name}").num_frames for name in PROFILES] == [320, 160, 80, 64]


@pytest.mark.parametrize("name", PROFILES)
def test_two_spellings_of_the_same_settings_have_one_fingerprint(name: str) -> None:
    spelled = [f"compression.{key}={value}" for key, value in PROFILES[name].items()]
    by_name = config(f"compression.profile={name}")
    assert by_name.fingerprint("r") == config(*spelled).fingerprint("r")
    assert "profile" not in by_name.semantic()["compression"]
    assert JobConfig.model_validate(by_name.model_dump(mode="json")) == by_name


def test_profiles_differ_in_their_fingerprints() -> None:
    made = {config(f"compression.profile={name}").fingerprint("r") for name in PROFILES}
    assert len(made) == len(PROFILES)


def test_with_fps_sampling_the_rate_matters() -> None:
    slow, fast = (config("frames.sampling=fps", f"frames.fps={fps}") for fps in (1, 2))
    assert slow.fingerprint("r") != fast.fingerprint("r")


def test_another_revision_is_another_fingerprint_and_shows_in_the_identity() -> None:
    made = config()
    assert made.fingerprint("a") != made.fingerprint("b")
    assert made.identity("a")["model_revision"] == "a"


def test_whole_numbers_and_floats_are_the_same_setting() -> None:
    def made(alpha: Any) -> str:
        job = config().model_copy(update={"compression": FlashVidConfig(alpha=alpha)})
        return job.fingerprint("r")

    assert made(1) == made(1.0)


def test_standard_input_is_utf8_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "corpus: {uri: v}\noutput: {uri: o}\nmodel: {name: m}\nprompts: {caption: é}\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="latin-1"))
    assert load_config("-").prompts.caption == "é"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"corpus: {ur: v}")))
    with pytest.raises(UserError, match=r"configuration \(standard input\) is not valid"):
        load_config("-")
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UserError, match="which is closed"):
        load_config("-")
