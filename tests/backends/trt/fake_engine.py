"""A CUDA and a TensorRT that live in host memory, keep their rules and fail the test where they are broken.

`test_engine_api.py` holds their names and arguments to those of the real modules.
"""

from __future__ import annotations

import ctypes
import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from functools import partial, wraps
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mirrordepth_edge.backends.trt import tensorrt_rtx
from mirrordepth_edge.backends.trt.runtime_cache import RuntimeCache
from mirrordepth_edge.backends.trt.session import Contexts, EngineSession
from mirrordepth_edge.config import PRESETS, SessionOptions
from mirrordepth_edge.machine.device import Gpu
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
CONTENT = b"a plan"
COPY_MS, COMPUTE_MS = 0.25, 4.0
"""What work takes on the fake GPU's clock."""


def gpu(name: str = "Fake GPU", capability: str = "8.7", *, integrated: bool = False) -> Gpu:
    return Gpu(name=name, compute_capability=capability, memory_mib=8192, integrated=integrated, cuda="12.6")


def frame(seed: int = 0) -> Any:
    """An input: uint8 RGB `[1, H, W, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, IMAGE.shape, np.uint8)


def depth_of(image: Any) -> Any:
    """What the fake network answers, float64 `[1, H, W]`: a pixel's mean over its channels, plus 1."""
    return image.astype(np.float64).mean(3) + 1


class Code(IntEnum):
    """As cuda-python's `cudaError_t`."""

    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInitializationError = 3  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorDevicesUnavailable = 46  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815
    cudaErrorIllegalAddress = 700  # noqa: N815
    cudaErrorNotSupported = 801  # noqa: N815
    cudaErrorSystemDriverMismatch = 803  # noqa: N815
    cudaErrorStreamCaptureUnsupported = 900  # noqa: N815
    cudaErrorStreamCaptureInvalidated = 901  # noqa: N815


class RefusedError(Exception):
    """A code other than success, raised inside the fake and answered as cuda-python does."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.name)
        self.code = code


Work = Callable[["Stream"], None]


@dataclass(eq=False)
class Stream:
    """Work in order, done when somebody waits for it, with a clock that only work moves."""

    handle: int
    pending: list[Work] = field(default_factory=list)
    clock_ms: float = 0.0
    captured: list[Work] | None = None
    """What a capture under way has recorded."""
    invalidated: bool = False

    def add(self, work: Callable[[], None], takes_ms: float) -> None:
        def done(stream: Stream) -> None:
            work()
            stream.clock_ms += takes_ms

        (self.pending if self.captured is None else self.captured).append(done)

    def __int__(self) -> int:
        return self.handle


@dataclass(eq=False)
class Graph:
    work: tuple[Work, ...]


@dataclass(eq=False)
class Executable:
    work: tuple[Work, ...]


@dataclass(eq=False)
class Event:
    """A moment on a stream's clock."""

    at_ms: float | None = None


def cuda_function(method: Callable[..., Any]) -> Callable[..., Any]:
    """Record the call, and answer as cuda-python does: a code, then the value if the function has one."""
    has_value = inspect.signature(method).return_annotation != "None"

    @wraps(method)
    def answered(self: FakeCuda, *arguments: Any) -> tuple[Any, ...]:
        name = method.__name__
        self.calls.append(name)
        number = len(self.calls)
        code: Code = Code.cudaSuccess
        value: Any = None
        if self.fail_at is not None and (number == self.fail_at or (self.sticky and number > self.fail_at)):
            if isinstance(self.failure, BaseException):
                raise self.failure
            code = self.failure
            if name == "cudaStreamEndCapture":  # whatever it answers, the stream captures no more
                arguments[0].captured = None
        elif name in self.refuses:
            code = self.refuses[name]
        else:
            try:
                value = method(self, *arguments)
            except RefusedError as refused:
                code = refused.code
        if code and name != "cudaGetLastError":
            self.last_error = code
        return (code, value) if has_value else (code,)

    return answered


