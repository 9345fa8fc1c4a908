"""Memory that host and GPU share, or exchange: what an engine's inputs and outputs live in.

A discrete GPU reads its own memory fast and the host's through PCIe, so a frame is copied once, from memory that
cannot be paged out (`PinnedArray`). On a Jetson both are the same memory: a copy would move a frame to where it
already is, so there the GPU gets the host's buffer itself (`MappedArray`).

Mapped memory is coherent without flushing from compute capability 7.2 on (Xavier, Orin, Thor), where the CPU caches it
as any other; the GPU does not, so a value that it reads often would be slow there. The network reads each pixel once,
to make it a float, and writes each depth once.
https://docs.nvidia.com/cuda/cuda-for-tegra-appnote/ ("Memory Selection", "I/O Coherency")

Not yet run on hardware: whether mapped memory is the faster one on a Jetson is measured with
`SessionOptions(zero_copy=False)` against it.
"""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.backends.trt import cuda


class Buffer(Protocol):
    """An array for the host and an address for the GPU. `host` and every view of it are valid until `free`."""

    host: npt.NDArray[Any]
    device_pointer: Any

    def to_device(self, stream: Any) -> None:
        """Make what the host wrote visible to work that comes later on `stream`."""

    def to_host(self, stream: Any) -> None:
        """Make what the GPU wrote visible to the host, once it has waited for `stream`."""

    def free(self) -> None:
        """Give the memory back; calling it twice is fine."""


def allocate(shape: tuple[int, ...], dtype: str, *, zero_copy: bool) -> Buffer:
    """A buffer that the GPU works in directly, or one with a twin on the GPU.

    Raises:
        DeviceError: there is no memory left.
    """
    return MappedArray(shape, dtype) if zero_copy else PinnedArray(shape, dtype)


class PinnedArray:
    """A host array that the GPU can copy from and to without staging, and its device twin."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        runtime = cuda.runtime()
        self.nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.device_pointer: Any = None
        self._host_pointer: Any = cuda.call(runtime.cudaMallocHost, self.nbytes)
        try:
            self.device_pointer = cuda.call(runtime.cudaMalloc, self.nbytes)
            self.host = _array_at(self._host_pointer, self.nbytes, shape, dtype)
        except BaseException:
            self.free()
            raise

    def to_device(self, stream: Any) -> None:
        runtime = cuda.runtime()
        kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        cuda.call(runtime.cudaMemcpyAsync, self.device_pointer, self.host.ctypes.data, self.nbytes, kind, stream)

    def to_host(self, stream: Any) -> None:
        runtime = cuda.runtime()
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        cuda.call(runtime.cudaMemcpyAsync, self.host.ctypes.data, self.device_pointer, self.nbytes, kind, stream)

    def free(self) -> None:
        runtime = cuda.runtime()
        if self.device_pointer is not None:
            device_pointer, self.device_pointer = self.device_pointer, None
            cuda.release(runtime.cudaFree, device_pointer)
        if self._host_pointer is not None:
            host_pointer, self._host_pointer = self._host_pointer, None
            cuda.release(runtime.cudaFreeHost, host_pointer)


class MappedArray:
    """A host array that the GPU reads and writes where it is: nothing is copied."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        runtime = cuda.runtime()
        self.nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._host_pointer: Any = cuda.call(runtime.cudaHostAlloc, self.nbytes, runtime.cudaHostAllocMapped)
        try:
            self.device_pointer: Any = cuda.call(runtime.cudaHostGetDevicePointer, self._host_pointer, 0)
            self.host = _array_at(self._host_pointer, self.nbytes, shape, dtype)
        except BaseException:
            self.free()
            raise

    def to_device(self, stream: Any) -> None:
        """Nothing to do: a launch sees what the host wrote before it."""

    def to_host(self, stream: Any) -> None:
        """Nothing to do: a host that waited for the stream sees what the GPU wrote."""

    def free(self) -> None:
        if self._host_pointer is not None:
            host_pointer, self._host_pointer = self._host_pointer, None
            cuda.release(cuda.runtime().cudaFreeHost, host_pointer)


def _array_at(pointer: Any, nbytes: int, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    raw = (ctypes.c_ubyte * nbytes).from_address(int(pointer))
    return np.ctypeslib.as_array(raw).view(dtype).reshape(shape)
