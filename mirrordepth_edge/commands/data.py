"""`mde data`: pictures with depth, before anything is trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.commands.data_render import render
from mirrordepth_edge.commands.parameters import Data, DepthRoot, KbCrop, ListFile, UnitsPerMetre, data_config

data_app = typer.Typer(no_args_is_help=True, help="Check pictures with depth before training on them, or render some.")
data_app.command()(render)


@data_app.command()
def check(
    root: Annotated[Path, typer.Argument(help="Folder with rgb and depth, or as --root of mde train.")],
    data: Data = "auto",
    list_file: ListFile = None,
    depth_root: DepthRoot = None,
    kb_crop: KbCrop = None,
    units_per_metre: UnitsPerMetre = None,
    part: Annotated[str, typer.Option(help="Of an official split: train or test.")] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="Look at so many, spread over all.  [all]")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write a .png of pictures beside their depth.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all that was found.")] = None,
) -> None:
    """Find what is wrong with a data set before training on it.

    Files, sizes, the scale of depth, how much there is, and whether it lies on the pictures. Exit code
    1 where training on it would go wrong.
    """
    from dataclasses import asdict

    from mirrordepth_edge.commands.terminal import console, progress_bar
    from mirrordepth_edge.data.choose import choose_dataset
    from mirrordepth_edge.data.lint.problems import find_problems, refuse_problems
    from mirrordepth_edge.data.lint.scan import check_dataset, contact_sheet, report_lines, spread
    from mirrordepth_edge.errors import OptionError
    from mirrordepth_edge.imaging.draw import save_png
    from mirrordepth_edge.support.files import ensure_folder, require_suffix, write_json

    if part not in ("train", "test"):
        raise OptionError(f"--part {part!r} is unknown.", "An official split has train and test.", "--part train")
    if sheet is not None:
        require_suffix(sheet, (".png",), "a sheet", "--sheet", "every viewer")
    for file in filter(None, (sheet, json_file)):
        ensure_folder(file.parent)
    source = data_config(root, data, list_file, depth_root, kb_crop, units_per_metre)
    dataset = choose_dataset(source, part)  # type: ignore[arg-type]
    chosen = spread(len(dataset), limit)
    with progress_bar() as bar:
        report = check_dataset(dataset, chosen, lambda some: bar.track(some, description="reading pictures"))
    findings = find_problems(report)
    console.print(
        f"{root}: {report.looked_at} of {report.pictures} pictures looked at", *report_lines(report), sep="\n"
    )
    for finding in findings:
        kind, style = ("wrong", "bold red") if finding.wrong else ("note", "yellow")
        console.print(f"{kind}: {finding.what}", style=style)
        console.print(f"  why:  {finding.why}\n  next: {finding.cure}")
    if not findings:
        console.print("nothing is wrong", style="green")
    if sheet is not None and (picture := contact_sheet(dataset, chosen, report)) is not None:
        save_png(sheet, picture)
        console.print(f"wrote {sheet}")
    if json_file is not None:
        everything = asdict(report) | {"findings": [asdict(finding) for finding in findings]}
        write_json(json_file, everything)
        console.print(f"wrote {json_file}")
    refuse_problems(str(root), findings)
