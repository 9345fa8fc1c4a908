"""`mde import-trtexec`: read the timings of trtexec, and make a result that can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.errors import OptionError


def import_trtexec(
    log: Annotated[Path, typer.Argument(help="Complete output of trtexec.")],
    times: Annotated[Path | None, typer.Option(help="File that the same run wrote with --exportTimes.")] = None,
    model: Annotated[Path | None, typer.Option(help="With --times: the engine that ran, with its manifest.")] = None,
    here: Annotated[bool, typer.Option("--here", help="With --times: the run was on this machine.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the timings.")] = None,
) -> None:
    """Read the timings in the log of trtexec.

    Supports TensorRT 8, 10 and 11. The log alone gives a summary. With --times and --model, the result has raw samples
    and mde bench compare accepts it, together with results of mde bench --protocol trtexec-10 or trtexec-11.
    """
    if (times is None) is not (model is None) or (here and times is None):
        raise OptionError(
            "--times and --model require each other; --here requires both.",
            "A result needs raw samples and the file that was measured.",
            "Give --times and --model, or neither for the summary alone.",
        )
    from mirrordepth_edge.commands.import_trtexec.main import import_log

    import_log(log, times, model, here=here, json_file=json_file)
