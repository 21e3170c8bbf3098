"""Which colours: a decoded picture as 8-bit RGB, by what it and its container say of them.

Runs only inside decode children. Code points are those of ITU-T H.273; libav's enumerations are the same.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from av.video.reformatter import VideoReformatter

from pipeline.decoding.tone import BT2020, HLG, PQ, WIDE_PRIMARIES, to_bt709

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Painter", "dolby_note"]

_UNSAID = 2
_LIMITED, _FULL = 1, 2  # AVCOL_RANGE_MPEG, _JPEG
_NUM_YUV_PLANES = 3
_XYZ = 10
_IPT = 15
# Matrices by which swscale can read, as it numbers them; unsaid, and RGB of what is none, mean BT.601.
_BT2020_MATRIX = 9
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, _BT2020_MATRIX: 9, 10: 9, 0: 5, _UNSAID: 5, 3: 5}
_ODD_MATRICES = {
    8: "YCgCo",
    10: "BT.2020 of constant luminance",
    11: "SMPTE 2085",
    12: "derived from primaries",
    13: "of constant luminance, derived from primaries",
    14: "ICtCp",
    _IPT: "IPT",
    16: "YCgCo-Re",
    17: "YCgCo-Ro",
}
_ODD_TRANSFERS = {8: "linear light", 9: "logarithmic", 10: "logarithmic", 17: "SMPTE 428"}
_DOLBY_TAGS = frozenset({"dvh1", "dvhe", "dvav", "dva1", "dav1"})
_DOLBY_PROFILE_5 = b"\0"  # as the metadata of its pictures number it
_OFFSET = struct.Struct("@N")
_DOLBY_NOTE = (
    "it is Dolby Vision without a picture of its own for other displays (profile 5), which cannot be mapped: "
    "its colours are wrong"
)


class _Tags(NamedTuple):
    matrix: int
    range: int
    transfer: int
    primaries: int

    def or_else(self, other: _Tags) -> _Tags:
        """Each from ``other`` where this does not say."""
        matrix, _, transfer, primaries = (
            theirs if own in (_UNSAID, -1) else own for own, theirs in zip(self, other, strict=True)
        )
        return _Tags(matrix, self.range or other.range, transfer, primaries)

    @property
    def is_hdr(self) -> bool:
        return self.transfer in (PQ, HLG)

    @property
    def is_mapped(self) -> bool:
        """Whether more must be done than reading by a matrix."""
        return self.is_hdr or self.primaries in WIDE_PRIMARIES


class Painter:
    """Makes RGB of one stream's pictures. Make it before the first is decoded: libav then forgets what the
    container said where the codec says otherwise, or nothing.

    ``notes``: what could not be done rightly in the pictures so far, each said once.
    """

    def __init__(self, stream: Any) -> None:
        self._context = stream.codec_context
        self._claimed = _tags_of(self._context, self._context)
        self._scaler = VideoReformatter()  # one of its own for each frame takes half as long again
        self.notes: list[str] = []

    def picture(self, frame: Any, height: int, width: int) -> NDArray[np.uint8]:
        """RGB uint8 (height, width, 3) in BT.709; the frame is resized to that."""
        tags = self._tags(frame)
        self.say(self._note(tags))
        if not tags.is_mapped:
            return _resized(frame, height, width, "rgb24", tags, scaler=self._scaler)
        deep = _resized(frame, height, width, "rgb48le", tags, scaler=self._scaler)
        return to_bt709(deep, tags.transfer, tags.primaries)

    def form_of(self, frame: Any) -> tuple[int, int, Any]:
        """Width, height and ratio of the pixels of a picture that just came out, as the stream has them."""
        return frame.width, frame.height, self._context.sample_aspect_ratio or None

    def say(self, note: str | None) -> None:
        """Note this once."""
        if note and note not in self.notes:
            self.notes.append(note)

    def oddity(self, frame: Any) -> str | None:
        """Why a decoder gets these colours wrong that goes by a frame's matrix and range, and by no more."""
        tags, own = self._tags(frame), _tags_of(frame, self._context)
        if tags.is_mapped or self._note(tags):
            return "colours other than those of BT.709"
        told_elsewhere = own.matrix != tags.matrix or own.range != tags.range
        return "colours that only the container tells" if told_elsewhere else None

    def _tags(self, frame: Any) -> _Tags:
        tags = _tags_of(frame, self._context).or_else(self._claimed)
        if not tags.is_hdr:
            return tags
        matrix = _BT2020_MATRIX if tags.matrix == _UNSAID else tags.matrix
        primaries = BT2020 if tags.primaries == _UNSAID else tags.primaries
        return tags._replace(matrix=matrix, primaries=primaries)

    def _note(self, tags: _Tags) -> str | None:
        """What is wrong with the pictures that come of these tags."""
        is_dolby = str(self._context.codec_tag).lower() in _DOLBY_TAGS
        if tags.matrix == _IPT or (is_dolby and tags.transfer == _UNSAID):
            return _DOLBY_NOTE
        if tags.matrix in _ODD_MATRICES:
            return f"its colour matrix ({_ODD_MATRICES[tags.matrix]}) cannot be read: its colours are wrong"
        if tags.transfer in _ODD_TRANSFERS:
            named = _ODD_TRANSFERS[tags.transfer]
            return f"its transfer curve ({named}) cannot be mapped: its brightness is wrong"
        if tags.primaries == _XYZ:
            return "its primaries (XYZ) cannot be mapped: its colours are wrong"
        if tags.primaries == BT2020 and tags.transfer == _UNSAID:
            return "its primaries are BT.2020, its transfer curve is not said: taken for that of BT.709"
        return None


