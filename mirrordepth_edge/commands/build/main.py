"""Build engines and print what was built."""

from __future__ import annotations

from pathlib import Path

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from mirrordepth_edge.artefact import Artefact
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
from mirrordepth_edge.export.parity import figures
from mirrordepth_edge.machine.device import nvidia_gpus
from mirrordepth_edge.manifest import EngineInfo, Manifest


def print_trtexec_commands(model: Path, output: Path, target: str | None, config: BuildConfig) -> None:
    """Print the commands of trtexec that build the same engines."""
    artefact = Artefact.open(model)
    targets = load_targets(target or HERE)
    console.print(trtexec_commands(artefact.path, output, artefact.manifest, targets, config))


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
        name = artefact.name
        console.print(f"  for a Jetson: copy {name} and its manifest there and type: mde build {name}")


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
