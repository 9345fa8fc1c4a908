"""The real engine session on a runtime and a CUDA that live in host memory and check how they are used."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mirrordepth_edge.artefact import SHIPPED
from mirrordepth_edge.backends.trt import cuda, tensorrt, tensorrt_rtx
from mirrordepth_edge.backends.trt import session as engine
from mirrordepth_edge.backends.trt.buffers import MappedArray, PinnedArray, allocate
from mirrordepth_edge.backends.trt.plan import trt_logger
from mirrordepth_edge.config import SessionOptions, SizeRange
from mirrordepth_edge.errors import DeviceError, InputError, MdeError, MissingError, OptionError
from mirrordepth_edge.machine import device
from mirrordepth_edge.machine.device import CudaDriver
from mirrordepth_edge.support.files import sha256_of

from .fake_engine import (
    COMPUTE_MS,
    COPY_MS,
    DEPTH,
    IMAGE,
    MANIFEST,
    Code,
    Executable,
    Machine,
    depth_of,
    fake_module,
    frame,
    gpu,
)

# CUDA calls of opening and of one inference; `test_these_are_all_calls` holds all lists.
LANE = ["cudaStreamCreateWithFlags", *["cudaEventCreate"] * 4, *["cudaMallocHost", "cudaMalloc"] * 2]
COPIED = ["cudaEventRecord", "cudaMemcpyAsync", "cudaEventRecord"]
PLAIN = [*COPIED, *COPIED, "cudaStreamSynchronize"]
REPLAY = [*COPIED, "cudaGraphLaunch", *COPIED, "cudaStreamSynchronize"]
CAPTURE = ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy"]
OPENING = ["cudaSetDevice", *LANE, *PLAIN, *CAPTURE, *REPLAY]
NO_GRAPH = SessionOptions(cuda_graph=False)
ZERO_COPY = SessionOptions(zero_copy=True)
TWO = SessionOptions(in_flight=2)


def test_session_attributes(machine: Machine) -> None:
    with machine.open() as session:
        assert (session.backend, session.version, session.device) == ("tensorrt", "10.3.0", "Fake GPU")
        assert (session.precision, session.inputs, session.outputs) == ("fp16", (IMAGE,), (DEPTH,))
        assert (session.cuda_graph, session.zero_copy, session.jit_cached, session.notes) == (True, False, False, ())
        assert session.warm_up_ms > 0


@pytest.mark.parametrize("backend", [tensorrt, tensorrt_rtx])
def test_backends_open_it(backend: Any, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
    monkeypatch.setattr(device, "cuda_driver", lambda: CudaDriver(gpus=(gpu(),), problem=None))
    monkeypatch.setattr(
        backend, "import_runtime", lambda flavour: fake_module(machine.script, rtx=backend is tensorrt_rtx)
    )
    for name in ("auto", "cuda"):
        with backend.open(machine.plan, MANIFEST, SessionOptions(device=name)) as session:
            assert session.backend == backend.NAME
            assert session.infer({"image": frame()})["depth"].shape == DEPTH.shape
            assert session.cuda_graph
    assert not machine.cuda.leaked


def test_these_are_all_calls(machine: Machine) -> None:
    """Nothing is allocated after opening, and the tests below fail each call there is."""
    with machine.open() as session:
        assert machine.cuda.calls == OPENING
        first = session.infer({"image": frame(0)})["depth"]
        assert machine.cuda.calls == OPENING + REPLAY
        assert session.infer({"image": frame(1)})["depth"] is first
        assert machine.cuda.calls == OPENING + REPLAY * 2


def test_the_first_run_is_on_zeros(machine: Machine) -> None:
    """Not on what memory held before, of which a float may be no number."""
    with machine.open() as session:
        np.testing.assert_array_equal(session._slots[0].outputs["depth"], np.ones(DEPTH.shape))


def test_without_a_graph_kernels_are_launched_one_by_one(machine: Machine) -> None:
    with machine.open(NO_GRAPH) as session:
        session.infer({"image": frame()})
        assert not session.cuda_graph
        assert session.notes == ()  # as it was asked for
    assert machine.cuda.calls[: 1 + len(LANE) + 2 * len(PLAIN)] == ["cudaSetDevice", *LANE, *PLAIN, *PLAIN]


def test_nothing_is_copied_where_memory_is_shared(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself on a Jetson, by wish elsewhere; and on a Jetson copies by wish."""
    for integrated, wish, copies in (
        (True, None, False),
        (False, True, False),
        (False, None, True),
        (True, False, True),
    ):
        board = gpu(integrated=integrated)
        monkeypatch.setattr(engine, "nvidia_gpus", lambda board=board: (board,))
        machine.cuda.calls.clear()
        with machine.open(SessionOptions(zero_copy=wish)) as session:
            depth = session.infer({"image": frame(3)})["depth"]
            np.testing.assert_allclose(depth, depth_of(frame(3)), rtol=1e-6)
            assert session.zero_copy is not copies
            assert session.device_ms() == ((COPY_MS, COMPUTE_MS, COPY_MS) if copies else (0.0, COMPUTE_MS, 0.0))
        assert ("cudaMemcpyAsync" in machine.cuda.calls) is copies
        assert ("cudaMalloc" in machine.cuda.calls) is copies
        assert not machine.cuda.leaked


