"""Depth in shared memory, read by a second process that knows nothing of this package."""

from __future__ import annotations

import json
import mmap
import shutil
import struct
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.live.result import LiveResult
from mirrordepth_edge.live.shared_memory import MAX_PIXELS, RAM_DISK, SharedDepth

pytestmark = pytest.mark.skipif(not RAM_DISK.is_dir(), reason="the reader is for Linux")

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
SIZE_HW = (120, 160)
READ = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from shared_memory_reader import DepthReader
reader = DepthReader(sys.argv[2])
print("ready", flush=True)
torn, backwards, numbers = 0, 0, [0]
until = time.monotonic() + 120
while len(numbers) <= int(sys.argv[3]) and time.monotonic() < until:
    depth = reader.newest()
    if depth is None:
        continue
    value = depth.depth_m.flat[0]
    torn += not (depth.depth_m == value).all() or not value == depth.unix_ns == depth.number % 1000
    backwards += depth.number < numbers[-1]
    if depth.number != numbers[-1]:
        numbers.append(depth.number)
print(json.dumps({"torn": int(torn), "backwards": int(backwards), "seen": len(numbers) - 1, "last": numbers[-1]}))
"""


def result(number: int, size_hw: tuple[int, int] = SIZE_HW) -> LiveResult:
    """Every pixel is the number, and so is the time."""
    return LiveResult(
        frame=np.zeros((*size_hw, 3), np.uint8),
        depth_m=np.full(size_hw, number, np.float32),
        number=number,
        captured_unix_ns=number,
        latency_ms=1.0,
        age_ms=1.0,
        dropped=0,
    )


@pytest.fixture
def name() -> str:
    """One that no other run on this machine has."""
    return f"mde-test-{uuid4().hex}"


def test_a_fast_writer_never_tears_what_another_process_reads(name: str) -> None:
    """Frames of changing size, as fast as they go: everything read is one frame, and none comes before an older one."""
    results = [result(number, (120 - 8 * (number % 3), 160)) for number in range(1000)]
    written = 0
    with SharedDepth(name) as output:
        command = [sys.executable, "-c", READ, str(EXAMPLES), name, "500"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
            while reader.poll() is None:
                for _ in range(100):
                    written += 1
                    output.show(results[written % 1000])
            out, err = reader.communicate()
    assert not err, "no warning of a leak, either"
    counts = json.loads(out)
    assert counts["torn"] == counts["backwards"] == 0
    assert 500 <= counts["seen"] <= counts["last"] <= written
    assert output.problem is None


def test_the_layout_is_as_documented(name: str) -> None:
    with SharedDepth(name) as output:
        for number in range(1, 7):
            output.show(result(number))
        with (RAM_DISK / name).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            check_layout(data)


def check_layout(data: mmap.mmap) -> None:
    """As the module's documentation has it, after six frames."""
    magic, version, newest, slots, first, stride = struct.unpack_from("<4sIQIIQ", data)
    assert (magic, version, newest, slots, first) == (b"MDED", 1, 6, 4, 64)
    assert len(data) == first + slots * stride
    assert struct.unpack_from("<QII", data, first + 6 % 4 * stride) == (6, *SIZE_HW)
    pixels = struct.unpack_from(f"<{120 * 160}f", data, first + 6 % 4 * stride + 64)
    assert set(pixels) == {6.0}
    assert struct.unpack_from("<Q", data, first + 3 % 4 * stride)[0] == 3, "three older frames are still there"


def test_nothing_is_left_behind(name: str) -> None:
    """Neither the memory nor a word of Python's resource tracker."""
    code = (
        "import sys; from mirrordepth_edge.live.shared_memory import SharedDepth\n"
        "with SharedDepth(sys.argv[1]): print(open('/dev/shm/' + sys.argv[1], 'rb').read(4))"
    )
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "b'MDED'\n", "")
    assert not (RAM_DISK / name).exists()


def test_a_reader_before_the_first_frame_and_after_the_last(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    from shared_memory_reader import DepthReader

    with SharedDepth(name) as output:
        reader = DepthReader(name)
        assert reader.newest() is None
        output.show(result(1))
    assert reader.newest().number == 1
    with pytest.raises(FileNotFoundError):
        DepthReader(name)


@pytest.mark.parametrize(("meanwhile", "copies"), [(0, 1), (2, 1), (3, 2), (9, 2)])
def test_a_reader_copies_again_if_the_writer_may_be_in_its_slot(
    name: str, monkeypatch: pytest.MonkeyPatch, meanwhile: int, copies: int
) -> None:
    """With three frames since, the fourth, which may be under way, is in the same slot."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import shared_memory_reader

    with SharedDepth(name) as output:
        output.show(result(1))
        reader = shared_memory_reader.DepthReader(name)
        calls: list[int] = []

        def unpack_and_go_on(*given: Any) -> tuple[Any, ...]:
            calls.append(1)
            for number in range(2, 2 + (meanwhile if len(calls) == 1 else 0)):
                output.show(result(number))
            return struct.unpack_from(*given)

        monkeypatch.setattr(shared_memory_reader, "struct", SimpleNamespace(unpack_from=unpack_and_go_on))
        assert reader.newest().number == (1 if copies == 1 else 1 + meanwhile)
    assert len(calls) == copies


def test_an_existing_name_is_rejected(name: str) -> None:
    with SharedDepth(name):
        with pytest.raises(InputError, match="already") as caught:
            SharedDepth(name).__enter__()
        assert f"rm /dev/shm/{name}" in caught.value.cure
        assert (RAM_DISK / name).exists()


@pytest.mark.parametrize("bad", ["", "a/b", "../x", ".hidden", "a b", "ü", "x" * 201])
def test_invalid_names_are_rejected(bad: str) -> None:
    with pytest.raises(OptionError, match="not a valid name for shared memory"):
        SharedDepth(bad)


def test_frames_that_do_not_fit_are_reported(name: str) -> None:
    with SharedDepth(name) as output:
        huge = result(1)
        object.__setattr__(huge, "depth_m", np.broadcast_to(np.float32(1), (2, MAX_PIXELS)))
        output.show(huge)
        assert output.problem is not None
        assert "do not fit" in output.problem
        output.show(result(2))
        with (RAM_DISK / name).open("rb") as file:
            assert struct.unpack_from("<Q", file.read(16), 8) == (0,)


def test_a_full_memory_does_not_kill_the_process(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 4 * 4 * 120 * 160 - 1))
    with SharedDepth(name) as output:
        output.show(result(1))
        assert output.problem is not None
        assert "--shm-size" in output.problem


def test_writing_takes_no_longer_than_copying(name: str) -> None:
    with SharedDepth(name) as output:
        large = result(1, (480, 640))
        times_s = []
        for _ in range(20):
            begin_s = time.thread_time()
            output.show(large)
            times_s.append(time.thread_time() - begin_s)
    assert min(times_s) < 0.01
