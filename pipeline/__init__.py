"""A corpus in, Parquet out; one folder for each question that a reader asks, see docs/ARCHITECTURE.md."""

from __future__ import annotations

from pathlib import Path

__all__ = ["ROOT"]

# The folder that holds this package: a clone, where demo/ lies beside it, or site-packages.
ROOT = Path(__file__).resolve().parent.parent