class FakeCuda:
    """CUDA's runtime with both memories on the host. What does not start with `cuda` is for tests."""

    cudaMemcpyKind = Enum(  # noqa: N815
        "cudaMemcpyKind", {"cudaMemcpyHostToDevice": ("host", "device"), "cudaMemcpyDeviceToHost": ("device", "host")}
    )
    cudaStreamCaptureMode = Enum("cudaStreamCaptureMode", ["cudaStreamCaptureModeThreadLocal"])  # noqa: N815
    cudaHostAllocMapped = 2  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail_at: int | None = None
        """Number of the call that fails, counted from 1."""
        self.failure: Code | BaseException = Code.cudaErrorMemoryAllocation
        self.sticky = False
        """Whether all later calls fail too, as after an illegal address."""
        self.refuses: dict[str, Code] = {}
        """Functions that always fail."""
        self.last_error: Code = Code.cudaSuccess
        self.memory: dict[int, tuple[str, ctypes.Array[ctypes.c_char]]] = {}
        self.streams: dict[int, Stream] = {}
        self.events: list[Event] = []
        self.graphs: list[Graph | Executable] = []
        self.gone: list[str] = []
        """Graphs that were destroyed, and what `Script` made, in order."""
        self._freed: list[Any] = []
        self._made = 0

    @property
    def leaked(self) -> bool:
        return bool(self.memory or self.streams or self.events or self.graphs)

    def block(self, address: int, nbytes: int, *places: str) -> Any:
        where, block = self.memory[int(address)]
        assert where in places
        assert len(block) == nbytes
        return block

    @cuda_function
    def cudaSetDevice(self, device: int) -> None:  # noqa: N802
        assert device == 0

    @cuda_function
    def cudaGetLastError(self) -> None:  # noqa: N802
        code, self.last_error = self.last_error, Code.cudaSuccess
        if code:
            raise RefusedError(code)

    @cuda_function
    def cudaMallocHost(self, size: int) -> int:  # noqa: N802
        return self._allocate("host", size)

    @cuda_function
    def cudaMalloc(self, size: int) -> int:  # noqa: N802
        return self._allocate("device", size)

    @cuda_function
    def cudaHostAlloc(self, size: int, flags: int) -> int:  # noqa: N802
        assert flags == self.cudaHostAllocMapped
        return self._allocate("mapped", size)

    @cuda_function
    def cudaHostGetDevicePointer(self, pHost: int, flags: int) -> int:  # noqa: N802, N803
        assert flags == 0
        where, block = self.memory[pHost]
        assert where == "mapped"
        address = pHost | 1 << 60  # the GPU sees it elsewhere
        self.memory[address] = ("seen by the GPU", block)
        return address

    @cuda_function
    def cudaFreeHost(self, ptr: int) -> None:  # noqa: N802
        self.memory.pop(ptr | 1 << 60, None)
        self._free(ptr, "host", "mapped")

    @cuda_function
    def cudaFree(self, devPtr: int) -> None:  # noqa: N802, N803
        self._free(devPtr, "device")

    @cuda_function
    def cudaStreamCreateWithFlags(self, flags: int) -> Stream:  # noqa: N802
        assert flags == self.cudaStreamNonBlocking, "it would wait for the default stream, and not be captured"
        self._made += 1
        stream = Stream(0x5000 + self._made)
        self.streams[stream.handle] = stream
        return stream

    @cuda_function
    def cudaStreamSynchronize(self, stream: Stream) -> None:  # noqa: N802
        assert self.streams[int(stream)] is stream
        if stream.captured is not None:
            stream.invalidated = True
            raise RefusedError(Code.cudaErrorStreamCaptureUnsupported)
        while stream.pending:
            stream.pending.pop(0)(stream)

    @cuda_function
    def cudaStreamDestroy(self, stream: Stream) -> None:  # noqa: N802
        assert not stream.pending, "destroyed before its work was done"
        assert stream.captured is None, "destroyed while it captures"
        del self.streams[int(stream)]

    @cuda_function
    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: Stream) -> None:  # noqa: N802
        source, target = kind.value

        def copy() -> None:
            ctypes.memmove(self.block(dst, count, target), self.block(src, count, source), count)

        self.streams[int(stream)].add(copy, COPY_MS)

    @cuda_function
    def cudaEventCreate(self) -> Event:  # noqa: N802
        self.events.append(Event())
        return self.events[-1]

    @cuda_function
    def cudaEventDestroy(self, event: Event) -> None:  # noqa: N802
        self.events.remove(event)

    @cuda_function
    def cudaEventRecord(self, event: Event, stream: Stream) -> None:  # noqa: N802
        assert stream.captured is None, "an event in a graph tells no time"

        def record() -> None:
            event.at_ms = stream.clock_ms

        stream.add(record, 0.0)

    @cuda_function
    def cudaEventElapsedTime(self, start: Event, end: Event) -> float:  # noqa: N802
        assert start.at_ms is not None, "not recorded, or not awaited"
        assert end.at_ms is not None, "not recorded, or not awaited"
        return end.at_ms - start.at_ms

    @cuda_function
    def cudaStreamBeginCapture(self, stream: Stream, mode: Any) -> None:  # noqa: N802
        assert mode in self.cudaStreamCaptureMode
        assert not stream.pending, "work that is under way would be no part of the graph"
        stream.captured, stream.invalidated = [], False

    @cuda_function
    def cudaStreamEndCapture(self, stream: Stream) -> Graph:  # noqa: N802
        assert stream.captured is not None, "it does not capture"
        captured, stream.captured = stream.captured, None
        if stream.invalidated:
            raise RefusedError(Code.cudaErrorStreamCaptureInvalidated)
        graph = Graph(tuple(captured))
        self.graphs.append(graph)
        return graph

    @cuda_function
    def cudaGraphInstantiate(self, graph: Graph, flags: int) -> Executable:  # noqa: N802
        assert graph in self.graphs
        assert flags == 0
        executable = Executable(graph.work)
        self.graphs.append(executable)
        return executable

    @cuda_function
    def cudaGraphLaunch(self, graphExec: Executable, stream: Stream) -> None:  # noqa: N802, N803
        assert isinstance(graphExec, Executable)
        assert graphExec in self.graphs
        stream.pending.extend(graphExec.work)

    @cuda_function
    def cudaGraphDestroy(self, graph: Graph) -> None:  # noqa: N802
        assert isinstance(graph, Graph)
        self.graphs.remove(graph)

    @cuda_function
    def cudaGraphExecDestroy(self, graphExec: Executable) -> None:  # noqa: N802, N803
        assert isinstance(graphExec, Executable)
        self._assert_idle()
        self.graphs.remove(graphExec)
        self.gone.append("graph")

    def _allocate(self, place: str, nbytes: int) -> int:
        assert all(stream.captured is None for stream in self.streams.values()), "allocated during a capture"
        block = ctypes.create_string_buffer(b"\xee" * nbytes, nbytes)
        self.memory[ctypes.addressof(block)] = (place, block)
        return ctypes.addressof(block)

    def _free(self, address: int, *places: str) -> None:
        self._assert_idle()
        where, block = self.memory.pop(address)
        assert where in places
        self._freed.append(block)  # kept, so that no later block has its address

    def _assert_idle(self) -> None:
        assert not any(stream.pending for stream in self.streams.values()), "freed while work was under way"


