"""Other people's ONNX depth models beside ours: the same frames, the same boundary, in turn, one table.

    python benchmarks/peers/onnx_depth.py --peer midas_v21_small model.onnx --peer mine.toml mine.onnx --vs nano

A description, named in `models/` or a TOML file, says what goes into a model and what comes out (README.md).
Each frame passes all models before the next one does: from a uint8 camera frame in host memory to float32 depth of
the frame's size in host memory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from common import add_placing, ends, open_ours, parser, positive
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
    """One row a model, ours first; below, ratios to ours in words and what speaks against the figures."""
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
    notes.append(f"{ours.backend} {ours.backend_version} on {device}, {ours.latency.samples} frames in turn")
    notes.append(f"from {ours.boundary}, or depth without a unit where it is not metric")
    notes += [f"warning: {each.artefact}: {found.what}" for each in results for found in each.findings]
    return Table(
        header=HEADER, rows=tuple(rows), notes=(*notes, *(f"note: {each}" for each in ours.telemetry.remarks()))
    )


def work(words: Sequence[str] | None, stack: ExitStack) -> None:
    options = add_placing(parser(__doc__))
    options.add_argument("--peer", nargs=2, action="append", required=True, metavar=("DESCRIPTION", "FILE.onnx"))
    options.add_argument("--vs", default="nano", metavar="OURS", help="our model (nano)")
    options.add_argument("--frames", type=positive, default=200, help="timed frames (200)")
    options.add_argument("--warmup", type=int, help="frames before that (until times settle)")
    options.add_argument(
        "--json", type=Path, help="write ours here, peers to NAME.2.json and so on; mde bench reads it"
    )
    told = options.parse_args(words)
    descriptions = [read_description(name) for name, _ in told.peer]
    placing = SessionOptions(device=told.device, threads=told.threads, yields=True)
    ours, path = open_ours(told.vs, placing, stack)
    candidates, kinds, megabytes = [ours], ["metric"], [path.stat().st_size / 1e6]
    for (_, name), description in zip(told.peer, descriptions, strict=True):
        predictor, size = open_foreign(Path(name), description, placing)
        stack.callback(predictor.close)
        candidates.append(Candidate(predictor=predictor, name=description.name, sha256=sha256_of(Path(name))))
        kinds.append(description.output.kind)
        megabytes.append(size)
    results = bench(candidates, reference_frames(), BenchConfig(iterations=told.frames, warmup=told.warmup))
    print_table(table(results, kinds, megabytes))
    for place, result in enumerate(results if told.json else (), 1):
        write_json(told.json if place == 1 else told.json.with_suffix(f".{place}.json"), result.to_json())


def main(words: Sequence[str] | None = None) -> int:
    return ends(work, words)


if __name__ == "__main__":
    sys.exit(main())
