"""The command line up to where work begins: help, mistakes and their texts, exit statuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from typer.testing import CliRunner, Result

from flashvid.arithmetic import unit_budget
from flashvid.budget import config_for_baseline, inside_schedule
from flashvid.profiles import PROFILES
from pipeline.cli.app import app
from pipeline.cli.commands import caption_config, settings_text
from pipeline.cluster.preflight import check_output
from pipeline.config.job import load_config
from pipeline.config.sections import FramesConfig
from pipeline.errors import UserError
from pipeline.output.lock import hold
from pipeline.output.store import OutputStore
from tests import ROOT
from tests.unit.samples import make_row

COMMANDS = ("demo", "index", "heal", "submit", "status", "verify", "compact", "export", "caption", "show")


@pytest.fixture(autouse=True)
def _in_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_help_shows_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['flashvid', '--help']\nfrom pipeline.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'ray', 'pyarrow', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert command in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "flashvid" in result.output or "OUTPUT" in result.output or "--seed" in result.output


def test_version() -> None:
    result = call("--version")
    assert result.exit_code == 0
    assert result.output.startswith("flashvid")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["index", "nowhere.yaml"], "no configuration file 'nowhere.yaml'"),
        (["index", "corpus.uri=videos"], "give the configuration file first"),
        (["index", "configs/demo.yaml", "frames.basline=8"], "did you mean frames.baseline?"),
        (["index", "configs/demo.yaml", "frames.baseline=many"], "frames.baseline"),
        (["index", "configs/demo.yaml", "baseline"], "section.key=value"),
        (["index", "configs/gpu.yaml"], "add corpus.uri="),
        (["index", "configs/demo.yaml", "corpus.uri=docs"], "match none of corpus.include"),
        (
            ["index", "configs/demo.yaml", "corpus.uri=README.md", "model.name=demo/no_such/model"],
            "give a checkpoint folder",
        ),
        (["index", "configs/demo.yaml", "corpus.uri=README.md", "model.name=docs"], "config.json"),
        (["status", "no/such/output"], "no/such/output"),
        (["verify", "no/such/output"], "no/such/output"),
        (["caption", "no/such/video.mp4"], "no/such/video.mp4"),
        (["caption", "docs"], "is not one video"),
        (["caption", "demo/samples"], "video_000.mp4, and perhaps more"),
        (["caption", "v.mp4", "frames.basline=8"], "flashvid: what the command line says is not valid:"),
        (["caption", "v.mp4", "prompts.questions=['What?']"], "give each question with -q"),
        (["show", "v.mp4", "corpus.uri=w.mp4"], "give the video as the first argument"),
        (["caption", "README.md", "--model", "no-such-model"], "give a checkpoint folder"),
        (["caption", "README.md", "--model", "./nosuch"], "give a checkpoint folder"),
        (["caption", "README.md", "--model", "../nosuch"], "give a checkpoint folder"),
        (["caption", "README.md", "--model", "n" * 5000], "give a checkpoint folder"),
        (["show", "README.md", "--model", "./nosuch/"], "give a checkpoint folder"),
        (["index", "configs/demo.yaml", "model.name=./nosuch"], "give a checkpoint folder"),
        (["index", "configs/demo.yaml", "model.name=../nosuch"], "give a checkpoint folder"),
    ],
)
def test_the_users_mistakes_end_with_status_2_and_a_way_out(arguments: list[str], said: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert any(line.startswith("flashvid: ") for line in result.stderr.splitlines())  # beside a progress bar
    assert said in result.stderr
    assert "Traceback" not in result.output


def refused(*arguments: str | Path) -> str:
    """What a run says that is refused before anything starts."""
    result = call(*arguments, "model.name=demo/model")
    assert result.exit_code == 2, result.output
    assert "starting Ray" not in result.output
    assert "Traceback" not in result.output
    return result.stderr


def test_heal_of_an_output_that_is_not_there_makes_none(tmp_path: Path) -> None:
    said = refused("heal", "configs/demo.yaml", f"output.uri={tmp_path / 'mistyped'}")
    assert f"no table 'videos' in '{tmp_path / 'mistyped'}'; there is no output" in said
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_is_refused_before_ray_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said = refused("index", "configs/demo.yaml", f"output.uri={tmp_path / 'file' / 'out'}")
    assert f"{tmp_path / 'file'}: Not a directory; make it writable or choose another" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_that_may_not_be_written_is_refused_before_ray_starts(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    said = refused("index", "configs/demo.yaml", f"output.uri={tmp_path / 'out'}")
    assert f"{tmp_path}: Permission denied" in said


def test_another_job_of_the_table_is_refused_before_ray_starts(tmp_path: Path) -> None:
    there = OutputStore(str(tmp_path))
    there.bind("another", {"prompts": {"caption": "Describe."}})
    there.write_rows([make_row(fingerprint="another")])
    before = sorted(tmp_path.rglob("*"))
    said = refused("index", "configs/demo.yaml", f"output.uri={tmp_path}")
    assert "prompts.caption: 'Describe.' there, 'describe this video .' here" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_that_is_being_written_is_refused_before_ray_starts(tmp_path: Path) -> None:
    with hold(str(tmp_path), "compact"):
        said = refused("index", "configs/demo.yaml", f"output.uri={tmp_path}")
    assert "is being written by run compact-" in said
    assert "One run at a time" in said


def test_what_does_not_stand_in_the_way_is_not_refused(tmp_path: Path) -> None:
    """A table without rows is bound anew, a lock that was given back is free, and nothing is written."""
    config = load_config("configs/demo.yaml", [f"output.uri={tmp_path}"])
    OutputStore(str(tmp_path)).bind("another", {"prompts": {}})
    with hold(str(tmp_path), "compact"):
        pass
    before = sorted(tmp_path.rglob("*"))
    check_output(config, "revision")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def no_s3_clients() -> Iterator[None]:
    """Clients are kept for all that runs in this process: others' have credentials, these have none."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("command", ["status", "verify", "compact", "export"])
