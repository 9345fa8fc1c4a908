"""Precision of a TensorRT engine, from the layer information of its inspector.

The inspector's JSON (`IEngineInspector.get_engine_information`, or `trtexec --exportLayerInfo`) is a list `Layers`, of
names only or, in an engine built with detailed profiling verbosity, of objects with `Name`, `LayerType`, `Inputs`,
`Outputs`, `TacticName` and `Metadata`. A tensor's type is part of the text in `Format/Datatype` ("Row major linear
FP16 format (kLINEAR)", or "Half" for kernels from Myelin); since TensorRT 11, it has a field of its own.

Sources: NVIDIA TensorRT documentation, "Engine Inspector" and "Migrating IEngineInspector Usage from TensorRT 10.x to
11.x"; NVIDIA's TensorRT Engine Explorer (github.com/NVIDIA/TensorRT, tools/experimental/trt-engine-explorer); issue
3243 there: the kernel of a fused attention has `_mha` in its name.

Not yet run on hardware. Every attribute used here is checked against the real runtime module by
`tests/graph/test_audit.py`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mirrordepth_edge.backends.trt import cuda
from mirrordepth_edge.backends.trt.session import require_gpu
from mirrordepth_edge.backends.trt.vendor import import_runtime
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.graph.audit import Audit, Verdict
from mirrordepth_edge.graph.audit_findings import AuditFinding
from mirrordepth_edge.graph.audit_graph import HALF
from mirrordepth_edge.manifest import Manifest

Layer = Mapping[str, Any]

TYPE_FIELDS = ("DataType", "Datatype", "Format/Datatype", "Format/DataType", "Format")
"""Fields that may contain a tensor's type, depending on TensorRT's version."""
TYPE_WORDS: Final = {
    "int8": "INT8",
    "half": "FP16",
    "fp16": "FP16",
    "bf16": "BF16",
    "bfloat16": "BF16",
    "float": "FP32",
    "fp32": "FP32",
    "fp8": "FP8",
    "fp4": "FP4",
    "int4": "INT4",
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}
WORDS = re.compile(rf"\b({'|'.join(TYPE_WORDS)})\b", re.IGNORECASE)
ATTENTION = re.compile(r"mha|flash_?attention|fused_?attention", re.IGNORECASE)
ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
"""Name of an ONNX node in a layer's metadata."""
REFORMAT = "Reformat"
REBUILD = "Build it again with this version: mde build model.onnx -o model.plan --target here"


def audit_engine(information: str | Layer, manifest: Manifest | None = None) -> Audit:
    """Report which precisions the layers of an engine use, and what is overhead.

    Args:
        information: the inspector's JSON, as text or parsed.
        manifest: the engine's manifest, for a verdict.

    Raises:
        InputError: the JSON has another format.
    """
    layers = _read(information)
    details = [layer for layer in layers if layer.get("Outputs")]
    reformats = [layer for layer in layers if _is_reformat(layer)]
    fused = [layer for layer in layers if ATTENTION.search(f"{layer.get('Name', '')} {layer.get('TacticName', '')}")]
    work = _types_of(details, "Outputs") if details else Counter({"unknown": len(layers)})
    parts = {
        "layers that read": _types_of([layer for layer in details if layer.get("Inputs")], "Inputs"),
        "fused attention": _types_of(fused, "Outputs"),
        "reformatting": _types_of(reformats, "Outputs"),
    }
    return Audit(
        unit="layers",
        work=dict(work),
        parts={label: dict(counts) for label, counts in parts.items() if counts},
        attention=(),
        casts=len(reformats),
        cast_bytes=None,
        findings=tuple(_findings(layers, details, reformats, fused)),
        verdict=None if manifest is None or not details else _verdict(details, manifest),
    )


def _types_of(layers: Iterable[Layer], tensors: str) -> Counter[str]:
    """Count layers by the type of their `Inputs` or `Outputs`."""
    return Counter(_type(layer.get(tensors, ())) for layer in layers)


def _read(information: str | Layer) -> list[Layer]:
    """Parse the layers; layers that are only names become objects."""
    try:
        data = json.loads(information) if isinstance(information, str) else information
        layers = data["Layers"] if isinstance(data, Mapping) else None
    except (ValueError, KeyError) as error:
        raise _unreadable(f"{error!r}") from error
    if not isinstance(layers, list) or not all(isinstance(layer, str | Mapping) for layer in layers):
        raise _unreadable("'Layers' is not a list of layers")
    return [{"Name": layer} if isinstance(layer, str) else layer for layer in layers]


