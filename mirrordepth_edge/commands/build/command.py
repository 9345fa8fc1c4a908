"""`mde build`: build an engine from an ONNX file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from mirrordepth_edge.artefact import SHIPPED, model_path
from mirrordepth_edge.commands.parameters import choice, parse_range
from mirrordepth_edge.config import BuildConfig
from mirrordepth_edge.errors import OptionError

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
    from mirrordepth_edge.commands.build.main import build_and_report, print_trtexec_commands

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
    path = model_path(model)
    plan = output or (Path(f"{model}.plan") if model in SHIPPED else path.with_suffix(".plan"))
    if print_trtexec:
        print_trtexec_commands(path, plan, target, config)
    else:
        build_and_report(path, plan, target, config)
