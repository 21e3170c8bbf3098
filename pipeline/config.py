"""JobConfig: everything a run needs, from YAML plus ``key=value`` overrides; frozen, unknown keys refused.

The fingerprint covers what changes an answer (model, compression, frames, prompts) and nothing else, so
adding workers or moving the output does not start the corpus again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from flashvid.config import FlashVidConfig
from flashvid.profiles import PROFILES, profile_settings
from pipeline.config_text import explain, gather
from pipeline.records import Question, UserError

__all__ = [
    "CorpusConfig",
    "DecodingConfig",
    "FramesConfig",
    "JobConfig",
    "LimitsConfig",
    "MetricsConfig",
    "ModelConfig",
    "OutputConfig",
    "PromptsConfig",
    "RayConfig",
    "WorkersConfig",
    "load_config",
]

VIDEO_SUFFIXES = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "wmv", "flv", "3gp", "ogv")


class _Section(BaseModel):
    # No limit may be infinite: nothing in a run is unbounded.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_Text = Annotated[str, Field(min_length=1)]
_PROFILE = "profile"


class CorpusConfig(_Section):
    """Where the videos are: a folder, prefix, single file or glob on any fsspec URL."""

    uri: _Text
    include: tuple[_Text, ...] = tuple(f"*.{suffix}" for suffix in VIDEO_SUFFIXES)
    exclude: tuple[_Text, ...] = ()
    limit: Annotated[int, Field(ge=1)] | None = None
    max_video_bytes: Annotated[int, Field(ge=1)] = 20 * 2**30

    @field_validator("include", "exclude", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class OutputConfig(_Section):
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


class ModelConfig(_Section):
    """A Qwen2.5-VL checkpoint: a local folder or a hub id."""

    name: _Text
    revision: _Text | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    positions: Literal["trained", "transformers"] = "trained"


class FramesConfig(_Section):
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


class PromptsConfig(_Section):
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


class WorkersConfig(_Section):
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


class DecodingConfig(_Section):
    """Limits on decode children: processes per worker, seconds and bytes per video, recycling."""

    processes: Annotated[int, Field(ge=1)] = 1
    timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    memory_bytes: Annotated[int, Field(ge=2**28)] = 4 * 2**30
    videos_per_process: Annotated[int, Field(ge=1)] = 200
    bytes_in_flight: Annotated[int, Field(ge=1)] = 2**30
    decoders: Annotated[tuple[Literal["decord", "pyav"], ...], Field(min_length=1)] = ("decord", "pyav")
    cache_dir: str | None = None


class LimitsConfig(_Section):
    """How often one video may be tried, and how long a worker may be silent.

    ``retry_failed``: also try videos whose failure an earlier run recorded as final.
    """

    attempts: Annotated[int, Field(ge=1)] = 3
    retry_failed: bool = False
    worker_silence_seconds: Annotated[float, Field(gt=0)] = 60.0
    worker_start_seconds: Annotated[float, Field(gt=0)] = 600.0


class MetricsConfig(_Section):
    """The Prometheus endpoint at the coordinator. Port 0 takes a free one; null switches it off."""

    port: Annotated[int, Field(ge=0, le=65535)] | None = 0
    host: str = "127.0.0.1"


class RayConfig(_Section):
    """``address: null`` uses RAY_ADDRESS if set, else starts a local Ray; ``auto`` joins a running one."""

    address: str | None = None
    num_cpus: Annotated[int, Field(ge=1)] | None = None
    object_store_bytes: Annotated[int, Field(ge=80 * 2**20)] = 256 * 2**20


class JobConfig(_Section):
    """One indexing job, whole.

    ``compression`` holds the fields of ``FlashVidConfig`` and may begin with a task's ``profile``, whose
    values the fields written beside it override; only the values are kept.
    """

    corpus: CorpusConfig
    output: OutputConfig
    model: ModelConfig
    compression: FlashVidConfig = FlashVidConfig()
    frames: FramesConfig = FramesConfig()
    prompts: PromptsConfig = PromptsConfig()
    workers: WorkersConfig = WorkersConfig()
    decoding: DecodingConfig = DecodingConfig()
    limits: LimitsConfig = LimitsConfig()
    metrics: MetricsConfig = MetricsConfig()
    ray: RayConfig = RayConfig()

    @field_validator("compression", mode="before")
    @classmethod
    def _profile_below_fields(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or _PROFILE not in value:
            return value
        fields = {name: item for name, item in value.items() if name != _PROFILE}
        return {**profile_settings(value[_PROFILE]), **fields}

    @property
    def num_frames(self) -> int:
        """Frames sampled per video: baseline times multiplier, rounded down so as not to exceed its tokens.

        At retention 1 and ``multiplier: auto`` the baseline itself.
        """
        multiplier = self.frames.multiplier
        factor = 1.0 / self.compression.retention_ratio if multiplier == "auto" else float(multiplier)
        return max(
            1, math.floor(self.frames.baseline * factor + 1e-9)
        )  # 7 / 0.7 is 10.000000000000002, or less

    def semantic(self) -> dict[str, Any]:
        """The part of the configuration that changes an answer, as plain JSON values."""
        picked = self.model_dump(mode="json", include={"model", "compression", "frames", "prompts"})
        picked["decoders"] = list(self.decoding.decoders)
        if not self.compression.adaptive:
            del picked["compression"]["adaptive"]  # newer than the first tables, which keep their fingerprint
        if self.frames.sampling == "uniform":
            del picked["frames"]["fps"]  # not looked at, so changing it must not start the corpus again
        return picked

    def identity(self, model_revision: str) -> dict[str, Any]:
        """All that the fingerprint covers; what a table is bound to."""
        return {**self.semantic(), "model_revision": model_revision}

    def fingerprint(self, model_revision: str) -> str:
        """16 hex digits over ``identity``."""
        text = json.dumps(_as_floats(self.identity(model_revision)), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_config(
    path: str | Path | None,
    overrides: Sequence[str] = (),
    values: Mapping[str, object] = MappingProxyType({}),
) -> JobConfig:
    """Read YAML, apply ``key=value`` overrides (dotted keys, YAML values), then ``values`` as they are.

    Raises UserError that names the key, what was wrong and the nearest known key.
    """
    raw = gather(path, overrides, values, profiled={field for one in PROFILES.values() for field in one})
    try:
        return JobConfig.model_validate(raw)
    except ValidationError as error:
        raise UserError(explain(error.errors(), path, _sections())) from None


def _as_floats(value: Any) -> Any:
    """1 and 1.0 are the same setting; JSON tells them apart."""
    if isinstance(value, Mapping):
        return {key: _as_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_floats(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _sections() -> dict[str, list[str]]:
    kinds = {name: info.annotation for name, info in JobConfig.model_fields.items()}
    known = {
        name: list(getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", {}))
        for name, kind in kinds.items()
    }
    known["compression"].append(_PROFILE)
    return known
