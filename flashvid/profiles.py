"""Task profiles: retention ratio, merge threshold and least number of segments as one choice.

What they rest on, and what was not measured, is said in docs/PROFILES.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from flashvid.config import FlashVidConfig

__all__ = ["PROFILES", "profile", "profile_settings"]

# Published: figures for retention 0.10 to 0.25, and that coarse tasks bear a lower one than fine motion and
# counting. The thresholds and segment counts are our reasoning, not measurements.
PROFILES: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        # Topic and mood: what changes little may merge sooner. Below the range of the published figures.
        "summary": MappingProxyType(
            {"retention_ratio": 0.05, "temporal_threshold": 0.7, "min_segment_num": 4}
        ),
        # The settings of the paper, and the defaults here.
        "general": MappingProxyType(
            {"retention_ratio": 0.1, "temporal_threshold": 0.8, "min_segment_num": 4}
        ),
        # Fine motion: twice the tokens, a moving thing does not merge with where it was, shorter segments.
        "action": MappingProxyType({"retention_ratio": 0.2, "temporal_threshold": 0.9, "min_segment_num": 8}),
        # Things side by side: the most tokens; merging over time leaves the places to what is next to each
        # other.
        "counting": MappingProxyType(
            {"retention_ratio": 0.25, "temporal_threshold": 0.8, "min_segment_num": 8}
        ),
    }
)


def profile(name: str, **settings: Any) -> FlashVidConfig:
    """The configuration of a named task, e.g. `flashvid(model, config=profile("action"))`.

    name: `summary` (topic, mood), `general` (the defaults), `action` (fine motion) or `counting`. settings:
    fields of `FlashVidConfig`; they override the profile's. A profile is values and nothing more:
    `profile("general") == FlashVidConfig()`. The values follow the published sensitivity of tasks (FlashVID,
    ICLR 2026, arXiv 2602.08024: the coarser the task, the lower the ratio may go; fine motion and counting
    want 0.2 or more); no accuracy of the profiles was measured. Raises ValueError for an unknown name or a
    value out of range, TypeError for an unknown setting.
    """
    return FlashVidConfig(**{**profile_settings(name), **settings})


def profile_settings(name: object) -> dict[str, Any]:
    """The fields that a profile sets: retention_ratio, temporal_threshold and min_segment_num.

    Raises ValueError naming the profiles that exist.
    """
    if not isinstance(name, str) or name not in PROFILES:
        raise ValueError(f"profile={name!r} is unknown; profiles are {', '.join(PROFILES)}")
    return dict(PROFILES[name])
