"""The sections of a job's configuration: what may be set, within which limits, and every default once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.records import VIDEO_COLUMNS, Question

__all__ = [
    "VIDEO_SUFFIXES",
    "CorpusConfig",
    "DecodingConfig",
    "FramesConfig",
    "LimitsConfig",
    "ManifestConfig",
    "MetricsConfig",
    "ModelConfig",
    "OutputConfig",
    "PromptsConfig",
    "RayConfig",
    "Section",
    "SummaryConfig",
    "WindowsConfig",
    "WorkersConfig",
    "too_long",
]

VIDEO_SUFFIXES = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "wmv", "flv", "3gp", "ogv")


class Section(BaseModel):
    # No limit may be infinite: nothing in a run is unbounded.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_Text = Annotated[str, Field(min_length=1)]


class ManifestConfig(Section):
    """Names of a manifest's columns; only the first must be there."""

    uri_column: _Text = "uri"
    id_column: _Text = "video_id"
    questions_column: _Text = "questions"
    start_column: _Text = "start_seconds"
    end_column: _Text = "end_seconds"
    version_column: _Text = "version"
    size_column: _Text = "size_bytes"


class CorpusConfig(Section):
    """Where the videos are: a folder, prefix, single file, glob, manifest or tar shards, on any fsspec URL.

    ``format: auto`` goes by the suffix: .parquet, .csv, .jsonl and .ndjson are manifests, .tar are shards.
    ``slice: i/n`` takes the i-th of n disjoint parts, 0 <= i < n, by a hash of the video's id.
    ``max_question_chars``: of each question of a manifest, and of each of the job's own prompts.
    ``columns``: columns to carry over, name -> type (a list of names: all text).
    """

    uri: _Text
    format: Literal["auto", "files", "manifest", "tar"] = "auto"
    include: tuple[_Text, ...] = tuple(f"*.{suffix}" for suffix in VIDEO_SUFFIXES)
    exclude: tuple[_Text, ...] = ()
    limit: Annotated[int, Field(ge=1)] | None = None
    slice: Annotated[str, Field(pattern=r"^\d{1,6}/\d{1,6}$")] | None = None
    min_video_bytes: Annotated[int, Field(ge=0)] = 0
    max_video_bytes: Annotated[int, Field(ge=1)] = 20 * 2**30
    max_question_chars: Annotated[int, Field(ge=1)] = 16_384
    columns: dict[str, Literal["string", "int64", "float64", "bool", "timestamp"]] = {}
    manifest: ManifestConfig = ManifestConfig()

    @field_validator("include", "exclude", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("columns", mode="before")
    @classmethod
    def _names_are_text(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        return dict.fromkeys(names, "string") if is_list else value

    @field_validator("columns")
    @classmethod
    def _columns_are_new(cls, value: dict[str, str]) -> dict[str, str]:
        taken = sorted(set(value) & set(VIDEO_COLUMNS))
        if taken:
            raise ValueError(f"column {taken[0]!r} is one that every table has; rename it in the manifest")
        return value

    @field_validator("slice")
    @classmethod
    def _slice_exists(cls, value: str | None) -> str | None:
        if value is not None:
            number, count = map(int, value.split("/"))
            if number >= count:
                raise ValueError(f"{value!r} must be i/n with 0 <= i < n; the slices of 4 are 0/4 to 3/4")
        return value


def too_long(text: str, max_chars: int) -> str:
    """What to say of a text of more characters than ``corpus.max_question_chars``."""
    return f"has {len(text)} characters, more than corpus.max_question_chars={max_chars}; shorten or raise it"


class OutputConfig(Section):
    """Where the rows go. A part is committed after ``part_rows`` rows or ``part_seconds`` seconds."""

    uri: _Text
    table: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] = "videos"
    part_rows: Annotated[int, Field(ge=1)] = 512
    part_seconds: Annotated[float, Field(gt=0)] = 15.0

    @field_validator("table")
    @classmethod
    def _not_reserved(cls, table: str) -> str:
        if table == "failures":
            raise ValueError("table 'failures' is where failures go; choose another name, e.g. 'videos_v2'")
        return table


class ModelConfig(Section):
    """A Qwen2.5-VL checkpoint: a local folder or a hub id.

    ``engine``: ``package.module:function`` that makes another engine, see indexing/engine_interface.py.
    ``revision``: commit, branch or tag of the hub; with ``engine`` any text that changes with its weights.
    """

    name: _Text
    engine: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None
    revision: _Text | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    positions: Literal["trained", "transformers"] = "trained"


class FramesConfig(Section):
    """Which frames are looked at.

    ``uniform``: ``num_frames`` evenly over the video. ``fps``: that many per second, at most ``num_frames``.
    ``multiplier: auto`` is 1 / retention ratio: 16 baseline frames at retention 0.1 become 160, at no more
    visual tokens in the language model than the 16 cost.
    """

    sampling: Literal["uniform", "fps"] = "uniform"
    baseline: Annotated[int, Field(ge=1)] = 16
    multiplier: Literal["auto"] | Annotated[float, Field(ge=1)] = "auto"
    fps: Annotated[float, Field(gt=0)] = 2.0
    min_pixels: Annotated[int, Field(ge=1)] = 128 * 28 * 28
    max_pixels: Annotated[int, Field(ge=1)] = 768 * 28 * 28

    @model_validator(mode="after")
    def _pixels_ordered(self) -> FramesConfig:
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"frames.min_pixels={self.min_pixels} exceeds max_pixels={self.max_pixels}")
        return self