def dolby_note(side_data: dict[str, bytes]) -> str | None:
    """What is wrong where the first picture's Dolby Vision metadata say profile 5, else None.

    They are libav's AVDOVIMetadata: the offset of a header first, in which the profile is the fifth byte.
    """
    metadata = side_data.get("DOVI_METADATA", b"")
    if len(metadata) < _OFFSET.size:
        return None
    at = _OFFSET.unpack_from(metadata)[0] + 4
    return _DOLBY_NOTE if metadata[at : at + 1] == _DOLBY_PROFILE_5 else None


def _tags_of(frame: Any, context: Any) -> _Tags:
    """What a frame says; PyAV before 16 tells only of the decoder what curve and primaries it is at."""
    transfer = getattr(frame, "color_trc", context.color_trc)
    primaries = getattr(frame, "color_primaries", context.color_primaries)
    return _Tags(int(frame.colorspace), int(frame.color_range), int(transfer), int(primaries))


def _is_yuv(form: Any) -> bool:
    return len(form.components) >= _NUM_YUV_PLANES and not form.is_rgb and not form.name.startswith("xyz")


def _resized(
    frame: Any, height: int, width: int, form: str, tags: _Tags, *, scaler: VideoReformatter
) -> NDArray[Any]:
    """The frame as RGB by its matrix and range. Both are named: PyAV before 17 does not heed the frame's, nor
    what is named where source and destination are the same. RGB has no matrix, so that any other will do."""
    named: dict[str, Any] = {}
    if _is_yuv(frame.format):
        matrix = _MATRICES.get(tags.matrix, _MATRICES[_UNSAID])
        is_full = tags.range == _FULL or frame.format.name.startswith("yuvj")
        named = {
            "src_colorspace": matrix,
            "src_color_range": _FULL if is_full else _LIMITED,
            "dst_colorspace": next(other for other in (1, 5) if other != matrix),
            "dst_color_range": _FULL,
        }
    resized = scaler.reformat(
        frame, width=width, height=height, format=form, interpolation="BICUBIC", **named
    )
    return np.asarray(resized.to_ndarray())
