"""`mde inspect`: show what a model file contains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import onnx
import typer
from rich.table import Table
from rich.text import Text

from mirrordepth_edge.artefact import CHECKPOINT_SUFFIX, ONNX_SUFFIX, model_path
from mirrordepth_edge.commands.terminal import console
from mirrordepth_edge.engines.build import is_verified
from mirrordepth_edge.export.dynamic_shapes import fix_shapes
from mirrordepth_edge.graph.cost import graph_cost
from mirrordepth_edge.manifest import CheckpointInfo, Manifest, read_checkpoint_info, read_manifest

Rows = list[tuple[str, str]]


def inspect(
    model: Annotated[str, typer.Argument(help="A .safetensors, .onnx or .plan file, nano or nano.fp16.")],
) -> None:
    """Show what a model file contains.

    Origin, inputs and outputs, parity, size and cost of a checkpoint, an ONNX file or an engine.
    """
    rows: Rows
    file = model_path(model)
    if file.suffix == CHECKPOINT_SUFFIX:
        rows = _checkpoint_rows(read_checkpoint_info(file))
    else:
        manifest = read_manifest(file)
        rows = _manifest_rows(manifest)
        if file.suffix == ONNX_SUFFIX:
            rows += _graph_rows(file, manifest)
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in [("file", str(file)), ("size", f"{file.stat().st_size / 1e6:.2f} MB"), *rows]:
        table.add_row(Text(key, style="bold"), Text(value))
    console.print(table)


def _checkpoint_rows(info: CheckpointInfo) -> Rows:
    model = info.model
    training = info.training or {}
    return [
        ("kind", "checkpoint: mirror and decoder"),
        ("model", f"{model.preset}: {model.clip_model}, taps {', '.join(map(str, model.taps))}"),
        ("CLIP weights", f"{model.pretrained}, sha256 {info.clip_sha256}"),
        ("mirror, decoder", f"sha256 {info.weights_sha256}"),
        ("input", f"{model.size_hw[1]}x{model.size_hw[0]} pixels"),
        ("depth limits", f"{model.depth_limits_m[0]:g} to {model.depth_limits_m[1]:g} metres"),
        ("trained on", f"{training['pictures']} images" if "pictures" in training else "not recorded"),
    ]


def _manifest_rows(manifest: Manifest) -> Rows:
    parity, engine = manifest.parity, manifest.engine
    kind = "ONNX" if engine is None else f"engine, {engine.flavour} {engine.version}"
    rows = [
        ("kind", kind if manifest.trained else f"{kind}; random weights, for speed only"),
        ("model", f"{manifest.model.preset}: {manifest.model.clip_model}"),
        ("precision", f"{manifest.precision.upper()}, opset {manifest.opset}"),
    ]
    if (quantisation := manifest.quantisation) is not None:
        verdict = "passed" if quantisation.accuracy is None or quantisation.accuracy.holds else "FAILED (--force)"
        rows += [
            (
                "INT8",
                f"{len(quantisation.int8_nodes)} layers, for {quantisation.scheme.upper()}s; calibrated with "
                f"{quantisation.method} on {quantisation.calibration_frames} frames of {quantisation.calibration}",
            ),
            ("accuracy", f"{quantisation.accuracy}; {verdict}"),
        ]
        if quantisation.domain_problem is not None:
            rows.append(("calibrated on", quantisation.domain_problem))
        if quantisation.fp_fallback:
            rows.append(("kept in FP", ", ".join(quantisation.fp_fallback)))
    if engine is not None:
        rows.append(("runs on", f"compute capability {', '.join(engine.compute_capabilities)}"))
    for label, tensors in (("input", manifest.inputs), ("output", manifest.outputs)):
        rows += [(label, f"{t.name}: {t.dtype} {list(t.shape)} {t.layout}, {t.range}, {t.unit}") for t in tensors]
    if manifest.sizes is not None:
        rows.append(("sizes", f"{manifest.sizes} (min, opt, max), multiples of {manifest.model.size_multiple} pixels"))
    rows += [
        (
            "parity" if engine is None or is_verified(manifest) else "parity of its ONNX",
            f"worst pixel {parity.max_relative:.1e}, mean {parity.mean_relative:.1e} relative, "
            f"{parity.frames} frames, {parity.runner}",
        ),
        ("made from", f"sha256 {manifest.parent_sha256}"),
        ("checkpoint", f"sha256 {manifest.checkpoint_sha256}"),
        ("CLIP weights", f"sha256 {manifest.clip_sha256}"),
        ("made with", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())),
    ]
    return rows


def _graph_rows(file: Path, manifest: Manifest) -> Rows:
    cost = graph_cost(fix_shapes(onnx.load(file), manifest.at().inputs))
    opt = "" if manifest.sizes is None else f" at its opt size, {'x'.join(map(str, manifest.at().inputs[0].size))}"
    return [
        ("parameters", f"{cost.parameters / 1e6:.2f} million in {cost.nodes} nodes"),
        (
            "cost",
            f"{cost.macs / 1e9:.3f} G multiply-adds ({2 * cost.macs / 1e9:.3f} GFLOP) per run{opt}",
        ),
    ]
