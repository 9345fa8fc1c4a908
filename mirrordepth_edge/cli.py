"""The `mde` command line; the one place where an error becomes an exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from mirrordepth_edge import __version__
from mirrordepth_edge.commands.verbs import LazyGroup
from mirrordepth_edge.errors import MdeError

# typer 0.26 and later ship their own copy of click; earlier versions depend on click. In both, the base
# class of usage errors is an ancestor of typer.BadParameter.
ClickError: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")

HELP_WIDTH = 100
EXIT_USAGE = 2
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 128 + signal.SIGTERM

app = typer.Typer(
    name="mde",
    cls=LazyGroup,
    context_settings={"max_content_width": HELP_WIDTH},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Live metric depth from one camera, on the edge, from a frozen CLIP and a learned mirror prompt.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mirrordepth-edge {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of `mde` itself."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `mde` and exit: 0 ok, 1 expected failure, 2 usage, 3 a gate failed, 4 hardware or a
    package is missing, 70 a bug, 130 Ctrl-C, 143 SIGTERM."""
    with _sigterm_as_ctrl_c() as received:
        code = run_app(arguments)
    if code == EXIT_INTERRUPTED and received:
        code = EXIT_TERMINATED
    if code and "TORCHELASTIC_RUN_ID" in os.environ:
        # One of several training processes: a regular exit would wait for the others, which wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run_app(arguments: Sequence[str] | None = None) -> int:
    """Run `mde`, print its output and errors, and return the exit code."""
    try:
        result = app(args=None if arguments is None else list(arguments), prog_name="mde", standalone_mode=False)
    except ClickError as error:
        error.show()
        return EXIT_USAGE
    except MdeError as error:
        _show(error)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        result = EXIT_INTERRUPTED
    except Exception:  # any other exception is a bug
        return _report_bug()
    if result == EXIT_INTERRUPTED:  # set above, or by typer
        typer.echo("interrupted", err=True)
    return result if isinstance(result, int) else 0


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[list[int]]:
    """Handle SIGTERM like Ctrl-C, so that temporary files and child processes are cleaned up.

    systemd, Docker and `kill` send it.

    Yields:
        A list that contains the signal once it was received.
    """
    received: list[int] = []

    def end(number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would interrupt the cleanup
        received.append(number)
        raise KeyboardInterrupt

    # One of several training processes may hang in C++, waiting for one that died: it must end at once.
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL or "TORCHELASTIC_RUN_ID" in os.environ:
        yield received
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _show(error: MdeError) -> None:
    from rich.text import Text

    from mirrordepth_edge.commands.terminal import errors

    errors.print(Text("error: ", style="bold red") + Text(error.what))
    errors.print(Text("  why:  ", style="bold") + Text(error.why.replace("\n", "\n        ")))
    errors.print(Text("  next: ", style="bold") + Text(error.cure))


def _report_bug() -> int:
    import platformdirs

    log = Path(platformdirs.user_log_dir("mirrordepth-edge")) / "bug.log"
    details = f"mirrordepth-edge {__version__}, Python {sys.version}\n{sys.argv}\n{traceback.format_exc()}"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(details, encoding="utf-8")
    except OSError:
        typer.echo(details, err=True)
    typer.echo(f"error: this is a bug in mirrordepth-edge. Please report it with {log}", err=True)
    return EXIT_BUG


if __name__ == "__main__":
    main()
