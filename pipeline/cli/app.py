"""The ``flashvid`` command. Heavy imports wait until a command needs them, so that --help is quick."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from pipeline import ROOT
from pipeline.cli.console import make_console
from pipeline.cli.options import (
    Config,
    ConfigFile,
    Model,
    Overrides,
    Reasons,
    Video,
    check_config_first,
    check_reasons,
    reporting,
)
from pipeline.cli.outputs import compact, export, status, verify
from pipeline.errors import UserError

__all__ = ["app", "main"]

_MAX_PANELS = 320  # a page of some 10 000 pixels, all of it in memory

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""
    Turn a folder or bucket of videos into a table of captions and answers, in Parquet.

    Qwen2.5-VL looks at many frames of every video, because FlashVID (ICLR 2026) keeps about a tenth of
    the visual tokens. Ray workers, one GPU each, share the corpus; every video ends as a row, or as a
    failure with a reason.

    **Start here**

        flashvid demo                                  (made-up videos, CPU)

        flashvid caption talk.mp4 -q "Who speaks?"     (one video, printed)

        flashvid index configs/gpu.yaml corpus.uri=... output.uri=...
    """,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"flashvid {metadata.version('flashvid-index')}")
        except metadata.PackageNotFoundError:
            typer.echo("flashvid (not installed; run from its source)")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


@app.command()
@reporting
def demo(
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="Folder for the videos and the index.")] = Path("out/demo"),
    videos: Annotated[int, typer.Option(min=1, help="How many videos to make up.")] = 14,
    seed: Annotated[int, typer.Option(help="Which world; another seed, other videos.")] = 2026,
) -> None:
    """Index a made-up corpus with a small model, and hold every answer against the truth.

    Two CPU cores and a few minutes are enough; run again, it shows what is there. The last table is the
    point of it all: events found in 16 uncompressed frames, and in 160 frames at a tenth of the tokens.
    """
    _enter_clone("flashvid demo")
    from demo.showcase import run_showcase

    run_showcase(make_console(), overrides or [], output=output, num_videos=videos, seed=seed)


@app.command()
@reporting
def index(
    config: ConfigFile,
    overrides: Overrides = None,
) -> None:
    """Index a corpus: captions and answers for every video, to Parquet.

    Start it again to resume: what is indexed is skipped. Exit status: 0 every video is accounted for
    (failures are rows, and are printed), 2 a mistake in the settings, 3 the sum does not close or the run
    could not finish, 130 interrupted.

        flashvid index configs/local_cpu.yaml corpus.uri=my_videos output.uri=out/my

        flashvid index configs/gpu.yaml corpus.uri=/data output.uri=/index workers.count=8
    """
    from pipeline.cli.commands import run_index

    check_config_first("index", config)
    raise typer.Exit(run_index(make_console(), config, overrides or []))


@app.command()
@reporting
def heal(
    config: ConfigFile,
    overrides: Overrides = None,
    reason: Reasons = None,
) -> None:
    """Try again what failed for good, and nothing else.

    Only videos whose last word in the output is a final failure are listed; with --reason, only those that
    failed for that reason. Their attempts count from anew. Exit status as of `flashvid index`.

        flashvid heal configs/gpu.yaml corpus.uri=s3://b/videos output.uri=s3://b/index -r too_large
    """
    from pipeline.cli.commands import run_index

    check_config_first("heal", config)
    check_reasons(reason or [])
    raise typer.Exit(run_index(make_console(), config, overrides or [], heal=tuple(reason or ())))


