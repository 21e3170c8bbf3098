"""A job for a running Ray cluster: submitted from outside, its log followed, its exit status returned.

What travels is the resolved configuration, as the standard input of ``flashvid index -``: nothing has to be
on the cluster but the installed package, and no folder of the user's hides one of ours, or is hidden by it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import JobConfig
from pipeline.errors import UserError
from pipeline.stores import local_path_of

__all__ = ["Submission", "submit_job"]

_EXCLUDES = (
    ".venv",
    "venv",
    ".git",
    "out",
    "build",
    "dist",
    "__pycache__",
    "*.pyc",
    ".*_cache",
    ".hypothesis",
)
_OURS = ("flashvid", "pipeline")
_A_CLONE = Path("pipeline") / "cluster" / "submitting.py"
_HARMLESS = {"antigravity", "test", "this"}  # nothing imports these
_END = "FLASHVID_CONFIGURATION"
_MOST_BYTES = 100_000  # Linux takes 131 072 as one argument, and that is how Ray starts an entrypoint
_POLL_SECONDS = 0.5
_NO_AGENT = "No available agent"
_AGENT_SECONDS = 60.0
_INTERRUPTED = 130


@dataclass(frozen=True)
class Submission:
    """What is submitted: the job, and whether it heals. ``reasons``: only failures for these, with ``heal``.

    working_dir: a folder that Ray sends along, for code of the user's own; the job starts in its copy.
    submission_id: the job's name; None: Ray makes one up.
    """

    config: JobConfig
    heal: bool = False
    reasons: tuple[str, ...] = ()
    working_dir: Path | None = None
    submission_id: str | None = None

    def entrypoint(self) -> str:
        """The command on the cluster: this installation's where that exists there too, else the one on PATH.

        It runs in the folder of this process where there is one, so that a relative name of a model, which is
        part of the fingerprint, means the same; with a working folder, in the copy of that.
        Raises UserError for a configuration that does not fit into a command.
        """
        reasons = [text for reason in self.reasons for text in ("--reason", reason)]
        command = shlex.join(["heal", "-", *reasons] if self.heal else ["index", "-"])
        here = shlex.quote(str(Path(sys.executable).parent / "flashvid"))
        text = _ascii_yaml(_as_seen_there(self.config))
        if len(text) > _MOST_BYTES:
            raise UserError(
                f"the configuration has {len(text)} bytes, a Ray job's command can carry {_MOST_BYTES}: put "
                "questions into a manifest, corpus.manifest.questions_column"
            )
        run = f"if [ -x {here} ]; then exec {here} {command}; else exec flashvid {command}; fi"
        return f"{self._enter()}{run} <<'{_END}'\n{text}\n{_END}"

    def _enter(self) -> str:
        if self.working_dir is not None:
            return ""
        try:
            folder = os.getcwd()
        except FileNotFoundError:
            raise UserError("the folder that this was started in is gone; enter another one") from None
        missed = f"flashvid: there is no {folder} here, so relative addresses start in"
        return f'cd {shlex.quote(folder)} 2>/dev/null || echo {shlex.quote(missed)} "$PWD" >&2; '

    def runtime_env(self) -> dict[str, Any]:
        """Ray's settings for the job. Raises UserError for a working folder whose modules would hide ours."""
        runtime_env: dict[str, Any] = {"env_vars": {"PYTHONUNBUFFERED": "1"}}
        if self.working_dir is not None:
            _check_folder(self.working_dir)
            runtime_env |= {"working_dir": str(self.working_dir), "excludes": list(_EXCLUDES)}
        return runtime_env


def submit_job(submission: Submission, address: str, *, wait: bool = True) -> int:
    """Submit to the dashboard at ``address``, print the log until the job ends; its exit status.

    0 at once without ``wait``. Ctrl-C stops the job: 130. Raises UserError where nothing is submitted.
    """
    options = {
        "entrypoint": submission.entrypoint(),
        "runtime_env": submission.runtime_env(),
        "submission_id": submission.submission_id,
    }
    client = _client(address)
    try:
        job = _accepted(client, options)
    except (RuntimeError, ValueError) as error:  # a name taken twice, a working folder too large
        raise UserError(f"Ray at {address} did not take the job: {error}") from None
    print(f"submitted {job} to {address}", flush=True)
    if not wait:
        print(f"follow it with: ray job logs {job} --follow --address {address}")
        return 0
    try:
        return _follow(client, job)
    except KeyboardInterrupt:
        print(f"stopping {job}; what it has finished is committed", file=sys.stderr)
        client.stop_job(job)
        return _INTERRUPTED


