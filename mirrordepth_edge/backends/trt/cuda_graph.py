"""Capture a network's kernel launches as a CUDA graph.

A small network on a fast GPU spends its time launching kernels, some microseconds of CPU time each; a graph launches
them all at once. It fixes addresses and shapes, which never change in a session.

Not yet run on hardware.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mirrordepth_edge.backends.trt import cuda


class NotCapturedError(Exception):
    """The work cannot be captured as a graph, with the reason. The stream is unchanged."""


class Graph:
    """An executable graph. It uses the context's memory, so free it before the context."""

    def __init__(self, executable: Any) -> None:
        self._executable = executable

    def launch(self, stream: Any) -> None:
        """Launch the graph on `stream`."""
        cuda.call(cuda.runtime().cudaGraphLaunch, self._executable, stream)

    def free(self) -> None:
        """Destroy the graph; can be called repeatedly."""
        if self._executable is not None:
            executable, self._executable = self._executable, None
            cuda.release(cuda.runtime().cudaGraphExecDestroy, executable)


def capture(enqueue: Callable[[], bool], stream: Any) -> Graph:
    """Capture the work that `enqueue` puts on `stream`, without running it.

    The work must have run before, as the set-up of a first run cannot be captured
    (https://github.com/NVIDIA/TensorRT/issues/2603). Engines whose layers wait for the GPU can never be captured.

    Args:
        enqueue: puts the work on the stream; returns False if it failed.
        stream: an idle stream, not the default one.

    Raises:
        NotCapturedError: CUDA or the runtime refused.
    """
    runtime = cuda.runtime()
    # Thread-local: allocations by other threads must not invalidate the capture.
    mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    problem, _ = cuda.attempt(runtime.cudaStreamBeginCapture, stream, mode)
    if problem is not None:
        raise _not_captured(problem)
    graph: Any = None
    try:
        try:
            accepted = enqueue()
        finally:  # a stream that is still capturing can do nothing else
            problem, graph = cuda.attempt(runtime.cudaStreamEndCapture, stream)
        if problem is None and not accepted:
            problem = "the engine does work that cannot be captured"
        if problem is None:
            problem, executable = cuda.attempt(runtime.cudaGraphInstantiate, graph, 0)
        if problem is not None:
            raise _not_captured(problem)
        return Graph(executable)
    finally:
        if graph is not None:  # the executable is a copy
            cuda.release(runtime.cudaGraphDestroy, graph)


def _not_captured(problem: str) -> NotCapturedError:
    # Clear CUDA's last error, which an unrelated later check would report otherwise.
    cuda.release(cuda.runtime().cudaGetLastError)
    return NotCapturedError(problem)