# Why a capture fails: CUDA's code, or what the runtime cannot do.
@pytest.mark.parametrize(
    ("refused", "script", "words"),
    [
        ("cudaStreamBeginCapture", {}, "cudaStreamBeginCapture: cudaErrorNotSupported (801)"),
        ("cudaGraphInstantiate", {}, "cudaGraphInstantiate: cudaErrorNotSupported (801)"),
        (
            None,
            {"capturable": False},
            "cannot be captured. The runtime reports: operation not permitted when stream is capturing",
        ),
        (None, {"breaks_capture": True}, "cudaStreamEndCapture: cudaErrorStreamCaptureInvalidated (901)"),
    ],
    ids=["begin", "instantiate", "runtime refuses", "invalidated"],
)
def test_a_plan_that_cannot_be_captured_runs_without_a_graph_and_has_a_note(
    refused: str | None, script: dict[str, bool], words: str, machine: Machine
) -> None:
    if refused is not None:
        machine.cuda.refuses[refused] = Code.cudaErrorNotSupported
    for name, value in script.items():
        setattr(machine.script, name, value)
    with machine.open(TWO) as session:
        assert not session.cuda_graph
        (note,) = session.notes
        assert note.startswith("No CUDA graph is used")
        assert words in note
        assert machine.cuda.last_error == Code.cudaSuccess  # or the next call of anybody would answer with it
        np.testing.assert_allclose(session.infer({"image": frame(1)})["depth"], depth_of(frame(1)), rtol=1e-6)
        assert machine.cuda.calls[-len(PLAIN) :] == PLAIN
    assert not machine.cuda.leaked


def test_either_all_slots_replay_a_graph_or_none(machine: Machine) -> None:
    """Frames of one session are all worked on in the same way."""
    instantiate = machine.cuda.cudaGraphInstantiate
    answers = iter([instantiate, lambda graph, flags: (Code.cudaErrorMemoryAllocation, None)])

    def cudaGraphInstantiate(graph: Any, flags: int) -> Any:  # noqa: N802
        return next(answers)(graph, flags)

    machine.cuda.cudaGraphInstantiate = cudaGraphInstantiate  # type: ignore[method-assign]
    with machine.open(TWO) as session:
        assert not session.cuda_graph
        assert "cudaErrorMemoryAllocation (2)" in session.notes[0]
        assert not [graph for graph in machine.cuda.graphs if isinstance(graph, Executable)]
        session.infer({"image": frame()})
    assert "cudaGraphLaunch" not in machine.cuda.calls
    assert not machine.cuda.leaked


