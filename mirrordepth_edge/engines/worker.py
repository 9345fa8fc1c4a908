"""Build one engine in a process of its own, with `support.worker.serve`.

A child process because Polygraphy chooses between TensorRT and TensorRT for RTX once per process, because Ctrl-C cannot
interrupt a running builder, and because the process's memory is freed when it ends.

Events: `progress` any number of times, then `built` (`version`, `timing`, `peak_memory_mb`) or `failed` (what the
parser or builder reported).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from mirrordepth_edge.config import BuildConfig, SizeRange
from mirrordepth_edge.engines.versions import create_config, needs_strong_flag
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.support.schema import read_strict
from mirrordepth_edge.support.worker import Emit, serve

STATUS = Path("/proc/self/status")
PROGRESS_EVERY_S = 0.1


@dataclass(frozen=True, kw_only=True)
class BuildProgress:
    """How far a build is."""

    phase: str
    """The builder's name of it, such as "Timing graph nodes"."""
    fraction: float
    """0 to 1, never falling. The steps of a phase count as equally long, which they are not."""


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """The open phases of a build, as `IProgressMonitor` reports them: each has steps, and may have phases in a step.

    The builder may call from several threads.
    https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Core/ProgressMonitor.html
    """

    def __init__(self) -> None:
        self._open: dict[str, _Phase] = {}
        self._furthest = 0.0
        self._lock = Lock()

    def start(self, name: str, parent: str | None, steps: int) -> BuildProgress:
        """Begin a phase of `steps` steps."""
        with self._lock:
            self._open[name] = _Phase(parent, max(steps, 1))
            return self._now()

    def step(self, name: str, step: int) -> BuildProgress:
        """Complete step number `step`, from 0, of a phase."""
        with self._lock:
            if name in self._open:
                self._open[name].done = step + 1
            return self._now()

    def finish(self, name: str) -> BuildProgress:
        """End a phase, whether or not all its steps were reported."""
        with self._lock:
            finished = self._open.pop(name, None)
            if finished is not None and not finished.parent:
                self._furthest = 1.0
            return self._now()

    def _now(self) -> BuildProgress:
        roots = [name for name, phase in self._open.items() if phase.parent not in self._open]
        self._furthest = max([self._furthest, *map(self._fraction, roots)])
        return BuildProgress(phase=next(reversed(self._open), ""), fraction=self._furthest)

    def _fraction(self, name: str) -> float:
        phase = self._open[name]
        children = (child for child, its in self._open.items() if its.parent == name)
        within = max(map(self._fraction, children), default=0.0)
        return min(1.0, (phase.done + within) / phase.steps)


def monitor(trt: Any, report: Callable[[BuildProgress], None]) -> Any:
    """An `IProgressMonitor` that reports at most every `PROGRESS_EVERY_S`, and the end of the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases, self._reported_s = Phases(), 0.0

        def _report(self, progress: BuildProgress) -> None:
            if time.monotonic() - self._reported_s >= PROGRESS_EVERY_S or progress.fraction == 1:
                self._reported_s = time.monotonic()
                report(progress)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._report(self._phases.start(phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(self._phases.step(phase_name, step))
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            self._report(self._phases.finish(phase_name))

    return Monitor()


def parser_errors(parser: Any) -> str:
    """Every parser error with its node, one per line."""
    errors = (parser.get_error(index) for index in range(parser.num_errors))
    return "\n".join(f"node {e.node_name() or '?'} ({e.node_operator() or '?'}): {e.desc()}" for e in errors)


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process, in 1e6 bytes; None if the system does not report it.

    Not `getrusage`: its peak includes that of the process that started this one.
    """
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), None)


def profile_shapes(shape: Sequence[int], layout: str | None, sizes: SizeRange) -> tuple[tuple[int, ...], ...]:
    """The min, opt and max shapes of an input with dynamic axes.

    Args:
        shape: as the network has it, -1 for a dynamic axis.
        layout: such as `NHWC`.

    Raises:
        OptionError: an axis other than batch, height and width is dynamic.
    """
    fits = layout is not None and len(layout) == len(shape)
    if layout is None or not fits or not {c for c, n in zip(layout, shape, strict=True) if n < 0} <= set("NHW"):
        raise OptionError(
            f"The network's input {tuple(shape)} does not support dynamic sizes.",
            f"Its manifest gives the layout {layout or 'unknown'}; only batch, height and width may be dynamic.",
            "Export it with a fixed size: mde export --size HEIGHTxWIDTH",
        )
    lengths = (dict(zip("NHW", size, strict=True)) for size in sizes)
    return tuple(tuple(n if n >= 0 else of[c] for n, c in zip(shape, layout, strict=True)) for of in lengths)


