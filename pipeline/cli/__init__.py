"""What does a person type and read?

In: the command line. Out: texts, tables and an exit status. Start with app.py: the commands and their help.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from pipeline.cli.app import main
    from pipeline.cli.commands import index_corpus
    from pipeline.cli.console import print_table
    from pipeline.cli.summaries import print_plan, print_report, print_verify
else:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "app": ["main"],
            "commands": ["index_corpus"],
            "console": ["print_table"],
            "summaries": ["print_plan", "print_report", "print_verify"],
        },
    )

__all__ = [
    "index_corpus",
    "main",
    "print_plan",
    "print_report",
    "print_table",
    "print_verify",
]
