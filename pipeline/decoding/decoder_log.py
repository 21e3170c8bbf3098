"""What libav complains about: decoders that conceal damage and flag nothing, demuxers that pass over parts.

Only these are listened to. Other decoders flag what they conceal, and say as much of sound files: "co located
POCs unavailable" after a jump, "mmco: unref short failure" of a careless encoder. Runs only inside decode
children: libav has one log per process.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import av

__all__ = ["ContainerLog", "DecoderLog"]

_FLAG_NOTHING = frozenset({"hevc", "mjpeg", "mjpegb", "vp8", "vp9", "libdav1d", "av1", "vvc"})
# Said by these of pictures that are as they should be: headers of others, references from before a jump.
_HARMLESS = ("sei", "vps", "app fields", "could not find ref", "constructing the frame rps", "icc", "exif")
# Said by demuxers that look for where they can go on; of no sound file.
_LOST = (
    " exceeds ",  # an element of Matroska the one that it is in, or any
    "ebml number",
    "invalid length",
    "invalid track number",
    "crc mismatch",
)


class ContainerLog:
    """Counts in how many places a demuxer could not read a file, within a ``with`` in which it is walked.

    Nothing may be decoded there: what decoders say is not handed on.
    """

    def __init__(self, container: Any) -> None:
        self._name = container.format.name
        self._heard: list[tuple[int, str, str]] = []

    def __enter__(self) -> ContainerLog:
        self._level = av.logging.get_level()
        self._capture = av.logging.Capture(local=True)
        self._heard = self._capture.__enter__()
        av.logging.set_skip_repeated(False)
        av.logging.set_level(av.logging.ERROR)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        av.logging.set_level(self._level)
        self._capture.__exit__(kind, value, trace)

    @property
    def num_lost(self) -> int:
        """Places so far."""
        said = [text.lower() for _, name, text in self._heard if name == self._name]
        return sum(any(words in text for words in _LOST) for text in said)


class DecoderLog:
    """The log of one decoder, read packet by packet. There is one listener per process, from the first on."""

    _heard: list[tuple[int, str, str]] | None = None

    def __init__(self, context: Any) -> None:
        self._name = context.name if context.name in _FLAG_NOTHING else None
        if self._name is not None and DecoderLog._heard is None:
            DecoderLog._heard = _listen()

    def complained(self) -> bool:
        """Whether the decoder complained since the last call."""
        heard = DecoderLog._heard
        if self._name is None or not heard:
            return False
        said = [(name, text.lower()) for _, name, text in heard]
        heard.clear()
        return any(name == self._name and not any(word in text for word in _HARMLESS) for name, text in said)


def _listen() -> list[tuple[int, str, str]]:
    """Errors alone, of all threads, each as often as it is said; nothing reaches Python's own logging."""
    heard: list[tuple[int, str, str]] = av.logging.Capture(local=False).__enter__()
    av.logging.set_skip_repeated(False)
    av.logging.set_level(av.logging.ERROR)
    return heard
