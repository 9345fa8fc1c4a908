"""A TensorRT or TensorRT-RTX plan in memory; the two runtimes share this API.

Not yet run on hardware. Every attribute used here is checked against the real runtime modules by
`tests/backends/test_engine_api.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy.typing as npt

from mirrordepth_edge.backends.base import Arrays, CheckedSession
from mirrordepth_edge.backends.trt import cuda
from mirrordepth_edge.backends.trt.compatibility import require_served
from mirrordepth_edge.backends.trt.cuda_graph import NotCapturedError
from mirrordepth_edge.backends.trt.plan import check_tensors, last_error, load_plan, source_of, start_runtime
from mirrordepth_edge.backends.trt.slot import ExecutionSlot
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import InputError, MissingError, OptionError
from mirrordepth_edge.machine.device import nvidia_gpus
from mirrordepth_edge.manifest import Manifest


def require_gpu(path: Path, flavour: str, manifest: Manifest | None) -> None:
    """Plans run on NVIDIA GPUs only; say so before a runtime fails in its own words.

    Args:
        manifest: the plan's, to say what runs here in its place.

    Raises:
        MissingError: no GPU is visible.
    """
    if nvidia_gpus():
        return
    raise MissingError(
        f"{path} needs an NVIDIA GPU, and this machine shows none.",
        f"A plan is machine code for a GPU; {flavour} would fail with cudaErrorInsufficientDriver (35) "
        "or cudaErrorNoDevice (100).",
        f"Run it on the target, or run its ONNX here: {_by_its_onnx(path, manifest)}.",
    )


def _by_its_onnx(path: Path, manifest: Manifest | None) -> str:
    return f"replace {path} by {source_of(path, None if manifest is None else manifest.parent_sha256)}"


def refuse_other_options(path: Path, options: SessionOptions, manifest: Manifest | None) -> None:
    """A plan runs on the GPU with what is inside it; options that ask for more are not ignored.

    Args:
        manifest: see `require_gpu`.

    Raises:
        OptionError: one of them was given.
    """
    run_its_onnx = f"run its ONNX: {_by_its_onnx(path, manifest)}."
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


class Contexts(Protocol):
    """How a flavour makes execution contexts of an engine."""

    captures: bool
    """Whether the network's launches are left to be captured as a CUDA graph here."""
    notes: list[str]
    """What is not as it was asked for."""
    cuda_graph: bool
    """Whether the runtime itself replays a CUDA graph."""
    jit_cached: bool
    """Whether the runtime found kernels that an earlier process compiled."""

    def make(self) -> Any:
        """An execution context; None where the runtime cannot."""

    def ran(self) -> None:
        """Called once all contexts have run, and compiled what they need."""

    def close(self) -> None:
        """Let go of the engine, and of what contexts were made with; they went before."""