@dataclass(eq=False)
class Script:
    """What a fake TensorRT is told to do, and what became of it."""

    cuda: FakeCuda
    tensors: dict[str, tuple[str, tuple[int, ...]]] = field(
        default_factory=lambda: {"image": ("UINT8", IMAGE.shape), "depth": ("FLOAT", DEPTH.shape)}
    )
    longest: int = 64
    """Of a length that is open, by the profile that the engine was built with."""
    runs: bool = True
    capturable: bool = True
    breaks_capture: bool = False
    """The network waits for the GPU inside a run, which invalidates a capture."""
    refused_tensor: str = ""
    fails_to_make: str = ""
    says: tuple[str, ...] = ()
    """What is logged as errors before something is not made."""
    takes_cache: bool = True
    takes_strategy: bool = True
    serialises: bool = True
    compiled: int = 0
    """How often kernels were compiled just in time."""
    strategies: list[str] = field(default_factory=list)
    """CUDA graph strategy of each context."""
    logger: Any = None

    def made(self, name: str, thing: Any) -> Any:
        """`thing`, or None where it cannot be made."""
        if name == self.fails_to_make:
            self.log("INFO", "Loaded engine size: 9 MiB")
            for text in self.says:
                self.log("ERROR", text)
            return None
        weakref.finalize(thing, self.cuda.gone.append, name)
        return thing

    def log(self, severity: str, text: str) -> None:
        self.logger.log(FakeILogger.Severity[severity], text)


