"""`mde bench compare`: results that were stored, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    results: Annotated[
        list[Path], typer.Argument(help="What --json wrote; the first is what others are held against.")
    ],
    anyway: Annotated[bool, typer.Option("--anyway", help="Compare across machines, sizes and boundaries.")] = False,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables, as GitHub shows them.")] = None,
) -> None:
    """Compare stored results: ratios of medians with their uncertainty."""
    from mirrordepth_edge.bench import compare as comparing
    from mirrordepth_edge.commands.terminal import console
    from mirrordepth_edge.errors import OptionError
    from mirrordepth_edge.support.files import atomic_write

    if len(results) < 2:
        raise OptionError("There is nothing to compare.", "One result was named.", "mde bench compare A.json B.json")
    first, *others = [comparing.read_result(path) for path in results]
    comparisons = [comparing.compare(first, other, anyway=anyway) for other in others]
    for comparison in comparisons:
        console.print(f"{comparison.second.source} against {first.source}: {comparison.verdict}")
        for difference in comparison.differences:
            console.print(f"  note: {difference}")
    if markdown is not None:
        with atomic_write(markdown) as temporary:
            temporary.write_text(comparing.markdown(comparisons), encoding="utf-8")
        console.print(f"wrote {markdown}")
