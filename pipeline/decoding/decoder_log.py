"""What libav's decoders complain about while they decode: for codecs that conceal damage and flag nothing.

Only these are listened to. The others flag what they conceal, and say as much of sound files: "co located
POCs unavailable" after a jump, "mmco: unref short failure" of a careless encoder. Runs only inside decode
children: libav has one log per process.
"""

from __future__ import annotations

from typing import Any

import av

__all__ = ["DecoderLog"]

_FLAG_NOTHING = frozenset({"hevc", "mjpeg", "mjpegb", "vp8", "vp9", "libdav1d", "av1", "vvc"})
# Said by these of pictures that are as they should be: headers of others, references from before a jump.
_HARMLESS = ("sei", "vps", "app fields", "could not find ref", "constructing the frame rps", "icc", "exif")


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
