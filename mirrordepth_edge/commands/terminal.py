"""Terminal output of the commands: consoles, progress bar, tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from mirrordepth_edge.report.tables import Table

# No markup by default: a path may hold square brackets.
console = Console(highlight=False, soft_wrap=True, markup=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def progress_bar() -> Progress:
    """Return a progress bar on stderr, so that stdout can be piped."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
    )


def print_table(table: Table) -> None:
    """Print a table, text aligned left and numbers right, and its notes."""
    from rich.table import Table as RichTable
    from rich.text import Text

    rich_table = RichTable(box=None, pad_edge=False)
    for column, heading in enumerate(table.header):
        is_text = column == 0 or heading == "source"
        rich_table.add_column(Text(heading), justify="left" if is_text else "right", overflow="fold")
    for row in table.rows:
        rich_table.add_row(*map(Text, row))
    console.print(rich_table)
    for note in table.notes:
        console.print(note)