def test_a_store_without_credentials_is_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, no_s3_clients: None
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    result = call(command, "s3://bucket/index")
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("flashvid: 's3://bucket/index' cannot be used: NoCredentialsError")
    assert len(result.stderr.splitlines()) == 1


def test_settings_that_do_not_fit_the_model_are_not_blamed_on_its_files() -> None:
    result = call("caption", "README.md", "compression.pruning_layer=9")
    assert result.exit_code == 2, result.output
    said = "flashvid: model.name='demo/model' cannot be used as configured: pruning_layer=9 must be in [1, 5)"
    assert said in result.stderr


def test_what_is_no_video_ends_with_status_1() -> None:
    result = call("caption", "README.md")
    assert result.exit_code == 1, result.output
    assert "README.md: " in result.stdout
    assert "decoding" in result.stdout


def test_ctrl_c_ends_with_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.output.read_status", interrupt)
    result = call("status", "anything")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


@pytest.mark.parametrize("name", ["demo", "local_cpu", "gpu"])
def test_configs_begin_with_their_command_and_are_valid(name: str) -> None:
    path = ROOT / "configs" / f"{name}.yaml"
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# .venv/bin/")
    assert f"flashvid index configs/{name}.yaml" in first
    config = load_config(path, ["corpus.uri=videos", "output.uri=index"])
    assert config.num_frames == 160


@pytest.mark.parametrize("task", PROFILES)
def test_your_own_folder_on_a_cpu_never_costs_more_than_the_uncompressed_frames(task: str) -> None:
    """Entering, not only as a mean over the layers: configs/local_cpu.yaml says so, of every profile."""
    path = ROOT / "configs" / "local_cpu.yaml"
    config = load_config(path, ["corpus.uri=videos", "output.uri=index", f"compression.profile={task}"])
    baseline = config.frames.baseline // 2 * 36
    held = config_for_baseline(config.compression, 5, baseline)
    assert inside_schedule(held, 5) is None
    units = config.num_frames // 2
    assert units * unit_budget(held, units, 36).kept <= baseline


