"""Do other stopwatches agree with ours? The same file and the same frames, in turn, frame by frame, in one process.

    python benchmarks/peers/agreement.py nano
    python benchmarks/peers/agreement.py depth.plan

Ours is `mde bench --protocol network`. The others run the file by themselves and read their own clocks: for an ONNX
file, `onnxruntime.InferenceSession.run` between two looks at `perf_counter`, and Polygraphy's `OnnxrtRunner`; for an
engine, Polygraphy's `TrtRunner` (not yet run on hardware). Ends with 3 where medians are further apart than --within
and the interval of their ratio leaves no doubt. All sessions of ONNX Runtime let go of the cores after a run
(`session.force_spinning_stop`); else threads of one would spin on while the next one is timed.
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
from common import add_placing, ends, open_ours, parser, positive

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
"""Runs the network once; its outputs, and the milliseconds that it took by a clock of its own."""
OURS = "mde bench"


class Watched(CheckedSession):
    """Runs of another tool, in the place of one of our sessions, with what its own stopwatch said."""

    def __init__(self, name: str, run: Run, ours: Session) -> None:
        self.backend, self.version, self.device, self.precision = name, "", ours.device, ours.precision
        self.inputs, self.outputs = ours.inputs, ours.outputs
        self.said_ms: list[float] = []
        self._run = run

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        outputs, milliseconds = self._run(feeds)
        self.said_ms.append(milliseconds)
        return dict(outputs)


def create_inference_session(path: Path, device: str, threads: int | None) -> Any:
    """ONNX Runtime as it comes."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads or 0  # 0 leaves it to ONNX Runtime
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    provider = "CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"
    return onnxruntime.InferenceSession(str(path), settings, providers=[provider])


def plain(session: Any) -> Run:
    """What anybody would write; nothing of ours is in it."""
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Mapping[str, npt.NDArray[Any]]) -> tuple[Mapping[str, npt.NDArray[Any]], float]:
        began = perf_counter()
        outputs = session.run(None, feeds)
        ended = perf_counter()
        return dict(zip(names, outputs, strict=True)), (ended - began) * 1e3

    return run


def polygraphy(runner: Any) -> Run:
    """Polygraphy, and what it says itself."""

    def run(feeds: Mapping[str, npt.NDArray[Any]]) -> tuple[Mapping[str, npt.NDArray[Any]], float]:
        outputs = runner.infer(feeds, check_inputs=False)
        return outputs, runner.last_inference_time() * 1e3

    return run


def others(path: Path, device: str, threads: int | None, stack: ExitStack) -> dict[str, Run]:
    """The stopwatches that this file can be run with."""
    if path.suffix != ".onnx":
        from polygraphy.backend.common import BytesFromPath
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner

        engine = stack.enter_context(TrtRunner(EngineFromBytes(BytesFromPath(str(path)))))
        return {"Polygraphy TrtRunner": polygraphy(engine)}
    from polygraphy.backend.onnxrt import OnnxrtRunner

    runner = stack.enter_context(OnnxrtRunner(create_inference_session(path, device, threads)))
    loop = plain(create_inference_session(path, device, threads))
    return {"InferenceSession.run": loop, "Polygraphy OnnxrtRunner": polygraphy(runner)}


def work(words: Sequence[str] | None, stack: ExitStack) -> None:
    options = add_placing(parser(__doc__))
    options.add_argument("model", help="nano, an ONNX file of ours or an engine")
    options.add_argument("--frames", type=positive, default=200, help="timed frames (200)")
    options.add_argument("--warmup", type=int, help="frames before that (until times settle)")
    options.add_argument("--within", type=float, default=0.02, help="how far medians may be apart (0.02)")
    told = options.parse_args(words)
    suffix = model_path(told.model).suffix
    if suffix not in (".onnx", ".plan", ".engine"):
        why = "They take ONNX files and engines."
        raise OptionError(
            f"No other stopwatch runs {told.model}.", why, "Make one of these with mde export or mde build."
        )
    options_of_ours = SessionOptions(device=told.device, threads=told.threads, yields=True)
    ours, path = open_ours(told.model, options_of_ours, stack)
    session = ours.predictor.session
    watched = [Watched(name, run, session) for name, run in others(path, session.device, told.threads, stack).items()]
    candidates = [replace(ours, predictor=DepthPredictor(each, ours.predictor.model)) for each in watched]
    config = BenchConfig(iterations=told.frames, warmup=told.warmup, protocol="network")
    result, *_ = bench([ours, *candidates], reference_frames(), config)
    rows, off = [(OURS, f"{result.latency.p50_ms:.3f}", "", "")], []
    for each in watched:
        said = np.array(each.said_ms[-told.frames :])  # before them, the check of depth and the warm-up
        ratio = ratio_interval(said, result.frames_ms, paired=True)
        interval = f"{ratio.low:.3f} to {ratio.high:.3f}"
        rows.append((each.backend, f"{np.median(said):.3f}", f"{ratio.ratio:.3f}", interval))
        if ratio.low > 1 + told.within or ratio.high < 1 - told.within:
            off.append(f"{each.backend}: {ratio.describe(f'as {OURS}')}")
    about = f"{path.name}, {session.backend} {session.version} on {session.device}, {told.frames} frames in turn"
    notes = (about, f"from {result.boundary}", *(f"note: {remark}" for remark in result.telemetry.remarks()))
    print_table(Table(header=("stopwatch", "p50 ms", "ratio", "95 %"), rows=tuple(rows), notes=notes))
    if off:
        what = f"Stopwatches are further apart than {told.within:.0%}."
        raise GateError(what, "; ".join(off), "Close other programs, and raise --frames.")


def main(words: Sequence[str] | None = None) -> int:
    return ends(work, words)


if __name__ == "__main__":
    sys.exit(main())
