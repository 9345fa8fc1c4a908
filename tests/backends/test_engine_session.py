"""The real engine session on a runtime and a CUDA that live in host memory and check how they are used."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mirrordepth_edge.backends import cuda, engine, tensorrt, tensorrt_rtx
from mirrordepth_edge.backends.engine import EngineSession
from mirrordepth_edge.config import PRESETS, SessionOptions
from mirrordepth_edge.errors import DeviceError, InputError, MdeError, MissingError, OptionError
from mirrordepth_edge.manifest import EngineInfo, Manifest, Parity, TensorSpec

HEIGHT, WIDTH = 4, 6
IMAGE = TensorSpec(name="image", dtype="uint8", shape=(1, HEIGHT, WIDTH, 3), layout="NHWC", range="0..255", unit="RGB")
DEPTH = TensorSpec(name="depth", dtype="float32", shape=(1, HEIGHT, WIDTH), layout="NHW", range="> 0", unit="metres")
MANIFEST = Manifest(
    kind="plan",
    artefact_sha256="a" * 64,
    parent_sha256="b" * 64,
    checkpoint_sha256="c" * 64,
    clip_sha256="d" * 64,
    trained=False,
    model=PRESETS["nano"],
    preprocess=replace(PRESETS["nano"].preprocess, size_hw=(HEIGHT, WIDTH)),
    inputs=(IMAGE,),
    outputs=(DEPTH,),
    precision="fp16",
    opset=18,
    parity=Parity(runner="none", frames=1, max_relative=0.0, mean_relative=0.0, limit="none"),
    engine=EngineInfo(flavour="tensorrt", version="10.3.0", compute_capabilities=("8.7",), build_seconds=1.0),
    tools={},
)
GPU = SimpleNamespace(name="Fake GPU")
CONTENT = b"a plan"

# CUDA calls of opening and of one inference; `test_these_are_all_calls` holds both lists.
OPENING = ["cudaStreamCreate", *["cudaEventCreate"] * 4, *["cudaMallocHost", "cudaMalloc"] * 2]
INFERENCE = [
    *["cudaEventRecord", "cudaMemcpyAsync", "cudaEventRecord"],
    *["cudaEventRecord", "cudaMemcpyAsync", "cudaEventRecord"],
    "cudaStreamSynchronize",
]
COPY_MS, COMPUTE_MS = 0.25, 4.0
"""What work takes on the fake GPU's clock."""


class Code(IntEnum):
    """As cuda-python's `cudaError_t`."""

    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInitializationError = 3  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorDevicesUnavailable = 46  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815
    cudaErrorIllegalAddress = 700  # noqa: N815
    cudaErrorSystemDriverMismatch = 803  # noqa: N815


@dataclass
class Stream:
    """Work in order, done when somebody waits for it, with a clock that only work moves."""

    handle: int
    pending: list[Callable[[], None]] = field(default_factory=list)
    clock_ms: float = 0.0

    def add(self, work: Callable[[], None], takes_ms: float) -> None:
        def done() -> None:
            work()
            self.clock_ms += takes_ms

        self.pending.append(done)

    def __int__(self) -> int:
        return self.handle


@dataclass
class Event:
    """A moment on a stream's clock."""

    at_ms: float | None = None


def cuda_function(method: Callable[..., Any]) -> Callable[..., Any]:
    """Record the call, and answer as cuda-python does: a code, then the value if there is one."""

    @wraps(method)
    def answered(self: FakeCuda, *arguments: Any) -> tuple[Any, ...]:
        self.calls.append(method.__name__)
        number = len(self.calls)
        if self.fail_at is not None and (number == self.fail_at or (self.sticky and number > self.fail_at)):
            if isinstance(self.failure, BaseException):
                raise self.failure
            return self.failure, None
        value = method(self, *arguments)
        return (Code.cudaSuccess,) if value is None else (Code.cudaSuccess, value)

    return answered


