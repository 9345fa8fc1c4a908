"""`mde evaluate`: measure the depth errors of checkpoints, ONNX files and engines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.artefact import model_path
from mirrordepth_edge.camera.model import camera_of
from mirrordepth_edge.commands.parameters import (
    NANO,
    Backend,
    Bf16,
    Calibration,
    ClipWeights,
    CropOption,
    Data,
    DepthRoot,
    Device,
    FocalPx,
    FovDeg,
    KbCrop,
    ListFile,
    NetworkSize,
    Root,
    Trust,
    UnitsPerMetre,
    announce,
    choice,
    data_config,
    print_camera,
    session_options,
)
from mirrordepth_edge.commands.terminal import console, print_table, progress_bar
from mirrordepth_edge.config import Crop
from mirrordepth_edge.data.choose import CONVENTIONS, choose_dataset, depth_limits_on, kind_of
from mirrordepth_edge.evaluation.baselines import show_baselines
from mirrordepth_edge.evaluation.consistency import read_camera_path
from mirrordepth_edge.evaluation.evaluate import Align, Evaluation, Protocol
from mirrordepth_edge.evaluation.evaluate import evaluate as run_evaluation
from mirrordepth_edge.predictor import load
from mirrordepth_edge.report.evaluation import EvaluatedModel, EvaluationReport, evaluation_page
from mirrordepth_edge.report.examples import ExampleSheet
from mirrordepth_edge.report.html import check_name, save_page
from mirrordepth_edge.report.tables import baselines_table, results_table
from mirrordepth_edge.support.files import ensure_folder, write_json

METRICS = "Metric options"
metrics_option = partial(typer.Option, rich_help_panel=METRICS)
OUTPUT = "Output options"
output_option = partial(typer.Option, rich_help_panel=OUTPUT)


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions:
    """How errors are measured; None is the convention of the data set."""

    crop: Crop | None
    cap_m: float | None
    flip: bool
    align: Align

    def protocol(self, convention_crop: Crop, limits_m: tuple[float, float]) -> Protocol:
        return Protocol(
            limits_m=(limits_m[0], self.cap_m or limits_m[1]),
            crop=self.crop or convention_crop,
            flip=self.flip,
            align=self.align,
        )


def evaluate(
    root: Root,
    models: Annotated[
        list[str] | None, typer.Argument(help="Models to compare: files, nano or nano.fp16.  [default: nano]")
    ] = None,
    data: Data = "auto",
    list_file: ListFile = None,
    depth_root: DepthRoot = None,
    kb_crop: KbCrop = None,
    units_per_metre: UnitsPerMetre = None,
    crop: CropOption = None,
    cap: Annotated[
        float | None, typer.Option(min=0.01, metavar="M", help="Maximum depth (m).  [default: NYU 10, KITTI 80]")
    ] = None,
    focal_px: FocalPx = None,
    fov_deg: FovDeg = None,
    calibration: Calibration = None,
    flip: Annotated[bool, metrics_option("--flip", help="Average with the prediction of the mirrored image.")] = False,
    align: Annotated[
        Align,
        choice(Align, "--align", help="Scale predictions before comparing; none is metric.", rich_help_panel=METRICS),
    ] = "none",
    spatial: Annotated[bool, metrics_option("--spatial", help="Also measure the accuracy of depth edges.")] = False,
    temporal: Annotated[
        bool, metrics_option("--temporal", help="Also measure flicker; images form one video.")
    ] = False,
    baselines: Annotated[
        bool | None, output_option("--baselines/--no-baselines", help="List published results.  [default: NYU, KITTI]")
    ] = None,
    json_file: Annotated[Path | None, output_option("--json", help="Write the errors of each image.")] = None,
    report_file: Annotated[
        Path | None, output_option("--report", metavar="FILE.html", help="Write a page with charts and examples.")
    ] = None,
    device: Device = "auto",
    backend: Backend = None,
    network_size: NetworkSize = None,
    bf16: Bf16 = False,
    clip_weights: ClipWeights = None,
    trust: Trust = False,
) -> None:
    """Measure depth errors on RGB-D data.

    All models are evaluated on the same images with the same protocol. Compare a checkpoint with its ONNX files to
    see the loss of the export.

    --temporal uses optical flow, or if --root has them, poses.txt (NAME tx ty tz qx qy qz qw, camera to world) and
    intrinsics.txt (fx fy cx cy).
    """
    if report_file is not None:
        check_name(report_file, "--report")
    for file in filter(None, (json_file, report_file)):
        ensure_folder(file.parent)
    source = data_config(root, data, list_file, depth_root, kb_crop, units_per_metre)
    dataset, kind = choose_dataset(source, "test"), kind_of(source)
    camera = camera_of(focal_px, fov_deg, calibration)
    session = session_options(device, clip_weights, None, backend, bf16, network_size, trust)
    options = ProtocolOptions(crop=crop, cap_m=cap, flip=flip, align=align)
    camera_path = read_camera_path(root, dataset) if temporal else None
    results: dict[str, Evaluation] = {}
    artefacts: dict[str, EvaluatedModel] = {}
    examples = ExampleSheet(dataset)
    protocol: Protocol | None = None
    for model in models or [NANO]:
        with load(model, session, camera, on_camera=print_camera) as predictor, progress_bar() as bar:
            announce(predictor, model)
            # The range of the first model counts for all, so that their errors can be compared.
            limits_m = depth_limits_on(kind, predictor.model.depth_limits_m)
            protocol = protocol or options.protocol(CONVENTIONS[kind].crop, limits_m)
            samples = bar.track(dataset, total=len(dataset), description=model)
            results[model] = run_evaluation(
                predictor, samples, protocol, spatial=spatial, temporal=temporal, camera_path=camera_path
            )
            artefacts[model] = EvaluatedModel.of(predictor, model_path(model))
            if report_file is not None:
                examples.add(model, predictor, results[model])
    assert protocol is not None, "there is at least one model"
    scaled = "" if camera is None else f"; depth scaled to a camera of {camera}"
    with_baselines = show_baselines(kind, baselines)
    console.print(f"{root}: {len(dataset)} images; {protocol}{scaled}")
    print_table(results_table(results))
    if with_baselines:
        console.print()
        print_table(baselines_table(kind, protocol))
    report = EvaluationReport.here(
        f"{root}{scaled}", kind, protocol, results, artefacts, examples.examples, with_baselines
    )
    _write(report, json_file, report_file)


def _write(report: EvaluationReport, json_file: Path | None, report_file: Path | None) -> None:
    if json_file is not None:
        write_json(json_file, report.to_json())
        console.print(f"wrote {json_file}")
    if report_file is not None:
        save_page(report_file, evaluation_page(report))
        console.print(f"wrote {report_file}")
