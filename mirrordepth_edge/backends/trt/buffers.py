"""Input and output buffers of an engine: pinned host memory with a device copy, or mapped memory (zero-copy).

A discrete GPU reads the host's memory through PCIe, so each frame is copied once, from pinned memory (`PinnedArray`).
On a Jetson, CPU and GPU share the memory and a copy would gain nothing, so the GPU uses the host's buffer
(`MappedArray`).

From compute capability 7.2 on (Xavier, Orin, Thor) mapped memory is coherent without flushing. The CPU caches it, the
GPU does not, so values that the GPU reads often would be slow. The network reads each pixel once and writes each depth
once. https://docs.nvidia.com/cuda/cuda-for-tegra-appnote/ ("Memory Selection", "I/O Coherency")

Not yet run on hardware; compare with `SessionOptions(zero_copy=False)` on a Jetson.
"""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.backends.trt import cuda


class Buffer(Protocol):
    """A host array and its address on the GPU; `host` and its views are valid until `free`."""

    host: npt.NDArray[Any]
    device_pointer: Any

    def to_device(self, stream: Any) -> None:
        """Make the host's writes visible to later work on `stream`."""

    def to_host(self, stream: Any) -> None:
        """Make the GPU's writes visible to the host once it has synchronised with `stream`."""

    def free(self) -> None:
        """Free the memory; can be called repeatedly."""


def allocate(shape: tuple[int, ...], dtype: str, *, zero_copy: bool) -> Buffer:
    """Allocate a mapped buffer if `zero_copy`, else a pinned buffer with a device copy.

    Raises:
        DeviceError: the memory is full.
    """
    return MappedArray(shape, dtype) if zero_copy else PinnedArray(shape, dtype)


class MappedArray:
    """A mapped host array that the GPU reads and writes directly."""

    device_pointer: Any = None
    _host_pointer: Any = None

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        try:
            self._allocate(cuda.runtime())
            memory = (ctypes.c_ubyte * self.nbytes).from_address(int(self._host_pointer))
            self.host = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
        except BaseException:
            self.free()
            raise

    def _allocate(self, runtime: Any) -> None:
        self._host_pointer = cuda.call(runtime.cudaHostAlloc, self.nbytes, runtime.cudaHostAllocMapped)
        self.device_pointer = cuda.call(runtime.cudaHostGetDevicePointer, self._host_pointer, 0)

    def to_device(self, stream: Any) -> None:
        """Do nothing: a launch sees the host's earlier writes."""

    def to_host(self, stream: Any) -> None:
        """Do nothing: after synchronising, the host sees the GPU's writes."""

    def free(self) -> None:
        if self._host_pointer is not None:
            host_pointer, self._host_pointer = self._host_pointer, None
            cuda.release(cuda.runtime().cudaFreeHost, host_pointer)


class PinnedArray(MappedArray):
    """A pinned host array and its copy in device memory."""

    def _allocate(self, runtime: Any) -> None:
        self._host_pointer = cuda.call(runtime.cudaMallocHost, self.nbytes)
        self.device_pointer = cuda.call(runtime.cudaMalloc, self.nbytes)

    def to_device(self, stream: Any) -> None:
        runtime = cuda.runtime()
        kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        cuda.call(runtime.cudaMemcpyAsync, self.device_pointer, self.host.ctypes.data, self.nbytes, kind, stream)

    def to_host(self, stream: Any) -> None:
        runtime = cuda.runtime()
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        cuda.call(runtime.cudaMemcpyAsync, self.host.ctypes.data, self.device_pointer, self.nbytes, kind, stream)

    def free(self) -> None:
        if self.device_pointer is not None:
            device_pointer, self.device_pointer = self.device_pointer, None
            cuda.release(cuda.runtime().cudaFree, device_pointer)
        super().free()
