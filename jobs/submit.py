"""Submit an indexing job to a running Ray cluster, follow its log, and end with its exit status.

ray start --head
python -m jobs.submit configs/demo.yaml --address http://127.0.0.1:8265
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import load_config
from pipeline.records import PipelineError, UserError

__all__ = ["main"]

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
_POLL_SECONDS = 0.5
_EPILOG = """\
Addresses without a scheme are paths on the cluster. Configuration, model and code travel with the
working folder; corpus.uri and output.uri are made absolute here. On a cluster of several machines give those
two as s3://, gs:// or on a shared disk.

Authentication: a cluster may ask for a token (Ray does once ~/.ray/auth_token exists on its head, for example
after `ray get-auth-token --generate`). Then the token of ~/.ray/auth_token, RAY_AUTH_TOKEN or
RAY_AUTH_TOKEN_PATH here is sent; RAY_AUTH_MODE=disabled before `ray start` switches it off.

Stopping a job (`ray job stop`, Ctrl-C here) lets workers finish or give back what they hold. Ray kills a job
3 s after it was told to stop: start the head with RAY_JOB_STOP_WAIT_TIME_S=60 in its environment to allow for
limits.drain_seconds. A killed job loses at most the last output.part_seconds of work; the next one resumes.

Exit status: that of `flashvid index` (0 complete, 2 your mistake, 3 incomplete), 1 for another end of the
job, 130 after Ctrl-C, which stops the job; what it has finished is committed.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    if options.reason and not options.heal:
        parser.error("--reason goes with --heal")
    try:
        overrides = _check_configuration(options)
        client = _client(options.address)
        return _submit(client, options, overrides)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.submit",
        description=(__doc__ or "").splitlines()[0],
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="configuration, e.g. configs/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for flashvid index")
    default = os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    parser.add_argument(
        "--address", default=default, help="address of the Ray dashboard (default: %(default)s)"
    )
    folder = parser.add_mutually_exclusive_group()
    folder.add_argument(
        "--working-dir", default=".", help="folder sent along (default: this one, without .venv)"
    )
    folder.add_argument(
        "--no-working-dir",
        action="store_true",
        help="send nothing: the cluster's image has the package, and CONFIG is a path there",
    )
    parser.add_argument("--heal", action="store_true", help="run `flashvid heal`: only what failed for good")
    parser.add_argument(
        "--reason", action="append", default=[], help="with --heal: only such failures; may be repeated"
    )
    parser.add_argument("--no-wait", action="store_true", help="return once the job is submitted")
    parser.add_argument("--submission-id", help="name of the job; default: Ray makes one up")
    return parser


def _check_configuration(options: argparse.Namespace) -> list[str]:
    """Refuse a wrong configuration before anything is sent; the overrides, with addresses that hold there."""
    if options.no_working_dir and not Path(options.config).exists():
        return list(options.overrides)
    config = load_config(options.config, options.overrides)
    places = {"corpus.uri": config.corpus.uri, "output.uri": config.output.uri}
    absolute = [f"{key}={os.path.abspath(uri)}" for key, uri in places.items() if "://" not in uri]
    return [*options.overrides, *absolute]


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


def _submit(client: Any, options: argparse.Namespace, overrides: Sequence[str]) -> int:
    runtime_env: dict[str, Any] = {"env_vars": {"PYTHONUNBUFFERED": "1"}}
    if not options.no_working_dir:
        runtime_env |= {"working_dir": options.working_dir, "excludes": list(_EXCLUDES)}
    entrypoint = _entrypoint(options, overrides)
    try:
        job = client.submit_job(
            entrypoint=entrypoint, runtime_env=runtime_env, submission_id=options.submission_id
        )
    except (RuntimeError, ValueError) as error:  # a name taken twice, a working folder too large
        raise UserError(f"Ray at {options.address} did not take the job: {error}") from None
    print(f"submitted {job} to {options.address}", flush=True)
    if options.no_wait:
        print(f"follow it with: ray job logs {job} --follow --address {options.address}")
        return 0
    try:
        return _follow(client, job)
    except KeyboardInterrupt:
        print(f"stopping {job}; what it has finished is committed", file=sys.stderr)
        client.stop_job(job)
        return 130


def _entrypoint(options: argparse.Namespace, overrides: Sequence[str]) -> str:
    """The command on the cluster: by this very interpreter where that exists there too, else by python."""
    reasons = [text for reason in options.reason for text in ("--reason", reason)]
    verb = ["heal", *reasons] if options.heal else ["index"]
    command = shlex.join(["-m", "pipeline.cli", *verb, _config_there(options), *overrides])
    here = shlex.quote(sys.executable)
    return f"if [ -x {here} ]; then exec {here} {command}; else exec python {command}; fi"


def _config_there(options: argparse.Namespace) -> str:
    """The configuration's path as the job sees it."""
    if options.no_working_dir:
        return str(options.config)
    config, folder = Path(options.config).resolve(), Path(options.working_dir).resolve()
    if not config.is_relative_to(folder):
        raise UserError(
            f"{options.config!r} must lie in the working folder {str(folder)!r} that is sent along"
        )
    return str(config.relative_to(folder))


def _follow(client: Any, job: str) -> int:
    """Print the log as it grows, until the job has ended; its exit status."""
    try:
        asyncio.run(_print_log(client, job))
    except RuntimeError as error:  # the connection was cut; the job goes on
        print(f"the log can no longer be followed ({error}); waiting for the job", file=sys.stderr)
    while not (info := client.get_job_info(job)).status.is_terminal():
        time.sleep(_POLL_SECONDS)
    if info.status.value == "SUCCEEDED":
        return 0
    print(f"job {job} {info.status.value.lower()}: {info.message}", file=sys.stderr)
    return info.driver_exit_code or 1


async def _print_log(client: Any, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
