"""One execution context with a stream, buffers and events of its own: what a frame runs through."""

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
    """Where one frame at a time is in work. Everything is allocated here, nothing per frame.

    The captured graph holds the network alone. Copies stay outside, between events: an event inside a graph tells no
    time unless it is made an external node, and TensorRT for RTX captures the network alone too, so that `compute`
    means the same in both. It costs one launch for each copy, and none at all where memory is mapped.

    Args:
        make_context: makes the execution context, or None where it cannot.
        runtime: name and version of what runs it, for errors.
        said: what it has to say of a failure, to be put behind a sentence.
        zero_copy: the GPU works in the host's buffers (`buffers.MappedArray`).

    Raises:
        DeviceError: the GPU has no memory left, or the runtime refused a buffer.
    """

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
        self._runtime, self._said, self._path = runtime, last_error, path
        self._context: Any = None
        self._graph: Graph | None = None
        self._stream: Any = None
        self._buffers: dict[str, Buffer] = {}
        self._events: list[Any] = []
        """Before the copies in, before and after the network, after the copies out."""
        try:
            self._context = make_context()
            if self._context is None:
                raise DeviceError(
                    f"{runtime} cannot prepare {path} to run.",
                    "create_execution_context returned None, as it does when the GPU's memory is full." + last_error(),
                    cuda.MEMORY_CURE,
                )
            self._allocate((*inputs, *outputs), zero_copy)
            self.outputs = {name: self._buffers[name].host for name in self._output_names}
        except BaseException:
            self.close()
            raise

    def _allocate(self, specs: Sequence[TensorSpec], zero_copy: bool) -> None:
        runtime = cuda.runtime()
        # Without order towards the default stream, on which other libraries in this process may work.
        self._stream = cuda.call(runtime.cudaStreamCreateWithFlags, runtime.cudaStreamNonBlocking)
        for _ in range(len(DEVICE_STAGES) + 1):
            self._events.append(cuda.call(runtime.cudaEventCreate))
        for spec in self._inputs:  # before addresses: outputs, and what the context needs, follow from it
            if not self._context.set_input_shape(spec.name, spec.shape):
                raise DeviceError(
                    f"{self._runtime} cannot run {self._path} at {list(spec.shape)}.",
                    "set_input_shape returned False." + self._said(),
                    "Build it for a range that has this size: mde build --dynamic, or run it at its usual size.",
                )
        for spec in specs:
            buffer = self._buffers[spec.name] = allocate(spec.shape, spec.dtype, zero_copy=zero_copy)
            if not self._context.set_tensor_address(spec.name, int(buffer.device_pointer)):
                raise DeviceError(
                    f"{self._runtime} refused the buffer for '{spec.name}' of {self._path}.",
                    "set_tensor_address returned False." + self._said(),
                    cuda.FAULT_CURE,
                )

    def warm_up(self) -> None:
        """Run once on zeros: a first run compiles, loads and allocates what later ones find ready."""
        for spec in self._inputs:
            self._buffers[spec.name].host.fill(0)
        self._issue()
        self.finish()

    def capture(self) -> None:
        """Replay the network's launches as one graph from now on; `warm_up` goes before.

        Raises:
            NotCapturedError: they cannot be captured. The lane runs as before.
        """
        self._graph = capture(self._enqueue, self._stream)

    def drop_graph(self) -> None:
        """Launch kernels one by one again."""
        if self._graph is not None:
            self._graph.free()
            self._graph = None

    def start(self, feeds: Mapping[str, npt.NDArray[Any]]) -> None:
        """Begin a frame; `feeds`, which fit, are read before this returns.

        Half of a frame that failed may still be under way: the next one comes after it on the stream.
        """
        for name, array in feeds.items():
            np.copyto(self._buffers[name].host, array)
        self._issue()

    def finish(self) -> Arrays:
        """Wait for the frame; its outputs are valid until the next `start` or `close`."""
        cuda.call(cuda.runtime().cudaStreamSynchronize, self._stream)
        return self.outputs

    def device_ms(self) -> tuple[float, ...]:
        """Milliseconds of each of `DEVICE_STAGES` in the last frame, those that it waited for other lanes included."""
        elapsed = cuda.runtime().cudaEventElapsedTime
        return tuple(float(cuda.call(elapsed, *pair)) for pair in zip(self._events, self._events[1:], strict=False))

    def settle(self) -> None:
        """Wait until nothing uses the buffers, whatever CUDA answers."""
        if self._stream is not None:
            cuda.release(cuda.runtime().cudaStreamSynchronize, self._stream)

    def close(self) -> None:
        """Free everything, whatever CUDA answers; calling it twice is fine."""
        self.outputs = {}
        self.settle()
        self.drop_graph()
        self._context = None
        while self._buffers:
            self._buffers.popitem()[1].free()
        while self._events:
            cuda.release(cuda.runtime().cudaEventDestroy, self._events.pop())
        if self._stream is not None:
            stream, self._stream = self._stream, None
            cuda.release(cuda.runtime().cudaStreamDestroy, stream)

    def _issue(self) -> None:
        self._mark(0)
        for spec in self._inputs:
            self._buffers[spec.name].to_device(self._stream)
        self._mark(1)
        if self._graph is not None:
            self._graph.launch(self._stream)
        elif not self._enqueue():
            raise DeviceError(
                "The engine failed to run.",
                f"execute_async_v3 of {self._runtime} returned False.{self._said()}",
                cuda.FAULT_CURE,
            )
        self._mark(2)
        for name in self._output_names:
            self._buffers[name].to_host(self._stream)
        self._mark(3)

    def _enqueue(self) -> bool:
        return bool(self._context.execute_async_v3(int(self._stream)))

    def _mark(self, place: int) -> None:
        cuda.call(cuda.runtime().cudaEventRecord, self._events[place], self._stream)
