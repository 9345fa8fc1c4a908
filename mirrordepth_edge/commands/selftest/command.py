"""`mde selftest`: test and benchmark this machine, and write a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    from mirrordepth_edge.commands.selftest.main import test_machine

    test_machine(report, quick, soak)
