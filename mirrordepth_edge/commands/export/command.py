"""`mde export`: export a checkpoint to ONNX in FP32, FP16 or INT8, and build an engine."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.commands.export.request import ExportRequest, Int8Options, Source, parse_precision
from mirrordepth_edge.commands.parameters import (
    NANO,
    ClipWeights,
    Data,
    DepthRoot,
    KbCrop,
    ListFile,
    Size,
    UnitsPerMetre,
    choice,
    data_config,
    parse_export_size,
)
from mirrordepth_edge.config import CalibrationMethod, InputKind
from mirrordepth_edge.errors import OptionError

INT8 = "INT8 options"
int8_option = partial(typer.Option, rich_help_panel=INT8)


def export(
    model: Annotated[
        str, typer.Argument(help="A .safetensors checkpoint, or nano; for INT8 also an FP32 .onnx file.")
    ] = NANO,
    fp32: Annotated[bool, typer.Option("--fp32", help="Export in FP32 (default without --target).")] = False,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="FP16, except LayerNorm and the metric head, which stay FP32.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="INT8, except layers that cost too much accuracy; needs --calib.")
    ] = False,
    target: Annotated[str | None, typer.Option(help="Target device, such as here, cpu, orin-nano, rtx-ada.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="ONNX file to write.")] = Path("model.onnx"),
    size: Size = None,
    dynamic: Annotated[
        str | None,
        typer.Option(metavar="MIN,OPT,MAX", help="Dynamic shapes, such as 160x224,224x288,448x576; NxHxW for batches."),
    ] = None,
    io: Annotated[
        InputKind, choice(InputKind, "--io", help="Input: uint8 RGB [1,H,W,3], or normalised float [1,3,H,W].")
    ] = "uint8",
    frames: Annotated[Path | None, typer.Option(help="Image or folder for the parity check and FP16 ranges.")] = None,
    triton: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also copy the model (or the given .onnx or .plan) to a Triton repository."),
    ] = None,
    clip_weights: ClipWeights = None,
    untrained: Annotated[
        str | None, typer.Option(metavar="PRESET", help="Export a preset with random weights, to measure speed.")
    ] = None,
    calib: Annotated[str | None, int8_option(help="Calibration set written by mde calibrate (INT8, FP16).")] = None,
    calib_method: Annotated[
        CalibrationMethod,
        choice(CalibrationMethod, "--calib-method", help="How ranges are computed.", rich_help_panel=INT8),
    ] = "percentile",
    max_absrel_loss: Annotated[
        str,
        int8_option(metavar="SHARE", help="Maximum increase of AbsRel; without --root, maximum deviation from FP32."),
    ] = "1%",
    force: Annotated[bool, int8_option("--force", help="Write the model even if the accuracy check fails.")] = False,
    gate_frames: Annotated[
        int, int8_option(min=1, metavar="N", help="Maximum images of --root for the accuracy check.")
    ] = 128,
    sweep: Annotated[bool, int8_option("--sweep", help="Report accuracy against speed; write no model.")] = False,
    pick: Annotated[int | None, int8_option(metavar="N", help="Write point N of the sweep.")] = None,
    root: Annotated[Path | None, int8_option(help="RGB-D data for the accuracy check.")] = None,
    data: Data = "auto",
    list_file: ListFile = None,
    depth_root: DepthRoot = None,
    kb_crop: KbCrop = None,
    units_per_metre: UnitsPerMetre = None,
) -> None:
    """Export a checkpoint to ONNX, and build an engine.

    The text tower is not exported; its feature of the mirror prompt becomes a constant. The file is written only if
    its depth matches PyTorch's, or for INT8, if the accuracy check passes. For FP16, INT8 or a GPU target, the engine
    is built too if this machine can.

    --sweep without --target is timed on this machine's CPU; for a GPU target it is an estimate.
    """
    precision = parse_precision(fp32, fp16, int8 or sweep or pick is not None)
    if untrained is not None and (model != NANO or clip_weights is not None):
        why = "Its weights are random."
        raise OptionError("--untrained excludes a model and --clip-weights.", why, "Leave one of the two out.")
    size_hw, sizes = parse_export_size(size, dynamic)
    source = Source(
        model=model,
        untrained=untrained,
        clip_weights=clip_weights,
        frames=frames,
        size_hw=size_hw,
        sizes=sizes,
        io=io,
    )
    int8_options = Int8Options(
        method=calib_method,
        max_loss=max_absrel_loss,
        force=force,
        data=data_config(root, data, list_file, depth_root, kb_crop, units_per_metre) if root else None,
        gate_frames=gate_frames,
        sweep=sweep,
        pick=pick,
    )
    request = ExportRequest(
        source=source,
        output=output,
        precision=precision,
        target=target,
        calib=calib,
        int8=int8_options,
        triton=triton,
    )

    # Imported here, so that help and the errors above come at once.
    from mirrordepth_edge.commands.export.pipeline import run_export

    run_export(request)
