"""`mde export`: checkpoint to ONNX, proven against PyTorch or on depth, and on to an engine where one can be built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirrordepth_edge.commands.parameters import (
    NANO,
    ClipWeights,
    Data,
    DepthRoot,
    KbCrop,
    ListFile,
    UnitsPerMetre,
)
from mirrordepth_edge.commands.sizes import Size, asked_sizes

if TYPE_CHECKING:
    from mirrordepth_edge.config import Precision


def export(
    model: Annotated[
        str, typer.Argument(help="A .safetensors checkpoint, or nano, which ships with mde; for INT8 also FP32 .onnx.")
    ] = NANO,
    fp32: Annotated[bool, typer.Option("--fp32", help="Everything in FP32 (the default without --target).")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="FP16, but LayerNormalization and the metric head.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="INT8 where depth allows it; needs --calib.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="ONNX file to write.")] = Path("model.onnx"),
    size: Size = None,
    dynamic: Annotated[
        str | None,
        typer.Option(metavar="MIN,OPT,MAX", help="One file for several sizes: 160x224,224x288,448x576, or NxHxW each."),
    ] = None,
    io: Annotated[str, typer.Option(help="uint8: RGB [1,H,W,3]; float: normalised [1,3,H,W].")] = "uint8",
    target: Annotated[str | None, typer.Option(help="Where it will run, such as cpu, orin-nano, rtx-ada.")] = None,
    frames: Annotated[Path | None, typer.Option(help="Picture or folder for parity and FP16 ranges.")] = None,
    calib: Annotated[str | None, typer.Option(help="INT8, FP16: calibration set, as mde calibrate wrote it.")] = None,
    calib_method: Annotated[
        str, typer.Option(help="INT8: how ranges are taken: percentile, mse, max, entropy.")
    ] = "percentile",
    max_absrel_loss: Annotated[
        str, typer.Option(metavar="SHARE", help="INT8: by how much AbsRel may grow, or be off FP32's without --root.")
    ] = "1%",
    force: Annotated[bool, typer.Option("--force", help="INT8: write what fails that, marked as failed.")] = False,
    root: Annotated[
        Path | None, typer.Option(help="INT8: pictures with depth to judge on, as in mde evaluate.")
    ] = None,
    data: Data = "auto",
    list_file: ListFile = None,
    depth_root: DepthRoot = None,
    kb_crop: KbCrop = None,
    units_per_metre: UnitsPerMetre = None,
    gate_frames: Annotated[int, typer.Option(min=1, help="INT8: judge on so many of them.")] = 128,
    sweep: Annotated[bool, typer.Option("--sweep", help="INT8: table and picture of accuracy against cost.")] = False,
    pick: Annotated[int | None, typer.Option(help="INT8: write this point of the sweep.")] = None,
    triton: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Put the ONNX file, or the .onnx or .plan named, into a repository of Triton."
        ),
    ] = None,
    clip_weights: ClipWeights = None,
    untrained: Annotated[
        str | None, typer.Option(metavar="PRESET", help="Export a preset with random weights, to measure speed only.")
    ] = None,
) -> None:
    """Make ONNX of a checkpoint, and an engine.

    The text tower is gone from the file: the mirror's text feature is a constant, folded into the
    decoder. Nothing is written unless the file's depth is the PyTorch model's; INT8 has to show on
    real frames what it costs. For FP16, INT8 or a GPU target the engine is built too, where this
    machine can.

    --sweep without --target is for this machine's CPU, timed; with a GPU target it is an estimate.
    """
    from mirrordepth_edge.backends.registry import ONNX_SUFFIX, PLAN_SUFFIXES
    from mirrordepth_edge.commands.export.floats import Source, build_if_possible, export_onnx, serve
    from mirrordepth_edge.commands.export.int8 import Gate, export_int8
    from mirrordepth_edge.commands.parameters import data_config
    from mirrordepth_edge.commands.terminal import console
    from mirrordepth_edge.engines.build import load_targets
    from mirrordepth_edge.errors import OptionError
    from mirrordepth_edge.support.files import ensure_folder, require_suffix

    quantised = int8 or sweep or pick is not None
    if fp32 + fp16 + quantised > 1:
        raise OptionError(
            "--fp32, --fp16 and --int8 exclude each other.", "A file has one precision.", "Give one of them."
        )
    if io not in ("uint8", "float"):
        raise OptionError(f"--io {io!r} is unknown.", "It is uint8 or float.", "--io uint8")
    if untrained is not None and (model != NANO or clip_weights is not None):
        raise OptionError("--untrained takes no weights.", "Its own are random.", "Leave one of the two out.")
    if triton is not None and model.endswith((ONNX_SUFFIX, *PLAN_SUFFIXES)) and not (quantised or fp32 or fp16):
        serve(Path(model), triton)
        return
    recipes = load_targets(target) if target else ()
    for_cpu = bool(recipes) and all(recipe.backend == "onnxruntime" for recipe in recipes)
    default: Precision = "fp32" if target is None else recipes[0].precision if recipes else "fp16"
    quantised = quantised or (default == "int8" and not fp32 and not fp16)
    require_suffix(output, (".onnx",), "an ONNX file")
    ensure_folder(output.parent)
    size_hw, sizes = asked_sizes(size, dynamic)
    source = Source(model, untrained, clip_weights, frames, size_hw, io, sizes)  # type: ignore[arg-type]
    if quantised:
        gate = Gate(
            calib=calib,
            method=calib_method,
            limit=max_absrel_loss,
            force=force,
            data=data_config(root, data, list_file, depth_root, kb_crop, units_per_metre) if root else None,
            frames=gate_frames,
        )
        on_cpu = for_cpu or (target is None and (sweep or pick is not None))
        if not export_int8(source, output, gate, recipes, on_cpu=on_cpu, sweep=sweep, pick=pick):
            return
        for_cpu = on_cpu
    else:
        precision: Precision = "fp16" if fp16 else "fp32" if fp32 else default
        of_fp16 = calib if precision == "fp16" else None
        for option, given in (
            ("--calib", calib if of_fp16 is None else None),
            ("--root", root),
            ("--force", force or None),
        ):
            if given is not None:
                raise OptionError(f"{option} is for INT8.", "FP32 and FP16 are proven against PyTorch.", "Add --int8.")
        export_onnx(source._replace(calib=of_fp16), output, precision)
    if triton is not None:
        serve(output, triton)
    if for_cpu:
        return
    if target is not None or fp16 or quantised:
        build_if_possible(output, target)
    else:
        console.print(f"engine: not built for FP32; mde build {output} builds one")