class FakeILogger:
    Severity = Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

    def __init__(self) -> None:
        self._initialised = True

    def log(self, severity: Any, msg: str) -> None:
        raise AssertionError("a logger overrides this")


class FakeContext:
    def __init__(self, script: Script) -> None:
        self._script = script
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._ran = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        built = self._script.tensors[name][1]
        assert len(shape) == len(built), "a shape has all lengths"
        bounds = zip(shape, built, strict=True)
        fits = all(given == has or (has == -1 and 0 < given <= self._script.longest) for given, has in bounds)
        if fits:
            self._shapes[name] = shape
        else:
            self._script.log("ERROR", f"supplied shape {list(shape)} is out of the profile")
        return fits

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert isinstance(memory, int)
        assert self._shapes, "outputs have no shape yet"
        self._addresses[name] = memory
        return name != self._script.refused_tensor

    def execute_async_v3(self, stream_handle: int) -> bool:
        script, stream = self._script, self._script.cuda.streams[stream_handle]
        if stream.captured is not None:
            assert self._ran, "a first run cannot be captured"
            if script.breaks_capture:
                script.cuda.cudaStreamSynchronize(stream)
            if not script.capturable:
                script.log("ERROR", "operation not permitted when stream is capturing")
            if script.breaks_capture or not script.capturable:
                return False
        if script.runs:
            self._ran = True
            pixels = prod(self._shapes["image"]) // 3
            stream.add(partial(mean_plus_one, script.cuda, dict(self._addresses), pixels), COMPUTE_MS)
        else:
            script.log("ERROR", "misaligned address")
        return script.runs


def mean_plus_one(cuda: FakeCuda, addresses: dict[str, int], pixels: int) -> None:
    """The network, as a kernel."""
    places = ("device", "seen by the GPU")
    image = np.frombuffer(cuda.block(addresses["image"], pixels * 3, *places), np.uint8)
    depth = np.frombuffer(cuda.block(addresses["depth"], pixels * 4, *places), np.float32)
    depth[:] = image.reshape(pixels, 3).mean(1) + 1


