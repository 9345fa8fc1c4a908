"""Options of `mde evaluate` that other verbs do not have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.commands.parameters import CropOption, Root, choice
from mirrordepth_edge.config import Align

METRICS = "Metric options"
metrics_option = partial(typer.Option, rich_help_panel=METRICS)
OUTPUT = "Output options"
output_option = partial(typer.Option, rich_help_panel=OUTPUT)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Data, models, metrics and output files."""

    root: Root
    models: Annotated[
        list[str] | None, typer.Argument(help="Models to compare: files, nano or nano.fp16.  [default: nano]")
    ] = None
    crop: CropOption = None
    cap: Annotated[
        float | None, typer.Option(min=0.01, metavar="M", help="Maximum depth (m).  [default: NYU 10, KITTI 80]")
    ] = None
    flip: Annotated[bool, metrics_option("--flip", help="Average with the prediction of the mirrored image.")] = False
    align: Annotated[
        Align,
        choice(Align, "--align", help="Scale predictions before comparing; none is metric.", rich_help_panel=METRICS),
    ] = "none"
    spatial: Annotated[bool, metrics_option("--spatial", help="Also measure the accuracy of depth edges.")] = False
    temporal: Annotated[bool, metrics_option("--temporal", help="Also measure flicker; images form one video.")] = False
    baselines: Annotated[
        bool | None, output_option("--baselines/--no-baselines", help="List published results.  [default: NYU, KITTI]")
    ] = None
    json_file: Annotated[Path | None, output_option("--json", help="Write the errors of each image.")] = None
    report_file: Annotated[
        Path | None, output_option("--report", metavar="FILE.html", help="Write a page with charts and examples.")
    ] = None
