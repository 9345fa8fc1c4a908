"""`mde demo`: run the full pipeline on one photo with measured depth."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from mirrordepth_edge.backends.base import Available
from mirrordepth_edge.backends.registry import backend, backend_for
from mirrordepth_edge.commands.export.command import export
from mirrordepth_edge.commands.terminal import console
from mirrordepth_edge.errors import missing_package
from mirrordepth_edge.evaluation.metrics import DepthMetrics, depth_metrics, valid_mask
from mirrordepth_edge.export.trace import require_export_packages
from mirrordepth_edge.imaging import draw
from mirrordepth_edge.imaging.postprocess import DepthMap, colourise
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.manifest import manifest_path, read_manifest
from mirrordepth_edge.predictor import load
from mirrordepth_edge.support.files import ensure_folder
from mirrordepth_edge.support.worker import command_of

# Calibration of "Motorcycle" (Middlebury 2014) at the size scikit-image ships, from its docstring:
# depth = focal * baseline / (disparity + shift of the principal point).
FOCAL_PX = 994.978
BASELINE_M = 0.193001
PRINCIPAL_POINT_SHIFT_PX = 31.086
LIMITS_M = (1e-3, 10.0)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder.")] = Path("demo"),
) -> None:
    """Run the full pipeline on one photo.

    Exports the shipped checkpoint to ONNX, builds an engine if this machine can, measures latency, estimates the depth
    of a photo and compares it with measured depth.
    """
    photo, truth_m = motorcycle()
    require_export_packages()
    ensure_folder(output)
    onnx_fp32, onnx_fp16 = output / "nano.onnx", output / "nano.fp16.onnx"
    console.print("1  Export to ONNX, checked against PyTorch", style="bold")
    export(fp32=True, output=onnx_fp32, target="cpu")
    console.print("2  Export to FP16, and build an engine if possible", style="bold")
    plan = onnx_fp16.with_suffix(".plan")
    for stale in (plan, manifest_path(plan)):  # from an earlier run
        stale.unlink(missing_ok=True)
    export(fp16=True, output=onnx_fp16)
    # The engine if this machine can run it, else the FP32 file in ONNX Runtime.
    runs_here = plan.is_file() and isinstance(backend(backend_for(plan, read_manifest(plan))).probe(), Available)
    model = plan if runs_here else onnx_fp32
    console.print(f"3  Measure the latency of {model.name}", style="bold")
    # In a separate process: PyTorch's threads in this one would slow down the runtime.
    arguments = ["bench", "--engine", str(model), "--iterations", "100", "--json", str(output / "bench.json")]
    sys.stdout.flush()
    if status := subprocess.run([*command_of("mirrordepth_edge.cli"), *arguments], check=False).returncode:
        raise typer.Exit(status)
    console.print("4  Estimate the depth of a photo", style="bold")
    with load(model) as predictor:
        depth_m = predictor(photo).copy()
    metric, aligned, scale = compare(depth_m, truth_m)
    console.print(
        f"Motorcycle, {photo.shape[1]}x{photo.shape[0]}: AbsRel {metric.abs_rel:.3f}, RMSE {metric.rmse:.3f} m, "
        f"delta1 {metric.delta1:.3f} against measured depth (metric, not aligned)"
    )
    console.print(
        f"median-aligned (times {scale:.2f}): AbsRel {aligned.abs_rel:.3f}, delta1 {aligned.delta1:.3f}. "
        "The photo's focal length is longer than that of the training camera, which shifts the scale."
    )
    figure = output / "motorcycle.png"
    write_figure(figure, photo, depth_m, truth_m)
    console.print(f"wrote {figure}  (photo, predicted depth, measured depth, relative error)")


def motorcycle() -> tuple[Frame, DepthMap]:
    """Return the photo, uint8 RGB `[500, 741, 3]`, and its depth in metres, 0 where unknown.

    Raises:
        MissingError: scikit-image, which contains both, is not installed.
    """
    try:
        from skimage.data import stereo_motorcycle
    except ImportError as error:
        raise missing_package("scikit-image", "mde demo", "demo") from error
    photo, _, disparity_px = stereo_motorcycle()
    depth_m = FOCAL_PX * BASELINE_M / (disparity_px + PRINCIPAL_POINT_SHIFT_PX)
    return np.ascontiguousarray(photo), np.nan_to_num(depth_m, nan=0.0).astype(np.float32)


def compare(depth_m: DepthMap, truth_m: DepthMap) -> tuple[DepthMetrics, DepthMetrics, float]:
    """Return metric errors, errors after scaling by the ratio of medians, and that ratio."""
    valid = valid_mask(truth_m, LIMITS_M)
    scale = float(np.median(truth_m[valid]) / np.median(depth_m[valid]))
    metric = depth_metrics(depth_m, truth_m, limits_m=LIMITS_M)
    return metric, depth_metrics(depth_m * np.float32(scale), truth_m, limits_m=LIMITS_M), scale


def write_figure(path: Path, photo: Frame, depth_m: DepthMap, truth_m: DepthMap) -> None:
    """Write photo, prediction, ground truth and relative error side by side."""
    measured = truth_m > 0
    # One colour range for both depth maps, in whole metres.
    low, high = np.percentile(np.concatenate([truth_m[measured], depth_m.ravel()]), (0.5, 99.5))
    limits_m = (float(np.floor(low)), float(np.ceil(high)))
    error = np.full(truth_m.shape, np.nan, np.float32)
    error[measured] = np.abs(depth_m - truth_m)[measured] / truth_m[measured]
    height, scale = photo.shape[0], draw.scale_bar(photo.shape[0], limits_m)
    rows = (
        (draw.titled(photo, "photo"), draw.titled(colourise(depth_m, limits_m), "predicted depth"), scale),
        (
            draw.titled(colourise(truth_m, limits_m), "measured depth"),
            scale,
            draw.titled(draw.error_colours(error), "relative error"),
            draw.error_bar(height),
        ),
    )
    sheet = draw.stacked([draw.side_by_side(row) for row in rows])
    draw.save_png(path, sheet)
