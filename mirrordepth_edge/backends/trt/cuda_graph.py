"""A network's launches recorded once and replayed as one: CUDA graphs.

A small network on a fast GPU spends its time on launching kernels, each some microseconds of the CPU's; a graph
launches them all at once. It fixes addresses and shapes, which engines here never change.

Not yet run on hardware.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mirrordepth_edge.backends.trt import cuda


class NotCapturedError(Exception):
    """The work cannot become a graph; says why. The stream is as before."""


class Graph:
    """A graph that is ready to be launched; it uses the context's memory, so it goes first."""

    def __init__(self, executable: Any) -> None:
        self._executable = executable

    def launch(self, stream: Any) -> None:
        """Start it on `stream`."""
        cuda.call(cuda.runtime().cudaGraphLaunch, self._executable, stream)

    def free(self) -> None:
        """Give it back; calling it twice is fine."""
        if self._executable is not None:
            executable, self._executable = self._executable, None
            cuda.release(cuda.runtime().cudaGraphExecDestroy, executable)


def capture(enqueue: Callable[[], bool], stream: Any) -> Graph:
    """Record what `enqueue` puts on `stream`, which is not run.

    What a first run sets up cannot be captured, so the work must have run before
    (https://github.com/NVIDIA/TensorRT/issues/2603). Some engines never can be: those whose layers wait for the GPU.

    Args:
        enqueue: puts the work on the stream; False where it could not.
        stream: not the default one, with nothing under way.

    Raises:
        NotCapturedError: CUDA or the runtime refused.
    """
    runtime = cuda.runtime()
    # Of this thread only: what other threads allocate meanwhile is no concern of this stream's.
    mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    problem, _ = cuda.attempt(runtime.cudaStreamBeginCapture, stream, mode)
    if problem is not None:
        raise _not_captured(problem)
    graph: Any = None
    try:
        try:
            accepted = enqueue()
        finally:  # whatever happened: a stream that captures can do nothing else
            problem, graph = cuda.attempt(runtime.cudaStreamEndCapture, stream)
        if problem is None and not accepted:
            problem = "the engine has work that cannot be captured"
        if problem is None:
            problem, executable = cuda.attempt(runtime.cudaGraphInstantiate, graph, 0)
        if problem is not None:
            raise _not_captured(problem)
        return Graph(executable)
    finally:
        if graph is not None:  # its executable is a copy
            cuda.release(runtime.cudaGraphDestroy, graph)


def _not_captured(problem: str) -> NotCapturedError:
    """The error to raise, after CUDA forgot it: else whoever asks for the last error next would find it."""
    cuda.release(cuda.runtime().cudaGetLastError)
    return NotCapturedError(problem)