class SummaryConfig(Section):
    """A caption of the whole video, written by the language model from the captions of its windows."""

    prompt: _Text = "These are captions of consecutive parts of one video. Summarize the whole video."
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    max_input_tokens: Annotated[int, Field(ge=256)] = 8192


class WindowsConfig(Section):
    """Long videos in parts: each window of ``length_seconds`` gets a caption and answers of its own.

    Windows follow each other every ``length_seconds - overlap_seconds``. A video of more than ``max_count``
    windows fails as too large.
    """

    length_seconds: Annotated[float, Field(gt=0)]
    overlap_seconds: Annotated[float, Field(ge=0)] = 0.0
    max_count: Annotated[int, Field(ge=1)] = 2000
    summary: SummaryConfig | None = None

    @model_validator(mode="after")
    def _advances(self) -> WindowsConfig:
        if self.overlap_seconds >= self.length_seconds:
            raise ValueError(
                f"windows.overlap_seconds={self.overlap_seconds:g} must be less than "
                f"length_seconds={self.length_seconds:g}, or no window would come after the first"
            )
        return self


class PromptsConfig(Section):
    """One caption prompt and any number of questions, asked of every video."""

    caption: _Text = "Describe this video."
    questions: tuple[Question, ...] = ()
    caption_max_new_tokens: Annotated[int, Field(ge=1)] = 256
    answer_max_new_tokens: Annotated[int, Field(ge=1)] = 64

    @field_validator("questions", mode="before")
    @classmethod
    def _name_questions(cls, value: Any) -> Any:
        """Accept plain strings (ids q1, q2, …) and mappings with id/question_id and text."""
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError("prompts.questions must be a list of questions, e.g. ['Who speaks?']")
        return tuple(_as_question(item, number) for number, item in enumerate(value, start=1))

    @model_validator(mode="after")
    def _ids_differ(self) -> PromptsConfig:
        ids = [question.question_id for question in self.questions]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"prompts.questions use the id {twice[0]!r} more than once; ids must differ")
        return self


def _as_question(item: Any, number: int) -> Question:
    if isinstance(item, Question):
        return item
    fields = {"text": item} if isinstance(item, str) else dict(item) if isinstance(item, Mapping) else {}
    text = fields.pop("text", None)
    name = fields.pop("id", None) or fields.pop("question_id", None) or f"q{number}"
    if fields or not isinstance(text, str) or not text.strip():
        raise ValueError(f"question {number} is {item!r}; write a text or {{id: name, text: a text}}")
    return Question(str(name), text)


