"""`mde import-trtexec`: read the timings of trtexec, and make a result that can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.bench.result import BenchResult
from mirrordepth_edge.bench.trtexec_log import AGAIN, TrtexecSummary, read_log, read_times, result_of
from mirrordepth_edge.commands.terminal import console, print_table
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.machine.device import machine
from mirrordepth_edge.report.tables import Table
from mirrordepth_edge.support.files import ensure_folder, write_json

RANKS = ("90", "95", "99")
ROWS = {
    "latency": "latency",
    "host_to_device": "  host to device",
    "compute": "  compute",
    "device_to_host": "  device to host",
    "enqueue": "enqueue (host)",
}


def import_trtexec(
    log: Annotated[Path, typer.Argument(help="Complete output of trtexec.")],
    times: Annotated[Path | None, typer.Option(help="File that the same run wrote with --exportTimes.")] = None,
    model: Annotated[Path | None, typer.Option(help="With --times: the engine that ran, with its manifest.")] = None,
    here: Annotated[bool, typer.Option("--here", help="With --times: the run was on this machine.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the timings.")] = None,
) -> None:
    """Read the timings in the log of trtexec.

    Supports TensorRT 8, 10 and 11. The log alone gives a summary. With --times and --model, the result has raw samples
    and mde bench compare accepts it, together with results of mde bench --protocol trtexec-10 or trtexec-11.
    """
    if (times is None) is not (model is None) or (here and times is None):
        raise OptionError(
            "--times and --model require each other; --here requires both.",
            "A result needs raw samples and the file that was measured.",
            "Give --times and --model, or neither for the summary alone.",
        )
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
    if json_file is not None:
        content = summary.to_json()
        write_json(json_file, content if result is None else result.to_json() | {"trtexec": content})
        console.print(f"wrote {json_file}")


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