@app.command()
@reporting
def submit(  # noqa: PLR0917
    config: ConfigFile,
    overrides: Overrides = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="Address of the Ray dashboard.")
    ] = "http://127.0.0.1:8265",
    working_dir: Annotated[
        Path | None,
        typer.Option(help="A folder to send along, for code of your own such as model.engine; else none is."),
    ] = None,
    heal: Annotated[
        bool, typer.Option("--heal", help="Run `flashvid heal`: only what failed for good.")
    ] = False,
    reason: Reasons = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return once the job is submitted.")] = False,
    submission_id: Annotated[
        str | None, typer.Option(help="Name of the job; by default Ray makes one up.")
    ] = None,
) -> None:
    """Submit an indexing job to a running Ray cluster, follow its log, and end with its exit status.

    What is sent is the resolved configuration, nothing else: the cluster's machines need the package.
    Addresses without a scheme are paths there, relative ones from this folder if it is there too; corpus.uri
    and output.uri are made absolute. On a cluster of several machines give them as s3://, gs:// or on a
    shared disk.

    Who may see the dashboard sees the configuration. A cluster may ask for a token (Ray does once
    ~/.ray/auth_token exists on its head, for example after `ray get-auth-token --generate`): the token of
    ~/.ray/auth_token, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH here is sent; RAY_AUTH_MODE=disabled before
    `ray start` switches it off.

    Stopping a job (`ray job stop`, Ctrl-C here) lets workers finish or give back what they hold. Ray kills a
    job 3 s after it was told to stop: start the head with RAY_JOB_STOP_WAIT_TIME_S=60 in its environment to
    allow for limits.drain_seconds. A killed job loses at most the last output.part_seconds of work; the next
    one resumes.

    Exit status: that of `flashvid index` (0 complete, 2 your mistake, 3 incomplete), 1 for another end of the
    job, 130 after Ctrl-C, which stops the job; what it has finished is committed.

        ray start --head

        flashvid submit configs/demo.yaml --address http://127.0.0.1:8265
    """
    from pipeline.cluster import Submission, submit_job
    from pipeline.config import load_config

    if reason and not heal:
        raise UserError("--reason goes with --heal")
    check_config_first("submit", config)
    check_reasons(reason or [])
    job = load_config(config, overrides or [])
    submission = Submission(job, heal, tuple(reason or ()), working_dir, submission_id)
    raise typer.Exit(submit_job(submission, address, wait=not no_wait))


for _command in (status, verify, compact, export):
    app.command()(_command)


@app.command()
@reporting
def caption(
    video: Video,
    overrides: Overrides = None,
    question: Annotated[
        list[str] | None, typer.Option("--question", "-q", help="A question to answer; may be repeated.")
    ] = None,
    config: Config = None,
    model: Model = None,
) -> None:
    """Caption one video and answer questions about it; prints, stores nothing, needs no Ray.

    Without --config and --model the demo model of the repository is used, which knows coloured shapes and
    nothing else; its settings are those of configs/demo.yaml, also where it is named. Any other model has the
    defaults. Exit status 1 where the video cannot be read.

        flashvid caption demo/samples/video_000.mp4 -q "what flashes ?"

        flashvid caption talk.mp4 --model Qwen/Qwen2.5-VL-7B-Instruct -q "Who speaks?"
    """
    from pipeline.cli.commands import caption_config, run_caption, settings_text

    job = caption_config(video, question or [], config, model, overrides or [])
    raise typer.Exit(run_caption(make_console(), job, settings_text(config, job)))


@app.command()
@reporting
def show(  # noqa: PLR0917
    video: Video,
    overrides: Overrides = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The picture to write: .png or .pdf.")
    ] = Path("tokens.png"),
    units: Annotated[
        int,
        typer.Option(min=1, max=_MAX_PANELS, help="Draw at most this many temporal units, evenly chosen."),
    ] = 24,
    config: Config = None,
    model: Model = None,
) -> None:
    """Draw which visual tokens of one video survive, and what became of the others.

    The video is decoded, encoded and planned as `flashvid caption` does it; no text is generated. Without
    --config and --model the demo model of the repository is used. Exit status 1 where the video cannot be
    read. What the picture shows: docs/SHOW.md.

        flashvid show demo/samples/video_000.mp4 -o tokens.png compression.retention_ratio=0.25

        flashvid show talk.mp4 -o tokens.pdf --model Qwen/Qwen2.5-VL-7B-Instruct --units 12
    """
    from pipeline.cli.commands import caption_config, run_show, settings_text

    job = caption_config(video, [], config, model, overrides or [])
    raise typer.Exit(run_show(make_console(), job, settings_text(config, job), output, units))


def _enter_clone(command: str) -> None:
    """Make ``demo`` importable; it lives in the repository, not in the installed package."""
    if not (ROOT / "demo" / "showcase.py").is_file():
        raise UserError(
            f"{command} needs the repository (no demo folder in {str(ROOT)!r}); clone it and run it there"
        )
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script; ``arguments`` in place of the command line's."""
    app(args=arguments, prog_name="flashvid")
