"""What a submitted job is told to run, and what is refused before anything is sent."""

from __future__ import annotations

import io
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.cluster import submitting
from pipeline.cluster.submitting import Submission
from pipeline.config import JobConfig, load_config
from pipeline.errors import UserError
from tests import FLASHVID, ROOT

DEMO = ROOT / "configs" / "demo.yaml"


def demo(*overrides: str) -> JobConfig:
    return load_config(DEMO, overrides)


class Received(NamedTuple):
    """What the command on the cluster is called with, its standard input, and the folder it runs in."""

    arguments: list[str]
    text: str
    folder: str


def received(submission: Submission, folder: Path) -> Received:
    """Run the entrypoint by a shell, as Ray does, in ``folder``; a ``flashvid`` there notes what it gets."""
    fake = folder / "flashvid"
    fake.write_text(
        '#!/bin/sh\nhere="${0%/*}"\n{ pwd; printf "%s\\n" "$@"; } > "$here/got"\ncat > "$here/in"\n'
    )
    fake.chmod(0o755)
    command = submission.entrypoint().replace(str(FLASHVID), str(folder / "no such"))
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(command, shell=True, cwd=folder, env=environment, check=True)
    where, *arguments = (folder / "got").read_text().splitlines()
    return Received(arguments, (folder / "in").read_text(), where)


def read_back(text: str, monkeypatch: pytest.MonkeyPatch) -> JobConfig:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="latin-1"))
    return load_config("-")


def test_a_job_indexes_what_was_resolved_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = demo(
        "corpus.limit=2", "compression.profile=action", 'prompts.caption=it\'s "quoted" $HOME `x`\\n'
    )
    got = received(Submission(config), tmp_path)
    assert got.arguments == ["index", "-"]
    there = read_back(got.text, monkeypatch)
    assert there.prompts == config.prompts
    assert there.compression == config.compression
    assert there.corpus.limit == 2
    assert there.model_dump(
        exclude={"corpus": {"uri"}, "output": {"uri"}, "model": {"name"}}
    ) == config.model_dump(exclude={"corpus": {"uri"}, "output": {"uri"}, "model": {"name"}})


def test_addresses_are_meant_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "where jobs start").mkdir()
    monkeypatch.chdir(tmp_path)
    config = demo("corpus.uri=my videos/*.mp4", "output.uri=~/out", "model.name=weights")
    there = read_back(received(Submission(config), tmp_path).text, monkeypatch)
    assert there.corpus.uri == f"{tmp_path}/my videos/*.mp4"
    assert there.output.uri == str(Path("~/out").expanduser())
    assert there.model.name == "weights"