def _unreadable(why: str) -> InputError:
    return InputError(
        "This is not the output of TensorRT's engine inspector.",
        f"It should be JSON with a list 'Layers': {why}.",
        "Write it with: trtexec --loadEngine=model.plan --profilingVerbosity=detailed --exportLayerInfo=layers.json",
    )


def _type(tensors: Sequence[Layer]) -> str:
    """Type of the first tensor that has one, such as `FP16`; otherwise `unknown`."""
    for tensor in tensors:
        for field in TYPE_FIELDS:
            if word := WORDS.search(str(tensor.get(field, ""))):
                return TYPE_WORDS[word[1].lower()]
    return "unknown"


def _is_reformat(layer: Layer) -> bool:
    return layer.get("LayerType") == REFORMAT or str(layer.get("Name", "")).startswith("Reformatting CopyNode")


def _softmaxes(layers: Iterable[Layer]) -> set[str]:
    nodes = (node for layer in layers for node in ONNX_NODE.findall(str(layer.get("Metadata", ""))))
    return {node for node in nodes if node.rsplit("/", 1)[-1].startswith("Softmax")}


def _findings(
    layers: Sequence[Layer], details: Sequence[Layer], reformats: Sequence[Layer], fused: Sequence[Layer]
) -> Iterator[AuditFinding]:
    if not details:
        yield AuditFinding(
            kind="no-details",
            text=f"The engine contains only the names of its {len(layers)} layers, so their precision is unknown.",
            cure=REBUILD,
            nodes=(),
        )
    if unfused := sorted(_softmaxes(layers) - _softmaxes(fused)):
        yield AuditFinding(
            kind="attention",
            text=f"{len(unfused)} Softmax nodes are not part of a fused attention kernel: their scores are written to "
            "memory and read back.",
            cure="See why in the engine's ONNX file: mde audit model.onnx",
            nodes=tuple(unfused),
        )
    if opaque := [name for layer in layers if "ForeignNode[" in (name := str(layer.get("Name", "")))]:
        yield AuditFinding(
            kind="opaque",
            text=f"{len(opaque)} layers are parts of the network that TensorRT compiled as a whole (ForeignNode); the "
            "precision and attention inside are unknown.",
            cure="See the names of the kernels at run time: nsys profile mde bench model.plan",
            nodes=tuple(opaque),
        )
    if reformats:
        yield AuditFinding(
            kind="reformat",
            text=f"{len(reformats)} of {len(layers)} layers only convert a tensor's format or type: each is a pass "
            "over memory.",
            cure="A few at inputs and outputs are normal; many mean alternating precisions: see mde audit model.onnx",
            nodes=tuple(str(layer.get("Name", "")) for layer in reformats),
        )


def _verdict(details: Sequence[Layer], manifest: Manifest) -> Verdict:
    """Check whether any layer reads or writes the requested precision. Shares of time are unknown."""
    asked = manifest.precision
    wanted = {"fp32": ("FP32",), "fp16": HALF, "int8": ("INT8",)}[asked]
    touched = [{_type(layer.get("Inputs", ())), _type(layer["Outputs"])} for layer in details]
    number = sum(not types.isdisjoint(wanted) for types in touched)
    lower = sum(not types.isdisjoint((*HALF, "INT8", "FP8", "INT4")) for types in touched)
    holds = lower == 0 if asked == "fp32" else number > 0
    text = f"{number} of {len(details)} layers read or write {' or '.join(wanted)}"
    return Verdict(
        asked=asked,
        holds=holds,
        text=f"{text}, {lower} a lower precision." if asked == "fp32" else f"{text}.",
        cure=f"Check its ONNX file: mde audit model.onnx; if that is wrong, mde export --{asked}",
    )


def layer_information(path: Path, manifest: Manifest) -> str:
    """Return the inspector's JSON of a plan, from the runtime that it was built for.

    Raises:
        MissingError: there is no GPU or driver that works, or the runtime or cuda-python is not installed.
        DeviceError: the GPU is there and failed.
        InputError: the plan cannot be loaded here.
    """
    rtx = manifest.engine is not None and manifest.engine.flavour == "tensorrt-rtx"
    require_gpu(path, "TensorRT for RTX" if rtx else "TensorRT", manifest)
    trt = import_runtime("tensorrt-rtx" if rtx else "tensorrt")
    # CUDA first: its errors name the problem with a driver; TensorRT returns None, raises a TypeError or crashes.
    cuda.call(cuda.runtime().cudaSetDevice, 0)
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise InputError(
            f"{'TensorRT for RTX' if rtx else 'TensorRT'} {trt.__version__} cannot load {path}.",
            "A plan is tied to TensorRT's version, the system and the GPU.",
            f"Build it here: mde build {path.stem}.onnx -o {path.name} --target here",
        )
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