def test_two_frames_in_flight(machine: Machine) -> None:
    """The second is begun before the first is awaited; results come in order, each valid until its turn comes again."""
    with machine.open(TWO) as session:
        before = len(machine.cuda.calls)
        session.submit({"image": frame(0)})
        for number in range(1, 6):
            session.submit({"image": frame(number)})
            assert "cudaStreamSynchronize" not in machine.cuda.calls[before:], "it waits while it should submit"
            depth = session.collect()["depth"]
            np.testing.assert_allclose(depth, depth_of(frame(number - 1)), rtol=1e-6)
            assert session.device_ms() == (COPY_MS, COMPUTE_MS, COPY_MS)
            before = len(machine.cuda.calls)
        last = session.collect()["depth"]
        np.testing.assert_allclose(last, depth_of(frame(5)), rtol=1e-6)
        np.testing.assert_allclose(depth, depth_of(frame(4)), rtol=1e-6)  # not overwritten since
        assert session.infer({"image": frame(6)})["depth"] is session.infer({"image": frame(7)})["depth"]
    assert not machine.cuda.leaked


def test_feeds_may_be_reused_once_they_are_submitted(machine: Machine) -> None:
    image = frame(0)
    with machine.open(TWO) as session:
        session.submit({"image": image})
        image[:] = 0
        np.testing.assert_allclose(session.collect()["depth"], depth_of(frame(0)), rtol=1e-6)


def test_frames_in_flight_are_counted(machine: Machine) -> None:
    feeds = {"image": frame()}
    with machine.open(TWO) as session:
        with pytest.raises(InputError, match="no frame to collect"):
            session.collect()
        session.submit(feeds)
        with pytest.raises(InputError, match="not collected"):
            session.infer(feeds)
        session.submit(feeds)
        with pytest.raises(InputError, match="2 frames are already in flight") as caught:
            session.submit(feeds)
        assert "in_flight=3" in caught.value.cure
        session.collect()
        session.submit(feeds)  # one place is free again
    assert not machine.cuda.leaked  # closed with frames under way


@pytest.mark.parametrize("count", [0, -1])
def test_no_frame_in_flight_is_no_session(count: int, machine: Machine) -> None:
    with pytest.raises(OptionError, match=f"in_flight={count} is too small"):
        machine.open(SessionOptions(in_flight=count))
    assert machine.cuda.calls == []


def test_wrong_feeds_are_refused(machine: Machine) -> None:
    """Shapes are the plan's: none but its own enters, whatever the runtime would make of it."""
    good = frame()
    bad: list[dict[str, Any]] = [
        {},
        {"picture": good},
        {"image": good, "more": good},
        {"image": good.astype(np.float32)},
        {"image": good[:, :-1]},
        {"image": np.repeat(good, 2, axis=0)},
        {"image": good[0]},
        {"image": good[..., ::-1]},
    ]
    with machine.open() as session:
        for feeds in bad:
            with pytest.raises(InputError, match="do not match"):
                session.infer(feeds)
            with pytest.raises(InputError, match="do not match"):
                session.submit(feeds)
        assert machine.cuda.calls == OPENING


def test_closing_frees_everything_once_and_in_order(machine: Machine) -> None:
    session = machine.open()
    session.infer({"image": frame()})
    assert machine.cuda.leaked
    session.close()
    assert not machine.cuda.leaked
    assert machine.cuda.gone == ["graph", "context", "engine", "runtime"]
    assert session.device_ms() == ()
    calls = len(machine.cuda.calls)
    session.close()
    assert len(machine.cuda.calls) == calls


def test_a_closed_session_does_not_run(machine: Machine) -> None:
    session = machine.open()
    session.close()
    with pytest.raises(InputError, match="closed"):
        session.infer({"image": frame()})


# Ctrl-C comes before or after a call that frees, never in its stead.
OPENING_FAILURES = [
    pytest.param(number, failure, id=f"{number}-{name}-{kind}")
    for number, name in enumerate(OPENING, 1)
    for kind, failure in (("memory", Code.cudaErrorMemoryAllocation), ("ctrl-c", KeyboardInterrupt()))
    if kind == "memory" or name not in ("cudaStreamEndCapture", "cudaGraphDestroy")
]


