"""`mde doctor`: show this machine, its problems, and the commands that fix them."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON for a bug report.")] = False,
) -> None:
    """Show what works on this machine, what does not, and how to fix it.

    Lists the hardware, the backends, the packages and known issues of the installed versions. Problems are sorted by
    importance.
    """
    from mirrordepth_edge.commands.doctor.main import print_facts

    print_facts(as_json=json_output)
