"""Kernels that TensorRT for RTX compiles are kept, checked and never in the way; the runtime itself is the fake one."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from mirrordepth_edge.backends.trt import tensorrt_rtx
from mirrordepth_edge.backends.trt.runtime_cache import MAX_FILES, SUFFIX, RuntimeCache, runtime_cache
from mirrordepth_edge.config import SessionOptions

from .fake_engine import MANIFEST, Machine, depth_of, fake_module, frame, gpu


def opened_again(machine: Machine) -> bool:
    """Whether a session found kernels; it must run either way, and leave nothing behind."""
    with machine.open_rtx() as session:
        np.testing.assert_allclose(session.infer({"image": frame()})["depth"], depth_of(frame()), rtol=1e-6)
        assert session.notes == ()
        assert session.warm_up_ms > 0
        cached = session.jit_cached
    assert not machine.cuda.leaked
    assert machine.cuda.gone[-3:] == ["context", "engine", "runtime"]
    return cached


def test_kernels_are_compiled_once(machine: Machine) -> None:
    assert not opened_again(machine)
    assert machine.store.read() == b"kernels"
    written_ns = machine.store.path.stat().st_mtime_ns
    os.utime(machine.store.path, ns=(0, written_ns - 10**9))
    for _ in range(2):
        assert opened_again(machine)
    assert machine.script.compiled == 1
    assert machine.store.path.stat().st_mtime_ns == written_ns - 10**9, "written again though nothing is new"


def test_two_frames_in_flight_share_them(machine: Machine) -> None:
    with machine.open_rtx(SessionOptions(in_flight=2)) as session:
        assert not session.jit_cached
    assert machine.script.compiled == 1


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "another", "refused"])
def test_a_broken_file_is_ignored_and_written_anew(damage: str, machine: Machine) -> None:
    opened_again(machine)
    good = machine.store.path.read_bytes()
    if damage == "refused":  # whole, and not what this runtime takes
        machine.store.write(b"of another version")
    else:
        flipped = good[:-1] + bytes([good[-1] ^ 1])
        content = {"empty": b"", "cut": good[:-3], "flipped": flipped, "another": b"x" * 100}[damage]
        machine.store.path.write_bytes(content)
        assert machine.store.read() is None
    assert not opened_again(machine)
    assert machine.script.compiled == 2
    assert machine.store.path.read_bytes() == good
    assert [file.name for file in machine.store.path.parent.iterdir()] == [machine.store.path.name]


def test_without_a_writable_cache_the_session_runs_and_has_a_note(machine: Machine) -> None:
    machine.store.path.parent.write_text("a file, no folder")
    with machine.open_rtx() as session:
        (note,) = session.notes
        assert "compiles them again" in note
        np.testing.assert_allclose(session.infer({"image": frame()})["depth"], depth_of(frame()), rtol=1e-6)


def test_a_runtime_that_keeps_nothing(machine: Machine) -> None:
    machine.script.takes_cache = False
    with machine.open_rtx(SessionOptions(in_flight=2)) as session:
        assert session.notes == ("TensorRT for RTX rejected the runtime cache: kernels are compiled at every start.",)
        assert not session.jit_cached
    machine.script.takes_cache, machine.script.serialises = True, False
    assert not opened_again(machine)
    assert not machine.store.path.exists()


@pytest.mark.parametrize(("wanted", "strategy"), [(True, "WHOLE_GRAPH_CAPTURE"), (False, "DISABLED")])
def test_the_runtime_captures_by_itself(wanted: bool, strategy: str, machine: Machine) -> None:
    with machine.open_rtx(SessionOptions(cuda_graph=wanted, in_flight=2)) as session:
        assert session.cuda_graph is wanted
        assert session.notes == ()
    assert machine.script.strategies == [strategy] * 2
    assert not [name for name in machine.cuda.calls if "Capture" in name or "Graph" in name]


def test_a_strategy_that_the_runtime_does_not_take(machine: Machine) -> None:
    machine.script.takes_strategy = False
    with machine.open_rtx() as session:
        assert not session.cuda_graph
        assert session.notes == ("TensorRT for RTX rejected the CUDA graph strategy WHOLE_GRAPH_CAPTURE.",)


def test_the_backend_keeps_them_in_the_users_cache(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
    monkeypatch.setattr(tensorrt_rtx, "nvidia_gpus", lambda: (gpu(),))
    monkeypatch.setattr(tensorrt_rtx, "import_runtime", lambda flavour: fake_module(machine.script, rtx=True))
    for cached in (False, True):
        with tensorrt_rtx.open(machine.plan, MANIFEST, SessionOptions()) as session:
            assert session.jit_cached is cached
    expected = runtime_cache("a" * 64, gpu(), "1.7.1").path
    assert expected.is_relative_to(tmp_path / "mirrordepth-edge")
    assert RuntimeCache(expected).read() == b"kernels"


def test_plan_gpu_driver_and_version_each_have_their_own(tmp_path: Path) -> None:
    board = gpu()
    stores = [
        runtime_cache("a", board, "1.7.1", tmp_path),
        runtime_cache("b", board, "1.7.1", tmp_path),
        runtime_cache("a", board, "1.7.2", tmp_path),
        runtime_cache("a", dataclasses.replace(board, name="Other GPU"), "1.7.1", tmp_path),
        runtime_cache("a", dataclasses.replace(board, compute_capability="8.9"), "1.7.1", tmp_path),
        runtime_cache("a", dataclasses.replace(board, cuda="13.0"), "1.7.1", tmp_path),
    ]
    assert len({store.path for store in stores}) == len(stores)
    assert runtime_cache("a", dataclasses.replace(board, memory_mib=1), "1.7.1", tmp_path) == stores[0]


def test_the_oldest_files_go(tmp_path: Path) -> None:
    stores = [RuntimeCache(tmp_path / f"{number}{SUFFIX}") for number in range(MAX_FILES + 3)]
    for age, store in enumerate(stores[:-1]):
        store.write(b"kernels")
        os.utime(store.path, ns=(0, age))
    (tmp_path / "else.txt").write_text("not ours")
    stores[-1].write(b"kernels")
    assert [store.path.exists() for store in stores] == [False] * 3 + [True] * MAX_FILES
    assert (tmp_path / "else.txt").exists()
