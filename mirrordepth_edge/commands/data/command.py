"""`mde data`: check RGB-D data before training, or render some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.commands.data.render import render
from mirrordepth_edge.commands.parameters import (
    Data,
    DepthRoot,
    KbCrop,
    ListFile,
    UnitsPerMetre,
    choice,
    data_config,
)
from mirrordepth_edge.commands.terminal import console, progress_bar
from mirrordepth_edge.commands.verbs import SectionedCommand
from mirrordepth_edge.data.choose import choose_dataset
from mirrordepth_edge.data.lint.problems import DatasetProblem, find_problems, refuse_problems
from mirrordepth_edge.data.lint.scan import check_dataset, contact_sheet, report_lines, spread
from mirrordepth_edge.data.packed import Part
from mirrordepth_edge.imaging.draw import save_png
from mirrordepth_edge.support.files import ensure_folder, require_suffix, write_json

data_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Check RGB-D data, or render synthetic rooms.",
)


@data_app.command(cls=SectionedCommand)
def check(
    root: Annotated[Path, typer.Argument(help="Data set, as --root of mde train.")],
    data: Data = "auto",
    list_file: ListFile = None,
    depth_root: DepthRoot = None,
    kb_crop: KbCrop = None,
    units_per_metre: UnitsPerMetre = None,
    part: Annotated[Part, choice(Part, "--part", help="Part of an official split.")] = "train",
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Check N evenly spaced images.  [default: all]")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Write a contact sheet of images and their depth.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all results.")] = None,
) -> None:
    """Check RGB-D data before training.

    Checks files, sizes, depth scale, coverage and alignment of depth with the image. Exits with 1 if training on the
    data would fail or learn wrong depth.
    """
    if sheet is not None:
        require_suffix(sheet, (".png",), "a sheet", "--sheet", "every viewer")
    for file in filter(None, (sheet, json_file)):
        ensure_folder(file.parent)
    dataset = choose_dataset(data_config(root, data, list_file, depth_root, kb_crop, units_per_metre), part)
    indices = spread(len(dataset), limit)
    with progress_bar() as bar:
        report = check_dataset(dataset, indices, lambda some: bar.track(some, description="reading images"))
    findings = find_problems(report)
    console.print(f"{root}: checked {report.looked_at} of {report.pictures} images", *report_lines(report), sep="\n")
    _print_findings(findings)
    if sheet is not None and (image := contact_sheet(dataset, indices, report)) is not None:
        save_png(sheet, image)
        console.print(f"wrote {sheet}")
    if json_file is not None:
        write_json(json_file, asdict(report) | {"findings": [asdict(finding) for finding in findings]})
        console.print(f"wrote {json_file}")
    refuse_problems(str(root), findings)


def _print_findings(findings: Sequence[DatasetProblem]) -> None:
    for finding in findings:
        kind, style = ("wrong", "bold red") if finding.wrong else ("note", "yellow")
        console.print(f"{kind}: {finding.what}", style=style)
        console.print(f"  why:  {finding.why}\n  next: {finding.cure}")
    if not findings:
        console.print("no problems found", style="green")


data_app.command(cls=SectionedCommand)(render)
