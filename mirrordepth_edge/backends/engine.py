"""A TensorRT or TensorRT-RTX plan in memory; the two runtimes share this API.

Not yet run on hardware. Every attribute used here is checked against the real runtime modules by
`tests/backends/test_engine_api.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.backends import cuda
from mirrordepth_edge.backends.base import Arrays, CheckedSession
from mirrordepth_edge.device import nvidia_gpus
from mirrordepth_edge.errors import InputError, MissingError
from mirrordepth_edge.manifest import Manifest

# What a plan says of a dtype, by the name both runtimes give it.
DTYPE_NAMES = {"UINT8": "uint8", "FLOAT": "float32"}


def require_gpu(path: Path, flavour: str) -> None:
    """Plans run on NVIDIA GPUs only; say so before a runtime fails in its own words.

    Raises:
        MissingError: no GPU is visible.
    """
    if nvidia_gpus():
        return
    raise MissingError(
        f"{path} needs an NVIDIA GPU, and this machine shows none.",
        f"A plan is machine code for a GPU; {flavour} would fail with cudaErrorInsufficientDriver (35) "
        "or cudaErrorNoDevice (100).",
        f"Run it on the target, or run its ONNX here: replace {path.name} by {path.stem}.onnx.",
    )


class EngineSession(CheckedSession):
    """One execution context, one stream, buffers allocated once.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
    """

    def __init__(self, trt: Any, backend: str, path: Path, manifest: Manifest) -> None:
        self.backend = backend
        self.precision = manifest.precision
        self.inputs, self.outputs = manifest.inputs, manifest.outputs
        self.device = nvidia_gpus()[0].name
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise InputError(
                f"{backend} {trt.__version__} cannot load {path}.",
                f"It was built by {_built_by(manifest)}; a plan is tied to TensorRT's version, the system and the GPU.",
                f"Build it here: mde build {path.stem}.onnx -o {path.name} --target here",
            )
        self._check_tensors(path)
        self._context = self._engine.create_execution_context()
        self._stream = cuda.call(cuda.runtime().cudaStreamCreate)
        self._buffers: dict[str, cuda.PinnedArray] = {}
        for spec in (*self.inputs, *self.outputs):
            buffer = self._buffers[spec.name] = cuda.PinnedArray(spec.shape, spec.dtype)
            self._context.set_tensor_address(spec.name, int(buffer.device_pointer))
        self._results: Arrays = {spec.name: self._buffers[spec.name].host for spec in self.outputs}

    def _check_tensors(self, path: Path) -> None:
        engine = self._engine
        found = {
            name: (DTYPE_NAMES.get(engine.get_tensor_dtype(name).name), tuple(engine.get_tensor_shape(name)))
            for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors))
        }
        wanted = {spec.name: (spec.dtype, spec.shape) for spec in (*self.inputs, *self.outputs)}
        if found != wanted:
            raise InputError(
                f"{path} is not the plan its manifest describes.",
                f"Its tensors are {found}, the manifest has {wanted}.",
                "Build it again with mde build.",
            )

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        self.check(feeds)
        for name, array in feeds.items():
            buffer = self._buffers[name]
            np.copyto(buffer.host, array)
            buffer.to_device(self._stream)
        if not self._context.execute_async_v3(int(self._stream)):
            raise InputError(
                "The engine failed to run.", f"{self.backend} reported an error.", "Build it again with mde build."
            )
        for spec in self.outputs:
            self._buffers[spec.name].to_host(self._stream)
        cuda.call(cuda.runtime().cudaStreamSynchronize, self._stream)
        return self._results

    def close(self) -> None:
        for buffer in self._buffers.values():
            buffer.free()
        if self._buffers:
            cuda.call(cuda.runtime().cudaStreamDestroy, self._stream)
        self._buffers.clear()


def _built_by(manifest: Manifest) -> str:
    if manifest.engine is None:
        return "an unknown builder"
    gpus = ", ".join(manifest.engine.compute_capabilities) or "its default GPUs"
    return f"{manifest.engine.flavour} {manifest.engine.version} for compute capability {gpus}"
