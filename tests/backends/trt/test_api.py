"""Every attribute that the engine session touches exists in the real runtime modules.

TensorRT's Python modules import on a machine without a GPU; only running needs one.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mirrordepth_edge import backends

from .fake_engine import STANDS_FOR, STANDS_FOR_IN_RTX, FakeCuda, Script, fake_module

BUILDER_API = {
    "OnnxParser": ("parse_from_file", "num_errors", "get_error"),
    "ParserError": ("desc", "node_name", "node_operator"),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
}
DTYPES = ("UINT8", "FLOAT")
CUDA_CODES = {
    "cudaErrorMemoryAllocation": 2,
    "cudaErrorInitializationError": 3,
    "cudaErrorInsufficientDriver": 35,
    "cudaErrorNoDevice": 100,
    "cudaErrorSystemDriverMismatch": 803,
}
RUNTIMES = ("tensorrt", "tensorrt_lean", "tensorrt_rtx")
ENGINE_MODULES = sorted(Path(backends.__path__[0]).rglob("*.py"))


def module(name: str) -> Any:
    try:
        return import_module(name)
    except (ImportError, OSError) as error:
        pytest.skip(f"{name} is not usable here: {error}")


def cuda_module() -> Any:
    """The one that sessions call: `cuda.bindings.runtime`, or `cuda.cudart` before 12.8."""
    from mirrordepth_edge.backends.trt import cuda
    from mirrordepth_edge.errors import MissingError

    try:
        return cuda.runtime()
    except MissingError as error:
        pytest.skip(error.what)


def public(thing: Any) -> list[str]:
    return [name for name in vars(thing) if not name.startswith("_")]


def overloads(method: Any) -> Iterator[list[tuple[str, bool]]]:
    """Names of the arguments of each overload, and whether they may be left out, as pybind11's docstring has them."""
    for line in method.__doc__.splitlines():
        if (match := re.match(r"(?:\d+\. )?\w+\(self: [\w.:]+(?:, (.*))?\) -> ", line.strip())) is not None:
            names = re.findall(r"(?:^|, )(\w+): ([^=]*?)( = .*?)?(?=, \w+:|$)", match[1] or "")
            yield [(name, bool(default)) for name, _, default in names]


def fits(arguments: list[str], overload: list[tuple[str, bool]]) -> bool:
    names = [name for name, _ in overload]
    return names[: len(arguments)] == arguments and all(optional for _, optional in overload[len(arguments) :])


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_fake_runtime_has_nothing_that_a_real_one_lacks(name: str) -> None:
    """Sessions run against the fake in all other tests, so this holds what they touch to the real modules."""
    trt = module(name)
    stands_for = STANDS_FOR | (STANDS_FOR_IN_RTX if name == "tensorrt_rtx" else {})
    for fake, class_name in stands_for.items():
        real = getattr(trt, class_name)
        for attribute in public(fake):
            theirs = getattr(real, attribute)
            ours = vars(fake)[attribute]
            if inspect.isfunction(ours):
                arguments = list(inspect.signature(ours).parameters)[1:]
                assert any(fits(arguments, overload) for overload in overloads(theirs)), f"{class_name}.{attribute}"
            elif isinstance(ours, property):
                assert isinstance(theirs, property), f"{class_name}.{attribute}"
                assert (ours.fset is None) or (theirs.fset is not None), f"{class_name}.{attribute} can be set"
            elif isinstance(ours, type) and issubclass(ours, Enum):
                assert not [member.name for member in ours if not hasattr(theirs, member.name)]
            else:
                assert isinstance(ours, fake), f"{class_name}.{attribute}: a member of an enum"
    fake_names = public(fake_module(Script(FakeCuda()), rtx=name == "tensorrt_rtx"))
    assert not [name for name in fake_names if not hasattr(trt, name)]
    assert not [name for name in DTYPES if not hasattr(trt.DataType, name)]


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("f(self: a.b.C, name: str, memory: typing.SupportsInt) -> bool", [[("name", False), ("memory", False)]]),
        ("f(self: a.C) -> a.D", [[]]),
        (
            "f(*args, **kwargs)\nOverloaded function.\n\n1. f(self: C, s: a.S = <S.STATIC: 0>) -> D\n\n"
            "2. f(self: C, x: a.R = None, y: int) -> D",
            [[("s", True)], [("x", True), ("y", False)]],
        ),
    ],
)
def test_docstrings_are_read_as_signatures(docstring: str, expected: list[Any]) -> None:
    class Method:
        __doc__ = docstring

    assert list(overloads(Method)) == expected


