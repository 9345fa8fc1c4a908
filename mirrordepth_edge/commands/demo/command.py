"""`mde demo`: run the full pipeline on one photo with measured depth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder.")] = Path("demo"),
) -> None:
    """Run the full pipeline on one photo.

    Exports the shipped checkpoint to ONNX, builds an engine if this machine can, measures latency, estimates the depth
    of a photo and compares it with measured depth.
    """
    from mirrordepth_edge.commands.demo.main import run_demo

    run_demo(output)
