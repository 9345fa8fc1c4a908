"""A session that runs a plan in TensorRT or TensorRT for RTX, which share this API.

Not yet run on hardware; `tests/backends/trt/test_api.py` checks every attribute used here against the real modules.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy.typing as npt

from mirrordepth_edge.backends.base import Arrays, CheckedSession
from mirrordepth_edge.backends.trt import cuda
from mirrordepth_edge.backends.trt.compatibility import require_supported_gpu
from mirrordepth_edge.backends.trt.cuda_graph import NotCapturedError
from mirrordepth_edge.backends.trt.plan import check_tensors, last_error, load_plan, source_of, start_runtime
from mirrordepth_edge.backends.trt.slot import ExecutionSlot
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import InputError, MissingError, OptionError
from mirrordepth_edge.machine.device import nvidia_gpus
from mirrordepth_edge.manifest import Manifest


def require_gpu(path: Path, flavour: str, manifest: Manifest | None) -> None:
    """Raise an error if this machine has no NVIDIA GPU, before the runtime fails with a less helpful one.

    Args:
        path: the plan.
        flavour: name of the runtime.
        manifest: manifest of the plan, for the name of its ONNX file in the message.

    Raises:
        MissingError: no GPU is visible.
    """
    if nvidia_gpus():
        return
    raise MissingError(
        f"{path} needs an NVIDIA GPU, but none is visible on this machine.",
        f"A plan is machine code for a GPU; {flavour} would fail with cudaErrorInsufficientDriver (35) "
        "or cudaErrorNoDevice (100).",
        f"Run it on the target, or run its ONNX file here: {_use_onnx(path, manifest)}.",
    )


def _use_onnx(path: Path, manifest: Manifest | None) -> str:
    return f"replace {path} with {source_of(path, None if manifest is None else manifest.parent_sha256)}"


def reject_other_options(path: Path, options: SessionOptions, manifest: Manifest | None) -> None:
    """Raise an error for session options that do not apply to plans.

    Args:
        path: the plan.
        options: session options.
        manifest: see `require_gpu`.

    Raises:
        OptionError: an option does not apply.
    """
    run_onnx = f"run its ONNX file: {_use_onnx(path, manifest)}."
    if options.device == "cpu":
        raise OptionError(
            f"{path} cannot run on the CPU.",
            "A plan is machine code for an NVIDIA GPU.",
            f"Leave out --device, or {run_onnx}",
        )
    if options.threads is not None:
        raise OptionError(
            f"--threads {options.threads} does not apply to {path}.",
            "A plan runs on the GPU.",
            f"Leave out --threads, or {run_onnx}",
        )
    if options.clip_weights is not None:
        raise OptionError(
            f"--clip-weights {options.clip_weights} does not apply to {path}.",
            "A plan contains its weights; only a checkpoint needs the CLIP weights.",
            "Leave out --clip-weights.",
        )


class Contexts:
    """Creates the execution contexts of an engine: those of TensorRT, without settings."""

    session_captures_graph = True
    """The session captures the network as a CUDA graph; if False, the runtime does it or nobody."""
    cuda_graph = False
    """The runtime replays a CUDA graph."""
    jit_cached = False
    """The runtime uses kernels that an earlier process compiled."""

    def __init__(self, engine: Any) -> None:
        self.notes: list[str] = []
        """Differences from what was requested."""
        self._engine = engine

    def make(self) -> Any:
        """Create an execution context; None if the runtime failed."""
        return self._engine.create_execution_context()

    def save_cache(self) -> None:
        """Save compiled kernels; called after every context has run once."""

    def close(self) -> None:
        """Release the engine and all resources of the contexts, which are already destroyed."""
        self._engine = None


class EngineSession(CheckedSession):
    """Runs a plan with one execution slot per frame in flight.

    `infer` runs one frame. For throughput, `submit` and `collect` keep `options.in_flight` frames in flight, so that
    the GPU works while the host prepares the next frame:

        session.submit(feeds(0))
        for number in range(1, frames):
            session.submit(feeds(number))
            use(session.collect())  # frame number - 1
        use(session.collect())

    Outputs are views of memory that `close` frees. Outputs of `infer` are valid until the next call, those of a
    submitted frame until `in_flight` later frames have been submitted. A session is not thread-safe.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        backend: name of the backend.
        path: the plan.
        manifest: its verified manifest.
        options: session options.
        contexts: creates the `Contexts` of an engine.

    Raises:
        MissingError: there is no working driver.
        InputError: the plan cannot be loaded here, or does not match its manifest.
        DeviceError: the GPU failed, for example because its memory is full.
        OptionError: `in_flight` is less than 1.
    """

    def __init__(
        self,
        trt: Any,
        backend: str,
        path: Path,
        manifest: Manifest,
        options: SessionOptions,
        contexts: Callable[[Any], Contexts],
    ) -> None:
        if options.in_flight < 1:
            raise OptionError(
                f"in_flight={options.in_flight} is too small.", "A session needs at least one slot.", "Use in_flight=1."
            )
        gpus = nvidia_gpus()
        if manifest.engine is not None:
            require_supported_gpu(path, manifest.engine, gpus, manifest.parent_sha256)
        gpu = gpus[0]
        self.backend, self.version = backend, str(trt.__version__)
        self.precision = manifest.precision
        sized = manifest.at(options.network_hw, options.batch)
        self.inputs, self.outputs = sized.inputs, sized.outputs
        self.device = gpu.name
        self.zero_copy = gpu.integrated if options.zero_copy is None else options.zero_copy
        """The GPU uses the host's buffers directly; the copies of `device_ms` then take no time."""
        self.cuda_graph = False
        """The network is replayed as a CUDA graph."""
        self.jit_cached = False
        """Kernels were read from the runtime cache; TensorRT for RTX only."""
        self._runtime: Any = None
        self._engine: Any = None
        self._contexts: Contexts | None = None
        self._slots: list[ExecutionSlot] = []
        self._pending: deque[ExecutionSlot] = deque()
        """Slots whose frame is submitted but not collected, oldest first."""
        self._next = 0
        self._last: ExecutionSlot | None = None
        try:
            # CUDA first: it names the problem of a driver, where TensorRT returns None, raises TypeError or crashes.
            cuda.call(cuda.runtime().cudaSetDevice, 0)
            self._runtime = start_runtime(trt, backend)
            self._engine = load_plan(trt, self._runtime, backend, path, manifest)
            check_tensors(self._engine, path, manifest)
            self._contexts = contexts(self._engine)
            self._open_slots(self._contexts, partial(last_error, trt), path, options)
        except BaseException:
            self.close()
            raise

    def _open_slots(
        self, contexts: Contexts, last_error: Callable[[], str], path: Path, options: SessionOptions
    ) -> None:
        start_s = perf_counter()
        for _ in range(options.in_flight):
            slot = ExecutionSlot(
                contexts.make,
                self.inputs,
                self.outputs,
                runtime=f"{self.backend} {self.version}",
                last_error=last_error,
                path=path,
                zero_copy=self.zero_copy,
            )
            self._slots.append(slot)
            slot.warm_up()
        self._last = self._slots[0]
        notes: list[str] = []
        if options.cuda_graph and contexts.session_captures_graph:
            notes += self._capture_graphs(last_error)
        # Creating contexts (where TensorRT for RTX compiles), one run of each slot, and capturing its graph.
        self.warm_up_ms = (perf_counter() - start_s) * 1e3
        contexts.save_cache()
        self.cuda_graph = self.cuda_graph or contexts.cuda_graph
        self.jit_cached = contexts.jit_cached
        self.notes = tuple(dict.fromkeys((*contexts.notes, *notes)))

    def _capture_graphs(self, last_error: Callable[[], str]) -> list[str]:
        """Capture a graph for every slot, or for none if one fails; returns the reason as a note."""
        try:
            for slot in self._slots:
                slot.capture()
        except NotCapturedError as reason:
            for slot in self._slots:
                slot.drop_graph()
            return [f"No CUDA graph is used; kernels are launched one by one: {reason}.{last_error()}"]
        for slot in self._slots:
            slot.warm_up()  # the first launch uploads the graph
        self.cuda_graph = True
        return []

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        if self._pending:
            raise InputError(
                f"{len(self._pending)} submitted frames were not collected.",
                "infer() needs all slots to be free.",
                "Call collect() for each of them first.",
            )
        self._next = 0  # always return the same arrays
        self.submit(feeds)
        return self.collect()

    def submit(self, feeds: Mapping[str, npt.NDArray[Any]]) -> None:
        """Start a frame and return while the GPU works on it.

        Args:
            feeds: as for `infer`; read before this returns.

        Raises:
            InputError: a feed does not match, or `in_flight` frames are already in flight.
            DeviceError: the GPU failed.
        """
        if not self._slots:
            raise InputError("The session is closed.", "Its buffers were freed.", "Open the model again.")
        self.check(feeds)
        if len(self._pending) == len(self._slots):
            raise InputError(
                f"{len(self._pending)} frames are already in flight.",
                f"The session was opened for in_flight={len(self._slots)}.",
                f"Call collect() first, or open the session with SessionOptions(in_flight={len(self._slots) + 1}).",
            )
        slot = self._slots[self._next]
        slot.start(feeds)
        self._pending.append(slot)
        self._next = (self._next + 1) % len(self._slots)

    def collect(self) -> Arrays:
        """Wait for the oldest submitted frame.

        Returns:
            Its outputs by name, valid until `in_flight` later frames are submitted, or until `infer` or `close`.

        Raises:
            InputError: nothing was submitted.
            DeviceError: the GPU failed.
        """
        if not self._pending:
            raise InputError("There is no frame to collect.", "No frame was submitted.", "Call submit() first.")
        self._last = self._pending.popleft()
        return self._last.finish()

    def device_ms(self) -> tuple[float, ...]:
        return () if self._last is None else self._last.device_ms()

    def close(self) -> None:
        self._pending.clear()
        self._last = None
        for slot in self._slots:
            slot.synchronise()
        # Destroy in this order: contexts, their configs, the engine, the runtime.
        while self._slots:
            self._slots.pop().close()
        if self._contexts is not None:
            self._contexts.close()
            self._contexts = None
        self._engine = None
        self._runtime = None
