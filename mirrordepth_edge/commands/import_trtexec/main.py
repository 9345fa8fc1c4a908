"""Print and convert the timings in the log of trtexec."""

from __future__ import annotations

from pathlib import Path

from mirrordepth_edge.bench.result import BenchResult
from mirrordepth_edge.bench.trtexec_log import AGAIN, TrtexecSummary, read_log, read_times, result_of
from mirrordepth_edge.commands.terminal import console, print_table, write_result
from mirrordepth_edge.machine.device import machine
from mirrordepth_edge.report.tables import Table
from mirrordepth_edge.support.files import ensure_folder

RANKS = ("90", "95", "99")
ROWS = {
    "latency": "latency",
    "host_to_device": "  host to device",
    "compute": "  compute",
    "device_to_host": "  device to host",
    "enqueue": "enqueue (host)",
}


def import_log(log: Path, times: Path | None, model: Path | None, *, here: bool, json_file: Path | None) -> None:
    """Print the timings in a log, and write them as JSON if a file was given.

    Args:
        times, model: Raw samples and the engine that was measured; both or neither.
        here: Whether it was measured on this machine.

    Raises:
        InputError: A file cannot be read, or they do not fit together.
    """
    if json_file is not None:
        ensure_folder(json_file.parent)
    summary = read_log(log)
    result = None
    if times is not None and model is not None:
        result = result_of(summary, read_times(times), model, machine() if here else None)
    console.print(_head(summary, result))
    print_table(_table(summary))
    for note in _notes(summary, result):
        console.print(note)
    content = summary.to_json()
    write_result(json_file, content if result is None else result.to_json() | {"trtexec": content})


def _head(summary: TrtexecSummary, result: BenchResult | None) -> str:
    name = summary.model or "an unnamed engine" if result is None else f"{result.artefact}  {result.precision.upper()}"
    version = f" of TensorRT {summary.version}" if summary.version else ""
    return f"{name}  trtexec{version} on {summary.device or 'an unnamed GPU'}\nfrom {summary.boundary}"


def _table(summary: TrtexecSummary) -> Table:
    """Return a row per time of trtexec, in milliseconds, without copies that were not made."""
    rows = []
    for field, label in ROWS.items():
        if not summary.transfers and field in ("host_to_device", "device_to_host", "compute"):
            continue
        spread = getattr(summary, field)
        ranks = [spread.percentiles_ms.get(rank) for rank in RANKS]
        figures = [spread.min_ms, spread.mean_ms, spread.median_ms, *ranks, spread.max_ms]
        rows.append((label, *("" if figure is None else f"{figure:.3f}" for figure in figures)))
    return Table(header=("ms", "min", "mean", "p50", *(f"p{rank}" for rank in RANKS), "max"), rows=tuple(rows))


def _notes(summary: TrtexecSummary, result: BenchResult | None) -> list[str]:
    queries = "" if summary.queries is None else f", {summary.queries} queries"
    span = "" if summary.seconds is None else f" in {summary.seconds:.2f} s"
    warmup = "" if summary.warmup is None else f" after {summary.warmup} warm-up queries"
    notes = [f"throughput: {summary.throughput_hz:.1f} queries/s{queries}{span}{warmup}"]
    if not summary.passed:
        notes.append("note: the log ends before trtexec reports that it passed")
    if summary.cuda_graph is not None:
        notes.append(f"note: trtexec {'replayed a CUDA graph' if summary.cuda_graph else 'used no CUDA graph'}")
    notes += [f"warning (trtexec): {warning}" for warning in summary.warnings]
    if result is None:
        notes.append("note: mde bench compare needs raw samples; this summary has none")
        return [*notes, f"  next: {AGAIN}, then mde import-trtexec trtexec.log --times times.json --model model.plan"]
    low_ms, high_ms = result.latency.p50_interval_ms
    notes.append(f"p50 of the raw samples: {result.latency.p50_ms:.3f} ms ({low_ms:.3f} to {high_ms:.3f})")
    for finding in result.findings:
        notes += [f"warning: {finding.what}", f"  next: {finding.cure}"]
    notes.append("depth: not checked; the input of trtexec is random")
    if summary.model is not None and Path(summary.model).name != result.artefact:
        notes.append(f"note: the log names {summary.model}")
    return notes
