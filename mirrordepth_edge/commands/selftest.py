"""`mde selftest`: everything once on this machine, and a report to send back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mirrordepth_edge.bench.selftest_result import SelfTest, SubjectResult


def selftest(
    report: Annotated[Path, typer.Option(metavar="DIR", help="Folder for selftest.json and .html.")] = Path("selftest"),
    quick: Annotated[bool, typer.Option("--quick", help="nano alone, and less of everything.")] = False,
    soak: Annotated[
        float | None, typer.Option(min=0.01, metavar="MINUTES", help="Of runs without pause, in each precision.  [0.5]")
    ] = None,
) -> None:
    """Build, verify and measure on this machine, and write a report to send back.

    nano and, with a GPU and PyTorch, vitb16 with random weights, in FP32, FP16 and INT8. The report holds versions and
    figures, and no names, paths, addresses or serial numbers; nothing is sent. Exits with 0 if all that ran passed, 3
    if something failed, 4 if no engine could be run, after testing what the CPU can.
    """
    from mirrordepth_edge.bench.selftest import run_selftest
    from mirrordepth_edge.bench.selftest_result import anonymise
    from mirrordepth_edge.commands.terminal import console, progress_bar
    from mirrordepth_edge.report.html import save_page
    from mirrordepth_edge.report.selftest import selftest_page, verdict
    from mirrordepth_edge.support.files import ensure_folder, write_json

    ensure_folder(report)
    with progress_bar() as bar:
        task = bar.add_task("looking around", total=None)
        result = anonymise(
            run_selftest(
                quick=quick,
                soak_s=None if soak is None else soak * 60,
                on_stage=lambda stage: bar.update(task, description=stage),
                on_tested=lambda tested: bar.console.print(_line(tested), style=_style(tested)),
            )
        )
    write_json(report / "selftest.json", _plain(result))
    command = "mde selftest --report DIR" + " --quick" * quick + ("" if soak is None else f" --soak {soak:g}")
    save_page(report / "selftest.html", selftest_page(result, command=command))
    console.print(verdict(result))
    if result.no_engine is not None:
        console.print(f"  why:  {result.no_engine}")
    for name in ("selftest.json", "selftest.html"):
        console.print(f"wrote {report / name}")
    console.print("  next: look through selftest.html, then attach both files to an issue; nothing has been sent")
    raise typer.Exit(result.exit_code)


def _plain(result: SelfTest) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(result)


def _line(tested: SubjectResult) -> str:
    """A subject in one line: what passed with its latency, or what did not and why."""
    head = f"{tested.subject}: {tested.outcome}"
    bad = next((step for step in tested.steps if step.outcome != "passed" and step.name != "build"), None)
    failed = next((step for step in tested.steps if step.outcome == "failed"), bad)
    if failed is not None and (tested.outcome != "passed" or failed.outcome == "failed"):
        return f"{head}; {failed.name}: {failed.reason}"
    p50, age = tested.figure("bench", "p50"), tested.figure("stream", "age p50")
    figures = [f"{word} {value:.3g} ms" for word, value in (("p50", p50), ("age", age)) if value is not None]
    return ", ".join([head, f"{tested.backend} {tested.backend_version} on {tested.device}", *figures])


def _style(tested: SubjectResult) -> str:
    return {"passed": "default", "failed": "red", "skipped": "dim"}[tested.outcome]
