"""A corpus in which every good video has a colour of its own, and a tenth of the files is hostile."""

from __future__ import annotations

import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np

from tests.integration.hostile import write_hostile

__all__ = ["BAD_DECODERS", "KINDS", "Colour", "Expected", "colour_number", "write_corpus", "write_good"]

BAD_DECODERS = Path(__file__).resolve().parent / "bad_decoders"  # for PYTHONPATH

Colour = tuple[int, int, int]

_LEVELS = (20, 56, 92, 128, 164, 200, 236)  # far enough apart to survive h264
_FOLDERS = (
    "plain",
    "with space",
    "emoji \N{CLAPPER BOARD}",
    "new\nline",
    "we[1]rd #2 100%41 'q' & \"q\"",
    "plain/deeper/still",
)
_SIDE = 64

# What undoes a decode child, by the mark at the end of the file (bad_decoders/sitecustomize.py).
_EVILS: dict[str, tuple[bytes, frozenset[str]]] = {
    "hangs.mp4": (b"chaos:hang", frozenset({"decode_timeout"})),
    "segfaults.mp4": (b"chaos:segv", frozenset({"decode_crashed"})),
    "eats_memory.mp4": (b"chaos:eats", frozenset({"out_of_memory"})),
}
# Hostile kinds in order of importance, no two of which try the same: a corpus has as many as there is room
# for, those that cost nothing first. The rest of write_hostile's are the hostile test's.
KINDS = (
    *("many_frames.mp4", "text.mp4", "playlist_http.mp4", "negative.mp4", "sound.mp4", "zero_bytes.mp4"),
    *("huge_pictures.mp4", "no_rate.avi", "variable_rate.mkv", "\N{CLAPPER BOARD} emoji.mp4", *_EVILS),
    *("unknown_codec.mp4", "years.mkv", "tail_missing.mp4", "wrong_keyframes.mp4", "huge_sequence.mp4"),
    *("huge_still.mp4", "huge_later.mp4", "index_missing.mp4", "alias.mov", "concat_file.mp4", "cover.mp4"),
    *("no_durations.mp4", "back_and_forth.mkv", "same_time.mkv", "changing_size.ts", "late_stream.ts"),
    "hundred_streams.mkv",
)


@dataclass
class Expected:
    """What must become of each file, by its path below the corpus.

    ``maybe``: files that went after they had been listed; each may have a row, a failure, or neither.
    ``replaced``: old and new colour of files that changed then: the new one has a row, the old one may.
    """

    good: dict[str, Colour] = field(default_factory=dict)
    hostile: dict[str, frozenset[str]] = field(default_factory=dict)
    maybe: dict[str, Colour] = field(default_factory=dict)
    replaced: dict[str, tuple[Colour, Colour]] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        return self.good.keys() | self.hostile.keys() | self.maybe.keys() | self.replaced.keys()


def colour_number(number: int) -> Colour:
    """One of 343 colours that can be told apart after encoding."""
    if not 0 <= number < len(_LEVELS) ** 3:
        raise ValueError(f"{number = } must be in [0, {len(_LEVELS) ** 3}): so many colours there are")
    rest, red = divmod(number, len(_LEVELS))
    blue, green = divmod(rest, len(_LEVELS))
    return _LEVELS[red], _LEVELS[green], _LEVELS[blue]


def write_good(path: Path, colour: Colour, padding_bytes: int = 0) -> None:
    """A one-second h264 of one colour; ``padding_bytes`` of noise follow in a box that players pass over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.full((_SIDE, _SIDE, 3), colour, np.uint8)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=4, options={"crf": "14", "preset": "ultrafast"})
        stream.width = stream.height = _SIDE
        stream.pix_fmt = "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    if padding_bytes:
        noise = np.random.default_rng(sum(colour)).bytes(padding_bytes)
        with path.open("ab") as file:
            file.write(struct.pack(">I4s", padding_bytes + 8, b"free") + noise)


def write_corpus(root: Path, num_videos: int, num_hostile: int) -> Expected:
    """``num_videos`` files in folders with difficult names, the hostile ones among them."""
    expected = Expected()
    for number in range(num_videos - num_hostile):
        name = _good_name(number)
        write_good(root / name, colour_number(number))
        expected.good[name] = colour_number(number)
    kinds_folder = root.parent / f"{root.name}-kinds"
    kinds = {**write_hostile(kinds_folder), **_write_evils(kinds_folder)}
    for number in range(num_hostile):
        kind = KINDS[number % len(KINDS)]
        name = f"{_FOLDERS[number % 3]}/hostile{number:02}_{kind}"
        shutil.copyfile(kinds_folder / kind, root / name)
        expected.hostile[name] = kinds[kind]
    return expected


def _write_evils(folder: Path) -> dict[str, frozenset[str]]:
    for name, (mark, _) in _EVILS.items():
        write_good(folder / name, colour_number(0))
        with (folder / name).open("ab") as file:
            file.write(struct.pack(">I4s", len(mark) + 8, b"free") + mark)
    return {name: outcomes for name, (_, outcomes) in _EVILS.items()}


def _good_name(number: int) -> str:
    folder = _FOLDERS[number % len(_FOLDERS)]
    odd = ("", "\n", " \N{SNOWMAN}", "%20")[number // len(_FOLDERS) % 4]
    return f"{folder}/good{number:03}{odd}.mp4"