def profiles(network: Any, config: BuildConfig, layouts: Mapping[str, str]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The min, opt and max shapes of every input with dynamic axes, by its name.

    Args:
        config: with the sizes that `resolve_sizes` gave it: there are some if and only if the file has dynamic axes.
    """
    sizes = config.dynamic
    if sizes is None:
        return {}
    inputs = (network.get_input(index) for index in range(network.num_inputs))
    shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
    return {name: profile_shapes(s, layouts.get(name), sizes) for name, s in shapes.items() if min(s, default=0) < 0}


def build(request: dict[str, Any], emit: Emit) -> None:
    """Parse an ONNX file and build its engine.

    Args:
        request: as `build.build_engine` sends it: `onnx`, `plan` and `timing_cache` (paths), `flavour`,
            `compute_capabilities`, `config` and `layouts` (of the inputs).

    Raises:
        InputError: the plan or the timings cannot be written.
        OptionError: the input cannot have the sizes of `config`.
    """
    flavour, cache = request["flavour"], request["timing_cache"]
    # Polygraphy reads this once, when it is imported.
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if flavour == "tensorrt-rtx" else "0"
    from polygraphy.backend.trt import Profile, create_network, engine_bytes_from_network
    from polygraphy.exception import PolygraphyException

    trt, options = _import_builder(request)
    config = read_strict(BuildConfig, request["config"], "the request", "")
    started = time.perf_counter()
    # The ONNX file's types decide the precision: the builder must not lower or raise any.
    builder, network = create_network(strongly_typed=needs_strong_flag(flavour, trt.__version__))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse_from_file(request["onnx"]):
        return emit("failed", parser_errors(parser) or "the parser gave no reason")
    if shapes := profiles(network, config, request["layouts"]):
        profile = Profile()
        for name, bounds in shapes.items():
            profile.add(name, *bounds)
        options["profiles"] = [profile]
    options["progress_monitor"] = monitor(trt, lambda progress: emit("progress", asdict(progress)))
    parsed = time.perf_counter()
    try:
        builder_config = create_config(trt, config, flavour, **options)
        plan = engine_bytes_from_network((builder, network, parser), builder_config, save_timing_cache=cache)
        built = time.perf_counter()
        Path(request["plan"]).write_bytes(plan)
    except PolygraphyException as error:
        return emit("failed", f"the builder failed: {error}")
    except OSError as error:
        raise _unwritable(request, error) from error
    timing = {"parse": parsed - started, "build": built - parsed}
    return emit("built", {"version": trt.__version__, "timing": timing, "peak_memory_mb": peak_memory_mb()})


def _import_builder(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Import TensorRT or TensorRT for RTX, and return it with the options that only it has."""
    if request["flavour"] == "tensorrt-rtx":
        import tensorrt_rtx

        capabilities = [tuple(int(part) for part in text.split(".")) for text in request["compute_capabilities"]]
        return tensorrt_rtx, {"compute_capabilities": capabilities or None}
    import tensorrt

    cache = request["timing_cache"]
    return tensorrt, {"load_timing_cache": cache if cache and Path(cache).is_file() else None}


def _unwritable(request: dict[str, Any], error: OSError) -> InputError:
    folder = Path(request["plan"]).parent
    return InputError(
        f"Cannot write {request['plan']}.",
        error.strerror or str(error),
        f"Engines are built in the folder for temporary files. Free space in {folder}, or use another one: "
        f"TMPDIR=/path mde build {request['onnx']} …",
    )


def handle(request: dict[str, Any], emit: Emit) -> None:
    """Build, and report when memory runs out."""
    try:
        build(request, emit)
    except MemoryError as error:
        emit("failed", f"MemoryError: {error}")


def main() -> None:
    """Serve one request."""
    serve(handle)


if __name__ == "__main__":
    main()