def _as_seen_there(config: JobConfig) -> dict[str, Any]:
    """The configuration, relative addresses of corpus and output made absolute: they are meant from here."""
    raw = config.model_dump(mode="json")
    raw["corpus"]["uri"] = _absolute(config.corpus.uri)
    raw["output"]["uri"] = _absolute(config.output.uri)
    return raw


def _ascii_yaml(raw: dict[str, Any]) -> str:
    """One line of YAML, whatever the locale: JSON, but for the characters that YAML escapes differently."""
    text = json.dumps(raw, ensure_ascii=False)
    return re.sub(r"[^ -~]", _escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _absolute(uri: str) -> str:
    is_plain = local_path_of(uri) == uri
    return os.path.abspath(os.path.expanduser(uri)) if is_plain else uri


def _check_folder(folder: Path) -> None:
    """Jobs import from their working folder first: from Python's own modules to this package."""
    if not folder.is_dir():
        raise UserError(f"--working-dir {str(folder)!r} is no folder")
    ours = () if (folder / _A_CLONE).is_file() else _OURS  # a clone brings the package itself
    hiding = [name for name in _modules_in(folder) if name in ours or name in sys.stdlib_module_names]
    if hiding:
        raise UserError(
            f"--working-dir {str(folder)!r} has modules of its own named {', '.join(hiding)}; a job imports "
            "from its working folder first, so they would hide those of this package and of Python: send a "
            "folder without them, or none"
        )


def _modules_in(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        is_module = path.suffix == ".py" or (path / "__init__.py").is_file()
        if is_module and path.stem not in _HARMLESS:
            yield path.stem


def _client(address: str) -> Any:
    _use_token_if_asked(address)
    # Ray prefers these to the address given here.
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise UserError(f"Ray at {address} refused: {error}") from None


def _use_token_if_asked(address: str) -> None:
    """Switch token authentication on where the server asks for it; Ray's client does not by itself."""
    if not address.startswith(("http://", "https://")):
        raise UserError(f"--address {address!r} must be that of the dashboard, e.g. http://127.0.0.1:8265")
    try:
        urllib.request.urlopen(f"{address.rstrip('/')}/api/jobs/", timeout=30).close()
    except urllib.error.HTTPError as error:
        if error.code in {401, 403}:
            os.environ.setdefault("RAY_AUTH_MODE", "token")
    except OSError as error:
        raise UserError(
            f"no Ray dashboard at {address} ({error}); start one with `ray start --head`, or give --address"
        ) from None


def _accepted(client: Any, options: Mapping[str, Any]) -> str:
    """The id of the job. A head that has just started has no agent yet: it is asked again for a minute."""
    deadline = time.monotonic() + _AGENT_SECONDS
    while True:
        try:
            return str(client.submit_job(**options))
        except RuntimeError as error:  # of one class for everything that the server says
            if _NO_AGENT not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(_POLL_SECONDS)


def _follow(client: Any, job: str) -> int:
    """Print the log as it grows, until the job has ended; its exit status."""
    was_followed = True
    try:
        asyncio.run(_print_log(client, job))
    except RuntimeError as error:  # the connection was cut; the job goes on
        print(f"the log can no longer be followed ({error}); waiting for the job", file=sys.stderr)
        was_followed = False
    while not (info := client.get_job_info(job)).status.is_terminal():
        time.sleep(_POLL_SECONDS)
    if info.status.value == "SUCCEEDED":
        return 0
    why = str(info.message).partition("\n")[0] if was_followed else info.message  # the rest is the log again
    print(f"job {job} {info.status.value.lower()}: {why}", file=sys.stderr)
    return info.driver_exit_code or 1


async def _print_log(client: Any, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)
