"""`mde build`: ONNX to an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def build(
    model: Annotated[Path, typer.Argument(help="An ONNX file that mde export wrote.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Engine to write.  [MODEL.plan]")] = None,
    target: Annotated[
        str | None, typer.Option(help="here, orin-nano, rtx-ada, … (RTX targets may be joined by commas).")
    ] = None,
) -> None:
    """Build an engine of an ONNX file.

    With TensorRT for this machine's GPU, or with TensorRT for RTX for any RTX GPU, which needs no
    GPU to build. The engine has the precision of the ONNX file.
    """
    build_and_report(model, output or model.with_suffix(".plan"), target)


def build_and_report(model: Path, output: Path, target: str | None) -> None:
    """Build and print what came of it."""
    from mirrordepth_edge.commands.terminal import console, errors
    from mirrordepth_edge.deploy.build import build_engine, plan_build

    plan = plan_build(target)
    with errors.status(f"building with {plan.flavour}"):
        manifest = build_engine(model, output, plan)
    assert manifest.engine is not None, "a plan has an engine"
    where = (
        "compute capability " + ", ".join(manifest.engine.compute_capabilities)
        if manifest.engine.compute_capabilities
        else "this machine's GPU"
    )
    console.print(
        f"wrote {output}  {output.stat().st_size / 1e6:.1f} MB, {manifest.precision.upper()}, "
        f"{manifest.engine.flavour} {manifest.engine.version} for {where}, "
        f"built in {manifest.engine.build_seconds:.1f} s"
    )
    if manifest.engine.flavour == "tensorrt-rtx":
        console.print("  for a Jetson: copy the .onnx and its manifest there and type: mde build model.onnx")