@pytest.mark.parametrize(("number", "failure"), OPENING_FAILURES)
def test_a_failure_while_opening_leaks_nothing(number: int, failure: Code | BaseException, machine: Machine) -> None:
    name = OPENING[number - 1]
    machine.cuda.fail_at, machine.cuda.failure = number, failure
    if isinstance(failure, BaseException):
        with pytest.raises(KeyboardInterrupt):
            machine.open()
    elif name in CAPTURE:
        with machine.open() as session:
            assert session.cuda_graph is (name == "cudaGraphDestroy")
            assert [note for note in session.notes if name in note] == list(session.notes)
    else:
        with pytest.raises(DeviceError) as caught:
            machine.open()
        assert name in caught.value.what
        assert "cudaErrorMemoryAllocation (2)" in caught.value.why
        assert "smaller --size" in caught.value.cure
    machine.cuda.graphs = [] if name == "cudaGraphDestroy" else machine.cuda.graphs
    assert not machine.cuda.leaked
    if number > 1:
        assert machine.cuda.gone[-3:] == ["context", "engine", "runtime"]


@pytest.mark.parametrize("options", [SessionOptions(), NO_GRAPH, ZERO_COPY], ids=["graph", "plain", "mapped"])
@pytest.mark.parametrize("failure", [Code.cudaErrorIllegalAddress, KeyboardInterrupt()], ids=["fault", "ctrl-c"])
def test_a_failure_while_running_leaks_nothing_and_the_next_frame_runs(
    failure: Code | BaseException, options: SessionOptions, machine: Machine
) -> None:
    wanted = DeviceError if isinstance(failure, Code) else KeyboardInterrupt
    with machine.open(options) as session:
        opened = len(machine.cuda.calls)
        session.infer({"image": frame()})
        inference = len(machine.cuda.calls) - opened
        for number in range(1, inference + 1):
            machine.cuda.fail_at, machine.cuda.failure = len(machine.cuda.calls) + number, failure
            with pytest.raises(wanted):
                session.infer({"image": frame(number)})
            depth = session.infer({"image": frame(number + 100)})["depth"]
            np.testing.assert_allclose(depth, depth_of(frame(number + 100)), rtol=1e-6)
    assert not machine.cuda.leaked


def test_after_a_fault_that_stays_the_first_error_is_the_one_raised(machine: Machine) -> None:
    """Every later call answers with the same code; closing still tries each, and hides nothing."""
    session = machine.open()
    machine.cuda.fail_at = len(OPENING + REPLAY)
    machine.cuda.failure, machine.cuda.sticky = Code.cudaErrorIllegalAddress, True
    with pytest.raises(DeviceError, match="cudaStreamSynchronize") as caught, session:
        session.infer({"image": frame()})
    assert "cudaErrorIllegalAddress (700)" in caught.value.why
    closing = machine.cuda.calls[len(OPENING + REPLAY) :]
    once = {"cudaStreamDestroy", "cudaGraphExecDestroy"}
    assert sorted(set(closing)) == sorted(
        {"cudaFree", "cudaFreeHost", "cudaEventDestroy", "cudaStreamSynchronize"} | once
    )
    assert {name: closing.count(name) for name in once} == dict.fromkeys(once, 1)
    assert [closing.count(name) for name in ("cudaFree", "cudaFreeHost", "cudaEventDestroy")] == [2, 2, 4]


@pytest.mark.parametrize(
    ("name", "error", "what", "cure"),
    [
        ("runtime", MissingError, "tensorrt 10.3.0 does not start", "driver"),
        ("engine", InputError, "tensorrt 10.3.0 cannot load", "tiny.plan --target here"),
        ("context", DeviceError, "cannot prepare", "smaller --size"),
    ],
)
def test_objects_that_the_runtime_cannot_create(
    name: str, error: type[MdeError], what: str, cure: str, machine: Machine
) -> None:
    machine.script.fails_to_make = name
    if name != "runtime":  # nothing logs before there is one
        machine.script.says = ("the reason,\nin two lines", "what follows from it")
    else:
        machine.script.logger = trt_logger(fake_module(machine.script))
    with pytest.raises(error, match=what) as caught:
        machine.open()
    assert cure in caught.value.cure
    if name != "runtime":
        assert caught.value.why.endswith("The runtime reports: the reason, in two lines")
    assert not machine.cuda.leaked


