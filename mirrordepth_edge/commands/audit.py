"""`mde audit`: what a file's precision really is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mirrordepth_edge.graph.audit import Audit
    from mirrordepth_edge.graph.audit_findings import AuditFinding
    from mirrordepth_edge.manifest import Manifest

SHOWN = 2  # nodes named with a finding; --json has all of them
LAYERS_SUFFIX = ".json"


def audit(
    model: Annotated[str, typer.Argument(help="A .onnx or .plan file, trtexec's layer .json, nano or nano.fp16.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything that was found.")] = None,
) -> None:
    """Say what a file's precision really is.

    How much of its work runs in INT8, FP16 and FP32, and what undoes the gain: quantised values that
    no integer kernel takes, casts that undo each other, attention that cannot be fused. The exit code is
    3 where the file is not what its manifest says was asked for.
    """
    from dataclasses import asdict

    from mirrordepth_edge.artefact import model_path
    from mirrordepth_edge.commands.terminal import console
    from mirrordepth_edge.errors import GateError
    from mirrordepth_edge.support.files import ensure_folder, write_json

    file = model_path(model)
    if json_file is not None:
        ensure_folder(json_file.parent)
    found, manifest = _audit(file)
    _print(file, found)
    if json_file is not None:
        shares = {precision: found.share(precision) for precision in found.work}
        write_json(json_file, {"file": file, "shares": shares, **asdict(found)})
        console.print(f"wrote {json_file}")
    if found.verdict is None:
        reason = "it has no manifest" if manifest is None else "its layers' types are unknown"
        console.print(f"No verdict: {reason}, so nothing says whether this is what was asked for.")
    elif not found.verdict.holds:
        raise GateError(f"{file} is not {found.verdict.asked.upper()}.", found.verdict.text, found.verdict.cure)
    else:
        console.print(f"It is {found.verdict.asked.upper()}, as asked: {found.verdict.text}")


def _audit(file: Path) -> tuple[Audit, Manifest | None]:
    from mirrordepth_edge.backends.registry import CHECKPOINT_SUFFIX, ONNX_SUFFIX, PLAN_SUFFIXES
    from mirrordepth_edge.errors import OptionError
    from mirrordepth_edge.export.dynamic_shapes import fix_shapes
    from mirrordepth_edge.graph.audit import audit_onnx, read_onnx
    from mirrordepth_edge.graph.audit_engine import audit_engine, layer_information
    from mirrordepth_edge.manifest import manifest_path, read_manifest
    from mirrordepth_edge.support.files import existing_file

    if file.suffix == CHECKPOINT_SUFFIX:
        made = file.with_suffix(ONNX_SUFFIX).name
        raise OptionError(
            f"{file} has no precision to audit.",
            "A checkpoint holds FP32 weights; what multiplies in what is decided when it is exported.",
            f"mde export {file} -o {made}, then mde audit {made}",
        )
    existing_file(file, "model")
    if file.suffix == LAYERS_SUFFIX:
        return audit_engine(file.read_text(encoding="utf-8", errors="replace")), None
    if file.suffix in PLAN_SUFFIXES:
        manifest = read_manifest(file)
        return audit_engine(layer_information(file, manifest), manifest), manifest
    if file.suffix != ONNX_SUFFIX:
        raise OptionError(
            f"{file} is no file to audit.",
            f"Its name does not end in {', '.join((ONNX_SUFFIX, *PLAN_SUFFIXES, LAYERS_SUFFIX))}.",
            "Name an ONNX file, an engine, or the layers that trtexec --exportLayerInfo wrote.",
        )
    known = read_manifest(file) if manifest_path(file).is_file() else None
    model = read_onnx(file)
    return audit_onnx(model if known is None else fix_shapes(model, known.at().inputs), known), known


def _print(file: Path, found: Audit) -> None:
    from rich.table import Table
    from rich.text import Text

    from mirrordepth_edge.commands.terminal import console

    total = sum(found.work.values())
    amount = (
        f"{total / 1e9:.3f} G multiply-adds" if found.unit == "multiply-adds" else f"{total} layer{'s' * (total != 1)}"
    )
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = [("file", str(file)), ("work", amount)]
    rows += [(f"  {name}", f"{found.share(name):.1%}") for name in sorted(found.work, key=lambda n: -found.work[n])]
    for label, counts in found.parts.items():
        rows.append((label, ", ".join(f"{number} {name}" for name, number in counts.items())))
    if found.attention:
        fused = sum(block.unfused is None for block in found.attention)
        rows.append(("attention", f"{len(found.attention)} blocks, {fused} that TensorRT can run as one kernel"))
    if found.cast_bytes is not None:
        rows.append(("casts", f"{found.casts} at run time, which move {found.cast_bytes / 1e6:.2f} MB"))
    for key, value in rows:
        table.add_row(Text(key, style="bold"), Text(value))
    console.print(table)
    for finding in found.findings:
        console.print(Text("- ") + Text(finding.text))
        console.print(f"    {_names(finding)}next: {finding.cure}")


def _names(finding: AuditFinding) -> str:
    if not finding.nodes:
        return ""
    more = len(finding.nodes) - SHOWN
    return ", ".join(finding.nodes[:SHOWN]) + (f" and {more} more" if more > 0 else "") + "; "
