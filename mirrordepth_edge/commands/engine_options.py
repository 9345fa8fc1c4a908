"""Options of engines that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

Trust = Annotated[bool, typer.Option("--trust", help="Load an engine that has no manifest: native code, yours.")]