def test_a_plan_that_does_not_fit_into_the_gpus_memory(machine: Machine) -> None:
    machine.script.fails_to_make = "engine"
    machine.script.says = ("Error Code 2: OutOfMemory (Requested size was 900 bytes.)",)
    with pytest.raises(DeviceError, match="does not fit") as caught:
        machine.open()
    assert "900 bytes" in caught.value.why
    assert "smaller --size" in caught.value.cure


@pytest.mark.parametrize("tensor", ["image", "depth"])
def test_a_buffer_that_the_runtime_refuses(tensor: str, machine: Machine) -> None:
    machine.script.refused_tensor = tensor
    with pytest.raises(DeviceError, match=f"rejected the buffer for '{tensor}'"):
        machine.open()
    assert not machine.cuda.leaked


def test_an_engine_that_does_not_run(machine: Machine) -> None:
    with machine.open(NO_GRAPH) as session:
        machine.script.runs = False
        with pytest.raises(DeviceError, match="failed to run") as caught:
            session.infer({"image": frame()})
        machine.script.runs = True
        session.infer({"image": frame()})
    assert "mde build" in caught.value.cure
    assert caught.value.why.endswith("The runtime reports: misaligned address")
    assert not machine.cuda.leaked


@pytest.mark.parametrize(
    "tensors",
    [
        {"image": ("UINT8", (1, 4, 7, 3)), "depth": ("FLOAT", DEPTH.shape)},
        {"image": ("UINT8", IMAGE.shape), "depth": ("HALF", DEPTH.shape)},
        {"image": ("UINT8", IMAGE.shape), "disparity": ("FLOAT", DEPTH.shape)},
        {"image": ("UINT8", IMAGE.shape)},
        {"image": ("UINT8", (-1, 4, 6, 3)), "depth": ("FLOAT", DEPTH.shape), "mask": ("BOOL", (1,))},
    ],
    ids=["shape", "dtype", "name", "too-few", "dynamic"],
)
def test_a_plan_that_its_manifest_does_not_describe(
    tensors: dict[str, tuple[str, tuple[int, ...]]], machine: Machine
) -> None:
    machine.script.tensors = tensors
    with pytest.raises(InputError, match="does not match its manifest") as caught:
        machine.open()
    assert all(repr(name) in caught.value.why for name in tensors)
    assert not machine.cuda.leaked


OPEN_SIZES = SizeRange(min=(1, 2, 2), opt=(1, 4, 6), max=(3, 8, 8))
OPENED = dataclasses.replace(
    MANIFEST,
    sizes=OPEN_SIZES,
    model=dataclasses.replace(MANIFEST.model, size_multiple=2),
    inputs=(IMAGE.with_dynamic_axes("NHW"),),
    outputs=(DEPTH.with_dynamic_axes("NHW"),),
)


@pytest.fixture
def opened(machine: Machine) -> Machine:
    """An engine of several sizes."""
    machine.script.tensors = {"image": ("UINT8", (-1, -1, -1, 3)), "depth": ("FLOAT", (-1, -1, -1))}
    machine.script.longest = 8
    return machine


@pytest.mark.parametrize("size", [None, (1, 2, 8), (3, 8, 8)], ids=str)
@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_an_engine_of_several_sizes_runs_at_one(
    size: tuple[int, int, int] | None, graph: bool, in_flight: int, opened: Machine
) -> None:
    options = SessionOptions(
        network_hw=size and size[1:], batch=size and size[0], cuda_graph=graph, in_flight=in_flight
    )
    batch, height, width = size or (1, 4, 6)
    with opened.open(options, OPENED) as session:
        assert session.inputs[0].shape == (batch, height, width, 3)
        assert session.outputs[0].shape == (batch, height, width)
        assert session.cuda_graph == graph
        for seed in range(3):
            image = np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3), np.uint8)
            depth = session.infer({"image": image})["depth"]
            np.testing.assert_allclose(depth, image.astype(np.float32).mean(-1) + 1, rtol=1e-6)
        with pytest.raises(InputError, match="do not match"):
            session.infer({"image": np.zeros((1, 6, 6, 3), np.uint8)})
    assert not opened.cuda.leaked


