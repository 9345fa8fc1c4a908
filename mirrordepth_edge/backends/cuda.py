"""The few CUDA runtime calls that engines need, through NVIDIA's cuda-python, every code checked.

Not yet run on hardware: written against cuda-python's documented API (module `cuda.bindings.runtime`,
named `cuda.cudart` before 12.8).
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.errors import MissingError


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
        MissingError: CUDA answered with an error code.
    """
    code, *values = function(*arguments)
    if int(code) != 0:
        raise MissingError(
            f"CUDA refused {function.__name__}.",
            f"It returned {getattr(code, 'name', 'error')} ({int(code)}).",
            "Check the driver with nvidia-smi (desktop) or tegrastats (Jetson); mde doctor shows what is here.",
        )
    return values[0] if len(values) == 1 else tuple(values)


class PinnedArray:
    """A host array that the GPU can copy from and to without staging, and its device twin."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        cuda = runtime()
        self.nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._host_pointer = call(cuda.cudaMallocHost, self.nbytes)
        self.device_pointer = call(cuda.cudaMalloc, self.nbytes)
        raw = (ctypes.c_ubyte * self.nbytes).from_address(int(self._host_pointer))
        self.host: npt.NDArray[Any] = np.ctypeslib.as_array(raw).view(dtype).reshape(shape)

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
        """Give both buffers back."""
        cuda = runtime()
        call(cuda.cudaFree, self.device_pointer)
        call(cuda.cudaFreeHost, self._host_pointer)
