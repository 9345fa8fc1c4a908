"""`mde build`: ONNX to an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirrordepth_edge.commands.build_options import (
    Dynamic,
    HardwareCompat,
    NoTimingCache,
    OptimisationLevel,
    Verbosity,
    VersionCompat,
    Weights,
    Workspace,
    build_config,
)

if TYPE_CHECKING:
    from rich.progress import Progress

    from mirrordepth_edge.config import BuildConfig
    from mirrordepth_edge.engines.build import BuildPlan
    from mirrordepth_edge.manifest import EngineInfo, Manifest


def build(
    model: Annotated[str, typer.Argument(help="An ONNX file that mde export wrote, or nano.fp16.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Engine to write.  [MODEL.plan]")] = None,
    target: Annotated[
        str | None, typer.Option(help="here, orin-nano, rtx-ada, … (RTX targets may be joined by commas).")
    ] = None,
    workspace: Workspace = None,
    optimisation_level: OptimisationLevel = None,
    no_timing_cache: NoTimingCache = False,
    verbosity: Verbosity = "detailed",
    dynamic: Dynamic = None,
    hardware_compat: HardwareCompat = "none",
    version_compat: VersionCompat = False,
    weights: Weights = "full",
    print_trtexec: Annotated[
        bool, typer.Option("--print-trtexec", help="Print trtexec's command for the same, and build nothing.")
    ] = False,
) -> None:
    """Build an engine of an ONNX file.

    With TensorRT for this machine's GPU, or with TensorRT for RTX for any RTX GPU, which needs no
    GPU to build. The engine has the precision of the ONNX file.
    """
    from mirrordepth_edge.artefact import SHIPPED, model_path

    path = model_path(model)
    beside = Path(f"{model}.plan") if model in SHIPPED else path.with_suffix(".plan")
    config = build_config(
        workspace,
        optimisation_level,
        no_timing_cache,
        verbosity,
        dynamic,
        hardware_compat,
        version_compat,
        weights,
    )
    if print_trtexec:
        _print_trtexec(path, output or beside, target, config)
        return
    build_and_report(path, output or beside, target, config)


def _print_trtexec(model: Path, output: Path, target: str | None, config: BuildConfig) -> None:
    from mirrordepth_edge.commands.terminal import console
    from mirrordepth_edge.engines.build import HERE, load_targets
    from mirrordepth_edge.engines.trtexec import trtexec_commands
    from mirrordepth_edge.manifest import read_manifest

    console.print(trtexec_commands(model, output, read_manifest(model), load_targets(target or HERE), config))


def build_and_report(model: Path, output: Path, target: str | None, config: BuildConfig | None = None) -> None:
    """Build and print what came of it."""
    from mirrordepth_edge.artefact import Artefact
    from mirrordepth_edge.commands.terminal import console
    from mirrordepth_edge.engines.build import build_engine, is_verified, plan_build
    from mirrordepth_edge.export.parity import figures

    plan = plan_build(target)
    artefact = Artefact.open(model)
    _warn(plan, artefact.manifest)
    with _progress() as bar:
        task = bar.add_task(f"building with {plan.flavour}", total=1.0, phase="")
        manifest = build_engine(
            artefact,
            output,
            plan,
            config,
            lambda now: bar.update(task, completed=now.fraction, phase=now.phase),
        )
    engine = manifest.engine
    assert engine is not None, "a plan has an engine"
    console.print(
        f"wrote {output}  {output.stat().st_size / 1e6:.1f} MB, {manifest.precision.upper()}, {engine.flavour} "
        f"{engine.version} for compute capability {', '.join(engine.compute_capabilities)}, {_effort(engine)}"
    )
    parity = manifest.parity
    if is_verified(manifest):
        console.print(f"parity: {parity.runner}, {figures(parity)} (gate: {parity.limit})")
    else:
        console.print(f"note: this engine has not been run: {_why_not_run(plan)}")
    if engine.flavour == "tensorrt-rtx":
        console.print(f"  for a Jetson: copy {model.name} and its manifest there and type: mde build {model.name}")


def _progress() -> Progress:
    """A bar on the error stream; the builder's steps are of very different lengths, so no time is promised."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from mirrordepth_edge.commands.terminal import errors

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    phase = TextColumn("{task.fields[phase]}")
    shown = errors.is_terminal
    return Progress(SpinnerColumn(), *columns, phase, console=errors, transient=True, disable=not shown)


def _warn(plan: BuildPlan, manifest: Manifest) -> None:
    """What others saw go wrong with such engines, with their threads."""
    from mirrordepth_edge.commands.terminal import errors
    from mirrordepth_edge.engines.build import problems_of

    for problem in problems_of(plan, manifest.precision):
        errors.print(f"known problem ({problem.severity}, {problem.certainty}): {problem.what}", style="yellow")
        errors.print(f"  seen on: {problem.seen_on}\n  instead: {problem.instead}\n  see:     {problem.links[0]}")


def _effort(engine: EngineInfo) -> str:
    peak = "" if engine.peak_memory_mb is None else f", {engine.peak_memory_mb:.0f} MB of main memory at most"
    return f"built in {engine.build_seconds:.1f} s{peak}"


def _why_not_run(plan: BuildPlan) -> str:
    from mirrordepth_edge.machine.device import nvidia_gpus

    if any(gpu.compute_capability in plan.compute_capabilities for gpu in nvidia_gpus()):
        return "it is for another GPU than the first one, which is what runs here"
    return "no GPU of its kind is here"
