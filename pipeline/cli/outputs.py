"""The commands about an output that exists: status, verify, compact, export."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.console import make_console
from pipeline.cli.options import Output, Table, reporting
from pipeline.errors import UserError

__all__ = ["compact", "export", "status", "verify"]


@reporting
def status(output: Output, table: Table = "videos") -> None:
    """Show what an output holds: rows, failures by reason, the last run, and who writes now."""
    from pipeline.cli.summaries import print_status
    from pipeline.output import read_status

    print_status(make_console(), read_status(output, table))


@reporting
def verify(output: Output, table: Table = "videos") -> None:
    """Check an output: no video twice, one schema, sums that close. Exit status 1 if not."""
    from pipeline.cli.summaries import print_verify
    from pipeline.output import verify_output

    report = verify_output(output, table)
    print_verify(make_console(), report)
    raise typer.Exit(0 if report.ok else 1)


@reporting
def compact(
    output: Output,
    table: Table = "videos",
    target_rows: Annotated[int, typer.Option(min=1, help="Rows of a merged part.")] = 100_000,
    keep_seconds: Annotated[
        float, typer.Option(min=0, help="How long replaced parts stay for readers that began before.")
    ] = 600.0,
) -> None:
    """Merge small parts into large ones; no reader sees a row twice, or not at all.

    Takes the output's lock: not beside a run. What a plain glob on object storage may see meanwhile, and how
    to read exactly even then: docs/OUTPUT.md.
    """
    from pipeline.cli.summaries import print_compact
    from pipeline.output import compact as merge

    print_compact(make_console(), merge(output, table, target_rows=target_rows, keep_seconds=keep_seconds))


@reporting
def export(
    output: Output,
    file: Annotated[
        str | None,
        typer.Argument(metavar="[FILE]", help="The Parquet file to write; without, SQL is printed."),
    ] = None,
    table: Table = "videos",
    latest: Annotated[
        bool, typer.Option("--latest", help="One row per video: the one that was committed last.")
    ] = False,
) -> None:
    """Write a table as one Parquet file, or print a DuckDB view of it.

    flashvid export --latest s3://bucket/index latest.parquet

    flashvid export --latest out/index            (prints: create or replace view ...)
    """
    from pipeline.output import export as write
    from pipeline.output import view_sql

    if file is None:
        typer.echo(view_sql(output, table, latest=latest))
        return
    if "=" in file:
        raise UserError(f"{file!r} is no file name; flashvid export OUTPUT FILE takes no settings")
    report = write(output, table, file, latest=latest)
    typer.echo(f"{report.rows} rows of {report.rows_read} in {file}", err=True)
