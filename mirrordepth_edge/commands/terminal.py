"""Terminal output of the commands: consoles, progress bar, tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from mirrordepth_edge.machine.device import nvidia_gpus
from mirrordepth_edge.support.files import write_json

if TYPE_CHECKING:  # errors are printed without NumPy
    from mirrordepth_edge.camera.model import Camera
    from mirrordepth_edge.predictor import DepthPredictor
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
    rich_table = RichTable(box=None, pad_edge=False)
    for column, heading in enumerate(table.header):
        is_text = column == 0 or heading == "source"
        rich_table.add_column(Text(heading), justify="left" if is_text else "right", overflow="fold")
    for row in table.rows:
        rich_table.add_row(*map(Text, row))
    console.print(rich_table)
    for note in table.notes:
        console.print(note)


def print_properties(rows: Iterable[tuple[str, str]]) -> None:
    """Print one line per property: its name in bold, then its value."""
    table = RichTable(show_header=False, box=None, pad_edge=False)
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(value))
    console.print(table)


def write_result(path: Path | None, content: Any) -> None:
    """Write a result as JSON, and print where; do nothing without a path."""
    if path is not None:
        write_json(path, content)
        console.print(f"wrote {path}")


def print_notes(notes: Iterable[str]) -> None:
    """Print notes on stderr."""
    for note in notes:
        errors.print(f"note: {note}", style="yellow")


def announce(predictor: DepthPredictor, name: str) -> None:
    """Print which device and backend run a model, and `warn`."""
    session = predictor.session
    errors.print(f"{name} on {session.device} ({session.backend} {session.version}, {session.precision})")
    warn(predictor)


def warn(predictor: DepthPredictor) -> None:
    """Print notes of a model: an unused GPU, a fallback, random weights."""
    session = predictor.session
    if session.device == "cpu" and (gpus := nvidia_gpus()):
        print_notes([f"{gpus[0].name} is not used; run mde doctor to see why"])
    random = () if predictor.trained else ("the weights are random; the depth is meaningless",)
    print_notes((*session.notes, *random))


def print_camera(camera: Camera, scale: float) -> None:
    """Print the camera that depth is scaled to: the `on_camera` of `predictor.load`."""
    errors.print(f"camera: {camera}; depth scaled by {scale:.3g}")
