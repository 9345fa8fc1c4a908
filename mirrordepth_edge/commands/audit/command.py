"""`mde audit`: check which precision each layer of a model uses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def audit(
    model: Annotated[str, typer.Argument(help="A .onnx or .plan file, layer .json of trtexec, nano or nano.fp16.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all results.")] = None,
) -> None:
    """Check which precision each layer of a model uses.

    Reports the share of work in INT8, FP16 and FP32, and what costs speed: quantised values that no integer kernel
    uses, redundant casts, attention that cannot be fused. Exits with 3 if the precision is not the one in the manifest.
    """
    from mirrordepth_edge.commands.audit.main import audit_model

    audit_model(model, json_file)