def test_arguments_are_held_to_an_overload() -> None:
    overload = [("name", False), ("memory", True)]
    assert fits(["name", "memory"], overload)
    assert fits(["name"], overload)
    assert not fits([], overload)
    assert not fits(["memory"], overload)
    assert not fits(["name", "address"], overload)
    assert not fits(["name", "memory", "more"], overload)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_builder_attributes_exist(name: str) -> None:
    trt = module(name)
    missing = [f"{cls}.{a}" for cls, names in BUILDER_API.items() for a in names if not hasattr(getattr(trt, cls), a)]
    assert not missing


def test_cuda_functions_exist_with_these_arguments() -> None:
    """All that the package's source names, whether a test reaches it or not."""
    runtime = cuda_module()
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in ENGINE_MODULES]
    named = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used = {name for name in named if re.match("cuda[A-Z]", name)}
    assert len(used) > 20
    enums = (runtime.cudaMemcpyKind, runtime.cudaStreamCaptureMode)
    assert not [name for name in used if not any(hasattr(owner, name) for owner in (runtime, *enums))]

    fake_names = {name for name in vars(FakeCuda) if name.startswith("cuda")}
    fake_names |= {
        member.name for name in ("cudaMemcpyKind", "cudaStreamCaptureMode") for member in vars(FakeCuda)[name]
    }
    assert used == fake_names
    for name in sorted(used):
        ours = getattr(FakeCuda, name, None)
        if inspect.isfunction(ours):
            theirs = list(inspect.signature(getattr(runtime, name)).parameters)
            assert list(inspect.signature(ours).parameters)[1:] == theirs, name
        elif isinstance(ours, int):
            assert getattr(runtime, name) == ours, name


def test_cuda_takes_the_arguments_that_sessions_pass() -> None:
    """Without a GPU each call answers with a code; arguments of a wrong type would raise instead."""
    from mirrordepth_edge.machine.device import nvidia_gpus

    runtime = cuda_module()
    if nvidia_gpus():
        pytest.skip("this machine has a GPU")
    try:
        runtime.cudaSetDevice(0)
    except RuntimeError as error:
        pytest.skip(f"this cuda-python looks for a driver before it looks at arguments: {error}")
    host, stream, kinds = np.zeros(16, np.uint8), runtime.cudaStream_t(0), runtime.cudaMemcpyKind
    event, mode = runtime.cudaEvent_t(0), runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    with_value = [
        runtime.cudaMallocHost(16),
        runtime.cudaMalloc(16),
        runtime.cudaHostAlloc(16, runtime.cudaHostAllocMapped),
        runtime.cudaHostGetDevicePointer(host.ctypes.data, 0),
        runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking),
        runtime.cudaEventCreate(),
        runtime.cudaEventElapsedTime(event, event),
        runtime.cudaStreamEndCapture(stream),
        runtime.cudaGraphInstantiate(runtime.cudaGraph_t(0), 0),
    ]
    without = [
        runtime.cudaSetDevice(0),
        runtime.cudaMemcpyAsync(4096, host.ctypes.data, 16, kinds.cudaMemcpyHostToDevice, stream),
        runtime.cudaMemcpyAsync(host.ctypes.data, 4096, 16, kinds.cudaMemcpyDeviceToHost, stream),
        runtime.cudaStreamSynchronize(stream),
        runtime.cudaEventRecord(event, stream),
        runtime.cudaEventDestroy(event),
        runtime.cudaStreamBeginCapture(stream, mode),
        runtime.cudaGraphLaunch(runtime.cudaGraphExec_t(0), stream),
        runtime.cudaGraphDestroy(runtime.cudaGraph_t(0)),
        runtime.cudaGraphExecDestroy(runtime.cudaGraphExec_t(0)),
        runtime.cudaGetLastError(),
        runtime.cudaStreamDestroy(stream),
        runtime.cudaFree(4096),
        runtime.cudaFreeHost(host.ctypes.data),
    ]
    assert [len(answer) for answer in (*with_value, *without)] == [2] * len(with_value) + [1] * len(without)
    assert all(int(code) != 0 for code, *_ in (*with_value, *without))
    assert isinstance(int(stream), int)


@pytest.mark.parametrize(("name", "number"), CUDA_CODES.items())
def test_cuda_error_codes(name: str, number: int) -> None:
    from mirrordepth_edge.backends.trt import cuda

    assert int(getattr(cuda_module().cudaError_t, name)) == number
    assert number in (*cuda.NO_GPU_OR_DRIVER, cuda.OUT_OF_MEMORY)


def test_a_cuda_error_is_named() -> None:
    """The real error of a machine without a GPU, through the real library."""
    from mirrordepth_edge.backends.trt import cuda
    from mirrordepth_edge.errors import MissingError
    from mirrordepth_edge.machine.device import nvidia_gpus

    cuda_module()
    if nvidia_gpus():
        pytest.skip("this machine has a GPU")
    with pytest.raises(MissingError, match="cudaMalloc") as caught:
        cuda.call(cuda.runtime().cudaMalloc, 16)
    assert "cudaError" in caught.value.why or "found no driver" in caught.value.why  # cuda-python 12.6


