"""Compare third-party ONNX depth models with ours: same frames, same timed section, interleaved.

    python benchmarks/peers/onnx_depth.py --peer midas_v21_small model.onnx --peer mine.toml mine.onnx --vs nano

A description, in `models/` or a TOML file, defines the input and output of a model (README.md). The timed section is
from a uint8 camera frame to float32 depth of the frame's size, both in host memory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from common import add_device_options, open_ours, parser, positive, run_script
from foreign import open_foreign, read_description

from mirrordepth_edge.bench.measure import Candidate, bench
from mirrordepth_edge.bench.result import BenchResult
from mirrordepth_edge.bench.stats import ratio_interval
from mirrordepth_edge.commands.terminal import print_table
from mirrordepth_edge.config import BenchConfig, SessionOptions
from mirrordepth_edge.export.parity import reference_frames
from mirrordepth_edge.report.tables import Table
from mirrordepth_edge.support.files import sha256_of, write_json

HEADER = ("model", "depth", "weights", "MB", "p50 ms (95 %)", "p99 ms", "frames/s")


def table(results: Sequence[BenchResult], kinds: Sequence[str], megabytes: Sequence[float]) -> Table:
    """Create a table with a row per model, ours first; the notes have ratios to ours and warnings."""
    rows, notes = [], []
    ours = results[0]
    for result, kind, size in zip(results, kinds, megabytes, strict=True):
        latency = result.latency
        p50 = "{:.1f} ({:.1f} to {:.1f})".format(latency.p50_ms, *latency.p50_interval_ms)
        figures = (f"{size:.1f}", p50, f"{latency.p99_ms:.1f}", f"{latency.throughput_hz:.1f}")
        rows.append((result.artefact, kind, result.precision.upper(), *figures))
        if result is not ours:
            ratio = ratio_interval(result.frames_ms, ours.frames_ms, paired=True)
            notes.append(f"{result.artefact}: {ratio.describe(f'as {ours.artefact}')}")
    device = ours.computer if ours.device == "cpu" else ours.device
    notes.append(f"{ours.backend} {ours.backend_version} on {device}, {ours.latency.samples} interleaved frames")
    notes.append(f"from {ours.boundary}, or depth without a unit if not metric")
    notes += [f"warning: {result.artefact}: {warning.what}" for result in results for warning in result.findings]
    return Table(
        header=HEADER, rows=tuple(rows), notes=(*notes, *(f"note: {remark}" for remark in ours.telemetry.remarks()))
    )


def work(words: Sequence[str] | None, stack: ExitStack) -> None:
    options = add_device_options(parser(__doc__))
    options.add_argument("--peer", nargs=2, action="append", required=True, metavar=("DESCRIPTION", "FILE.onnx"))
    options.add_argument("--vs", default="nano", metavar="OURS", help="our model (nano)")
    options.add_argument("--frames", type=positive, default=200, help="timed frames (200)")
    options.add_argument("--warmup", type=int, help="warm-up frames (until times settle)")
    options.add_argument(
        "--json", type=Path, help="write our result here, peers to NAME.2.json and so on, for mde bench compare"
    )
    arguments = options.parse_args(words)
    descriptions = [read_description(name) for name, _ in arguments.peer]
    session_options = SessionOptions(device=arguments.device, threads=arguments.threads, yields=True)
    ours, path = open_ours(arguments.vs, session_options, stack)
    candidates, kinds, megabytes = [ours], ["metric"], [path.stat().st_size / 1e6]
    for (_, name), description in zip(arguments.peer, descriptions, strict=True):
        predictor, size = open_foreign(Path(name), description, session_options)
        stack.callback(predictor.close)
        candidates.append(Candidate(predictor=predictor, name=description.name, sha256=sha256_of(Path(name))))
        kinds.append(description.output.kind)
        megabytes.append(size)
    results = bench(candidates, reference_frames(), BenchConfig(iterations=arguments.frames, warmup=arguments.warmup))
    print_table(table(results, kinds, megabytes))
    for number, result in enumerate(results if arguments.json else (), 1):
        write_json(arguments.json if number == 1 else arguments.json.with_suffix(f".{number}.json"), result.to_json())


def main(words: Sequence[str] | None = None) -> int:
    return run_script(work, words)


if __name__ == "__main__":
    sys.exit(main())