class WorkersConfig(Section):
    """GPU worker actors. ``num_gpus`` 1, a fraction, or 0 to run on CPU: the same code."""

    count: Annotated[int, Field(ge=1)] = 1
    num_gpus: Annotated[float, Field(ge=0)] = 1.0
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    lease_videos: Annotated[int, Field(ge=1)] = 4
    threads: Annotated[int, Field(ge=1)] | None = None

    @field_validator("num_gpus", "num_cpus")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError(
                f"{value} must be a whole number or below 1: Ray shares one device, never several"
            )
        return value


class DecodingConfig(Section):
    """Limits on decode children: processes per worker, seconds and bytes per video, recycling.

    ``timeout_seconds`` holds for each window where there are windows. ``decoders``: in which order they are
    asked; null: PyAV, then decord, which is only asked for plain files. ``cache_bytes``: copies of remote
    videos on disk, per worker. ``max_frame_pixels``, ``max_source_frames``: larger claims are refused.
    """

    processes: Annotated[int, Field(ge=1)] = 1
    timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    memory_bytes: Annotated[int, Field(ge=2**28)] = 4 * 2**30
    videos_per_process: Annotated[int, Field(ge=1)] = 200
    bytes_in_flight: Annotated[int, Field(ge=1)] = 2**30
    decoders: Annotated[tuple[Literal["decord", "pyav"], ...], Field(min_length=1)] | None = None
    cache_dir: str | None = None
    cache_bytes: Annotated[int, Field(ge=2**20)] = 64 * 2**30
    max_frame_pixels: Annotated[int, Field(ge=28 * 28)] = 2**26
    max_source_frames: Annotated[int, Field(ge=1)] = 10_000_000

    @property
    def decoder_order(self) -> tuple[Literal["decord", "pyav"], ...]:
        """The decoders in the order in which they are asked."""
        return self.decoders or ("pyav", "decord")


class LimitsConfig(Section):
    """How often one video may be tried, and how long anything may take.

    ``attempts``: failures for a transient reason, in all runs, before the last is final; a retry waits
    ``retry_seconds``, twice as long each time, at most ``retry_max_seconds``. ``strikes``: workers that may
    die with a video before it is quarantined. ``retry_failed``: also try videos whose failure an earlier run
    recorded as final. ``generation_seconds``: of the model for one video or window. ``drain_seconds``: for
    workers to finish or give back what they hold when the run is told to stop. ``queue_videos``: listed
    and not yet done; listing waits beyond that.
    """

    attempts: Annotated[int, Field(ge=1)] = 3
    strikes: Annotated[int, Field(ge=1)] = 3
    retry_seconds: Annotated[float, Field(ge=0)] = 2.0
    retry_max_seconds: Annotated[float, Field(ge=0)] = 60.0
    retry_failed: bool = False
    generation_seconds: Annotated[float, Field(gt=0)] = 1800.0
    drain_seconds: Annotated[float, Field(ge=0)] = 20.0
    queue_videos: Annotated[int, Field(ge=1)] = 1_000_000
    worker_silence_seconds: Annotated[float, Field(gt=0)] = 60.0
    worker_start_seconds: Annotated[float, Field(gt=0)] = 600.0


class MetricsConfig(Section):
    """The Prometheus endpoint at the coordinator. Port 0 takes a free one; null switches it off."""

    port: Annotated[int, Field(ge=0, le=65535)] | None = 0
    host: str = "127.0.0.1"


class RayConfig(Section):
    """``address: null`` uses RAY_ADDRESS if set, else starts a local Ray; ``auto`` joins a running one."""

    address: str | None = None
    num_cpus: Annotated[int, Field(ge=1)] | None = None
    object_store_bytes: Annotated[int, Field(ge=80 * 2**20)] = 256 * 2**20
