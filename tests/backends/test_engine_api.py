"""Every attribute that the engine session touches exists in the real runtime modules.

TensorRT's Python modules import on a machine without a GPU; only running needs one.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest

RUNTIME_API = {
    "Logger": ("ERROR",),
    "Runtime": ("deserialize_cuda_engine",),
    "ICudaEngine": (
        "create_execution_context",
        "num_io_tensors",
        "get_tensor_name",
        "get_tensor_dtype",
        "get_tensor_shape",
    ),
    "IExecutionContext": ("set_tensor_address", "execute_async_v3"),
    "DataType": ("UINT8", "FLOAT"),
}
BUILDER_API = {
    "OnnxParser": ("parse_from_file", "num_errors", "get_error"),
    "ParserError": ("desc", "node_name", "node_operator"),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
}
CUDA_API = (
    "cudaMalloc",
    "cudaMallocHost",
    "cudaFree",
    "cudaFreeHost",
    "cudaMemcpyAsync",
    "cudaMemcpyKind",
    "cudaStreamCreate",
    "cudaStreamDestroy",
    "cudaStreamSynchronize",
    "cudaEventCreate",
    "cudaEventRecord",
    "cudaEventElapsedTime",
    "cudaEventDestroy",
)
CUDA_CODES = {
    "cudaErrorMemoryAllocation": 2,
    "cudaErrorInitializationError": 3,
    "cudaErrorInsufficientDriver": 35,
    "cudaErrorNoDevice": 100,
    "cudaErrorSystemDriverMismatch": 803,
}


def module(name: str) -> Any:
    try:
        return import_module(name)
    except (ImportError, OSError) as error:
        pytest.skip(f"{name} is not usable here: {error}")


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_lean", "tensorrt_rtx"])
def test_runtime_attributes_exist(name: str) -> None:
    trt = module(name)
    missing = [f"{cls}.{a}" for cls, names in RUNTIME_API.items() for a in names if not hasattr(getattr(trt, cls), a)]
    assert not missing


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_builder_attributes_exist(name: str) -> None:
    trt = module(name)
    missing = [f"{cls}.{a}" for cls, names in BUILDER_API.items() for a in names if not hasattr(getattr(trt, cls), a)]
    assert not missing


def test_cuda_functions_exist() -> None:
    runtime = module("cuda.bindings.runtime")
    assert not [name for name in CUDA_API if not hasattr(runtime, name)]


def test_cuda_takes_the_arguments_that_sessions_pass() -> None:
    """Without a GPU each call answers with a code; arguments of a wrong type would raise instead."""
    from mirrordepth_edge.device import nvidia_gpus

    runtime = module("cuda.bindings.runtime")
    if nvidia_gpus():
        pytest.skip("this machine has a GPU")
    host, stream, kinds = np.zeros(16, np.uint8), runtime.cudaStream_t(0), runtime.cudaMemcpyKind
    answers = [
        runtime.cudaMallocHost(16),
        runtime.cudaMalloc(16),
        runtime.cudaStreamCreate(),
        runtime.cudaMemcpyAsync(4096, host.ctypes.data, 16, kinds.cudaMemcpyHostToDevice, stream),
        runtime.cudaMemcpyAsync(host.ctypes.data, 4096, 16, kinds.cudaMemcpyDeviceToHost, stream),
        runtime.cudaStreamSynchronize(stream),
        runtime.cudaEventCreate(),
        runtime.cudaEventRecord(runtime.cudaEvent_t(0), stream),
        runtime.cudaEventElapsedTime(runtime.cudaEvent_t(0), runtime.cudaEvent_t(0)),
        runtime.cudaEventDestroy(runtime.cudaEvent_t(0)),
        runtime.cudaStreamDestroy(stream),
        runtime.cudaFree(4096),
        runtime.cudaFreeHost(host.ctypes.data),
    ]
    assert all(int(code) != 0 for code, *_ in answers)
    assert isinstance(int(stream), int)


@pytest.mark.parametrize(("name", "number"), CUDA_CODES.items())
def test_cuda_codes_are_what_we_take_them_for(name: str, number: int) -> None:
    from mirrordepth_edge.backends import cuda

    assert int(getattr(module("cuda.bindings.runtime").cudaError_t, name)) == number
    assert number in (*cuda.NOTHING_HERE, cuda.OUT_OF_MEMORY)


def test_a_cuda_error_is_named() -> None:
    """The real error of a machine without a GPU, through the real library."""
    from mirrordepth_edge.backends import cuda
    from mirrordepth_edge.device import nvidia_gpus
    from mirrordepth_edge.errors import MissingError

    module("cuda.bindings.runtime")
    if nvidia_gpus():
        pytest.skip("this machine has a GPU")
    with pytest.raises(MissingError, match="cudaMalloc") as caught:
        cuda.call(cuda.runtime().cudaMalloc, 16)
    assert "cudaError" in caught.value.why


def test_a_real_plan_without_a_gpu_is_refused_in_tensorrts_own_words(tmp_path: Any) -> None:
    """What `require_gpu` spares the user: TensorRT for RTX returns None, having logged cudaError 35."""
    from mirrordepth_edge.backends.registry import open_session
    from mirrordepth_edge.deploy.build import build_engine, plan_build
    from mirrordepth_edge.device import nvidia_gpus
    from mirrordepth_edge.errors import MissingError
    from mirrordepth_edge.runtime import NANO_ONNX

    trt = module("tensorrt_rtx")
    if nvidia_gpus():
        pytest.skip("this machine has a GPU")
    plan = tmp_path / "nano.plan"
    build_engine(NANO_ONNX["fp16"], plan, plan_build("rtx-ada"))
    assert trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR)).deserialize_cuda_engine(plan.read_bytes()) is None
    with pytest.raises(MissingError, match="needs an NVIDIA GPU") as caught:
        open_session(plan)
    assert caught.value.exit_code == 4
    assert "nano.onnx" in caught.value.cure
