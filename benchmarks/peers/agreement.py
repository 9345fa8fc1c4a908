"""Compare `mde bench` with other timers on the same file and frames, interleaved in one process.

    python benchmarks/peers/agreement.py nano
    python benchmarks/peers/agreement.py depth.plan

Ours is `mde bench --protocol network`. The others run the file and time it themselves: for an ONNX file,
`onnxruntime.InferenceSession.run` between two calls of `perf_counter`, and Polygraphy's `OnnxrtRunner`; for an engine,
Polygraphy's `TrtRunner` (not yet run on hardware). The exit code is 3 if medians differ significantly by more than
--within. All sessions of ONNX Runtime stop spinning after a run (`session.force_spinning_stop`); otherwise their
threads would disturb the next one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from common import add_device_options, open_ours, parser, positive, run_script

from mirrordepth_edge.artefact import model_path
from mirrordepth_edge.backends.base import Arrays, CheckedSession, Session
from mirrordepth_edge.bench.measure import bench
from mirrordepth_edge.bench.stats import ratio_interval
from mirrordepth_edge.commands.terminal import print_table
from mirrordepth_edge.config import BenchConfig, SessionOptions
from mirrordepth_edge.errors import GateError, OptionError
from mirrordepth_edge.export.parity import reference_frames
from mirrordepth_edge.predictor import DepthPredictor
from mirrordepth_edge.report.tables import Table

Run = Callable[[Mapping[str, npt.NDArray[Any]]], tuple[Mapping[str, npt.NDArray[Any]], float]]
"""Runs the network once; returns its outputs and the milliseconds on its own clock."""
OURS = "mde bench"


class ForeignTimer(CheckedSession):
    """A session that runs another tool and records the times of its own timer."""

    def __init__(self, name: str, run: Run, ours: Session) -> None:
        self.backend, self.version, self.device, self.precision = name, "", ours.device, ours.precision
        self.inputs, self.outputs = ours.inputs, ours.outputs
        self.recorded_ms: list[float] = []
        self._run = run

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        outputs, milliseconds = self._run(feeds)
        self.recorded_ms.append(milliseconds)
        return dict(outputs)


def create_inference_session(path: Path, device: str, threads: int | None) -> Any:
    """Create a session of ONNX Runtime with default settings."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads or 0  # 0: ONNX Runtime decides
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    provider = "CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"
    return onnxruntime.InferenceSession(str(path), settings, providers=[provider])


def time_session(session: Any) -> Run:
    """Time a session with the usual loop, without code of this package."""
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Mapping[str, npt.NDArray[Any]]) -> tuple[Mapping[str, npt.NDArray[Any]], float]:
        started = perf_counter()
        outputs = session.run(None, feeds)
        ended = perf_counter()
        return dict(zip(names, outputs, strict=True)), (ended - started) * 1e3

    return run


def time_polygraphy(runner: Any) -> Run:
    """Run Polygraphy and return the time that it reports."""

    def run(feeds: Mapping[str, npt.NDArray[Any]]) -> tuple[Mapping[str, npt.NDArray[Any]], float]:
        outputs = runner.infer(feeds, check_inputs=False)
        return outputs, runner.last_inference_time() * 1e3

    return run


def other_timers(path: Path, device: str, threads: int | None, stack: ExitStack) -> dict[str, Run]:
    """List the other timers for a file, by name."""
    if path.suffix != ".onnx":
        from polygraphy.backend.common import BytesFromPath
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner

        engine = stack.enter_context(TrtRunner(EngineFromBytes(BytesFromPath(str(path)))))
        return {"Polygraphy TrtRunner": time_polygraphy(engine)}
    from polygraphy.backend.onnxrt import OnnxrtRunner

    runner = stack.enter_context(OnnxrtRunner(create_inference_session(path, device, threads)))
    loop = time_session(create_inference_session(path, device, threads))
    return {"InferenceSession.run": loop, "Polygraphy OnnxrtRunner": time_polygraphy(runner)}


def work(words: Sequence[str] | None, stack: ExitStack) -> None:
    script_options = add_device_options(parser(__doc__))
    script_options.add_argument("model", help="nano, an exported ONNX file or an engine")
    script_options.add_argument("--frames", type=positive, default=200, help="timed frames (200)")
    script_options.add_argument("--warmup", type=int, help="warm-up frames (until times settle)")
    script_options.add_argument(
        "--within", type=float, default=0.02, help="largest accepted relative difference of medians (0.02)"
    )
    arguments = script_options.parse_args(words)
    suffix = model_path(arguments.model).suffix
    if suffix not in (".onnx", ".plan", ".engine"):
        raise OptionError(
            f"No other timer can run {arguments.model}.",
            "They run only ONNX files and engines.",
            "Create one with mde export or mde build.",
        )
    options = SessionOptions(device=arguments.device, threads=arguments.threads, yields=True)
    ours, path = open_ours(arguments.model, options, stack)
    session = ours.predictor.session
    timers = [
        ForeignTimer(name, run, session)
        for name, run in other_timers(path, session.device, arguments.threads, stack).items()
    ]
    candidates = [replace(ours, predictor=DepthPredictor(timer, ours.predictor.model)) for timer in timers]
    config = BenchConfig(iterations=arguments.frames, warmup=arguments.warmup, protocol="network")
    result, *_ = bench([ours, *candidates], reference_frames(), config)
    rows, deviations = [(OURS, f"{result.latency.p50_ms:.3f}", "", "")], []
    for timer in timers:
        times_ms = np.array(
            timer.recorded_ms[-arguments.frames :]
        )  # the first ones are the depth check and the warm-up
        ratio = ratio_interval(times_ms, result.frames_ms, paired=True)
        interval = f"{ratio.low:.3f} to {ratio.high:.3f}"
        rows.append((timer.backend, f"{np.median(times_ms):.3f}", f"{ratio.ratio:.3f}", interval))
        if ratio.low > 1 + arguments.within or ratio.high < 1 - arguments.within:
            deviations.append(f"{timer.backend}: {ratio.describe(f'as {OURS}')}")
    about = (
        f"{path.name}, {session.backend} {session.version} on {session.device}, {arguments.frames} interleaved frames"
    )
    notes = (about, f"from {result.boundary}", *(f"note: {remark}" for remark in result.telemetry.remarks()))
    print_table(Table(header=("timer", "p50 ms", "ratio", "95 %"), rows=tuple(rows), notes=notes))
    if deviations:
        what = f"The timers differ by more than {arguments.within:.0%}."
        raise GateError(what, "; ".join(deviations), "Close other programs and raise --frames.")


def main(words: Sequence[str] | None = None) -> int:
    return run_script(work, words)


if __name__ == "__main__":
    sys.exit(main())
