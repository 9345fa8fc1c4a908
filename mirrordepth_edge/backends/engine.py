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
from mirrordepth_edge.backends.base import DEVICE_STAGES, Arrays, CheckedSession
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.device import nvidia_gpus
from mirrordepth_edge.errors import DeviceError, InputError, MissingError, OptionError
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


def refuse_other_options(path: Path, options: SessionOptions) -> None:
    """A plan runs on the GPU with what is inside it; options that ask for more are not ignored.

    Raises:
        OptionError: one of them was given.
    """
    run_its_onnx = f"run its ONNX: replace {path.name} by {path.stem}.onnx."
    if options.device == "cpu":
        raise OptionError(
            f"{path} cannot run on the CPU.",
            "A plan is machine code for an NVIDIA GPU.",
            f"Leave --device out, or {run_its_onnx}",
        )
    if options.threads is not None:
        raise OptionError(
            f"{path} has no use for {options.threads} CPU threads.",
            "A plan runs on the GPU.",
            f"Leave --threads out, or {run_its_onnx}",
        )
    if options.clip_weights is not None:
        raise OptionError(
            f"{path} has no use for {options.clip_weights}.",
            "A plan carries its weights; only a checkpoint takes CLIP's from elsewhere.",
            "Leave --clip-weights out.",
        )


class EngineSession(CheckedSession):
    """One execution context, one stream, buffers allocated once.

    Outputs are views of pinned memory that `close` frees: valid until the next call or `close`.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.

    Raises:
        MissingError: there is no driver that works.
        InputError: the plan cannot be loaded here, or is not what its manifest describes.
        DeviceError: the GPU failed, such as for want of memory.
    """

    def __init__(self, trt: Any, backend: str, path: Path, manifest: Manifest) -> None:
        self.backend, self.version = backend, str(trt.__version__)
        self.precision = manifest.precision
        self.inputs, self.outputs = manifest.inputs, manifest.outputs
        self.device = nvidia_gpus()[0].name
        self._stream: Any = None
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._buffers: dict[str, cuda.PinnedArray] = {}
        self._results: Arrays = {}
        self._events: list[Any] = []
        """Before the copies in, before and after the network, after the copies out."""
        try:
            self._load(trt, path, manifest)
            self._allocate(path)
        except BaseException:
            self.close()
            raise

    def _load(self, trt: Any, path: Path, manifest: Manifest) -> None:
        # CUDA first: it names what is wrong with a driver, of which TensorRT says None or a TypeError.
        self._stream = cuda.call(cuda.runtime().cudaStreamCreate)
        try:
            self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        except TypeError as error:  # what pybind11 makes of a constructor that gave nothing
            raise MissingError(
                f"{self.backend} {self.version} does not start on {self.device}.",
                "It found no CUDA driver that it can work with, such as one older than its own CUDA.",
                cuda.DRIVER_CURE,
            ) from error
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise InputError(
                f"{self.backend} {self.version} cannot load {path}.",
                f"It was built by {_built_by(manifest)}; a plan is tied to TensorRT's version, the system and the GPU.",
                f"Build it here: mde build {path.stem}.onnx -o {path.name} --target here",
            )
        self._check_tensors(path)

    def _check_tensors(self, path: Path) -> None:
        engine = self._engine
        found = {}
        for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
            dtype = engine.get_tensor_dtype(name).name
            found[name] = (DTYPE_NAMES.get(dtype, dtype), tuple(engine.get_tensor_shape(name)))
        wanted = {spec.name: (spec.dtype, spec.shape) for spec in (*self.inputs, *self.outputs)}
        if found != wanted:
            raise InputError(
                f"{path} is not the plan its manifest describes.",
                f"Its tensors are {found}, the manifest has {wanted}.",
                "Build it again with mde build.",
            )

    def _allocate(self, path: Path) -> None:
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise DeviceError(
                f"{self.backend} cannot prepare {path} to run.",
                "create_execution_context returned None, as it does when the GPU's memory is full.",
                cuda.MEMORY_CURE,
            )
        for _ in range(len(DEVICE_STAGES) + 1):
            self._events.append(cuda.call(cuda.runtime().cudaEventCreate))
        for spec in (*self.inputs, *self.outputs):
            buffer = self._buffers[spec.name] = cuda.PinnedArray(spec.shape, spec.dtype)
            if not self._context.set_tensor_address(spec.name, int(buffer.device_pointer)):
                raise DeviceError(
                    f"{self.backend} refused the buffer for '{spec.name}' of {path}.",
                    "set_tensor_address returned False.",
                    cuda.FAULT_CURE,
                )
        self._results = {spec.name: self._buffers[spec.name].host for spec in self.outputs}

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        if self._context is None:
            raise InputError("The session is closed.", "Its buffers were freed.", "Open the model again.")
        self.check(feeds)
        for name, array in feeds.items():
            np.copyto(self._buffers[name].host, array)
        self._mark(0)
        for name in feeds:
            self._buffers[name].to_device(self._stream)
        self._mark(1)
        if not self._context.execute_async_v3(int(self._stream)):
            raise DeviceError(
                "The engine failed to run.",
                f"execute_async_v3 of {self.backend} {self.version} returned False.",
                cuda.FAULT_CURE,
            )
        self._mark(2)
        for spec in self.outputs:
            self._buffers[spec.name].to_host(self._stream)
        self._mark(3)
        cuda.call(cuda.runtime().cudaStreamSynchronize, self._stream)
        return self._results

    def _mark(self, place: int) -> None:
        cuda.call(cuda.runtime().cudaEventRecord, self._events[place], self._stream)

    def device_ms(self) -> tuple[float, ...]:
        elapsed = cuda.runtime().cudaEventElapsedTime
        return tuple(float(cuda.call(elapsed, *pair)) for pair in zip(self._events, self._events[1:], strict=False))

    def close(self) -> None:
        self._results = {}
        if self._stream is not None:
            # Where infer was interrupted, work on the stream still uses the buffers.
            cuda.release(cuda.runtime().cudaStreamSynchronize, self._stream)
        # A context must go before its engine, an engine before its runtime.
        self._context = None
        while self._buffers:
            self._buffers.popitem()[1].free()
        while self._events:
            cuda.release(cuda.runtime().cudaEventDestroy, self._events.pop())
        if self._stream is not None:
            stream, self._stream = self._stream, None
            cuda.release(cuda.runtime().cudaStreamDestroy, stream)
        self._engine = None
        self._runtime = None


def _built_by(manifest: Manifest) -> str:
    if manifest.engine is None:
        return "an unknown builder"
    gpus = ", ".join(manifest.engine.compute_capabilities) or "its default GPUs"
    return f"{manifest.engine.flavour} {manifest.engine.version} for compute capability {gpus}"