class FakeCuda:
    """CUDA's runtime with both memories on the host; misuse fails the test where it happens."""

    cudaMemcpyKind = SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice=("host", "device"), cudaMemcpyDeviceToHost=("device", "host")
    )

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail_at: int | None = None
        """Number of the call that fails, counted from 1."""
        self.failure: Code | BaseException = Code.cudaErrorMemoryAllocation
        self.sticky = False
        """Whether all later calls fail too, as after an illegal address."""
        self.memory: dict[int, tuple[str, ctypes.Array[ctypes.c_char]]] = {}
        self.streams: dict[int, Stream] = {}
        self.events: list[Event] = []
        self._freed: list[Any] = []

    @property
    def leaked(self) -> bool:
        return bool(self.memory or self.streams or self.events)

    def block(self, address: int, nbytes: int, place: str) -> Any:
        where, block = self.memory[int(address)]
        assert (where, len(block)) == (place, nbytes)
        return block

    @cuda_function
    def cudaMallocHost(self, nbytes: int) -> int:  # noqa: N802
        return self._allocate("host", nbytes)

    @cuda_function
    def cudaMalloc(self, nbytes: int) -> int:  # noqa: N802
        return self._allocate("device", nbytes)

    @cuda_function
    def cudaFreeHost(self, address: int) -> None:  # noqa: N802
        self._free("host", address)

    @cuda_function
    def cudaFree(self, address: int) -> None:  # noqa: N802
        self._free("device", address)

    @cuda_function
    def cudaStreamCreate(self) -> Stream:  # noqa: N802
        handle = 0x5000 + len(self.streams)
        self.streams[handle] = Stream(handle)
        return self.streams[handle]

    @cuda_function
    def cudaStreamSynchronize(self, stream: Stream) -> None:  # noqa: N802
        while self.streams[int(stream)].pending:
            stream.pending.pop(0)()

    @cuda_function
    def cudaStreamDestroy(self, stream: Stream) -> None:  # noqa: N802
        assert not stream.pending, "destroyed before its work was done"
        del self.streams[int(stream)]

    @cuda_function
    def cudaMemcpyAsync(  # noqa: N802
        self, to: int, source: int, nbytes: int, kind: tuple[str, str], stream: Stream
    ) -> None:
        def copy() -> None:
            ctypes.memmove(self.block(to, nbytes, kind[1]), self.block(source, nbytes, kind[0]), nbytes)

        self.streams[int(stream)].add(copy, COPY_MS)

    @cuda_function
    def cudaEventCreate(self) -> Event:  # noqa: N802
        self.events.append(Event())
        return self.events[-1]

    @cuda_function
    def cudaEventDestroy(self, event: Event) -> None:  # noqa: N802
        self.events = [other for other in self.events if other is not event]

    @cuda_function
    def cudaEventRecord(self, event: Event, stream: Stream) -> None:  # noqa: N802
        def record() -> None:
            event.at_ms = stream.clock_ms

        stream.add(record, 0.0)

    @cuda_function
    def cudaEventElapsedTime(self, start: Event, end: Event) -> float:  # noqa: N802
        assert start.at_ms is not None, "not recorded, or not awaited"
        assert end.at_ms is not None, "not recorded, or not awaited"
        return end.at_ms - start.at_ms

    def _allocate(self, place: str, nbytes: int) -> int:
        block = ctypes.create_string_buffer(b"\xee" * nbytes, nbytes)
        self.memory[ctypes.addressof(block)] = (place, block)
        return ctypes.addressof(block)

    def _free(self, place: str, address: int) -> None:
        assert not any(stream.pending for stream in self.streams.values()), "freed while work was under way"
        where, block = self.memory.pop(address)
        assert where == place
        self._freed.append(block)  # kept, so that no later block has its address


class FakeContext:
    def __init__(self, trt: FakeTrt) -> None:
        self._trt = trt
        self._addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert isinstance(address, int)
        self._addresses[name] = address
        return name != self._trt.refused_tensor

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self._trt.runs:
            work = partial(self._mean_plus_one, dict(self._addresses))
            self._trt.cuda.streams[stream_handle].add(work, COMPUTE_MS)
        return self._trt.runs

    def _mean_plus_one(self, addresses: dict[str, int]) -> None:
        pixels = HEIGHT * WIDTH
        image = np.frombuffer(self._trt.cuda.block(addresses["image"], pixels * 3, "device"), np.uint8)
        depth = np.frombuffer(self._trt.cuda.block(addresses["depth"], pixels * 4, "device"), np.float32)
        depth[:] = image.reshape(pixels, 3).mean(1) + 1


