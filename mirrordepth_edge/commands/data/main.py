"""Check RGB-D data, or render synthetic rooms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mirrordepth_edge.commands.terminal import console, progress_bar, write_result
from mirrordepth_edge.config import DataConfig, Part, SizeHW
from mirrordepth_edge.data.choose import choose_dataset
from mirrordepth_edge.data.lint.problems import DatasetProblem, find_problems, refuse_problems
from mirrordepth_edge.data.lint.scan import check_dataset, contact_sheet, report_lines, spread
from mirrordepth_edge.data.rooms.render import NYU_FOV_DEG, RenderedRooms, write_rooms
from mirrordepth_edge.imaging.draw import save_png
from mirrordepth_edge.support.files import ensure_folder, require_suffix


def check_data(data: DataConfig, part: Part, *, limit: int | None, sheet: Path | None, json_file: Path | None) -> None:
    """Check a data set, print its problems, and write a contact sheet and the results to the given files.

    Args:
        limit: Check this many evenly spaced images; all if None.

    Raises:
        InputError: The data cannot be read, or training on it would fail or learn wrong depth.
    """
    if sheet is not None:
        require_suffix(sheet, (".png",), "a sheet", "--sheet", "every viewer")
    for file in filter(None, (sheet, json_file)):
        ensure_folder(file.parent)
    dataset = choose_dataset(data, part)
    indices = spread(len(dataset), limit)
    with progress_bar() as bar:
        report = check_dataset(dataset, indices, lambda some: bar.track(some, description="reading images"))
    findings = find_problems(report)
    console.print(
        f"{data.root}: checked {report.looked_at} of {report.pictures} images", *report_lines(report), sep="\n"
    )
    _print_findings(findings)
    if sheet is not None and (image := contact_sheet(dataset, indices, report)) is not None:
        save_png(sheet, image)
        console.print(f"wrote {sheet}")
    write_result(json_file, asdict(report) | {"findings": [asdict(finding) for finding in findings]})
    refuse_problems(str(data.root), findings)


def _print_findings(findings: Sequence[DatasetProblem]) -> None:
    for finding in findings:
        kind, style = ("wrong", "bold red") if finding.wrong else ("note", "yellow")
        console.print(f"{kind}: {finding.what}", style=style)
        console.print(f"  why:  {finding.why}\n  next: {finding.cure}")
    if not findings:
        console.print("no problems found", style="green")


def render_rooms(folder: Path, *, count: int, size_hw: SizeHW, fov_deg: float | None, seed: int) -> None:
    """Render the rooms that `folder` does not have yet.

    Args:
        fov_deg: Horizontal field of view; that of NYU's Kinect if None.
    """
    rooms = RenderedRooms(count=count, seed=seed, size_hw=size_hw, fov_deg=fov_deg or NYU_FOV_DEG)
    with progress_bar() as bar:
        new = sum(bar.track(write_rooms(rooms, folder), total=count, description="rendering rooms"))
    console.print(f"{count} images with depth in {folder}, {new} of them new; train: mde train --root {folder}")
