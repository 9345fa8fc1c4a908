"""`mde evaluate`: measure the depth errors of checkpoints, ONNX files and engines."""

from __future__ import annotations

from mirrordepth_edge.commands.evaluate.options import EvaluateOptions
from mirrordepth_edge.commands.parameters import DatasetOptions, LensOptions, RuntimeOptions, flat_options


@flat_options
def evaluate(options: EvaluateOptions, dataset: DatasetOptions, lens: LensOptions, runtime: RuntimeOptions) -> None:
    """Measure depth errors on RGB-D data.

    All models are evaluated on the same images with the same protocol. Compare a checkpoint with its ONNX files to
    see the loss of the export.

    --temporal uses optical flow, or if --root has them, poses.txt (NAME tx ty tz qx qy qz qw, camera to world) and
    intrinsics.txt (fx fy cx cy).
    """
    from mirrordepth_edge.commands.evaluate.main import evaluate_models

    evaluate_models(options, dataset.config(options.root), lens.camera(), runtime.session())