class FakeEngine:
    def __init__(self, trt: FakeTrt) -> None:
        self._trt = trt
        self.num_io_tensors = len(trt.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._trt.tensors)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self._trt.tensors[name][0])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._trt.tensors[name][1]

    def create_execution_context(self) -> Any:
        return self._trt.made("context", FakeContext(self._trt))


class FakeRuntime:
    def __init__(self, trt: FakeTrt) -> None:
        self._trt = trt

    def deserialize_cuda_engine(self, content: bytes) -> Any:
        assert content == CONTENT
        return self._trt.made("engine", FakeEngine(self._trt))


class FakeTrt:
    """A module such as `tensorrt`, with one engine: depth is the pixel's mean over its channels, plus 1."""

    __version__ = "10.3.0"
    Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, severity: None})

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.tensors = {"image": ("UINT8", IMAGE.shape), "depth": ("FLOAT", DEPTH.shape)}
        self.runs = True
        self.refused_tensor = ""
        self.fails_to_make = ""
        self.gone: list[str] = []
        """What was destroyed, in order."""

    def made(self, name: str, thing: Any) -> Any:
        """`thing`, or None where it cannot be made."""
        if name == self.fails_to_make:
            return None
        weakref.finalize(thing, self.gone.append, name)
        return thing

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        runtime = self.made("runtime", FakeRuntime(self))
        if runtime is None:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return runtime


@dataclass
class Machine:
    """A fake GPU with its runtimes, and a plan for it."""

    cuda: FakeCuda
    trt: FakeTrt
    plan: Path

    def open(self, manifest: Manifest = MANIFEST) -> EngineSession:
        return EngineSession(self.trt, "tensorrt", self.plan, manifest)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    fake = FakeCuda()
    monkeypatch.setattr(cuda, "runtime", lambda: fake)
    monkeypatch.setattr(engine, "nvidia_gpus", lambda: (GPU,))
    plan = tmp_path / "tiny.plan"
    plan.write_bytes(CONTENT)
    return Machine(fake, FakeTrt(fake), plan)


