"""JobConfig: everything a run needs, from YAML plus ``key=value`` overrides; frozen, unknown keys refused.

The fingerprint covers what changes an answer (model, compression, frames, windows, prompts) and nothing else,
so adding workers or moving the output does not start the corpus again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from pydantic import ValidationError, ValidationInfo, field_validator

from flashvid.config import FlashVidConfig
from flashvid.profiles import PROFILES, profile_settings
from pipeline.config.sections import (
    CorpusConfig,
    DecodingConfig,
    FramesConfig,
    LimitsConfig,
    ManifestConfig,
    MetricsConfig,
    ModelConfig,
    OutputConfig,
    PromptsConfig,
    RayConfig,
    Section,
    SummaryConfig,
    WindowsConfig,
    WorkersConfig,
    too_long,
)
from pipeline.config.text import explain, gather
from pipeline.errors import UserError

__all__ = [
    "CorpusConfig",
    "DecodingConfig",
    "FramesConfig",
    "JobConfig",
    "LimitsConfig",
    "ManifestConfig",
    "MetricsConfig",
    "ModelConfig",
    "OutputConfig",
    "PromptsConfig",
    "RayConfig",
    "SummaryConfig",
    "WindowsConfig",
    "WorkersConfig",
    "load_config",
]

_PROFILE = "profile"

# How the fingerprint names decoders that nobody chose: as the first tables did, which are still added to.
_DECODERS_UNSAID = ("decord", "pyav")


class JobConfig(Section):
    """One indexing job, whole.

    ``compression`` holds the fields of ``FlashVidConfig`` and may begin with a task's ``profile``, whose
    values the fields written beside it override; only the values are kept.
    """

    corpus: CorpusConfig
    output: OutputConfig
    model: ModelConfig
    compression: FlashVidConfig = FlashVidConfig()
    frames: FramesConfig = FramesConfig()
    windows: WindowsConfig | None = None
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

    @field_validator("windows", "prompts")
    @classmethod
    def _prompts_fit(
        cls, value: WindowsConfig | PromptsConfig | None, info: ValidationInfo
    ) -> WindowsConfig | PromptsConfig | None:
        corpus: CorpusConfig | None = info.data.get("corpus")  # None: it is not valid itself
        for name, text in _prompts_in(value):
            if corpus is not None and len(text) > corpus.max_question_chars:
                raise ValueError(f"{name} {text[:60]!r}… {too_long(text, corpus.max_question_chars)}")
        return value

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

    @property
    def written_folders(self) -> tuple[str, ...]:
        """Where the job itself writes: never a part of its corpus, wherever they lie."""
        cache = self.decoding.cache_dir
        return (self.output.uri,) if cache is None else (self.output.uri, cache)

    def semantic(self) -> dict[str, Any]:
        """The part of the configuration that changes an answer, as plain JSON values."""
        picked = self.model_dump(mode="json", include={"model", "compression", "frames", "prompts"})
        picked["decoders"] = list(self.decoding.decoders or _DECODERS_UNSAID)
        # Settings newer than the first tables count only where they are used: those keep their fingerprint.
        if self.windows is not None:
            picked["windows"] = self.windows.model_dump(mode="json")
        if self.model.engine is None:
            del picked["model"]["engine"]
        if not self.compression.adaptive:
            del picked["compression"]["adaptive"]
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
        given = [*(text.partition("=")[0] for text in overrides), *values]
        raise UserError(explain(error.errors(), raw, _sections(), path=path, given=given)) from None


def _prompts_in(section: WindowsConfig | PromptsConfig | None) -> Iterator[tuple[str, str]]:
    """The texts that the model is asked, by their settings."""
    if isinstance(section, PromptsConfig):
        yield "prompts.caption", section.caption
        yield from ((f"prompts.questions, {one.question_id!r}:"[:100], one.text) for one in section.questions)
    elif section is not None and section.summary is not None:
        yield "windows.summary.prompt", section.summary.prompt


def _as_floats(value: Any) -> Any:
    """1 and 1.0 are the same setting; JSON tells them apart."""
    if isinstance(value, Mapping):
        return {key: _as_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_floats(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _sections(section: type[Section] = JobConfig, prefix: str = "") -> dict[str, list[str]]:
    """The keys of every section; of those within sections under their dotted names."""
    known: dict[str, list[str]] = {}
    for name, info in section.model_fields.items():
        for kind in (info.annotation, *get_args(info.annotation)):  # the latter of an optional one
            if isinstance(kind, type) and issubclass(kind, Section):
                known[f"{prefix}{name}"] = list(kind.model_fields)
                known |= _sections(kind, f"{prefix}{name}.")
            elif kind is FlashVidConfig:
                known[name] = [*FlashVidConfig.__dataclass_fields__, _PROFILE]
    return known
