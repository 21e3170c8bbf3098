"""What the commands of ``flashvid`` have in common: arguments, exit statuses, and how errors are told."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import PipelineError, Reason, UserError

__all__ = [
    "Config",
    "ConfigFile",
    "Model",
    "Output",
    "Overrides",
    "Reasons",
    "Table",
    "Video",
    "check_config_first",
    "check_reasons",
    "reporting",
]

_INTERRUPTED = 130
_USER_ERROR = 2
_INCOMPLETE = 3

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE...]", help="Settings that override the file's, e.g. compression.profile=action"
    ),
]
Video = Annotated[str, typer.Argument(metavar="VIDEO", help="A file, or an object at any fsspec address.")]
ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file, - for standard input; configs/ has examples.")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="Take model and settings from this file, but not its questions."),
]
Model = Annotated[str | None, typer.Option("--model", help="A checkpoint folder or hub id.")]
Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="The output.uri of the job.")]
Table = Annotated[str, typer.Option(help="The table within the output.")]


Reasons = Annotated[
    list[str] | None,
    typer.Option("--reason", "-r", help="Only videos that failed for this reason; may be repeated."),
]


def check_config_first(command: str, config: Path) -> None:
    """Raise UserError where a setting stands in the configuration's place."""
    if "=" in config.name and not config.exists():
        raise UserError(
            f"the first argument is {str(config)!r}; give the configuration file first, then the settings: "
            f"flashvid {command} configs/gpu.yaml {config}"
        )


def check_reasons(reasons: list[str]) -> None:
    """Raise UserError for a reason that no video can have failed for."""
    known = [reason.value for reason in Reason]
    for reason in reasons:
        if reason not in known:
            raise UserError(f"--reason {reason!r} is none of the reasons: {', '.join(known)}")


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Errors that are the user's to mend, and Ctrl-C, without a traceback and with an exit status."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            typer.echo(f"flashvid: {error}", err=True)
            raise typer.Exit(_USER_ERROR) from None
        except PipelineError as error:
            typer.echo(f"flashvid: {error}", err=True)
            raise typer.Exit(_INCOMPLETE) from None
        except KeyboardInterrupt:
            typer.echo("flashvid: interrupted", err=True)
            raise typer.Exit(_INTERRUPTED) from None

    return run
