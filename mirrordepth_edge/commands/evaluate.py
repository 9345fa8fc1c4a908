"""`mde evaluate`: metric depth errors of a checkpoint, an ONNX file or an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirrordepth_edge.commands.engine_options import Trust
from mirrordepth_edge.commands.parameters import (
    NANO,
    Backend,
    Bf16,
    Calibration,
    ClipWeights,
    Data,
    DepthRoot,
    Device,
    FocalPx,
    FovDeg,
    KbCrop,
    ListFile,
    Root,
    UnitsPerMetre,
    announce,
    check_crop,
    data_config,
    print_camera,
    session_options,
)
from mirrordepth_edge.commands.sizes import NetworkSize

if TYPE_CHECKING:
    from mirrordepth_edge.evaluation.evaluate import Evaluation, Protocol


def evaluate(
    root: Root,
    models: Annotated[list[str] | None, typer.Argument(help="Files to compare, or nano, nano.fp16.  [nano]")] = None,
    data: Data = "auto",
    list_file: ListFile = None,
    depth_root: DepthRoot = None,
    kb_crop: KbCrop = None,
    units_per_metre: UnitsPerMetre = None,
    crop: Annotated[str | None, typer.Option(help="none, eigen or garg.  [NYU: eigen, KITTI: garg, else none]")] = None,
    cap: Annotated[
        float | None, typer.Option(min=0.01, help="Farthest depth that counts, in metres.  [NYU: 10, KITTI: 80]")
    ] = None,
    focal_px: FocalPx = None,
    fov_deg: FovDeg = None,
    calibration: Calibration = None,
    flip: Annotated[bool, typer.Option("--flip", help="Average with the mirrored picture.")] = False,
    align: Annotated[str, typer.Option(help="none (metric), median or lsq; always printed.")] = "none",
    spatial: Annotated[bool, typer.Option("--spatial", help="Measure how well depth edges are placed.")] = False,
    temporal: Annotated[
        bool, typer.Option("--temporal", help="Measure flicker; the pictures are frames of one video, in order.")
    ] = False,
    baselines: Annotated[
        bool | None, typer.Option("--baselines/--no-baselines", help="Published figures below.  [NYU, KITTI: yes]")
    ] = None,
    device: Device = "auto",
    backend: Backend = None,
    network_size: NetworkSize = None,
    bf16: Bf16 = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every picture's errors.")] = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Write a page with charts and pictures (.html).")
    ] = None,
    clip_weights: ClipWeights = None,
    trust: Trust = False,
) -> None:
    """Measure depth errors on pictures with depth.

    Several models are evaluated on the same pictures by the same protocol, side by side: the
    difference between a checkpoint and its ONNX files is what export cost.

    With --temporal, a poses.txt (NAME tx ty tz qx qy qz qw, camera to world) and an intrinsics.txt
    (fx fy cx cy) in --root take the place of optical flow.
    """

    from dataclasses import replace

    from mirrordepth_edge.artefact import model_path
    from mirrordepth_edge.camera.model import camera_of
    from mirrordepth_edge.commands.terminal import console, print_table, progress_bar
    from mirrordepth_edge.data.choose import CONVENTIONS, choose_dataset, depth_limits_on, kind_of
    from mirrordepth_edge.evaluation.baselines import show_baselines
    from mirrordepth_edge.evaluation.consistency import read_camera_path
    from mirrordepth_edge.evaluation.evaluate import evaluate as run_evaluation
    from mirrordepth_edge.predictor import load
    from mirrordepth_edge.report.evaluation import Artefact, EvaluationReport, evaluation_page
    from mirrordepth_edge.report.examples import ExampleSheet
    from mirrordepth_edge.report.html import check_name, save_page
    from mirrordepth_edge.report.tables import baselines_table, results_table
    from mirrordepth_edge.support.files import ensure_folder, write_json

    if report_file is not None:
        check_name(report_file, "--report")
    for file in filter(None, (json_file, report_file)):
        ensure_folder(file.parent)
    source = data_config(root, data, list_file, depth_root, kb_crop, units_per_metre)
    dataset, kind = choose_dataset(source, "test"), kind_of(source)
    camera = camera_of(focal_px, fov_deg, calibration)
    options = replace(session_options(device, clip_weights, None, backend, bf16, network_size), trust=trust)
    scaled = "" if camera is None else f"; metres scaled to a camera of {camera}"
    convention, with_baselines = CONVENTIONS[kind], show_baselines(kind, baselines)
    camera_path = read_camera_path(root, dataset) if temporal else None
    results: dict[str, Evaluation] = {}
    artefacts: dict[str, Artefact] = {}
    sheet = ExampleSheet(dataset)
    protocol: Protocol | None = None
    for model in models or [NANO]:
        with load(model, options, camera, on_camera=print_camera) as predictor, progress_bar() as bar:
            announce(predictor, model)
            limits_m = depth_limits_on(kind, predictor.model.depth_limits_m)
            protocol = protocol or _protocol(crop or convention.crop, cap, flip, align, limits_m)
            pictures = bar.track(dataset, total=len(dataset), description=model)
            results[model] = run_evaluation(
                predictor, pictures, protocol, spatial=spatial, temporal=temporal, camera_path=camera_path
            )
            artefacts[model] = Artefact.of(predictor, model_path(model))
            if report_file is not None:
                sheet.add(model, predictor, results[model])
    assert protocol is not None
    console.print(f"{root}: {len(dataset)} pictures; {protocol}{scaled}")
    print_table(results_table(results))
    if with_baselines:
        console.print()
        print_table(baselines_table(kind, protocol))
    report = EvaluationReport.here(
        f"{root}{scaled}", kind, protocol, results, artefacts, sheet.examples, with_baselines
    )
    if json_file is not None:
        write_json(json_file, report.to_json())
        console.print(f"wrote {json_file}")
    if report_file is not None:
        save_page(report_file, evaluation_page(report))
        console.print(f"wrote {report_file}")


def _protocol(crop: str, cap: float | None, flip: bool, align: str, limits_m: tuple[float, float]) -> Protocol:
    from mirrordepth_edge.errors import OptionError
    from mirrordepth_edge.evaluation.evaluate import Protocol

    check_crop(crop)
    if align not in ("none", "median", "lsq"):
        raise OptionError(f"--align {align!r} is unknown.", "It is none, median or lsq.", "--align none")
    limits_m = (limits_m[0], cap or limits_m[1])
    return Protocol(limits_m=limits_m, crop=crop, flip=flip, align=align)  # type: ignore[arg-type]
