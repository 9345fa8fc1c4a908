"""The `mde` command: one verb a module, and the one place where an error becomes an exit code."""

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
from mirrordepth_edge.commands.audit import audit
from mirrordepth_edge.commands.bench.command import bench_app
from mirrordepth_edge.commands.build import build
from mirrordepth_edge.commands.calibrate import calibrate
from mirrordepth_edge.commands.calibrate_camera import calibrate_camera
from mirrordepth_edge.commands.data import data_app
from mirrordepth_edge.commands.demo import demo
from mirrordepth_edge.commands.doctor.command import doctor
from mirrordepth_edge.commands.evaluate import evaluate
from mirrordepth_edge.commands.explain import explain
from mirrordepth_edge.commands.export.command import export
from mirrordepth_edge.commands.import_trtexec import import_trtexec
from mirrordepth_edge.commands.inspect import inspect
from mirrordepth_edge.commands.live.command import live
from mirrordepth_edge.commands.run import run
from mirrordepth_edge.commands.selftest import selftest
from mirrordepth_edge.commands.train import train
from mirrordepth_edge.commands.verify import verify
from mirrordepth_edge.errors import MdeError

# typer 0.26 and later carry their own copy of click; before, it is click itself. Either way the
# base of every usage error is an ancestor of typer's.
ClickError: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")

EXIT_USAGE = 2
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 128 + signal.SIGTERM

app = typer.Typer(
    name="mde",
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
    """Options before the verb."""


VERBS = (
    demo,
    calibrate,
    export,
    build,
    audit,
    verify,
    run,
    live,
    calibrate_camera,
    evaluate,
    explain,
    inspect,
    doctor,
    selftest,
    import_trtexec,
    train,
)
for verb in VERBS:
    app.command()(verb)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `mde` and exit: 0 ok, 1 expected failure, 2 usage, 3 a gate failed, 4 hardware or a
    package is missing, 70 a bug, 130 Ctrl-C, 143 SIGTERM."""
    with _sigterm_as_ctrl_c() as received:
        code = run_app(arguments)
    if code == EXIT_INTERRUPTED and received:
        code = EXIT_TERMINATED
    if code and "TORCHELASTIC_RUN_ID" in os.environ:
        # One of several training processes: an orderly end would wait for the others, who wait for it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run_app(arguments: Sequence[str] | None = None) -> int:
    """Run `mde` and return its exit code; everything a user should see is printed."""
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
    except Exception:  # anything else is our bug
        return _report_bug()
    if result == EXIT_INTERRUPTED:  # raised above, or already made a status by typer
        typer.echo("interrupted", err=True)
    return result if isinstance(result, int) else 0


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[list[int]]:
    """Let SIGTERM, by which systemd, Docker and `kill` end a process, leave as little behind as Ctrl-C does.

    Yields:
        The signal, once it came.
    """
    received: list[int] = []

    def end(number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would break off the tidying
        received.append(number)
        raise KeyboardInterrupt

    # One of several training processes may be stuck in C++, waiting for one that died: it has to end at once.
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
