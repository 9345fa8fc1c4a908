"""Requests, events, errors, crashes, timeouts and interrupts across a worker process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from mirrordepth_edge.errors import GateError, OptionError
from mirrordepth_edge.support.worker import WorkerExit, call_worker

WAIT_S = 60


def command(body: str) -> tuple[str, ...]:
    """A worker whose `handle` has this body."""
    program = (
        "import os, sys, time, signal\n"
        "from mirrordepth_edge.errors import GateError\n"
        "from mirrordepth_edge.support.worker import serve\n"
        f"def handle(request, emit):\n{textwrap.indent(body, '    ')}\n"
        "serve(handle)\n"
    )
    return (sys.executable, "-c", program)


def call(body: str, request: Any = None, **options: Any) -> tuple[list[tuple[str, Any]], WorkerExit]:
    events: list[tuple[str, Any]] = []
    end = call_worker(command(body), request, lambda kind, value: events.append((kind, value)), **options)
    return events, end


def test_events_come_in_order_and_prints_do_not_mix_in() -> None:
    events, end = call("emit('first', request)\nprint('noise')\nos.write(1, b'more')\nemit('last', 2)", {"é": [1]})
    assert events == [("first", {"é": [1]}), ("last", 2)]
    assert (end.status, end.timed_out) == (0, False)
    assert sorted(" ".join(end.log).replace("more", " more ").split()) == ["more", "noise"]


def test_a_users_error_crosses_the_process() -> None:
    with pytest.raises(GateError) as caught:
        call("emit('before', 1)\nraise GateError('what', 'why', 'next')")
    assert (caught.value.what, caught.value.why, caught.value.cure) == ("what", "why", "next")


@pytest.mark.parametrize(
    ("body", "status", "log"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ()),
        ("print('CUDA error', file=sys.stderr, flush=True)\nos.abort()", -signal.SIGABRT, ("CUDA error",)),
        ("os._exit(7)", 7, ()),
    ],
)
def test_a_crash_is_reported_with_its_log(body: str, status: int, log: tuple[str, ...]) -> None:
    events, end = call(f"emit('before', 1)\n{body}")
    assert events == [("before", 1)]
    assert end == WorkerExit(status=status, log=log)


def test_a_bug_is_a_crash_with_its_traceback() -> None:
    _, end = call("1 / 0")
    assert end.status == 1
    assert end.log[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("program", ["raise SystemExit(3)", "print('{\"half'); raise SystemExit(3)"])
def test_a_worker_that_does_not_follow_the_protocol(program: str) -> None:
    events: list[Any] = []
    request = "x" * 1_000_000  # more than a pipe holds: writing it fails if nobody reads
    end = call_worker((sys.executable, "-c", program), request, lambda *event: events.append(event))
    assert (events, end.status) == ([], 3)


def test_a_timeout_kills_it() -> None:
    _, end = call("time.sleep(600)", timeout_s=0.5)
    assert end.timed_out
    assert end.status == -signal.SIGKILL


@pytest.mark.parametrize("error", [KeyboardInterrupt, OptionError("what", "why", "next")])
def test_an_exception_here_kills_it(error: Any, tmp_path: Path) -> None:
    def fail(kind: str, value: Any) -> None:
        (tmp_path / "pid").write_text(str(value))
        raise error

    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else OptionError):
        call_worker(command("emit('pid', os.getpid())\ntime.sleep(600)"), None, fail)
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_ctrl_c_is_the_parents_to_handle() -> None:
    """A terminal sends it to both."""
    events, end = call("os.kill(os.getpid(), signal.SIGINT)\nemit('alive', True)")
    assert (events, end.status) == ([("alive", True)], 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_its_parent(number: signal.Signals) -> None:
    """Even if it never writes again."""
    worker = command("emit('pid', os.getpid())\ntime.sleep(600)")
    program = (
        "from mirrordepth_edge.support.worker import call_worker\n"
        f"call_worker({worker!r}, None, lambda kind, value: print(value, flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(number)
        parent.wait(WAIT_S)
    until = time.monotonic() + WAIT_S
    while not is_gone(pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert is_gone(pid)


def is_gone(pid: int) -> bool:
    """Ended, reaped or not: an orphan's new parent may take its time."""
    status = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            return status.read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
