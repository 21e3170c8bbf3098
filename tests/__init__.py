"""Where the clone is, and the command that its users type."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["FLASHVID", "ROOT"]

ROOT = Path(__file__).resolve().parent.parent
FLASHVID = Path(sys.executable).with_name("flashvid")
