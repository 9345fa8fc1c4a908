"""Worker processes: a module's `main` in a fresh interpreter, and the JSON lines it is called with.

The parent writes the request, one line of JSON, to the worker's standard input and keeps that open. The worker writes
events to its standard output, a line of JSON each: `{"KIND": VALUE}`. An `MdeError` that it raises is an event too, and
is raised again in the parent. Whatever libraries print goes to the standard error stream, whose end explains a crash.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import TIMEOUT_MAX, Event, Lock, Thread, Timer
from typing import Any, Final

from mirrordepth_edge import errors
from mirrordepth_edge.errors import MdeError

Emit = Callable[[str, Any], None]
"""Called in a worker with an event's kind and value, from any thread."""

ROOT: Final = Path(__file__).parents[2]
ERROR: Final = "error"

# With `-c` Python puts an empty name on the path, which means the working directory, and with `-m` that directory
# itself: a `tensorrt.py` in it would run. `-P`, which avoids this, came with Python 3.11
# (https://docs.python.org/3/using/cmdline.html#cmdoption-P); `-I` would drop PYTHONPATH and the user's packages too.
# The package's own folder goes last, for a copy that is not installed.
BOOTSTRAP: Final = """
import sys
sys.path[:] = [folder for folder in sys.path if folder]
from importlib import import_module, util
name, root = sys.argv[1:3]
del sys.argv[1:3]
if util.find_spec(name.partition(".")[0]) is None:
    sys.path.append(root)
import_module(name).main()
"""


def command_of(module: str) -> tuple[str, ...]:
    """The command that runs a module's `main`, as `python -m` would, without imports from the working directory.

    Arguments may follow.
    """
    return (sys.executable, "-c", BOOTSTRAP, module, str(ROOT))


@dataclass(frozen=True, kw_only=True)
class WorkerExit:
    """How a worker ended."""

    status: int
    """Exit status; negative if a signal ended it."""
    log: tuple[str, ...]
    """Lines of its standard error stream, without blank ones."""
    timed_out: bool = False


def call_worker(
    command: Sequence[str],
    request: Any,
    on_event: Callable[[str, Any], object],
    *,
    timeout_s: float | None = None,
) -> WorkerExit:
    """Start a worker, send it a request and wait until it ends.

    The worker is killed on a timeout, and when anything is raised here, including Ctrl-C.

    Args:
        command: of a module whose `main` calls `serve`; see `command_of`.
        request: a value that JSON can hold.
        on_event: called on this thread with the kind and value of each event.

    Raises:
        MdeError: the worker raised it.
    """
    raised: MdeError | None = None
    timed_out = Event()
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
            errors="replace",
        ) as worker,
    ):

        def expire() -> None:
            timed_out.set()
            worker.kill()

        timer = Timer(TIMEOUT_MAX if timeout_s is None else timeout_s, expire)
        try:
            timer.start()
            _send(worker, request)
            assert worker.stdout is not None, "it is a pipe"
            for line in worker.stdout:
                for kind, value in _parse(line).items():
                    if kind == ERROR:
                        name, *parts = value
                        raised = getattr(errors, name)(*parts)
                    else:
                        on_event(kind, value)
            worker.wait()
        except BaseException:  # including Ctrl-C, which the worker ignores
            worker.kill()
            raise
        finally:
            timer.cancel()
        log.seek(0)
        lines = tuple(line.strip() for line in log if line.strip())
    if raised is not None:
        raise raised
    return WorkerExit(status=worker.returncode, log=lines, timed_out=timed_out.is_set())


def _send(worker: subprocess.Popen[str], request: Any) -> None:
    assert worker.stdin is not None, "it is a pipe"
    try:
        worker.stdin.write(json.dumps(request) + "\n")
        worker.stdin.flush()
    except BrokenPipeError:  # it ended before it read; its exit status says why
        with suppress(BrokenPipeError):
            worker.stdin.close()


def _parse(line: str) -> dict[str, Any]:
    """The event of a line; empty for a line that a crash cut off."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def serve(handle: Callable[[Any, Emit], object]) -> None:
    """Read the request, handle it and send events: the `main` of a worker.

    Args:
        handle: called with the request and a function that sends an event. An `MdeError` that it raises is sent to the
            parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print must not break the protocol
    lock = Lock()

    def emit(kind: str, value: Any) -> None:
        try:
            with lock:
                channel.write(json.dumps({kind: value}) + "\n")
                channel.flush()
        except OSError:  # the parent is gone
            os._exit(1)

    request = json.loads(sys.stdin.readline())
    Thread(target=_exit_with_parent, daemon=True).start()
    try:
        handle(request, emit)
    except MdeError as error:
        emit(ERROR, [type(error).__name__, error.what, error.why, error.cure])


def _exit_with_parent() -> None:
    """End this process when its standard input ends, as it does when the parent is killed."""
    # Not `sys.stdin`: a thread that is blocked in it makes the interpreter abort at shutdown.
    while os.read(0, 1):
        pass
    os._exit(1)
