"""`mde audit`: check which precision each layer of a model uses."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from mirrordepth_edge.artefact import CHECKPOINT_SUFFIX, ONNX_SUFFIX, PLAN_SUFFIXES, model_path
from mirrordepth_edge.commands.terminal import console
from mirrordepth_edge.errors import GateError, OptionError
from mirrordepth_edge.export.dynamic_shapes import fix_shapes
from mirrordepth_edge.graph.audit import Audit, audit_onnx, read_onnx
from mirrordepth_edge.graph.audit_engine import audit_engine, layer_information
from mirrordepth_edge.graph.audit_findings import AuditFinding
from mirrordepth_edge.manifest import Manifest, manifest_path, read_manifest
from mirrordepth_edge.support.files import ensure_folder, existing_file, write_json

MAX_NODES = 2
"""Nodes listed per finding; --json has all of them."""
LAYERS_SUFFIX = ".json"


def audit(
    model: Annotated[str, typer.Argument(help="A .onnx or .plan file, layer .json of trtexec, nano or nano.fp16.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all results.")] = None,
) -> None:
    """Check which precision each layer of a model uses.

    Reports the share of work in INT8, FP16 and FP32, and what costs speed: quantised values that no integer kernel
    uses, redundant casts, attention that cannot be fused. Exits with 3 if the precision is not the one in the manifest.
    """
    file = model_path(model)
    if json_file is not None:
        ensure_folder(json_file.parent)
    result, manifest = _audit(file)
    _print(file, result)
    if json_file is not None:
        shares = {precision: result.share(precision) for precision in result.work}
        write_json(json_file, {"file": file, "shares": shares, **asdict(result)})
        console.print(f"wrote {json_file}")
    if result.verdict is None:
        reason = "the file has no manifest" if manifest is None else "the precision of its layers is unknown"
        console.print(f"No verdict: {reason}, so there is nothing to compare with.")
    elif not result.verdict.holds:
        raise GateError(f"{file} is not {result.verdict.asked.upper()}.", result.verdict.text, result.verdict.cure)
    else:
        console.print(f"The model is {result.verdict.asked.upper()}, as requested: {result.verdict.text}")


def _audit(file: Path) -> tuple[Audit, Manifest | None]:
    if file.suffix == CHECKPOINT_SUFFIX:
        onnx_name = file.with_suffix(ONNX_SUFFIX).name
        raise OptionError(
            f"{file} has no precision to audit.",
            "A checkpoint holds FP32 weights; export decides the precision of each layer.",
            f"mde export {file} -o {onnx_name}, then mde audit {onnx_name}",
        )
    existing_file(file, "model")
    if file.suffix == LAYERS_SUFFIX:
        return audit_engine(file.read_text(encoding="utf-8", errors="replace")), None
    if file.suffix in PLAN_SUFFIXES:
        manifest = read_manifest(file)
        return audit_engine(layer_information(file, manifest), manifest), manifest
    if file.suffix != ONNX_SUFFIX:
        raise OptionError(
            f"{file} cannot be audited.",
            f"Its name does not end in {', '.join((ONNX_SUFFIX, *PLAN_SUFFIXES, LAYERS_SUFFIX))}.",
            "Give an ONNX file, an engine, or the file written by trtexec --exportLayerInfo.",
        )
    onnx_manifest = read_manifest(file) if manifest_path(file).is_file() else None
    model = read_onnx(file)
    if onnx_manifest is not None:
        model = fix_shapes(model, onnx_manifest.at().inputs)
    return audit_onnx(model, onnx_manifest), onnx_manifest


def _print(file: Path, result: Audit) -> None:
    total = sum(result.work.values())
    amount = (
        f"{total / 1e9:.3f} G multiply-adds" if result.unit == "multiply-adds" else f"{total} layer{'s' * (total != 1)}"
    )
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = [("file", str(file)), ("work", amount)]
    rows += [(f"  {name}", f"{result.share(name):.1%}") for name in sorted(result.work, key=lambda n: -result.work[n])]
    for label, counts in result.parts.items():
        rows.append((label, ", ".join(f"{number} {name}" for name, number in counts.items())))
    if result.attention:
        fused = sum(block.unfused is None for block in result.attention)
        rows.append(("attention", f"{len(result.attention)} blocks, {fused} that TensorRT can fuse"))
    if result.cast_bytes is not None:
        rows.append(("casts", f"{result.casts} at run time, moving {result.cast_bytes / 1e6:.2f} MB"))
    for key, value in rows:
        table.add_row(Text(key, style="bold"), Text(value))
    console.print(table)
    for finding in result.findings:
        console.print(Text("- ") + Text(finding.text))
        console.print(f"    {_names(finding)}next: {finding.cure}")


def _names(finding: AuditFinding) -> str:
    if not finding.nodes:
        return ""
    more = len(finding.nodes) - MAX_NODES
    return ", ".join(finding.nodes[:MAX_NODES]) + (f" and {more} more" if more > 0 else "") + "; "