class FakeEngine:
    def __init__(self, script: Script) -> None:
        self._script = script

    @property
    def num_io_tensors(self) -> int:
        return len(self._script.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._script.tensors)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return Enum("DataType", ["UINT8", "FLOAT", "HALF", "BOOL"])[self._script.tensors[name][0]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._script.tensors[name][1]

    def create_execution_context(self) -> Any:
        return self._script.made("context", FakeContext(self._script))


class FakeCudaGraphStrategy(Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class FakeSpecialisation(Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class FakeRuntimeCache:
    """Compiled kernels; what is serialised starts with a word of its own."""

    __slots__ = ("_content", "_script")

    def __init__(self, script: Script) -> None:
        self._script, self._content = script, b""

    def deserialize(self, blob: bytes) -> bool:
        good = bytes(blob).startswith(b"kernels")
        self._content = bytes(blob) if good else b"spoilt"
        return good

    def serialize(self) -> Any:
        return memoryview(self._content) if self._script.serialises else None


class FakeRuntimeConfig:
    __slots__ = ("_cache", "_script", "_specialisation", "_strategy")

    def __init__(self, script: Script) -> None:
        self._script = script
        self._strategy = FakeCudaGraphStrategy.DISABLED
        self._specialisation = FakeSpecialisation.LAZY
        self._cache: FakeRuntimeCache | None = None

    @property
    def dynamic_shapes_kernel_specialization_strategy(self) -> FakeSpecialisation:
        return self._specialisation

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(self, strategy: FakeSpecialisation) -> None:
        self._specialisation = strategy

    @property
    def cuda_graph_strategy(self) -> FakeCudaGraphStrategy:
        return self._strategy

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, strategy: FakeCudaGraphStrategy) -> None:
        if self._script.takes_strategy:
            self._strategy = strategy

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache(self._script)

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        if self._script.takes_cache:
            self._cache = cache
        return self._script.takes_cache

    def _compile(self) -> str:
        """The kernels of a context: found in the cache, else compiled and put there."""
        cache = self._cache
        assert cache is None or cache._content != b"spoilt", "a cache that refused its content is used"
        if cache is None or not cache._content:
            self._script.compiled += 1
            if cache is not None:
                cache._content = b"kernels"
        return self._strategy.name


class FakeRtxEngine(FakeEngine):
    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig(self._script)

    def create_execution_context(self, runtime_config: FakeRuntimeConfig) -> Any:  # type: ignore[override]
        context = self._script.made("context", FakeContext(self._script))
        if context is not None:
            self._script.strategies.append(runtime_config._compile())
        return context


class FakeRuntime:
    def __init__(self, script: Script, engine: type[FakeEngine]) -> None:
        self._script, self._engine = script, engine

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        assert serialized_engine == CONTENT
        return self._script.made("engine", self._engine(self._script))


def fake_module(script: Script, *, rtx: bool = False) -> Any:
    """A module such as `tensorrt`, with one engine; what it lacks, it lacks as a module does."""
    module = ModuleType("tensorrt_rtx" if rtx else "tensorrt")

    def start(logger: Any) -> Any:
        assert logger._initialised, "the base class was not initialised"
        script.logger = logger
        runtime = script.made("runtime", FakeRuntime(script, FakeRtxEngine if rtx else FakeEngine))
        if runtime is None:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return runtime

    vars(module).update(__version__="1.7.1" if rtx else "10.3.0", ILogger=FakeILogger, Runtime=start)
    if rtx:
        vars(module)["CudaGraphStrategy"] = FakeCudaGraphStrategy
        vars(module)["DynamicShapesKernelSpecializationStrategy"] = FakeSpecialisation
    return module


# What each fake stands for. Sessions touch what has no underscore, and all of that exists in the real modules.
STANDS_FOR: dict[type, str] = {
    FakeILogger: "ILogger",
    FakeRuntime: "Runtime",
    FakeEngine: "ICudaEngine",
    FakeContext: "IExecutionContext",
}
STANDS_FOR_IN_RTX: dict[type, str] = {
    FakeRtxEngine: "ICudaEngine",
    FakeRuntimeConfig: "IRuntimeConfig",
    FakeRuntimeCache: "IRuntimeCache",
    FakeCudaGraphStrategy: "CudaGraphStrategy",
    FakeSpecialisation: "DynamicShapesKernelSpecializationStrategy",
}


@dataclass
class Machine:
    """A fake GPU with its runtimes, and a plan for it."""

    cuda: FakeCuda
    script: Script
    plan: Path
    store: RuntimeCache

    def open(self, options: SessionOptions | None = None, manifest: Manifest = MANIFEST) -> EngineSession:
        module = fake_module(self.script)
        return EngineSession(module, "tensorrt", self.plan, manifest, options or SessionOptions(), Contexts)

    def open_rtx(self, options: SessionOptions | None = None) -> EngineSession:
        module, options = fake_module(self.script, rtx=True), options or SessionOptions()

        def contexts(engine: Any) -> tensorrt_rtx.RuntimeCacheContexts:
            return tensorrt_rtx.RuntimeCacheContexts(module, engine, self.store, options.cuda_graph)

        return EngineSession(module, "tensorrt-rtx", self.plan, MANIFEST, options, contexts)
