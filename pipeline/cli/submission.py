"""``flashvid submit``: the command that hands a job to a running Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import ConfigFile, Overrides, Reasons, check_reasons, reporting
from pipeline.config import load_config
from pipeline.errors import UserError

__all__ = ["submit"]


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

    A cluster may ask for a token (Ray does once ~/.ray/auth_token exists on its head). Then the token of
    ~/.ray/auth_token, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH here is sent.

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

    if reason and not heal:
        raise UserError("--reason goes with --heal")
    check_reasons(reason or [])
    job = load_config(config, overrides or [])
    submission = Submission(job, heal, tuple(reason or ()), working_dir, submission_id)
    raise typer.Exit(submit_job(submission, address, wait=not no_wait))
