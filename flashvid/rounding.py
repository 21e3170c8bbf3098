"""Rounding that forgives binary fractions: 0.1 * 30 is 3, not 3.0000000000000004."""

from __future__ import annotations

import math

__all__ = ["ceil_product", "floor_product"]


def ceil_product(value: float) -> int:
    """Rounds up, but takes a product that misses a whole number by binary rounding alone for that number."""
    return math.ceil(value - 1e-9 * max(1.0, abs(value)))


def floor_product(value: float) -> int:
    """Rounds down, with the same pardon as :func:`ceil_product`."""
    return math.floor(value + 1e-9 * max(1.0, abs(value)))
