"""What may a job set?

In: a YAML file and key=value overrides. Out: a frozen JobConfig in which every value is checked, with the
fingerprint of what changes an answer. Start with job.py; sections.py has every setting and its default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from pipeline.config.job import JobConfig, load_config
    from pipeline.config.sections import (
        VIDEO_SUFFIXES,
        CorpusConfig,
        DecodingConfig,
        ManifestConfig,
        MetricsConfig,
        ModelConfig,
        OutputConfig,
        SummaryConfig,
        WindowsConfig,
        too_long,
    )
else:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "job": ["JobConfig", "load_config"],
            "sections": [
                "VIDEO_SUFFIXES",
                "CorpusConfig",
                "DecodingConfig",
                "ManifestConfig",
                "MetricsConfig",
                "ModelConfig",
                "OutputConfig",
                "SummaryConfig",
                "WindowsConfig",
                "too_long",
            ],
        },
    )

__all__ = [
    "VIDEO_SUFFIXES",
    "CorpusConfig",
    "DecodingConfig",
    "JobConfig",
    "ManifestConfig",
    "MetricsConfig",
    "ModelConfig",
    "OutputConfig",
    "SummaryConfig",
    "WindowsConfig",
    "load_config",
    "too_long",
]
