"""An execution context with its own stream, buffers and events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.backends.base import DEVICE_STAGES, Arrays
from mirrordepth_edge.backends.trt import cuda
from mirrordepth_edge.backends.trt.buffers import Buffer, allocate
from mirrordepth_edge.backends.trt.cuda_graph import Graph, capture
from mirrordepth_edge.errors import DeviceError
from mirrordepth_edge.manifest import TensorSpec


class ExecutionSlot:
    """Runs one frame at a time. All memory is allocated here, none per frame.

    Args:
        make_context: creates the execution context; returns None on failure.
        inputs: inputs of the network.
        outputs: outputs of the network.
        runtime: name and version of the runtime, for error messages.
        last_error: the runtime's last error as a sentence that starts with a blank, or "".
        path: the plan, for error messages.
        zero_copy: the GPU uses the host's buffers (`buffers.MappedArray`).

    Raises:
        DeviceError: the GPU's memory is full, or the runtime rejected a buffer.
    """

    # A captured graph holds the network alone; copies stay outside, between events. Events inside a graph record no
    # time unless they are external nodes, and TensorRT for RTX captures the network alone too, so `compute` means the
    # same in both. It costs one launch per copy, none with mapped memory.

    def __init__(
        self,
        make_context: Callable[[], Any],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        runtime: str,
        last_error: Callable[[], str],
        path: Path,
        zero_copy: bool,
    ) -> None:
        self.outputs: Arrays = {}
        self._inputs, self._output_names = tuple(inputs), tuple(spec.name for spec in outputs)
        self._runtime, self._last_error, self._path = runtime, last_error, path
        self._context: Any = None
        self._graph: Graph | None = None
        self._stream: Any = None
        self._buffers: dict[str, Buffer] = {}
        self._events: list[Any] = []
        """Before the input copies, before and after the network, after the output copies."""
        try:
            self._context = make_context()
            if self._context is None:
                raise DeviceError(
                    f"{runtime} cannot prepare {path} to run.",
                    "create_execution_context returned None, as it does if the GPU's memory is full." + last_error(),
                    cuda.MEMORY_CURE,
                )
            self._allocate((*inputs, *outputs), zero_copy)
            self.outputs = {name: self._buffers[name].host for name in self._output_names}
        except BaseException:
            self.close()
            raise

    def _allocate(self, specs: Sequence[TensorSpec], zero_copy: bool) -> None:
        runtime = cuda.runtime()
        # Non-blocking, so as not to wait for the default stream, which other libraries of this process may use.
        self._stream = cuda.call(runtime.cudaStreamCreateWithFlags, runtime.cudaStreamNonBlocking)
        for _ in range(len(DEVICE_STAGES) + 1):
            self._events.append(cuda.call(runtime.cudaEventCreate))
        for spec in self._inputs:  # before the addresses: output shapes depend on it
            if not self._context.set_input_shape(spec.name, spec.shape):
                raise DeviceError(
                    f"{self._runtime} cannot run {self._path} at {list(spec.shape)}.",
                    "set_input_shape returned False." + self._last_error(),
                    "Run it at its opt size, or build an engine whose range includes this size: mde build --dynamic",
                )
        for spec in specs:
            buffer = self._buffers[spec.name] = allocate(spec.shape, spec.dtype, zero_copy=zero_copy)
            if not self._context.set_tensor_address(spec.name, int(buffer.device_pointer)):
                raise DeviceError(
                    f"{self._runtime} rejected the buffer for '{spec.name}' of {self._path}.",
                    "set_tensor_address returned False." + self._last_error(),
                    cuda.FAULT_CURE,
                )

    def warm_up(self) -> None:
        """Run once on zeros: the first run compiles, loads and allocates."""
        for spec in self._inputs:
            self._buffers[spec.name].host.fill(0)
        self._enqueue_frame()
        self.finish()

    def capture(self) -> None:
        """Capture the network as a CUDA graph, which later frames replay; call `warm_up` first.

        Raises:
            NotCapturedError: the capture failed. The slot works as before.
        """
        self._graph = capture(self._enqueue_network, self._stream)

    def drop_graph(self) -> None:
        """Go back to launching kernels one by one."""
        if self._graph is not None:
            self._graph.free()
            self._graph = None

    def start(self, feeds: Mapping[str, npt.NDArray[Any]]) -> None:
        """Start a frame; `feeds` are read before this returns and must match the inputs."""
        # A failed frame may still be running in part; the stream runs this one after it.
        for name, array in feeds.items():
            np.copyto(self._buffers[name].host, array)
        self._enqueue_frame()

    def finish(self) -> Arrays:
        """Wait for the frame and return its outputs, valid until the next `start` or `close`."""
        cuda.call(cuda.runtime().cudaStreamSynchronize, self._stream)
        return self.outputs

    def device_ms(self) -> tuple[float, ...]:
        """Milliseconds of each of `DEVICE_STAGES` in the last frame, including the wait for other slots."""
        elapsed = cuda.runtime().cudaEventElapsedTime
        return tuple(float(cuda.call(elapsed, *pair)) for pair in zip(self._events, self._events[1:], strict=False))

    def synchronise(self) -> None:
        """Wait until nothing uses the buffers; CUDA errors are ignored."""
        if self._stream is not None:
            cuda.release(cuda.runtime().cudaStreamSynchronize, self._stream)

    def close(self) -> None:
        """Free everything and ignore CUDA errors; can be called repeatedly."""
        self.outputs = {}
        self.synchronise()
        self.drop_graph()
        self._context = None
        while self._buffers:
            self._buffers.popitem()[1].free()
        while self._events:
            cuda.release(cuda.runtime().cudaEventDestroy, self._events.pop())
        if self._stream is not None:
            stream, self._stream = self._stream, None
            cuda.release(cuda.runtime().cudaStreamDestroy, stream)

    def _enqueue_frame(self) -> None:
        self._record_event(0)
        for spec in self._inputs:
            self._buffers[spec.name].to_device(self._stream)
        self._record_event(1)
        if self._graph is not None:
            self._graph.launch(self._stream)
        elif not self._enqueue_network():
            raise DeviceError(
                "The engine failed to run.",
                f"execute_async_v3 of {self._runtime} returned False.{self._last_error()}",
                cuda.FAULT_CURE,
            )
        self._record_event(2)
        for name in self._output_names:
            self._buffers[name].to_host(self._stream)
        self._record_event(3)

    def _enqueue_network(self) -> bool:
        return bool(self._context.execute_async_v3(int(self._stream)))

    def _record_event(self, index: int) -> None:
        cuda.call(cuda.runtime().cudaEventRecord, self._events[index], self._stream)
