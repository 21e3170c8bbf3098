"""The shape in which a picture is shown."""

from __future__ import annotations

from fractions import Fraction

import pytest

from pipeline.decoding.pixels import shown_size


@pytest.mark.parametrize(
    ("size", "ratio", "shown"),
    [
        ((720, 576), Fraction(64, 45), (1024, 576)),
        ((720, 480), Fraction(8, 9), (640, 480)),
        ((1440, 1080), Fraction(4, 3), (1920, 1080)),
        ((352, 576), Fraction(128, 45), (1001, 576)),
        ((720, 576), None, (720, 576)),
        ((720, 576), Fraction(0), (720, 576)),
        ((720, 576), Fraction(1), (720, 576)),
        ((100, 100), Fraction(8), (800, 100)),
        ((100, 100), Fraction(1, 8), (12, 100)),
    ],
)
def test_all_lines_are_kept_and_the_width_follows(
    size: tuple[int, int], ratio: Fraction | None, shown: tuple[int, int]
) -> None:
    assert shown_size(*size, ratio) == (*shown, None)


@pytest.mark.parametrize(
    ("size", "ratio"),
    [
        ((720, 576), Fraction(1000)),
        ((720, 576), Fraction(1, 1000)),
        ((720, 576), Fraction(9)),
        ((720, 576), Fraction(-4, 3)),
        ((4000, 30), Fraction(2)),
    ],
)
def test_what_cannot_be_is_said_and_not_heeded(size: tuple[int, int], ratio: Fraction) -> None:
    shown = shown_size(*size, ratio)
    assert (shown.width, shown.height) == size
    assert f"{ratio.numerator}:{ratio.denominator}, which is not believed" in (shown.note or "")