class EngineSession(CheckedSession):
    """A plan with one execution context for each frame in flight, and buffers allocated once.

    `infer` runs one frame. Where the GPU idles while the host prepares the next one, and throughput counts more than
    latency, `submit` and `collect` keep `options.in_flight` frames in work:

        session.submit(feeds(0))
        for number in range(1, frames):
            session.submit(feeds(number))
            use(session.collect())  # of number - 1
        use(session.collect())

    Outputs are views of memory that `close` frees. Those of `infer` are valid until the next call; those of a
    submitted frame until `in_flight` later ones were submitted. One thread uses a session at a time.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        contexts: given the engine, how its contexts are made.

    Raises:
        MissingError: there is no driver that works.
        InputError: the plan cannot be loaded here, or is not what its manifest describes.
        DeviceError: the GPU failed, such as for want of memory.
        OptionError: no frame may be in flight.
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
                f"{options.in_flight} frames in flight are none.", "A session needs one at least.", "in_flight=1"
            )
        gpus = nvidia_gpus()
        if manifest.engine is not None:
            require_served(path, manifest.engine, gpus, manifest.parent_sha256)
        gpu = gpus[0]
        self.backend, self.version = backend, str(trt.__version__)
        self.precision = manifest.precision
        here = manifest.at(options.network_hw, options.batch)
        self.inputs, self.outputs = here.inputs, here.outputs
        self.device = gpu.name
        self.zero_copy = gpu.integrated if options.zero_copy is None else options.zero_copy
        """Whether the GPU works in the host's own buffers; `device_ms` then has nothing for the copies."""
        self.cuda_graph = False
        """Whether the network's launches are replayed as one."""
        self.jit_cached = False
        """Whether kernels came from an earlier process; only TensorRT for RTX compiles any."""
        self.warm_up_ms = 0.0
        """What came between the loaded plan and the first frame: making contexts (TensorRT for RTX compiles there),
        one run of each, and the capture of its graph."""
        self.notes: tuple[str, ...] = ()
        """What is not as it was asked for, a sentence each; empty where all is."""
        self._runtime: Any = None
        self._engine: Any = None
        self._contexts: Contexts | None = None
        self._slots: list[ExecutionSlot] = []
        self._pending: deque[ExecutionSlot] = deque()
        """Lanes with a frame that was submitted and not collected, oldest first."""
        self._next = 0
        self._last: ExecutionSlot | None = None
        try:
            # CUDA first: it names what is wrong with a driver, where TensorRT says None, raises a TypeError or crashes.
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
        begun = perf_counter()
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
        if options.cuda_graph and contexts.captures:
            notes += self._capture(last_error)
        self.warm_up_ms = (perf_counter() - begun) * 1e3
        contexts.ran()
        self.cuda_graph = self.cuda_graph or contexts.cuda_graph
        self.jit_cached = contexts.jit_cached
        self.notes = tuple(dict.fromkeys((*contexts.notes, *notes)))

    def _capture(self, last_error: Callable[[], str]) -> list[str]:
        """Capture the graph of every lane, or of none; says why of none."""
        try:
            for slot in self._slots:
                slot.capture()
        except NotCapturedError as reason:
            for slot in self._slots:
                slot.drop_graph()
            return [f"No CUDA graph is used, and kernels are launched one by one: {reason}.{last_error()}"]
        for slot in self._slots:
            slot.warm_up()  # a graph's first launch uploads it
        self.cuda_graph = True
        return []

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        if self._pending:
            raise InputError(
                f"{len(self._pending)} submitted frames were not collected.",
                "infer runs one frame alone.",
                "Call collect() for each of them first.",
            )
        self._next = 0  # always the same arrays
        self.submit(feeds)
        return self.collect()

    def submit(self, feeds: Mapping[str, npt.NDArray[Any]]) -> None:
        """Begin a frame, and return while the GPU works on it.

        Args:
            feeds: as `infer` takes them; read before this returns.

        Raises:
            InputError: a feed does not fit, or `in_flight` frames are in work already.
            DeviceError: the GPU failed.
        """
        if not self._slots:
            raise InputError("The session is closed.", "Its buffers were freed.", "Open the model again.")
        self.check(feeds)
        if len(self._pending) == len(self._slots):
            raise InputError(
                f"{len(self._pending)} frames are in work already.",
                f"The session was opened for in_flight={len(self._slots)}.",
                f"Call collect() first, or open it with SessionOptions(in_flight={len(self._slots) + 1}).",
            )
        slot = self._slots[self._next]
        slot.start(feeds)
        self._pending.append(slot)
        self._next = (self._next + 1) % len(self._slots)

    def collect(self) -> Arrays:
        """Wait for the oldest frame that was submitted.

        Returns:
            Its outputs by name, valid until `in_flight` later frames were submitted, or until `infer` or `close`.

        Raises:
            InputError: nothing was submitted.
            DeviceError: the GPU failed.
        """
        if not self._pending:
            raise InputError("There is no frame to collect.", "None was submitted.", "Call submit() first.")
        self._last = self._pending.popleft()
        return self._last.finish()

    def device_ms(self) -> tuple[float, ...]:
        return () if self._last is None else self._last.device_ms()

    def close(self) -> None:
        self._pending.clear()
        self._last = None
        for slot in self._slots:
            slot.settle()
        # Contexts must go before what they were made with, that before the engine, and the engine before its runtime.
        while self._slots:
            self._slots.pop().close()
        if self._contexts is not None:
            self._contexts.close()
            self._contexts = None
        self._engine = None
        self._runtime = None
