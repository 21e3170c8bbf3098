"""From HDR and wide gamut to what models are trained on: BT.709 as a display of 203 nits shows it.

Arithmetic on arrays, by tables: no decoder. Code points are those of ITU-T H.273. Pictures graded for PQ
(SMPTE ST 2084) and HLG (ARIB STD-B67) become light in nits, HLG by its OOTF for a display of 1000 nits
(BT.2100); primaries become those of BT.709; highlights are bent down by the EETF of BT.2390, from 1000 nits
to the 203 of reference white (BT.2408), by the largest of R, G and B so that hues stay; then comes the
inverse of BT.1886. Paper white lands at 230 of 255. One curve for all files: what a file says of the display
it was graded on is not heeded, so that paper white does not depend on it; beyond 1000 nits all is white.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["BT709", "BT2020", "HLG", "PQ", "WIDE_PRIMARIES", "to_bt709"]

PQ, HLG = 16, 18  # transfer characteristics
BT709, BT2020 = 1, 9  # primaries
_D65 = (0.3127, 0.3290)
# x, y of red, green, blue and white, where they differ enough from BT.709 to be seen.
_CHROMATICITIES = {
    BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), _D65),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),  # DCI P3
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),  # Display P3
}
WIDE_PRIMARIES = frozenset(_CHROMATICITIES) - {BT709}

PEAK_NITS = 1000.0  # of the HDR picture
WHITE_NITS = 203.0  # of the SDR display
_DISPLAY_GAMMA = 2.4
_HLG_GAMMA = 1.2
_PQ_M1, _PQ_M2 = 1305 / 8192, 2523 / 32
_PQ_C1, _PQ_C2, _PQ_C3 = 107 / 128, 2413 / 128, 2392 / 128
_HLG_A, _HLG_B, _HLG_C = 0.17883277, 0.28466892, 0.55991073
_STEPS = 4096
_ROWS = 32  # at once, which stay in a core's cache


def to_bt709(rgb: NDArray[np.uint16], transfer: int, primaries: int) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) BT.709 of uint16 (H, W, 3) R'G'B' of any transfer curve; PQ and HLG are tone mapped."""
    shown = np.empty(rgb.shape, dtype=np.uint8)
    for top in range(0, len(rgb), _ROWS):
        light = _light(transfer)[rgb[top : top + _ROWS]]  # float32, 1 is reference white
        if transfer == HLG:
            _show_scene(light, primaries)
        if primaries in WIDE_PRIMARIES:
            light = light @ _to_bt709_light(primaries).T
        np.maximum(light, 0.0, out=light)
        if transfer in (PQ, HLG):
            _dim(light)
        steps = np.rint(np.sqrt(np.minimum(light, 1.0)) * (_STEPS - 1)).astype(np.uint16)
        shown[top : top + _ROWS] = _codes()[steps]
    return shown


def _show_scene(light: Floats, primaries: int) -> None:
    """The OOTF of HLG, in place: from light of the scene to that of a display of 1000 nits."""
    luminance = light @ _row_of_luminance(primaries)
    np.maximum(luminance, 1e-6, out=luminance)
    light *= (luminance ** (_HLG_GAMMA - 1) * (PEAK_NITS / WHITE_NITS))[..., None]


def _dim(light: Floats) -> None:
    """The EETF by the largest of R, G and B, in place; none is more than 1 then."""
    brightest = np.maximum(np.maximum(light[..., 0], light[..., 1]), light[..., 2])
    step = np.minimum(brightest * ((_STEPS - 1) * WHITE_NITS / PEAK_NITS), _STEPS - 1).astype(np.uint16)
    light *= np.where(step < _STEPS - 1, _dimming()[step], 1 / np.maximum(brightest, 1e-6))[..., None]


@cache
def _light(transfer: int) -> Floats:
    """float32 (65536,): the light of each code; of HLG the scene's, at most 1, before the OOTF."""
    code = np.arange(65536, dtype=np.float64) / 65535
    if transfer == PQ:
        light = _pq_nits(code) / WHITE_NITS
    elif transfer == HLG:
        high = (np.exp((code - _HLG_C) / _HLG_A) + _HLG_B) / 12
        light = np.where(code <= 0.5, code**2 / 3, high)
    else:
        light = code**_DISPLAY_GAMMA
    return light.astype(np.float32)


@cache
def _dimming() -> Floats:
    """float32 (4096,): by what light of 0 to 1000 nits is multiplied; 1 up to the knee."""
    nits = np.linspace(0.0, PEAK_NITS, _STEPS)
    dimmed = _pq_nits(_eetf(_pq_code(nits) / _pq_code(PEAK_NITS)) * _pq_code(PEAK_NITS))
    return np.divide(dimmed, nits, out=np.ones(_STEPS), where=nits > 0).astype(np.float32)


def _eetf(level: NDArray[np.float64]) -> NDArray[np.float64]:
    """BT.2390-11, 5.4.1, for a black of 0: levels of PQ, 1 the picture's peak, to those of the display."""
    most = float(_pq_code(WHITE_NITS) / _pq_code(PEAK_NITS))
    knee = 1.5 * most - 0.5
    t = (level - knee) / (1 - knee)
    bent = (
        (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * most
    )
    return np.where(level < knee, level, bent)


def _pq_nits(code: NDArray[np.float64]) -> NDArray[np.float64]:
    root = code ** (1 / _PQ_M2)
    return 10000 * (np.maximum(root - _PQ_C1, 0) / (_PQ_C2 - _PQ_C3 * root)) ** (1 / _PQ_M1)


def _pq_code(nits: NDArray[np.float64] | float) -> NDArray[np.float64]:
    root = (np.asarray(nits) / 10000) ** _PQ_M1
    return np.asarray(((_PQ_C1 + _PQ_C2 * root) / (1 + _PQ_C3 * root)) ** _PQ_M2)


@cache
def _codes() -> NDArray[np.uint8]:
    """uint8 (4096,): the code of light whose square root is i / 4095, so that darks have steps enough."""
    light = np.linspace(0.0, 1.0, _STEPS) ** 2
    return np.rint(255 * light ** (1 / _DISPLAY_GAMMA)).astype(np.uint8)


def _to_xyz(primaries: int) -> NDArray[np.float64]:
    """(3, 3): R, G, B to X, Y, Z, white having Y = 1."""
    corners = [np.array([x, y, 1 - x - y]) / y for x, y in _CHROMATICITIES[primaries]]
    axes = np.stack(corners[:3], axis=1)
    return np.asarray(axes * np.linalg.solve(axes, corners[3]))


@cache
def _to_bt709_light(primaries: int) -> Floats:
    """(3, 3): R, G, B to those of BT.709; white stays white."""
    own, wanted = _to_xyz(primaries), _to_xyz(BT709)
    adapt = np.diag(wanted.sum(axis=1) / own.sum(axis=1))
    return np.linalg.solve(wanted, adapt @ own).astype(np.float32)


@cache
def _row_of_luminance(primaries: int) -> Floats:
    known = primaries if primaries in _CHROMATICITIES else BT709
    return np.asarray(_to_xyz(known)[1], dtype=np.float32)
