"""`mde demo`: the whole way once, on a photograph whose depth was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mirrordepth_edge.evaluation.metrics import DepthMetrics
    from mirrordepth_edge.imaging.postprocess import DepthMap
    from mirrordepth_edge.imaging.preprocess import Frame

# Calibration of "Motorcycle" (Middlebury 2014) at the size scikit-image ships, from its docstring:
# depth = focal * baseline / (disparity + shift of the principal point).
FOCAL_PX = 994.978
BASELINE_M = 0.193001
PRINCIPAL_POINT_SHIFT_PX = 31.086
LIMITS_M = (1e-3, 10.0)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for what is made.")] = Path("demo"),
) -> None:
    """Go the whole way on one photograph.

    From the shipped checkpoint to ONNX, to an engine where one can be built, to the photograph's depth
    in metres and its error against the measured depth.
    """
    import subprocess
    import sys

    from mirrordepth_edge.backends.base import Available
    from mirrordepth_edge.backends.registry import backend, backend_for
    from mirrordepth_edge.commands.export.command import export
    from mirrordepth_edge.commands.terminal import console
    from mirrordepth_edge.export.trace import require_export_packages
    from mirrordepth_edge.manifest import manifest_path, read_manifest
    from mirrordepth_edge.predictor import load
    from mirrordepth_edge.support.files import ensure_folder
    from mirrordepth_edge.support.worker import command_of

    photo, truth_m = motorcycle()
    require_export_packages()
    ensure_folder(output)
    onnx_fp32, onnx_fp16 = output / "nano.onnx", output / "nano.fp16.onnx"
    console.print("1  checkpoint to ONNX, proven against PyTorch", style="bold")
    export(fp32=True, output=onnx_fp32, target="cpu")
    console.print("2  FP16 ONNX, and an engine where one can be built", style="bold")
    plan = onnx_fp16.with_suffix(".plan")
    for stale in (plan, manifest_path(plan)):  # of an earlier run
        stale.unlink(missing_ok=True)
    export(fp16=True, output=onnx_fp16)
    # The engine if this machine's GPU runs it, else the FP32 file through ONNX Runtime.
    runs_here = plan.is_file() and isinstance(backend(backend_for(plan, read_manifest(plan))).probe(), Available)
    model = plan if runs_here else onnx_fp32
    console.print(f"3  latency of {model.name}", style="bold")
    # In a process of its own, as users run it: PyTorch's threads in this one would slow the runtime.
    arguments = ["bench", "--engine", str(model), "--iterations", "100", "--json", str(output / "bench.json")]
    sys.stdout.flush()
    if status := subprocess.run([*command_of("mirrordepth_edge.cli"), *arguments], check=False).returncode:
        raise typer.Exit(status)
    console.print("4  a photograph becomes metres", style="bold")
    with load(model) as predictor:
        depth_m = predictor(photo).copy()
    metric, aligned, scale = compare(depth_m, truth_m)
    console.print(
        f"Motorcycle, {photo.shape[1]}x{photo.shape[0]}: AbsRel {metric.abs_rel:.3f}, RMSE {metric.rmse:.3f} m, "
        f"delta1 {metric.delta1:.3f} against the measured depth (metric, no alignment)"
    )
    console.print(
        f"median-aligned (times {scale:.2f}): AbsRel {aligned.abs_rel:.3f}, delta1 {aligned.delta1:.3f}. "
        "Another camera than the model was trained with: its longer lens shifts the scale."
    )
    picture = output / "motorcycle.png"
    write_picture(picture, photo, depth_m, truth_m)
    console.print(f"wrote {picture}  (photo, predicted depth, measured depth, relative error)")


def motorcycle() -> tuple[Frame, DepthMap]:
    """The photograph, uint8 RGB `[500, 741, 3]`, and its depth in metres, 0 where not measured.

    Raises:
        MissingError: scikit-image, which ships both, is not installed.
    """
    import numpy as np

    from mirrordepth_edge.errors import missing_package

    try:
        from skimage.data import stereo_motorcycle
    except ImportError as error:
        raise missing_package("scikit-image", "mde demo", "demo") from error
    photo, _, disparity_px = stereo_motorcycle()
    depth_m = FOCAL_PX * BASELINE_M / (disparity_px + PRINCIPAL_POINT_SHIFT_PX)
    return np.ascontiguousarray(photo), np.nan_to_num(depth_m, nan=0.0).astype(np.float32)


def compare(depth_m: DepthMap, truth_m: DepthMap) -> tuple[DepthMetrics, DepthMetrics, float]:
    """Metrics as they come, metrics after scaling by the ratio of medians, and that ratio."""
    import numpy as np

    from mirrordepth_edge.evaluation.metrics import depth_metrics, valid_mask

    valid = valid_mask(truth_m, LIMITS_M)
    scale = float(np.median(truth_m[valid]) / np.median(depth_m[valid]))
    metric = depth_metrics(depth_m, truth_m, limits_m=LIMITS_M)
    return metric, depth_metrics(depth_m * np.float32(scale), truth_m, limits_m=LIMITS_M), scale


def write_picture(path: Path, photo: Frame, depth_m: DepthMap, truth_m: DepthMap) -> None:
    """Photo, prediction and truth on one metre scale, and the relative error, side by side."""
    import numpy as np

    from mirrordepth_edge.imaging import draw
    from mirrordepth_edge.imaging.postprocess import colourise

    measured = truth_m > 0
    # One scale for both, wide enough for both, in whole metres.
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