def test_a_size_beyond_the_manifests_is_refused_before_the_gpu_is_asked(opened: Machine) -> None:
    with pytest.raises(OptionError, match="cannot run 1 frame of 10x10"):
        opened.open(SessionOptions(network_hw=(10, 10)), OPENED)
    assert not opened.cuda.leaked


def test_a_size_beyond_the_engines_own_range(opened: Machine) -> None:
    opened.script.longest = 6
    with pytest.raises(DeviceError, match=r"cannot run .* at") as caught:
        opened.open(SessionOptions(network_hw=(8, 8)), OPENED)
    assert "out of the profile" in caught.value.why
    assert "--dynamic" in caught.value.cure
    assert not opened.cuda.leaked


def test_an_engine_with_another_range_than_its_manifest(opened: Machine) -> None:
    with pytest.raises(InputError, match="does not match its manifest"):
        opened.open(manifest=dataclasses.replace(OPENED, inputs=(IMAGE.with_dynamic_axes("N"),)))


@pytest.mark.parametrize(
    ("visible", "chosen"), [(None, "1"), ("", "1"), ("2,5", "5"), ("GPU-aa, GPU-bb", "GPU-bb")], ids=str
)
def test_plans_run_on_the_first_of_two_gpus(
    visible: str | None, chosen: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    orin, ada = gpu("Orin", "8.7"), gpu("Ada", "8.9")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(engine, "nvidia_gpus", lambda: (ada, orin))
    with pytest.raises(InputError, match="not built for this GPU") as caught:
        machine.open()
    assert "for compute capability 8.7" in caught.value.why
    assert "GPU 0 is Ada (8.9), GPU 1 is Orin (8.7)" in caught.value.why
    assert caught.value.cure.endswith(f"CUDA_VISIBLE_DEVICES={chosen}")
    assert machine.cuda.calls == []
    monkeypatch.setattr(engine, "nvidia_gpus", lambda: (orin, ada))
    with machine.open() as session:
        assert session.device == "Orin"


def test_a_gpu_that_no_plan_is_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "nvidia_gpus", lambda: (gpu("Ada", "8.9"),))
    with pytest.raises(InputError, match="not built for this GPU") as caught:
        machine.open()
    assert f"mde build {machine.plan.with_suffix('.onnx')} -o {machine.plan} " in caught.value.cure
    assert MANIFEST.engine is not None
    anywhere = dataclasses.replace(MANIFEST.engine, compute_capabilities=())
    with machine.open(manifest=dataclasses.replace(MANIFEST, engine=anywhere)):  # its builder's default GPUs
        pass


@pytest.mark.parametrize("backend", [tensorrt, tensorrt_rtx])
@pytest.mark.parametrize(
    ("options", "what", "cure"),
    [
        (SessionOptions(device="cpu"), "cannot run on the CPU", "replace model.plan with model.onnx"),
        (SessionOptions(threads=2), "--threads 2 does not apply", "Leave out --threads"),
        (
            SessionOptions(clip_weights=Path("clip.pt")),
            "--clip-weights clip.pt does not apply",
            "Leave out --clip-weights",
        ),
    ],
    ids=["cpu", "threads", "clip-weights"],
)
def test_options_that_mean_nothing_to_a_plan_are_refused(
    backend: Any, options: SessionOptions, what: str, cure: str
) -> None:
    with pytest.raises(OptionError, match=what) as caught:
        backend.open(Path("model.plan"), MANIFEST, options)
    assert cure in caught.value.cure


