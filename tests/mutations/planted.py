"""What a planted bug is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Planted"]


@dataclass(frozen=True)
class Planted:
    """One bug: `old`, found once in `file`, becomes `new`; `breaks` says what is then wrong."""

    stage: str
    breaks: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """Short and unique."""
        return f"{self.stage}: {self.breaks}"
