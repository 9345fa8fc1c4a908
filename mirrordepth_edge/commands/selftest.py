"""`mde selftest`: test and benchmark this machine, and write a report."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.bench.selftest import run_selftest
from mirrordepth_edge.bench.selftest_result import SubjectResult, anonymise
from mirrordepth_edge.commands.terminal import console, progress_bar
from mirrordepth_edge.report.html import save_page
from mirrordepth_edge.report.selftest import selftest_page, verdict
from mirrordepth_edge.support.files import ensure_folder, write_json


def selftest(
    report: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the .json and .html report.")] = Path(
        "selftest"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Test only nano, with fewer runs.")] = False,
    soak: Annotated[
        float | None,
        typer.Option(min=0.01, metavar="MINUTES", help="Continuous run per precision.  [default: 0.5]"),
    ] = None,
) -> None:
    """Test and benchmark this machine, and write a report.

    Builds, verifies and measures nano in FP32, FP16 and INT8 and, with a GPU and PyTorch, vitb16 with random weights.
    The report contains versions and measurements, but no names, paths, addresses or serial numbers; nothing is sent.
    Exits with 0 if all tests passed, 3 if one failed, 4 if no engine can run here (the CPU is tested even then).
    """
    ensure_folder(report)
    with progress_bar() as bar:
        task = bar.add_task("detecting hardware", total=None)
        result = anonymise(
            run_selftest(
                quick=quick,
                soak_s=None if soak is None else soak * 60,
                on_stage=lambda stage: bar.update(task, description=stage),
                on_tested=lambda subject: bar.console.print(_line(subject), style=_style(subject)),
            )
        )
    write_json(report / "selftest.json", asdict(result))
    command = "mde selftest --report DIR" + " --quick" * quick + ("" if soak is None else f" --soak {soak:g}")
    save_page(report / "selftest.html", selftest_page(result, command=command))
    console.print(verdict(result))
    if result.no_engine is not None:
        console.print(f"  why:  {result.no_engine}")
    for name in ("selftest.json", "selftest.html"):
        console.print(f"wrote {report / name}")
    console.print("  next: check selftest.html, then attach both files to an issue; nothing has been sent")
    raise typer.Exit(result.exit_code)


def _line(subject: SubjectResult) -> str:
    """Return one line about a subject: its latency, or the step that failed and why."""
    head = f"{subject.subject}: {subject.outcome}"
    bad = next((step for step in subject.steps if step.outcome != "passed" and step.name != "build"), None)
    failed = next((step for step in subject.steps if step.outcome == "failed"), bad)
    if failed is not None and (subject.outcome != "passed" or failed.outcome == "failed"):
        return f"{head}; {failed.name}: {failed.reason}"
    p50, age = subject.figure("bench", "p50"), subject.figure("stream", "age p50")
    figures = [f"{word} {value:.3g} ms" for word, value in (("p50", p50), ("age", age)) if value is not None]
    return ", ".join([head, f"{subject.backend} {subject.backend_version} on {subject.device}", *figures])


def _style(subject: SubjectResult) -> str:
    return {"passed": "default", "failed": "red", "skipped": "dim"}[subject.outcome]
