"""The engine under the name that documents promise; it is made in ``generation/engine.py``."""

from __future__ import annotations

from flashvid.generation import Engine, Generation, VideoAnswers, VideoInput

__all__ = ["Engine", "Generation", "VideoAnswers", "VideoInput"]
