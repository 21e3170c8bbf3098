"""All planted bugs. Each takes a text that its file holds exactly once: `test_table.py` keeps that true."""

from __future__ import annotations

from tests.mutations.compression import COMPRESSION
from tests.mutations.model_side import MODEL_SIDE

__all__ = ["PLANTED", "STAGES"]

STAGES = (
    "segments",
    "budget",
    "selection",
    "trees",
    "clusters",
    "fill",
    "plan",
    "saliency",
    "positions",
    "pruning",
)
PLANTED = (*COMPRESSION, *MODEL_SIDE)
