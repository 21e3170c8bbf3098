"""What surrounds the coordination in its process: an output that cannot be written is the user's to mend."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.actors import Coordinator
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.protocol import Run


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody can write to")
def test_an_output_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the coordinator goes there; the other tests must not
    settings = ["corpus.uri=.", "output.uri=/proc/index", "model.name=m", "metrics.port=null"]
    run = Run("run-1", "0123456789abcdef", "r", os.getpid())
    coordinator = Coordinator(load_config(None, settings), run, str(tmp_path))
    with pytest.raises(UserError, match=r"output\.uri='/proc/index' cannot be used.*choose another"):
        coordinator.open()
