"""HDR and wide gamut to BT.709: held against the standards' formulas, pixel by pixel in float64."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.decoding.tone import BT709, BT2020, HLG, PQ, WIDE_PRIMARIES, to_bt709

# BT.2087: linear BT.2020 to BT.709.
TO_BT709 = np.array([(1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)])
LUMINANCE = np.array([0.2627, 0.6780, 0.0593])  # BT.2020


def pq_of(nits: float) -> float:
    """SMPTE ST 2084."""
    root = (nits / 10000) ** 0.1593017578125
    return float(((0.8359375 + 18.8515625 * root) / (1 + 18.6875 * root)) ** 78.84375)


def nits_of(pq: float) -> float:
    root = pq ** (1 / 78.84375)
    return float(10000 * (max(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125))


def hlg_of(scene: float) -> float:
    """ARIB STD-B67 as in BT.2100."""
    if scene <= 1 / 12:
        return float(np.sqrt(3 * scene))
    return float(0.17883277 * np.log(12 * scene - 0.28466892) + 0.55991073)


def dimmed(nits: float) -> float:
    """The EETF of BT.2390 from 1000 to 203 nits."""
    most, level = pq_of(203) / pq_of(1000), min(1.0, pq_of(nits) / pq_of(1000))
    knee = 1.5 * most - 0.5
    if level >= knee:
        t = (level - knee) / (1 - knee)
        level = (
            (2 * t**3 - 3 * t**2 + 1) * knee
            + (t**3 - 2 * t**2 + t) * (1 - knee)
            + (3 * t**2 - 2 * t**3) * most
        )
    return nits_of(level * pq_of(1000))


def shown(light: np.ndarray) -> np.ndarray:
    """Codes of BT.2020 light in nits on a BT.709 display of 203."""
    inside = np.maximum(TO_BT709 @ light, 0)
    scale = dimmed(inside.max()) / max(inside.max(), 1e-9)
    return 255 * np.minimum(inside * scale / 203, 1) ** (1 / 2.4)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_colours_are_those_of_the_standards(transfer: int) -> None:
    rng = np.random.default_rng(0)
    light = rng.uniform(0, 1, (200, 3)) * rng.choice([3.0, 60.0, 250.0, 990.0], (200, 1))  # nits
    if transfer == PQ:
        stored = [[pq_of(value) for value in colour] for colour in light]
    else:
        luminance = (light @ LUMINANCE / 1000) ** (1 / 1.2)  # of the scene
        scene = light / 1000 * (luminance ** (1 - 1.2))[:, None]
        light, scene = light[scene.max(1) <= 1], scene[scene.max(1) <= 1]
        stored = [[hlg_of(value) for value in colour] for colour in scene]
    codes = np.rint(np.array(stored)[None] * 65535).astype(np.uint16)
    expected = np.array([shown(colour) for colour in light])
    error = np.abs(to_bt709(codes, transfer, BT2020)[0] - expected)
    is_dark = expected < 25  # there a code is very little light, and the matrices above have four places
    assert error[~is_dark].max() <= 1.5
    assert error[is_dark].max() <= 8


def test_greys_rise_and_paper_white_is_light() -> None:
    nits = np.geomspace(0.01, 10000, 500)
    greys = np.rint(np.array([[pq_of(value)] * 3 for value in nits])[None] * 65535).astype(np.uint16)
    codes = to_bt709(greys, PQ, BT2020)[0].astype(int)
    assert (np.diff(codes, axis=0) >= 0).all()
    assert (codes.max(1) - codes.min(1)).max() <= 1, "grey stays grey"
    assert abs(codes[np.abs(nits - 203).argmin(), 0] - 230) <= 1
    assert (codes[nits > 1000] == 255).all()
    assert (to_bt709(greys, PQ, BT709)[0] == codes).all(), "primaries do not matter to grey"


@pytest.mark.parametrize("primaries", sorted(WIDE_PRIMARIES))
def test_wide_gamut_keeps_greys(primaries: int) -> None:
    greys = np.repeat(np.arange(0, 65536, 257, dtype=np.uint16)[None, :, None], 3, axis=2)
    assert np.abs(to_bt709(greys, 1, primaries)[0].astype(int) - np.arange(256)[:, None]).max() <= 1