@pytest.mark.parametrize("backend", [tensorrt, tensorrt_rtx])
def test_a_plan_of_a_shipped_model_is_replaced_by_it(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nano.plan` of `nano.fp16`: no `nano.onnx` lies beside it."""
    shipped = dataclasses.replace(MANIFEST, parent_sha256=sha256_of(SHIPPED["nano.fp16"]))
    with pytest.raises(OptionError, match="CPU") as refused:
        backend.open(Path("a/nano.plan"), shipped, SessionOptions(device="cpu"))
    assert "replace a/nano.plan with nano.fp16." in refused.value.cure
    monkeypatch.setattr(engine, "nvidia_gpus", lambda: ())
    with pytest.raises(MissingError, match="needs an NVIDIA GPU") as missing:
        backend.open(Path("a/nano.plan"), shipped, SessionOptions())
    assert "replace a/nano.plan with nano.fp16." in missing.value.cure


@pytest.mark.parametrize("backend", [tensorrt, tensorrt_rtx])
@pytest.mark.parametrize("kind", [ImportError, OSError, FileNotFoundError])
def test_a_runtime_whose_libraries_are_missing(
    backend: Any, kind: type[Exception], machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package imports its libraries and raises its own error if one is missing."""
    monkeypatch.setattr(device, "cuda_driver", lambda: CudaDriver(gpus=(gpu(),), problem=None))
    package = backend.NAME.replace("-", "_")
    (tmp_path / package).mkdir()
    body = f"raise {kind.__name__}('libnvinfer.so.10: cannot open shared object file')"
    (tmp_path / package / "__init__.py").write_text(body, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)  # so that what is there now, or nothing, comes back
    del sys.modules[package]
    with pytest.raises(MissingError, match="cannot be used here") as caught:
        backend.open(machine.plan, MANIFEST, SessionOptions())
    assert "libnvinfer.so.10" in caught.value.why
    assert "pip install" in caught.value.cure
    assert machine.cuda.calls == []


@pytest.mark.parametrize("code", [code for code in Code if code])
def test_only_a_missing_gpu_or_driver_is_missing(code: Code) -> None:
    def cudaSomething(argument: int) -> tuple[Code, None]:  # noqa: N802
        return code, None

    no_gpu_or_driver = code in (3, 35, 100, 803)
    with pytest.raises(MissingError if no_gpu_or_driver else DeviceError, match="cudaSomething") as caught:
        cuda.call(cudaSomething, 1)
    assert caught.value.exit_code == (4 if no_gpu_or_driver else 1)
    assert f"{code.name} ({code.value})" in caught.value.why
    assert ("older" in caught.value.why) == (code == 35)
    assert (caught.value.cure == cuda.DRIVER_CURE) == no_gpu_or_driver
    assert ("smaller --size" in caught.value.cure) == (code == 2)


def test_a_cuda_python_that_raises_where_others_return_a_code() -> None:
    """What 12.6 does without a driver."""

    def cudaSomething() -> None:  # noqa: N802
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    with pytest.raises(MissingError, match="cudaSomething") as caught:
        cuda.call(cudaSomething)
    assert "found no driver: Failed to dlopen libcuda.so.1" in caught.value.why
    assert "mde doctor" in caught.value.cure


@pytest.mark.parametrize(
    ("kind", "calls", "frees"),
    [
        (PinnedArray, ["cudaMallocHost", "cudaMalloc"], ["cudaFree", "cudaFreeHost"]),
        (MappedArray, ["cudaHostAlloc", "cudaHostGetDevicePointer"], ["cudaFreeHost"]),
    ],
)
def test_buffers_are_freed_once(kind: type, calls: list[str], frees: list[str], machine: Machine) -> None:
    array = allocate((2, 3), "float32", zero_copy=kind is MappedArray)
    assert isinstance(array, kind)
    assert (array.host.shape, array.host.dtype) == ((2, 3), np.float32)
    array.free()
    array.free()
    assert machine.cuda.calls == calls + frees
    assert not machine.cuda.leaked


@pytest.mark.parametrize("kind", [PinnedArray, MappedArray])
def test_a_buffer_frees_its_first_half_when_there_is_no_second(kind: type, machine: Machine) -> None:
    machine.cuda.fail_at = 2
    with pytest.raises(DeviceError, match=r"cudaMalloc|cudaHostGetDevicePointer"):
        kind((2, 3), "float32")
    assert machine.cuda.calls[-1] == "cudaFreeHost"
    assert not machine.cuda.leaked
