"""What runs beside the GPUs stays light: commands about an output and decode children load no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import DecodingConfig
from pipeline.decoding.file_decoder import FileDecoder
from pipeline.decoding.sampling import FrameRequest
from pipeline.output import OutputStore
from tests import FLASHVID, media
from tests.integration.conftest import has_mapped
from tests.unit.samples import make_row

HEAVY = {"torch", "transformers", "ray"}


def imported_by(*arguments: str) -> set[str]:
    """What the console script imports, as the interpreter itself tells: top-level names."""
    command = [sys.executable, "-X", "importtime", str(FLASHVID), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr  # 1: verify misses the report of a run
    told = (line.rpartition("|")[2].strip() for line in done.stderr.splitlines())
    return {name.partition(".")[0] for name in told}


@pytest.mark.parametrize("command", ["status", "verify", "compact", "export"])
def test_commands_about_an_output_load_no_torch(command: str, tmp_path: Path) -> None:
    OutputStore(str(tmp_path)).write_rows([make_row(0)])
    names = imported_by(command, str(tmp_path))
    assert {"pipeline", "pyarrow"} <= names, "positive control: the log was read"
    assert names.isdisjoint(HEAVY)


def test_a_decode_child_loads_no_torch(tmp_path: Path) -> None:
    media.write_video(tmp_path / "good.mp4")
    decoder = FileDecoder(DecodingConfig(), FrameRequest("uniform", 4, 2.0, 28 * 28, 40 * 28 * 28))
    try:
        frames = decoder.decode(str(tmp_path / "good.mp4"))
        child = decoder.child_pid
        assert child is not None
        assert len(frames.data) == 4
        assert has_mapped(child, "libav"), "positive control: it has decoded"
        assert not has_mapped(child, "libtorch")
    finally:
        decoder.close()
