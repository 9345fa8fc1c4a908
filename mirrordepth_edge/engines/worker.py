"""Builds one engine in a process of its own: `python -m mirrordepth_edge.engines.worker`.

A child process because Polygraphy chooses between TensorRT and TensorRT for RTX once per process,
because a running builder cannot be interrupted by Ctrl-C, and because its memory is given back.

The request is JSON on the standard input. On the standard output come lines of JSON, each with one key: `progress`
any number of times, then one of `built` (`version`, `timing`, `peak_memory_mb`), `failed` (what the parser or builder
said), `memory` (what ran out of it), `unwritable` (why the plan could not be written) or `refused` (an `OptionError`'s
three parts). Whatever libraries print goes to the standard error stream.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

from mirrordepth_edge.config import BuildConfig, SizeRange
from mirrordepth_edge.engines.progress import BuildProgress, Phases
from mirrordepth_edge.engines.versions import create_config, needs_strong_flag
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.support.schema import read_strict

Say = Callable[[str, Any], None]

STATUS = Path("/proc/self/status")
PROGRESS_EVERY_S = 0.1


def parser_errors(parser: Any) -> str:
    """Every parser error with its node, one a line."""
    errors = (parser.get_error(index) for index in range(parser.num_errors))
    return "\n".join(f"node {e.node_name() or '?'} ({e.node_operator() or '?'}): {e.desc()}" for e in errors)


def peak_memory_mb() -> float | None:
    """Most main memory that this process had resident, in 1e6 bytes; None where the system does not tell.

    Not `getrusage`: its peak is carried over from the process that started this one.
    """
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), None)


def profile_shapes(shape: Sequence[int], layout: str | None, sizes: SizeRange) -> tuple[tuple[int, ...], ...]:
    """Smallest, usual and largest shape of an input whose sizes are open.

    Args:
        shape: as the network has it, -1 where a length is open.
        layout: such as `NHWC`.

    Raises:
        OptionError: another length than batch, height and width is open.
    """
    fits = layout is not None and len(layout) == len(shape)
    if layout is None or not fits or not {c for c, n in zip(layout, shape, strict=True) if n < 0} <= set("NHW"):
        raise OptionError(
            f"The network's input {tuple(shape)} cannot be given sizes.",
            f"By its manifest its lengths are {layout or 'unknown'}; only batch, height and width may be open.",
            "Export it with fixed sizes: mde export --size HEIGHTxWIDTH",
        )
    asked = (dict(zip("NHW", size, strict=True)) for size in sizes)
    return tuple(tuple(n if n >= 0 else of[c] for n, c in zip(shape, layout, strict=True)) for of in asked)


def profiles(network: Any, config: BuildConfig, layouts: Mapping[str, str]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Shapes of every input whose sizes are open, by its name.

    Raises:
        OptionError: sizes were given and none are open, or none were and some are.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    opened = {each.name: tuple(each.shape) for each in inputs if any(length < 0 for length in each.shape)}
    if config.dynamic is None and opened:
        raise OptionError(
            "The ONNX file's input sizes are open.",
            f"An engine needs bounds for {', '.join(f'{name} {shape}' for name, shape in opened.items())}.",
            "Name the smallest, usual and largest size: --dynamic 160x224,224x288,448x576",
        )
    if config.dynamic is not None and not opened:
        fixed = ", ".join(f"{each.name} {tuple(each.shape)}" for each in inputs)
        raise OptionError(
            "--dynamic has nothing to work on: the ONNX file's sizes are fixed.",
            f"Its input is {fixed}, and its positions and reshapes were computed for that.",
            f"Export it with open ones: mde export --dynamic {config.dynamic}; or leave --dynamic out.",
        )
    sizes = config.dynamic
    return {} if sizes is None else {n: profile_shapes(s, layouts.get(n), sizes) for n, s in opened.items()}


def monitor(trt: Any, report: Callable[[BuildProgress], None]) -> Any:
    """An `IProgressMonitor` that reports at most every `PROGRESS_EVERY_S`, and every end of a phase."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases, self._said = Phases(), 0.0

        def _say(self, progress: BuildProgress) -> None:
            if time.monotonic() - self._said >= PROGRESS_EVERY_S or progress.fraction == 1:
                self._said = time.monotonic()
                report(progress)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._say(self._phases.start(phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._say(self._phases.step(phase_name, step))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._say(self._phases.finish(phase_name))

    return Monitor()


def build(request: dict[str, Any], say: Say) -> None:
    """Parse and build as `deploy.build.build_engine` asks."""
    flavour = request["flavour"]
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if flavour == "tensorrt-rtx" else "0"
    from polygraphy.backend.trt import Profile, create_network, engine_bytes_from_network
    from polygraphy.exception import PolygraphyException

    more: dict[str, Any] = {}
    cache = request["timing_cache"]
    if flavour == "tensorrt-rtx":
        import tensorrt_rtx as trt

        capabilities = [tuple(int(part) for part in text.split(".")) for text in request["compute_capabilities"]]
        more["compute_capabilities"] = capabilities or None
    else:
        import tensorrt as trt

        more["load_timing_cache"] = cache if cache and Path(cache).is_file() else None

    config = read_strict(BuildConfig, request["config"], "the request", "")
    started = time.perf_counter()
    # Precision is a property of the ONNX file: nothing may be lowered or raised by the builder.
    builder, network = create_network(strongly_typed=needs_strong_flag(flavour, trt.__version__))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse_from_file(request["onnx"]):
        return say("failed", parser_errors(parser) or "the parser gave no reason")
    if shapes := profiles(network, config, request["layouts"]):
        profile = Profile()
        for name, each in shapes.items():
            profile.add(name, *each)
        more["profiles"] = [profile]
    more["progress_monitor"] = monitor(trt, lambda progress: say("progress", asdict(progress)))
    parsed = time.perf_counter()
    try:
        plan = engine_bytes_from_network(
            (builder, network, parser), create_config(trt, config, flavour, **more), save_timing_cache=cache
        )
    except PolygraphyException as error:
        return say("failed", f"the builder failed: {error}")
    except OSError as error:  # the timing cache, which is written beside the plan
        return say("unwritable", error.strerror or str(error))
    built = time.perf_counter()
    try:
        Path(request["plan"]).write_bytes(plan)
    except OSError as error:
        return say("unwritable", error.strerror or str(error))
    timing = {"parse": parsed - started, "build": built - parsed}
    return say("built", {"version": trt.__version__, "timing": timing, "peak_memory_mb": peak_memory_mb()})


def main() -> None:
    """Serve the one request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    one_at_a_time = Lock()

    def say(kind: str, value: Any) -> None:
        try:
            with one_at_a_time:
                channel.write(json.dumps({kind: value}) + "\n")
                channel.flush()
        except OSError:  # nobody listens any more
            os._exit(1)

    try:
        build(json.loads(sys.stdin.read()), say)
    except OptionError as error:
        say("refused", [error.what, error.why, error.cure])
    except MemoryError as error:
        say("memory", str(error) or "MemoryError")


if __name__ == "__main__":
    main()