@pytest.fixture(scope="module")
def rtx_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real plan with its manifest."""
    from mirrordepth_edge.artefact import NANO_ONNX, Artefact
    from mirrordepth_edge.engines.build import build_engine, plan_build

    module("tensorrt_rtx")
    plan = tmp_path_factory.mktemp("rtx") / "nano.plan"
    build_engine(Artefact.open(NANO_ONNX["fp16"]), plan, plan_build("rtx-ada"))
    return plan


def no_gpu() -> None:
    from mirrordepth_edge.machine.device import nvidia_gpus

    if nvidia_gpus():
        pytest.skip("this machine has a GPU")


def test_a_real_plan_without_a_gpu_is_refused_before_tensorrt_is_asked(rtx_plan: Path) -> None:
    """`require_gpu` spares the user what TensorRT for RTX says: None, having logged cudaError 35."""
    from mirrordepth_edge.backends.registry import open_session
    from mirrordepth_edge.errors import MissingError

    no_gpu()
    with pytest.raises(MissingError, match="needs an NVIDIA GPU") as caught:
        open_session(rtx_plan)
    assert caught.value.exit_code == 4
    assert f"replace {rtx_plan} with nano.fp16." in caught.value.cure


def test_a_driver_that_does_not_work_is_named_before_tensorrt_is_asked(
    rtx_plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real plan, runtime and CUDA, on a machine that only believes it has a GPU."""
    from mirrordepth_edge.backends.trt import session as engine
    from mirrordepth_edge.backends.trt import tensorrt_rtx
    from mirrordepth_edge.config import SessionOptions
    from mirrordepth_edge.errors import MissingError
    from mirrordepth_edge.machine.device import Gpu
    from mirrordepth_edge.manifest import read_manifest

    no_gpu()
    cuda_module()
    ada = Gpu(name="Ada", compute_capability="8.9", memory_mib=8192, integrated=False, cuda="12.6")
    monkeypatch.setattr(engine, "nvidia_gpus", lambda: (ada,))
    monkeypatch.setattr(tensorrt_rtx, "nvidia_gpus", lambda: (ada,))
    with pytest.raises(MissingError, match="cudaSetDevice") as caught:
        tensorrt_rtx.open(rtx_plan, read_manifest(rtx_plan), SessionOptions())
    assert re.search(r"cudaError\w+ \((35|100)\)|found no driver", caught.value.why)
    assert "mde doctor" in caught.value.cure


# What the runtime's own words name, for what was done to a plan. It looks at these before it needs a GPU.
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("none", "cudaError"),
        ("cut", "header.size == blobSize"),
        ("header cut", "bufferSize"),
        ("empty", "empty memory buffer"),
        ("first byte flipped", "magicTag"),
        ("size flipped", "header.size == blobSize"),
        ("no plan", "magicTag"),
    ],
)
def test_a_damaged_plan_is_refused_with_the_runtimes_own_reason(
    damage: str, words: str, rtx_plan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from mirrordepth_edge.backends.registry import open_session
    from mirrordepth_edge.backends.trt.plan import load_plan, start_runtime
    from mirrordepth_edge.errors import InputError
    from mirrordepth_edge.manifest import manifest_path, read_manifest

    trt = module("tensorrt_rtx")
    no_gpu()
    good = rtx_plan.read_bytes()
    content = {
        "none": good,
        "cut": good[: len(good) // 2],
        "header cut": good[:16],
        "empty": b"",
        "first byte flipped": bytes([good[0] ^ 0xFF]) + good[1:],
        "size flipped": good[:16] + bytes([good[16] ^ 0xFF]) + good[17:],
        "no plan": b"hello" * 100,
    }[damage]
    plan = tmp_path / "nano.plan"
    plan.write_bytes(content)
    manifest = read_manifest(rtx_plan)
    for _ in range(2):  # what was said of the first is not said of the second
        with pytest.raises(InputError, match="cannot load") as caught:
            load_plan(trt, start_runtime(trt, "tensorrt-rtx"), "tensorrt-rtx", plan, manifest)
        assert words in caught.value.why
        assert "compute capability 8.9" in caught.value.why
        assert "\n" not in caught.value.why
    assert capfd.readouterr() == ("", "")

    # A user meets the manifest's hash first.
    manifest_path(plan).write_bytes(manifest_path(rtx_plan).read_bytes())
    if damage != "none":
        with pytest.raises(InputError, match=r"not the file its manifest describes|is empty"):
            open_session(plan)
