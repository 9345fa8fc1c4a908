"""`mde build`: ONNX to an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def build(
    model: Annotated[str, typer.Argument(help="An ONNX file that mde export wrote, or nano.fp16.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Engine to write.  [MODEL.plan]")] = None,
    target: Annotated[
        str | None, typer.Option(help="here, orin-nano, rtx-ada, … (RTX targets may be joined by commas).")
    ] = None,
) -> None:
    """Build an engine of an ONNX file.

    With TensorRT for this machine's GPU, or with TensorRT for RTX for any RTX GPU, which needs no
    GPU to build. The engine has the precision of the ONNX file.
    """
    from mirrordepth_edge.runtime import SHIPPED, model_path

    path = model_path(model)
    beside = Path(f"{model}.plan") if model in SHIPPED else path.with_suffix(".plan")
    build_and_report(path, output or beside, target)


def build_and_report(model: Path, output: Path, target: str | None) -> None:
    """Build and print what came of it."""
    from mirrordepth_edge.commands.terminal import console, errors
    from mirrordepth_edge.deploy.build import build_engine, plan_build

    plan = plan_build(target)
    with errors.status(f"building with {plan.flavour}"):
        manifest = build_engine(model, output, plan)
    assert manifest.engine is not None, "a plan has an engine"
    where = "compute capability " + ", ".join(manifest.engine.compute_capabilities)
    console.print(
        f"wrote {output}  {output.stat().st_size / 1e6:.1f} MB, {manifest.precision.upper()}, "
        f"{manifest.engine.flavour} {manifest.engine.version} for {where}, "
        f"built in {manifest.engine.build_seconds:.1f} s"
    )
    if plan.runs_here:
        parity = manifest.parity
        console.print(f"parity: {parity.runner}, mean {parity.mean_relative:.1e} relative (gate: {parity.limit})")
    else:
        console.print("note: this engine has not been run: no GPU of its kind is here")
    if manifest.engine.flavour == "tensorrt-rtx":
        console.print(f"  for a Jetson: copy {model.name} and its manifest there and type: mde build {model.name}")
