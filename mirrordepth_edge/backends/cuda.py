"""The few CUDA runtime calls that engines need, through NVIDIA's cuda-python, every code checked.

Not yet run on hardware: written against cuda-python's documented API (module `cuda.bindings.runtime`,
named `cuda.cudart` before 12.8).
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.errors import DeviceError, MissingError

# Of CUDA's codes, those of a machine without a GPU or driver that works together with this runtime.
NOTHING_HERE = (
    3,  # cudaErrorInitializationError
    35,  # cudaErrorInsufficientDriver
    100,  # cudaErrorNoDevice
    803,  # cudaErrorSystemDriverMismatch
)
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation

DRIVER_CURE = "Check the driver with nvidia-smi (desktop) or tegrastats (Jetson); mde doctor shows what is here."
MEMORY_CURE = "Close other programs that use the GPU, or export and build the model at a smaller --size."
FAULT_CURE = (
    "Run it again; if it stays, build the engine again with mde build, or report it with what mde doctor shows."
)


def runtime() -> Any:
    """cuda-python's runtime module.

    Raises:
        MissingError: cuda-python is not installed.
    """
    try:
        from cuda.bindings import runtime as module
    except ImportError:
        try:
            from cuda import cudart as module
        except ImportError as error:
            raise MissingError(
                "Engines need cuda-python, which is not installed.",
                "It carries the CUDA calls that move frames to and from the GPU.",
                "pip install 'cuda-python>=12.6,<13'  (JetPack 6), or 'cuda-python>=13' for CUDA 13",
            ) from error
    return module


def call(function: Any, *arguments: Any) -> Any:
    """Call a CUDA runtime function; return its value, or name its error.

    Raises:
        MissingError: there is no GPU or driver that works.
        DeviceError: the GPU is there and failed, by this call or by earlier work that it waits for.
    """
    code, *values = function(*arguments)
    number = int(code)
    if number != 0:
        what = f"CUDA refused {function.__name__}."
        why = f"It returned {getattr(code, 'name', 'error')} ({number})."
        if number in NOTHING_HERE:
            raise MissingError(what, why, DRIVER_CURE)
        raise DeviceError(what, why, MEMORY_CURE if number == OUT_OF_MEMORY else FAULT_CURE)
    return values[0] if len(values) == 1 else tuple(values)


def release(function: Any, *arguments: Any) -> None:
    """Call a CUDA runtime function on the way out, whatever it answers.

    What it answers then is the error of earlier work, already raised by the call that waited for it;
    raising it again would hide the first error and leave the rest unfreed.
    """
    function(*arguments)


class PinnedArray:
    """A host array that the GPU can copy from and to without staging, and its device twin.

    `host` and every view of it are valid until `free`.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        cuda = runtime()
        self.nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.device_pointer: Any = None
        self._host_pointer: Any = call(cuda.cudaMallocHost, self.nbytes)
        try:
            self.device_pointer = call(cuda.cudaMalloc, self.nbytes)
            raw = (ctypes.c_ubyte * self.nbytes).from_address(int(self._host_pointer))
            self.host: npt.NDArray[Any] = np.ctypeslib.as_array(raw).view(dtype).reshape(shape)
        except BaseException:
            self.free()
            raise

    def to_device(self, stream: Any) -> None:
        """Start the copy to the GPU on `stream`."""
        cuda = runtime()
        kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(cuda.cudaMemcpyAsync, self.device_pointer, self.host.ctypes.data, self.nbytes, kind, stream)

    def to_host(self, stream: Any) -> None:
        """Start the copy from the GPU on `stream`."""
        cuda = runtime()
        kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(cuda.cudaMemcpyAsync, self.host.ctypes.data, self.device_pointer, self.nbytes, kind, stream)

    def free(self) -> None:
        """Give both buffers back; calling it twice is fine."""
        cuda = runtime()
        if self.device_pointer is not None:
            device_pointer, self.device_pointer = self.device_pointer, None
            release(cuda.cudaFree, device_pointer)
        if self._host_pointer is not None:
            host_pointer, self._host_pointer = self._host_pointer, None
            release(cuda.cudaFreeHost, host_pointer)
