"""`mde` as a process: what a signal from outside leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mirrordepth_edge import cli
from mirrordepth_edge.artefact import NANO_ONNX
from mirrordepth_edge.manifest import manifest_path

WAIT_S = 600
COPIED = {NANO_ONNX["fp32"].name, manifest_path(NANO_ONNX["fp32"]).name}


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def builds(pid: int) -> bool:
    """Whether a child of this process has loaded TensorRT's library, that is to say is past its own start."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(FileNotFoundError, ProcessLookupError):
            if "libtensorrt_rtx" in Path(f"/proc/{child}/maps").read_text():
                return True
    return False


@contextmanager
def building(work: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`mde build` in a group of its own, once its real builder is at work."""
    for source in (NANO_ONNX["fp32"], manifest_path(NANO_ONNX["fp32"])):
        shutil.copy(source, work)
    with subprocess.Popen(
        [sys.executable, "-m", "mirrordepth_edge", "build", "nano.onnx", "--target", "rtx-ada"],
        cwd=work,
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as mde:
        until = time.monotonic() + WAIT_S
        while not builds(mde.pid):
            assert mde.poll() is None, "it ended before it built"
            assert time.monotonic() < until, "no builder is at work"
            time.sleep(0.02)
        yield mde


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are told by Linux's /proc")


@needs_proc
def test_ctrl_c_in_a_terminal(tmp_path: Path) -> None:
    """The signal goes to the whole group, as a terminal sends it."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    with building(tmp_path) as mde:
        os.killpg(mde.pid, signal.SIGINT)
        _, err = mde.communicate(timeout=WAIT_S)
    assert mde.returncode == 130
    assert err.strip() == "interrupted"
    assert not alive(mde.pid)
    assert {path.name for path in tmp_path.iterdir()} == COPIED


@needs_proc
@pytest.mark.parametrize("whole_group", [False, True], ids=["kill", "systemd"])
def test_sigterm_during_a_build(whole_group: bool, tmp_path: Path) -> None:
    """`kill` ends one process, systemd all of a service's at once."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    work.mkdir()
    temporary.mkdir()
    with building(work, TMPDIR=str(temporary)) as mde:
        assert any(temporary.iterdir()), "the builder has nowhere to put its plan"
        if whole_group:
            os.killpg(mde.pid, signal.SIGTERM)
        else:
            mde.terminate()
        _, err = mde.communicate(timeout=WAIT_S)
    assert mde.returncode == 143
    assert err.strip() == "interrupted"
    assert not alive(mde.pid)
    assert list(temporary.iterdir()) == []
    assert {path.name for path in work.iterdir()} == COPIED


def test_sigterm_is_python_s_own_again_afterwards() -> None:
    was = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), cli._sigterm_as_ctrl_c() as received:
            signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, was)


def test_a_second_sigterm_does_not_break_off_the_tidying() -> None:
    was, tidied = signal.signal(signal.SIGTERM, signal.SIG_DFL), []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            tidied.append(True)

    try:
        with pytest.raises(KeyboardInterrupt), cli._sigterm_as_ctrl_c():
            work()
    finally:
        signal.signal(signal.SIGTERM, was)
    assert tidied


@pytest.mark.parametrize("reason", ["ignored", "training"])
def test_where_sigterm_is_left_alone(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = signal.SIG_IGN if reason == "ignored" else signal.SIG_DFL
    if reason == "training":
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    was = signal.signal(signal.SIGTERM, wanted)
    try:
        with cli._sigterm_as_ctrl_c():
            assert signal.getsignal(signal.SIGTERM) is wanted
        assert signal.getsignal(signal.SIGTERM) is wanted
    finally:
        signal.signal(signal.SIGTERM, was)