def frame(seed: int = 0) -> Any:
    """An input: uint8 RGB `[1, H, W, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, IMAGE.shape, np.uint8)


def test_a_session_says_what_it_is(machine: Machine) -> None:
    with machine.open() as session:
        assert (session.backend, session.version, session.device) == ("tensorrt", "10.3.0", "Fake GPU")
        assert (session.precision, session.inputs, session.outputs) == ("fp16", (IMAGE,), (DEPTH,))


@pytest.mark.parametrize("backend", [tensorrt, tensorrt_rtx])
def test_backends_open_it(backend: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "module", lambda: machine.trt)
    for device in ("auto", "cuda"):
        with backend.open(machine.plan, MANIFEST, SessionOptions(device=device)) as session:
            assert session.backend == backend.NAME
            assert session.infer({"image": frame()})["depth"].shape == DEPTH.shape
    assert not machine.cuda.leaked


def test_every_frame_is_read_and_its_depth_awaited(machine: Machine) -> None:
    with machine.open() as session:
        for seed in (0, 1, 0):
            depth = session.infer({"image": frame(seed)})["depth"]
            assert depth.dtype == np.float32
            np.testing.assert_allclose(depth, frame(seed).astype(np.float64).mean(3) + 1, rtol=1e-6)


def test_the_gpus_clock_tells_copies_from_compute(machine: Machine) -> None:
    with machine.open() as session:
        for _ in range(2):
            session.infer({"image": frame()})
            assert session.device_ms() == (COPY_MS, COMPUTE_MS, COPY_MS)


def test_these_are_all_calls(machine: Machine) -> None:
    """Nothing is allocated after opening, and the tests below fail each call there is."""
    with machine.open() as session:
        assert machine.cuda.calls == OPENING
        first = session.infer({"image": frame(0)})["depth"]
        assert machine.cuda.calls == OPENING + INFERENCE
        assert session.infer({"image": frame(1)})["depth"] is first
        assert machine.cuda.calls == OPENING + INFERENCE * 2


def test_wrong_feeds_are_refused(machine: Machine) -> None:
    good = frame()
    bad: list[dict[str, Any]] = [
        {},
        {"picture": good},
        {"image": good, "more": good},
        {"image": good.astype(np.float32)},
        {"image": good[:, :-1]},
        {"image": good[..., ::-1]},
    ]
    with machine.open() as session:
        for feeds in bad:
            with pytest.raises(InputError, match="do not fit"):
                session.infer(feeds)
    assert not [name for name in machine.cuda.calls if name in INFERENCE[:1]]


def test_closing_frees_everything_once_and_in_order(machine: Machine) -> None:
    session = machine.open()
    session.infer({"image": frame()})
    assert machine.cuda.leaked
    session.close()
    assert not machine.cuda.leaked
    assert machine.trt.gone == ["context", "engine", "runtime"]
    calls = len(machine.cuda.calls)
    session.close()
    assert len(machine.cuda.calls) == calls


def test_a_closed_session_does_not_run(machine: Machine) -> None:
    session = machine.open()
    session.close()
    with pytest.raises(InputError, match="closed"):
        session.infer({"image": frame()})


@pytest.mark.parametrize("failure", [Code.cudaErrorMemoryAllocation, KeyboardInterrupt()], ids=["memory", "ctrl-c"])
@pytest.mark.parametrize("number", range(1, len(OPENING) + 1))
def test_a_failure_while_opening_leaks_nothing(number: int, failure: Code | BaseException, machine: Machine) -> None:
    machine.cuda.fail_at, machine.cuda.failure = number, failure
    wanted = DeviceError if isinstance(failure, Code) else KeyboardInterrupt
    with pytest.raises(wanted) as caught:
        machine.open()
    if isinstance(caught.value, DeviceError):
        assert OPENING[number - 1] in caught.value.what
        assert "cudaErrorMemoryAllocation (2)" in caught.value.why
        assert "smaller --size" in caught.value.cure
    assert not machine.cuda.leaked
    assert sorted(machine.trt.gone) == ([] if number == 1 else ["context", "engine", "runtime"])


@pytest.mark.parametrize("failure", [Code.cudaErrorIllegalAddress, KeyboardInterrupt()], ids=["fault", "ctrl-c"])
@pytest.mark.parametrize("number", range(1, len(INFERENCE) + 1))
def test_a_failure_while_running_leaks_nothing(number: int, failure: Code | BaseException, machine: Machine) -> None:
    wanted = DeviceError if isinstance(failure, Code) else KeyboardInterrupt
    with machine.open() as session:
        machine.cuda.fail_at, machine.cuda.failure = len(OPENING) + number, failure
        with pytest.raises(wanted):
            session.infer({"image": frame()})
    assert not machine.cuda.leaked


def test_after_a_fault_that_stays_the_first_error_is_the_one_raised(machine: Machine) -> None:
    """Every later call answers with the same code; closing still tries each, and hides nothing."""
    session = machine.open()
    machine.cuda.fail_at = len(OPENING + INFERENCE)
    machine.cuda.failure, machine.cuda.sticky = Code.cudaErrorIllegalAddress, True
    with pytest.raises(DeviceError, match="cudaStreamSynchronize") as caught, session:
        session.infer({"image": frame()})
    assert "cudaErrorIllegalAddress (700)" in caught.value.why
    closing = machine.cuda.calls[len(OPENING + INFERENCE) :]
    stream = ["cudaStreamSynchronize", "cudaStreamDestroy"]
    assert sorted(closing) == sorted([*["cudaFree", "cudaFreeHost"] * 2, *["cudaEventDestroy"] * 4, *stream])


@pytest.mark.parametrize(
    ("name", "error", "what", "cure"),
    [
        ("runtime", MissingError, "tensorrt 10.3.0 does not start on Fake GPU", "driver"),
        ("engine", InputError, "tensorrt 10.3.0 cannot load", "mde build tiny.onnx"),
        ("context", DeviceError, "cannot prepare", "smaller --size"),
    ],
)
def test_what_the_runtime_cannot_make(name: str, error: type[MdeError], what: str, cure: str, machine: Machine) -> None:
    machine.trt.fails_to_make = name
    with pytest.raises(error, match=what) as caught:
        machine.open()
    assert cure in caught.value.cure
    assert not machine.cuda.leaked


@pytest.mark.parametrize("tensor", ["image", "depth"])
def test_a_buffer_that_the_runtime_refuses(tensor: str, machine: Machine) -> None:
    machine.trt.refused_tensor = tensor
    with pytest.raises(DeviceError, match=f"refused the buffer for '{tensor}'"):
        machine.open()
    assert not machine.cuda.leaked


def test_an_engine_that_does_not_run(machine: Machine) -> None:
    with machine.open() as session:
        machine.trt.runs = False
        with pytest.raises(DeviceError, match="failed to run") as caught:
            session.infer({"image": frame()})
        machine.trt.runs = True
        session.infer({"image": frame()})
    assert "mde build" in caught.value.cure
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
    ids=["shape", "dtype", "name", "too-few", "too-many"],
)
def test_a_plan_that_its_manifest_does_not_describe(
    tensors: dict[str, tuple[str, tuple[int, ...]]], machine: Machine
) -> None:
    machine.trt.tensors = tensors
    with pytest.raises(InputError, match="not the plan its manifest describes") as caught:
        machine.open()
    assert all(repr(name) in caught.value.why for name in tensors)
    assert not machine.cuda.leaked


@pytest.mark.parametrize("backend", [tensorrt, tensorrt_rtx])
@pytest.mark.parametrize(
    ("options", "what", "cure"),
    [
        (SessionOptions(device="cpu"), "cannot run on the CPU", "run its ONNX: replace model.plan by model.onnx"),
        (SessionOptions(threads=2), "no use for 2 CPU threads", "Leave --threads out"),
        (SessionOptions(clip_weights=Path("clip.pt")), "no use for clip.pt", "Leave --clip-weights out"),
    ],
    ids=["cpu", "threads", "clip-weights"],
)
def test_options_that_mean_nothing_to_a_plan_are_refused(
    backend: Any, options: SessionOptions, what: str, cure: str
) -> None:
    with pytest.raises(OptionError, match=what) as caught:
        backend.open(Path("model.plan"), MANIFEST, options)
    assert cure in caught.value.cure


@pytest.mark.parametrize("code", [code for code in Code if code])
def test_only_a_missing_gpu_or_driver_is_missing(code: Code) -> None:
    def cudaSomething(argument: int) -> tuple[Code, None]:  # noqa: N802
        return code, None

    nothing_here = code in (3, 35, 100, 803)
    with pytest.raises(MissingError if nothing_here else DeviceError, match="cudaSomething") as caught:
        cuda.call(cudaSomething, 1)
    assert caught.value.exit_code == (4 if nothing_here else 1)
    assert f"{code.name} ({code.value})" in caught.value.why
    assert ("mde doctor shows what is here" in caught.value.cure) == nothing_here
    assert ("smaller --size" in caught.value.cure) == (code == 2)


def test_pinned_memory_frees_its_host_half_when_the_device_is_full(machine: Machine) -> None:
    machine.cuda.fail_at = 2
    with pytest.raises(DeviceError, match="cudaMalloc"):
        cuda.PinnedArray((2, 3), "float32")
    assert machine.cuda.calls == ["cudaMallocHost", "cudaMalloc", "cudaFreeHost"]
    assert not machine.cuda.leaked


def test_pinned_memory_is_freed_once(machine: Machine) -> None:
    array = cuda.PinnedArray((2, 3), "float32")
    assert (array.host.shape, array.host.dtype, array.nbytes) == ((2, 3), np.float32, 24)
    array.free()
    array.free()
    assert machine.cuda.calls == ["cudaMallocHost", "cudaMalloc", "cudaFree", "cudaFreeHost"]
    assert not machine.cuda.leaked
