"""`mde evaluate`: metric depth errors of a checkpoint, an ONNX file or an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirrordepth_edge.commands.parameters import (
    NANO,
    ClipWeights,
    Data,
    DepthRoot,
    Device,
    KbCrop,
    ListFile,
    Root,
    UnitsPerMetre,
    announce,
    data_config,
    session_options,
)

if TYPE_CHECKING:
    from mirrordepth_edge.evaluation import Evaluation, Protocol

METRICS = {
    "abs_rel": "AbsRel",
    "sq_rel": "SqRel (m)",
    "rmse": "RMSE (m)",
    "rmse_log": "RMSElog",
    "log10": "log10",
    "silog": "SILog",
    "delta1": "delta < 1.25",
    "delta2": "delta < 1.25^2",
    "delta3": "delta < 1.25^3",
}


def evaluate(
    root: Root,
    models: Annotated[list[str] | None, typer.Argument(help="Files to compare, or nano, nano.fp16.  [nano]")] = None,
    data: Data = "auto",
    list_file: ListFile = None,
    depth_root: DepthRoot = None,
    kb_crop: KbCrop = None,
    units_per_metre: UnitsPerMetre = None,
    crop: Annotated[str | None, typer.Option(help="none, eigen or garg.  [NYU: eigen, KITTI: garg, else none]")] = None,
    cap: Annotated[float | None, typer.Option(min=0.01, help="Farthest depth that counts, in metres.")] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Average with the mirrored picture.")] = False,
    align: Annotated[str, typer.Option(help="none (metric), median or lsq; always printed.")] = "none",
    device: Device = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every picture's errors.")] = None,
    clip_weights: ClipWeights = None,
) -> None:
    """Measure depth errors on pictures with depth.

    Several models are evaluated on the same pictures by the same protocol, side by side: the
    difference between a checkpoint and its ONNX files is what export cost.
    """
    import json

    from mirrordepth_edge.commands.terminal import console, progress_bar
    from mirrordepth_edge.data.choose import CONVENTIONS, choose_dataset, kind_of
    from mirrordepth_edge.evaluation import evaluate as run_evaluation
    from mirrordepth_edge.files import ensure_folder, written_whole
    from mirrordepth_edge.runtime import load

    if json_file is not None:
        ensure_folder(json_file.parent)
    source = data_config(root, data, list_file, depth_root, kb_crop, units_per_metre)
    dataset = choose_dataset(source, "test")
    convention = CONVENTIONS[kind_of(source)]
    results: dict[str, Evaluation] = {}
    protocol: Protocol | None = None
    for model in models or [NANO]:
        with load(model, session_options(device, clip_weights)) as predictor, progress_bar() as bar:
            announce(predictor, model)
            protocol = protocol or _protocol(crop or convention.crop, cap, flip, align, predictor.model.depth_limits_m)
            pictures = bar.track(dataset, total=len(dataset), description=model)
            results[model] = run_evaluation(predictor, pictures, protocol)
    console.print(f"{root}: {len(dataset)} pictures; {protocol}")
    _print_table(results)
    if json_file is not None:
        with written_whole(json_file) as temporary:
            plain = {model: result.to_json() for model, result in results.items()}
            temporary.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        console.print(f"wrote {json_file}")


def _protocol(crop: str, cap: float | None, flip: bool, align: str, limits_m: tuple[float, float]) -> Protocol:
    from mirrordepth_edge.errors import OptionError
    from mirrordepth_edge.evaluation import Protocol

    if crop not in ("none", "eigen", "garg"):
        raise OptionError(f"--crop {crop!r} is unknown.", "It is none, eigen or garg.", "--crop eigen")
    if align not in ("none", "median", "lsq"):
        raise OptionError(f"--align {align!r} is unknown.", "It is none, median or lsq.", "--align none")
    limits_m = (limits_m[0], cap or limits_m[1])
    return Protocol(limits_m=limits_m, crop=crop, flip=flip, align=align)  # type: ignore[arg-type]


def _print_table(results: dict[str, Evaluation]) -> None:
    from dataclasses import asdict

    from rich.table import Table
    from rich.text import Text

    from mirrordepth_edge.commands.terminal import console

    # Metrics down, models across: a terminal of 80 columns holds several.
    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    for model in results:
        table.add_column(Text(Path(model).name), justify="right", overflow="fold")
    means = [asdict(result.mean) for result in results.values()]
    for name, label in METRICS.items():
        table.add_row(label, *(f"{mean[name]:.4f}" for mean in means))
    console.print(table)
