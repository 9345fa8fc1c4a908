"""Evaluate models and report their errors."""

from __future__ import annotations

from mirrordepth_edge.backends.registry import open_artefact
from mirrordepth_edge.camera.model import Camera, Lens
from mirrordepth_edge.commands.evaluate.options import EvaluateOptions
from mirrordepth_edge.commands.parameters import NANO
from mirrordepth_edge.commands.terminal import announce, console, print_camera, print_table, progress_bar, write_result
from mirrordepth_edge.config import DataConfig, SessionOptions
from mirrordepth_edge.data.choose import CONVENTIONS, choose_dataset, depth_limits_on, kind_of
from mirrordepth_edge.evaluation.baselines import show_baselines
from mirrordepth_edge.evaluation.consistency import read_camera_path
from mirrordepth_edge.evaluation.evaluate import Evaluation, Protocol, evaluate
from mirrordepth_edge.predictor import load
from mirrordepth_edge.report.evaluation import EvaluatedModel, EvaluationReport, evaluation_page
from mirrordepth_edge.report.examples import ExampleSheet
from mirrordepth_edge.report.html import check_name, save_page
from mirrordepth_edge.report.tables import baselines_table, results_table
from mirrordepth_edge.support.files import ensure_folder


def evaluate_models(
    options: EvaluateOptions, data: DataConfig, camera: Camera | Lens | None, session: SessionOptions
) -> None:
    """Evaluate models on the same images, print their errors, and write them to the given files.

    Raises:
        OptionError, InputError, MissingError: An option, the data or a model cannot be used.
    """
    json_file, report_file = options.json_file, options.report_file
    if report_file is not None:
        check_name(report_file, "--report")
    for file in filter(None, (json_file, report_file)):
        ensure_folder(file.parent)
    dataset, kind = choose_dataset(data, "test"), kind_of(data)
    with_baselines = show_baselines(kind, options.baselines)  # refuses before hours of evaluation, not after
    camera_path = read_camera_path(data.root, dataset) if options.temporal else None
    results: dict[str, Evaluation] = {}
    artefacts: dict[str, EvaluatedModel] = {}
    examples = ExampleSheet(dataset)
    protocol: Protocol | None = None
    for model in options.models or [NANO]:
        artefact = open_artefact(model, trust=session.trust)
        with load(artefact, session, camera, on_camera=print_camera) as predictor, progress_bar() as bar:
            announce(predictor, model)
            # The range of the first model counts for all, so that their errors can be compared.
            if protocol is None:
                near_m, far_m = depth_limits_on(kind, predictor.model.depth_limits_m)
                protocol = Protocol(
                    limits_m=(near_m, options.cap or far_m),
                    crop=options.crop or CONVENTIONS[kind].crop,
                    flip=options.flip,
                    align=options.align,
                )
            samples = bar.track(dataset, total=len(dataset), description=model)
            results[model] = evaluate(
                predictor,
                samples,
                protocol,
                spatial=options.spatial,
                temporal=options.temporal,
                camera_path=camera_path,
            )
            artefacts[model] = EvaluatedModel.of(predictor, artefact)
            if report_file is not None:
                examples.add(model, predictor, results[model])
    assert protocol is not None, "there is at least one model"
    scaled = "" if camera is None else f"; depth scaled to a camera of {camera}"
    console.print(f"{data.root}: {len(dataset)} images; {protocol}{scaled}")
    print_table(results_table(results))
    if with_baselines:
        console.print()
        print_table(baselines_table(kind, protocol))
    report = EvaluationReport.here(
        f"{data.root}{scaled}", kind, protocol, results, artefacts, examples.examples, with_baselines
    )
    write_result(json_file, report.to_json())
    if report_file is not None:
        save_page(report_file, evaluation_page(report))
        console.print(f"wrote {report_file}")
