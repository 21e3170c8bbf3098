"""A corpus in which every good video has a colour of its own, and a tenth of the files is hostile."""

from __future__ import annotations

import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np

from tests.integration.hostile import write_hostile

__all__ = ["Colour", "Expected", "colour_number", "write_corpus", "write_good"]

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


@dataclass
class Expected:
    """What must become of each file, by its path below the corpus.

    ``maybe``: files that came or went while they were listed; each may have a row, a failure, or neither.
    """

    good: dict[str, Colour] = field(default_factory=dict)
    hostile: dict[str, frozenset[str]] = field(default_factory=dict)
    maybe: dict[str, Colour] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        return self.good.keys() | self.hostile.keys() | self.maybe.keys()


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
    kinds = [
        item for item in sorted(write_hostile(kinds_folder).items()) if _can_move(kinds_folder / item[0])
    ]
    for number in range(num_hostile):
        kind, allowed = kinds[number % len(kinds)]
        name = f"{_FOLDERS[number % 3]}/hostile{number:02}_{kind}"
        shutil.copyfile(kinds_folder / kind, root / name)
        expected.hostile[name] = allowed
    return expected


def _good_name(number: int) -> str:
    folder = _FOLDERS[number % len(_FOLDERS)]
    odd = ("", "\n", " \N{SNOWMAN}", "%20")[number // len(_FOLDERS) % 4]
    return f"{folder}/good{number:03}{odd}.mp4"


def _can_move(path: Path) -> bool:
    """Whether it is a file with a name that may grow; links, pipes and devices are the hostile test's."""
    return path.is_file() and not path.is_symlink() and len(path.name) < 200
