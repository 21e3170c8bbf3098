"""How the driver ends a run; without a cluster, only with the answers it waits for."""

from __future__ import annotations

import pytest

from pipeline.cluster import job


def test_a_ctrl_c_during_the_last_commit_does_not_break_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupts = [KeyboardInterrupt]

    def answer(reference: str) -> str:
        if reference == "report" and interrupts:
            raise interrupts.pop()
        return reference

    monkeypatch.setattr(job, "_answer", answer)
    ended: tuple[object, object] = job._ended("progress", "report")
    assert ended == ("progress", "report")
    interrupts += [KeyboardInterrupt] * 2
    with pytest.raises(KeyboardInterrupt):
        job._ended("progress", "report")