@pytest.mark.parametrize("uri", ["s3://bucket/videos", "file:///a%20b", "/shared/videos", "memory://x"])
def test_addresses_that_hold_everywhere_stay(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = demo(f"corpus.uri={uri}", f"output.uri={uri}", "model.name=Qwen/Qwen2.5-VL-7B-Instruct")
    there = read_back(received(Submission(config), tmp_path).text, monkeypatch)
    assert (there.corpus.uri, there.output.uri) == (uri, uri)
    assert there.model.name == "Qwen/Qwen2.5-VL-7B-Instruct"


def test_the_fingerprint_is_that_of_the_same_job_run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    there = read_back(received(Submission(demo()), tmp_path).text, monkeypatch)
    assert there.fingerprint("sha256-x") == demo().fingerprint("sha256-x")


def test_a_job_starts_in_the_same_folder_where_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    mine, copy = tmp_path / "it's mine", tmp_path / "copy"
    mine.mkdir()
    copy.mkdir()
    monkeypatch.chdir(mine)
    job = Submission(demo())
    assert received(job, tmp_path).folder == str(mine)
    assert received(replace(job, working_dir=copy), copy).folder == str(copy), "Ray starts it there"
    entrypoint = job.entrypoint()
    mine.rmdir()
    monkeypatch.setattr(Submission, "entrypoint", lambda _: entrypoint)
    capfd.readouterr()
    assert received(job, tmp_path).folder == str(tmp_path), "it is not there: wherever Ray starts it"
    assert f"there is no {mine} here, so relative addresses start in {tmp_path}" in capfd.readouterr().err


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_any_text_arrives(text: str) -> None:
    config = load_config(DEMO, values={"prompts.caption": text})
    with pytest.MonkeyPatch.context() as patch:
        there = read_back(Submission(config).entrypoint().split("\n", 1)[1].rsplit("\n", 1)[0], patch)
    assert there.prompts.caption == config.prompts.caption


def test_a_job_heals_by_reason(tmp_path: Path) -> None:
    submission = Submission(demo(), heal=True, reasons=("corrupt", "too_large"))
    assert received(submission, tmp_path).arguments == [
        "heal",
        "-",
        "--reason",
        "corrupt",
        "--reason",
        "too_large",
    ]


def test_no_folder_travels_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert set(Submission(demo()).runtime_env()) == {"env_vars"}
    (tmp_path / "my_engine.py").touch()
    assert Submission(demo(), working_dir=tmp_path).runtime_env()["working_dir"] == str(tmp_path)
    Submission(demo(), working_dir=ROOT).runtime_env()  # a clone brings the package itself


@pytest.mark.parametrize("name", ["pipeline/__init__.py", "flashvid.py", "queue.py"])
def test_a_folder_that_would_hide_ours_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"named {Path(name).parts[0].removesuffix('.py')};"):
        Submission(demo(), working_dir=tmp_path).runtime_env()


def test_a_clone_that_would_hide_a_module_of_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pipeline" / "cluster").mkdir(parents=True)
    for name in ("pipeline/__init__.py", "pipeline/cluster/submitting.py"):
        (tmp_path / name).touch()
    Submission(demo(), working_dir=tmp_path).runtime_env()
    (tmp_path / "queue.py").touch()
    with pytest.raises(UserError, match="named queue;"):
        Submission(demo(), working_dir=tmp_path).runtime_env()


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        Submission(demo(), working_dir=tmp_path / "no").runtime_env()


def test_a_configuration_too_large_for_a_command_is_refused() -> None:
    questions = [f"{number}: {'long ' * 2_000}" for number in range(15)]
    with pytest.raises(UserError, match=r"can carry 100000: put questions into a manifest"):
        Submission(load_config(DEMO, values={"prompts.questions": questions})).entrypoint()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--reason", "corrupt"], "--reason goes with --heal"),
        (["--heal", "--reason", "none"], "none of the reasons"),
        (["workers.cuont=1"], "workers.count"),
        (["--address", "head:8265"], "must be that of the dashboard"),
    ],
)
def test_mistakes_are_refused_before_anything_is_sent(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["submit", str(DEMO), *arguments])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_without_a_folder_to_stand_in_nothing_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = Submission(demo("corpus.uri=/videos", "output.uri=/index"))
    tmp_path.rmdir()
    with pytest.raises(UserError, match="is gone"):
        job.entrypoint()


class Busy:
    """A Ray client whose server says these things, one a call, before it takes the job."""

    def __init__(self, *said: str) -> None:
        self.said = list(said)

    def submit_job(self, **options: object) -> str:
        if self.said:
            raise RuntimeError(self.said.pop(0))
        return str(options["entrypoint"])


def test_a_head_without_an_agent_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitting, "_POLL_SECONDS", 0.0)
    no_agent = "Request failed: No available agent to submit job, please try again later."
    assert submitting._accepted(Busy(no_agent, no_agent), {"entrypoint": "x"}) == "x"
    with pytest.raises(RuntimeError, match="taken"):
        submitting._accepted(Busy(no_agent, "taken"), {"entrypoint": "x"})
    monkeypatch.setattr(submitting, "_AGENT_SECONDS", -1.0)
    with pytest.raises(RuntimeError, match="No available agent"):
        submitting._accepted(Busy(no_agent, no_agent), {"entrypoint": "x"})