def test_caption_without_settings_is_the_demo_model() -> None:
    config = caption_config("my: video.mp4", ["what flashes ?"], None, None, ["frames.baseline=8"])
    assert (config.corpus.uri, config.model.name) == ("my: video.mp4", str(Path("demo/model")))
    assert [question.text for question in config.prompts.questions] == ["what flashes ?"]
    assert (config.num_frames, config.workers.num_gpus) == (80, 0)


def test_caption_takes_a_model_a_file_or_a_setting() -> None:
    named = caption_config("v.mp4", [], None, "some/model", ["workers.num_gpus=0.5"])
    assert (named.model.name, named.workers.num_gpus) == ("some/model", 0.5)
    from_file = caption_config("v.mp4", [], ROOT / "configs" / "gpu.yaml", None, [])
    assert (from_file.model.name, from_file.workers.num_gpus) == ("Qwen/Qwen2.5-VL-7B-Instruct", 1)
    override = caption_config("v.mp4", [], None, None, ["model.name=my/model"])
    assert override.model.name == "my/model"


def test_a_named_checkpoint_has_the_settings_that_belong_to_it(tmp_path: Path) -> None:
    """The demo's model was trained on small frames: with the defaults it says something else."""
    copy = shutil.copytree(ROOT / "demo" / "model", tmp_path / "copy")
    unnamed = caption_config("v.mp4", [], None, None, [])
    for model, overrides in (
        ("demo/model", []),
        (str(ROOT / "demo" / "model"), []),
        (str(copy), []),
        (None, ["model.name=demo/model"]),
        (None, ["model={name: demo/model, dtype: float32}"]),
    ):
        named = caption_config("v.mp4", [], None, model, overrides)
        same = {"model": unnamed.model.model_copy(update={"name": named.model.name})}
        assert named == unnamed.model_copy(update=same), model
        assert settings_text(None, named) == "configs/demo.yaml, which are those of this model"
    changed = caption_config("v.mp4", [], None, "demo/model", ["frames.baseline=3"])
    assert (changed.frames.baseline, changed.frames.max_pixels) == (3, 28224)


def test_another_checkpoint_has_the_defaults_and_a_file_its_own(tmp_path: Path) -> None:
    other = shutil.copytree(ROOT / "demo" / "model", tmp_path / "other")
    (other / "config.json").write_text("{}")
    for model in (str(other), "some/model"):
        config = caption_config("v.mp4", [], None, model, [])
        assert config.frames == FramesConfig()
        assert settings_text(None, config).startswith("the defaults")
    path = Path("configs/gpu.yaml")
    from_file = caption_config("v.mp4", [], path, "demo/model", [])
    assert (from_file.model.name, from_file.frames.max_pixels) == ("demo/model", 235200)
    assert settings_text(path, from_file) == str(path)


@pytest.mark.parametrize("command", [["caption", "README.md", "--model"], ["index", "configs/demo.yaml"]])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_broken_checkpoint_is_one_sentence_that_names_the_file(
    command: list[str], name: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(ROOT / "demo" / "model", tmp_path / "ckpt")
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    is_index = command[0] == "index"
    result = call(*command, f"model.name={folder}" if is_index else str(folder))
    assert result.exit_code == 2, result.output
    (said,) = [line for line in result.stderr.splitlines() if line]
    assert f"{str(folder / name)!r} is a Git LFS pointer" in said
    assert "starting Ray" not in result.output


def test_caption_takes_names_and_questions_as_they_are_written() -> None:
    name, question = "видео 视频 🙂\x7f.mp4", '🙂 "who"? \\ #1: [a]'
    config = caption_config(name, [question], None, None, [])
    assert config.corpus.uri == name
    assert config.prompts.questions[0].text == question


def test_a_profile_on_the_command_line_replaces_what_the_demo_sets() -> None:
    config = caption_config("v.mp4", [], None, None, ["compression.profile=action"])
    assert (config.compression.retention_ratio, config.num_frames) == (0.2, 80)
    assert config.compression.expansion == 1.0  # a profile says nothing of it


def test_caption_outside_a_clone_asks_for_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pipeline.cli.commands.ROOT", tmp_path)
    with pytest.raises(UserError, match="--model"):
        caption_config("v.mp4", [], None, None, [])
