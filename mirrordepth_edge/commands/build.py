"""`mde build`: build an engine from an ONNX file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from mirrordepth_edge.artefact import SHIPPED, Artefact, model_path
from mirrordepth_edge.commands.parameters import choice, parse_range
from mirrordepth_edge.commands.terminal import console, errors
from mirrordepth_edge.config import BuildConfig
from mirrordepth_edge.engines.build import (
    HERE,
    BuildPlan,
    build_engine,
    is_verified,
    load_targets,
    plan_build,
    problems_of,
)
from mirrordepth_edge.engines.trtexec import trtexec_commands
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.export.parity import figures
from mirrordepth_edge.machine.device import nvidia_gpus
from mirrordepth_edge.manifest import EngineInfo, Manifest, read_manifest

Verbosity = Literal["detailed", "layer-names", "none"]
HardwareCompat = Literal["none", "ampere+", "same-cc"]
Weights = Literal["full", "stripped"]

TENSORRT = "Options of TensorRT (not TensorRT for RTX)"
tensorrt_option = partial(typer.Option, rich_help_panel=TENSORRT)


def build(
    model: Annotated[str, typer.Argument(help="An ONNX file written by mde export, nano or nano.fp16.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Engine to write.  [default: MODEL.plan]")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="here, orin-nano, rtx-ada, …; several RTX targets as A,B.  [default: here, else all RTX]"),
    ] = None,
    dynamic: Annotated[
        str | None,
        typer.Option(
            metavar="MIN,OPT,MAX", help="Range of a model with dynamic shapes, each [Nx]HxW.  [default: the model's]"
        ),
    ] = None,
    workspace: Annotated[
        float | None,
        typer.Option(metavar="GIB", help="Maximum GPU memory for a kernel's workspace.  [default: no limit]"),
    ] = None,
    verbosity: Annotated[
        Verbosity, choice(Verbosity, "--verbosity", help="What mde audit can read from the engine.")
    ] = "detailed",
    print_trtexec: Annotated[
        bool, typer.Option("--print-trtexec", help="Print the equivalent trtexec command and exit.")
    ] = False,
    optimisation_level: Annotated[
        int | None,
        tensorrt_option(min=0, max=5, metavar="0-5", help="How long to search for fast kernels.  [default: 3]"),
    ] = None,
    no_timing_cache: Annotated[
        bool, tensorrt_option("--no-timing-cache", help="Do not read or write the timing cache.")
    ] = False,
    hardware_compat: Annotated[
        HardwareCompat,
        choice(
            HardwareCompat,
            "--hardware-compat",
            help="Other GPUs that can run the engine, at some cost in speed.",
            rich_help_panel=TENSORRT,
        ),
    ] = "none",
    version_compat: Annotated[
        bool,
        tensorrt_option("--version-compat", help="Run in later TensorRT versions too; includes their lean runtime."),
    ] = False,
    weights: Annotated[
        Weights,
        choice(
            Weights,
            "--weights",
            help="stripped: refit the weights from the ONNX file next to the engine.",
            rich_help_panel=TENSORRT,
        ),
    ] = "full",
) -> None:
    """Build a TensorRT engine from an ONNX file.

    Uses TensorRT for this machine's GPU, or TensorRT for RTX for any RTX GPU; the latter needs no GPU to build. The
    engine has the precision of the ONNX file.
    """
    if workspace is not None and not 0 < workspace < float("inf"):
        raise OptionError(f"--workspace {workspace:g} is not an amount of memory.", "It is in GiB.", "--workspace 2")
    path = model_path(model)
    plan_file = output or (Path(f"{model}.plan") if model in SHIPPED else path.with_suffix(".plan"))
    config = BuildConfig(
        workspace_gib=workspace,
        optimisation_level=optimisation_level,
        timing_cache=not no_timing_cache,
        verbosity=verbosity,
        dynamic=None if dynamic is None else parse_range(dynamic),
        hardware_compat=hardware_compat,
        version_compat=version_compat,
        weights=weights,
    )
    if print_trtexec:
        console.print(trtexec_commands(path, plan_file, read_manifest(path), load_targets(target or HERE), config))
    else:
        build_and_report(path, plan_file, target, config)


def build_and_report(model: Path, output: Path, target: str | None, config: BuildConfig | None = None) -> None:
    """Build an engine and print its size, effort and parity."""
    plan = plan_build(target)
    artefact = Artefact.open(model)
    _print_known_problems(plan, artefact.manifest)
    with _progress() as bar:
        task = bar.add_task(f"building with {plan.flavour}", total=1.0, phase="")
        manifest = build_engine(
            artefact,
            output,
            plan,
            config,
            lambda progress: bar.update(task, completed=progress.fraction, phase=progress.phase),
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
        console.print(f"note: the engine was not run: {_why_not_run(plan)}")
    if engine.flavour == "tensorrt-rtx":
        console.print(f"  for a Jetson: copy {model.name} and its manifest there and type: mde build {model.name}")


def _progress() -> Progress:
    """Return a progress bar on stderr, without a remaining time: the builder's phases differ too much in length."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    phase = TextColumn("{task.fields[phase]}")
    is_hidden = not errors.is_terminal
    return Progress(SpinnerColumn(), *columns, phase, console=errors, transient=True, disable=is_hidden)


def _print_known_problems(plan: BuildPlan, manifest: Manifest) -> None:
    for problem in problems_of(plan, manifest.precision):
        errors.print(f"known problem ({problem.severity}, {problem.certainty}): {problem.what}", style="yellow")
        errors.print(f"  seen on: {problem.seen_on}\n  instead: {problem.instead}\n  see:     {problem.links[0]}")


def _effort(engine: EngineInfo) -> str:
    peak = "" if engine.peak_memory_mb is None else f", {engine.peak_memory_mb:.0f} MB peak memory"
    return f"built in {engine.build_seconds:.1f} s{peak}"


def _why_not_run(plan: BuildPlan) -> str:
    if any(gpu.compute_capability in plan.compute_capabilities for gpu in nvidia_gpus()):
        return "it is for a GPU other than the first one, which is the one that runs engines"
    return "this machine has no GPU of that kind"
