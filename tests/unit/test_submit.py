"""What a submitted job is told to run."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.submit import _entrypoint, _parser, main

ROOT = Path(__file__).resolve().parents[2]


def entrypoint(*arguments: str) -> str:
    options = _parser().parse_intermixed_args([*arguments, "--working-dir", str(ROOT)])
    return _entrypoint(options, options.overrides)


def test_a_job_indexes() -> None:
    config = str(ROOT / "configs" / "demo.yaml")
    assert "-m pipeline.cli index configs/demo.yaml corpus.limit=2;" in entrypoint(config, "corpus.limit=2")


def test_a_job_heals_by_reason() -> None:
    config = str(ROOT / "configs" / "demo.yaml")
    text = entrypoint(config, "--heal", "--reason", "corrupt", "--reason", "too_large")
    assert "-m pipeline.cli heal --reason corrupt --reason too_large configs/demo.yaml;" in text


def test_a_reason_without_heal_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(ROOT / "configs" / "demo.yaml"), "--reason", "corrupt"])
    assert end.value.code == 2
    assert "--reason goes with --heal" in capsys.readouterr().err
