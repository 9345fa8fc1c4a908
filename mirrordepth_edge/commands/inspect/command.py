"""`mde inspect`: show what a model file contains."""

from __future__ import annotations

from typing import Annotated

import typer


def inspect(
    model: Annotated[str, typer.Argument(help="A .safetensors, .onnx or .plan file, nano or nano.fp16.")],
) -> None:
    """Show what a model file contains.

    Origin, inputs and outputs, parity, size and cost of a checkpoint, an ONNX file or an engine.
    """
    from mirrordepth_edge.commands.inspect.main import print_contents

    print_contents(model)
