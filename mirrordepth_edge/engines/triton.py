"""Write a model repository for NVIDIA's Triton Inference Server.

Sources: Triton's documentation, "Model Repository" and "Model Configuration" (docs/user_guide/model_repository.md and
model_configuration.md of github.com/triton-inference-server/server), and the schema of the configuration,
model_config.proto of github.com/triton-inference-server/common, with which the tests parse it. With a dynamic batch,
Triton batches requests up to the model's maximum, and `dims` are without the batch axis. With a fixed batch,
`max_batch_size` is 0 and `dims` are the full shapes.

Not yet tested with Triton itself.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from mirrordepth_edge.artefact import copy_reference, reference_path
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.manifest import Manifest, TensorSpec, manifest_path, read_manifest
from mirrordepth_edge.support.files import atomic_folder, sha256_of

VERSION = "1"
FILES = {"onnx": "model.onnx", "plan": "model.plan"}
"""Triton's default file names, by the manifest's kind."""
BACKENDS = {"onnx": "onnxruntime", "plan": "tensorrt"}
TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
README = Path(__file__).with_name("triton_readme.md")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""The name is a folder and part of the server's URLs."""


def write_triton_repository(model: Path, folder: Path, *, name: str | None = None) -> Path:
    """Write a model into a model repository, with its configuration, a README and a Python client.

    An existing `folder/NAME` is replaced if it contains only files that this function writes.

    Args:
        model: an ONNX file or a TensorRT plan with its manifest, for Triton's ONNX Runtime or TensorRT backend.
        folder: the repository, as for `tritonserver --model-repository`.
        name: the model's name for clients; the file's stem where None.

    Returns:
        `folder/NAME`, with `config.pbtxt`, `README.md`, `client.py`, and in `1/` the model with its manifest.

    Raises:
        InputError: the model has no manifest, or `folder/NAME` contains other files.
        OptionError: the name is invalid, or Triton cannot serve the model.
    """
    manifest = read_manifest(model)
    name = model.stem if name is None else name
    if NAME.fullmatch(name) is None:
        why = "It must start with a letter or digit, followed by letters, digits, and _ . -"
        raise OptionError(f"{name!r} is not a valid Triton model name.", why, "Use another name, such as depth.")
    if reason := _why_unsupported(manifest):
        cure = "Use an ONNX file, or a TensorRT engine with weights and a fixed size."
        raise OptionError(f"Triton cannot serve {model}.", reason, cure)
    file = FILES[manifest.kind]
    target = folder / name
    _require_replaceable(target, file)
    with atomic_folder(target) as temporary:
        (temporary / VERSION).mkdir()
        copy = temporary / VERSION / file
        shutil.copyfile(model, copy)
        # Of the copy, not of the source: the file may change between a check and the copy.
        if sha256_of(copy) != manifest.artefact_sha256:
            raise InputError(f"{model} changed while it was copied.", "Its SHA-256 differs.", "Try again.")
        shutil.copyfile(manifest_path(model), manifest_path(copy))
        copy_reference(model, copy)
        for path, text in (
            ("config.pbtxt", config_pbtxt(manifest, name)),
            ("README.md", _readme(manifest, name, file)),
            ("client.py", CLIENT),
        ):
            (temporary / path).write_text(text, encoding="utf-8")
    return target


def _why_unsupported(manifest: Manifest) -> str | None:
    engine = manifest.engine
    if engine is not None and engine.flavour != "tensorrt":
        return f"It is a {engine.flavour} engine, and Triton's TensorRT backend runs only TensorRT engines."
    if engine is not None and engine.options is not None and engine.options.weights == "stripped":
        return "It is stripped of its weights, and Triton does not refit engines."
    if manifest.sizes is not None and set(manifest.sizes.dynamic_axes) & set("HW"):
        return "Its height and width are dynamic, so clients would not know which size to send."
    if manifest.sizes is not None and manifest.sizes.min[0] > 1:
        return f"Its minimum batch is {manifest.sizes.min[0]}, and a request may have a single frame."
    return None


def max_batch_size(manifest: Manifest) -> int:
    """Maximum batch that Triton may form; 0 if the batch is fixed."""
    return 0 if manifest.sizes is None else manifest.sizes.max[0]


def config_pbtxt(manifest: Manifest, name: str) -> str:
    """Triton's `ModelConfig` of a model, as protobuf text.

    For normalised float input the client needs mean and std, which are in the parameters.
    """
    on_cpu = manifest.quantisation is not None and manifest.quantisation.scheme == "cpu"
    kind = "KIND_GPU" if manifest.kind == "plan" else "KIND_CPU" if on_cpu else "KIND_AUTO"
    batch = max_batch_size(manifest)
    lines = [
        f"name: {json.dumps(name)}",
        f"backend: {json.dumps(BACKENDS[manifest.kind])}",
        f"max_batch_size: {batch}" if batch else "max_batch_size: 0  # the batch is fixed",
        *_tensors("input", manifest.inputs, batched=batch > 0),
        *_tensors("output", manifest.outputs, batched=batch > 0),
        *(["dynamic_batching { }"] if batch else []),
        "version_policy: { latest: { num_versions: 1 } }",
        f"instance_group [ {{ count: 1 kind: {kind} }} ]",
    ]
    if _takes_float(manifest):
        for key in ("mean", "std"):
            text = json.dumps(" ".join(map(str, getattr(manifest.preprocess, key))))
            lines.append(f'parameters {{ key: "{key}" value: {{ string_value: {text} }} }}')
    return "\n".join(lines) + "\n"


def _tensors(field: str, specs: tuple[TensorSpec, ...], *, batched: bool) -> Iterator[str]:
    for spec in specs:
        dims = ", ".join(map(str, spec.shape[1:] if batched else spec.shape))
        yield f"{field} [ {{ name: {json.dumps(spec.name)} data_type: {TYPES[spec.dtype]} dims: [ {dims} ] }} ]"


def _takes_float(manifest: Manifest) -> bool:
    return manifest.inputs[0].dtype == "float32"


def _own_files(file: str) -> set[str]:
    version, model = Path(VERSION), Path(file)
    paths = (version / path for path in (model, manifest_path(model), reference_path(model)))
    return {"config.pbtxt", "README.md", "client.py", VERSION, *(path.as_posix() for path in paths)}


def _require_replaceable(target: Path, file: str) -> None:
    """Refuse to replace a folder with files of others, such as a version 2."""
    if not target.exists():
        return
    existing = {path.relative_to(target).as_posix() for path in target.rglob("*")} if target.is_dir() else {target.name}
    if others := sorted(existing - _own_files(file)):
        raise InputError(
            f"{target} already exists and contains other files.",
            f"It contains {', '.join(others[:3])}{' and more' if len(others) > 3 else ''}.",
            "Choose another folder or model name, or delete it.",
        )


def _readme(manifest: Manifest, name: str, file: str) -> str:
    height, width = manifest.preprocess.size_hw
    tensors = "\n".join(
        f"| {kind} | `{spec.name}` | {TYPES[spec.dtype].removeprefix('TYPE_')} "
        f"| `[{', '.join(map(str, spec.shape))}]` {spec.layout} | {spec.range} | {spec.unit} |"
        for kind, specs in (("input", manifest.inputs), ("output", manifest.outputs))
        for spec in specs
    )
    warning = "" if manifest.trained else "\nThe weights are random: only its speed is meaningful, not its depth.\n"
    return README.read_text(encoding="utf-8").format(
        name=name,
        preset=manifest.model.preset,
        precision=manifest.precision.upper(),
        height=height,
        width=width,
        backend=BACKENDS[manifest.kind],
        file=f"{VERSION}/{file}",
        warning=warning,
        requirements=_requirements(manifest),
        tensors=tensors,
        normalisation=_normalisation(manifest),
        batching=_batching(manifest),
    )


def _requirements(manifest: Manifest) -> str:
    engine = manifest.engine
    if engine is None:
        return "ONNX Runtime uses a GPU if there is one, otherwise the CPU."
    text = (
        f"The engine was built by TensorRT {engine.version} for compute capability "
        f"{', '.join(engine.compute_capabilities)} and runs only there. Use the container with this TensorRT version\n"
        "(docs.nvidia.com/deeplearning/frameworks/support-matrix), or build an engine for another one with mde build."
    )
    if engine.options is not None and engine.options.version_compat:
        text += (
            " It is version-compatible: it\nalso runs in later versions if tritonserver has the option "
            "`--backend-config=tensorrt,version-compatible=true`."
        )
    return text


def _normalisation(manifest: Manifest) -> str:
    if not _takes_float(manifest):
        return "The network normalises the image."
    mean, std = (", ".join(map(str, numbers)) for numbers in (manifest.preprocess.mean, manifest.preprocess.std))
    return (
        f"Scale the channels to 0 to 1, subtract the mean ({mean}), divide by the\nstandard deviation ({std}), and "
        "transpose to channels, rows, columns."
    )


def _batching(manifest: Manifest) -> str:
    if batch := max_batch_size(manifest):
        return f"Requests that wait at the same time are batched, up to {batch} (`dynamic_batching` in `config.pbtxt`)."
    height, width = manifest.preprocess.size_hw
    return (
        "One image per request: the batch is fixed, so there is no dynamic batching. For more throughput use more "
        "instances\n(`instance_group` in `config.pbtxt`), or a file with a dynamic batch: mde export --dynamic "
        f"1x{height}x{width},4x{height}x{width},8x{height}x{width}."
    )


CLIENT = '''"""Depth of an image from a Triton server, in metres: python client.py picture.jpg --url localhost:8000"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import tritonclient.http as triton


def shrink(frame, height, width):
    """Resize an image [H, W, 3] to the network's size by area averaging."""
    rows, columns = frame.shape[:2]
    while rows >= 4 * height and columns >= 4 * width and rows % 2 == columns % 2 == 0:
        rows, columns = rows // 2, columns // 2
        frame = cv2.resize(frame, (columns, rows), interpolation=cv2.INTER_AREA)
    whole = max(1, round(columns / width)) * width, max(1, round(rows / height)) * height
    frame = cv2.resize(frame, whole, interpolation=cv2.INTER_LINEAR)
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("picture")
    options.add_argument("--url", default="localhost:8000", help="server's host and HTTP port")
    options.add_argument("--model", default=Path(__file__).resolve().parent.name, help="model name on the server")
    options.add_argument("--output", help="write depth in metres, float32 [H, W], to this .npy file")
    args = options.parse_args()
    picture = cv2.imread(args.picture, cv2.IMREAD_COLOR)
    if picture is None:
        raise SystemExit(f"{args.picture} cannot be read as an image")
    frame = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)

    server = triton.InferenceServerClient(args.url)
    metadata = server.get_model_metadata(args.model)
    (model_input,), (model_output,) = metadata["inputs"], metadata["outputs"]
    shape = [1, *(int(side) for side in model_input["shape"][1:])]
    if model_input["datatype"] == "UINT8":
        image = shrink(frame, *shape[1:3])[None]
    else:
        parameters = server.get_model_config(args.model)["parameters"]
        mean, std = (np.array(parameters[key]["string_value"].split(), np.float32) for key in ("mean", "std"))
        image = (shrink(frame, *shape[2:4]).astype(np.float32) / np.float32(255) - mean) / std
        image = np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)
    tensor = triton.InferInput(model_input["name"], shape, model_input["datatype"])
    tensor.set_data_from_numpy(np.ascontiguousarray(image))
    result = server.infer(args.model, [tensor], outputs=[triton.InferRequestedOutput(model_output["name"])])
    depth_m = cv2.resize(result.as_numpy(model_output["name"])[0], frame.shape[1::-1], interpolation=cv2.INTER_LINEAR)

    rows, columns = depth_m.shape
    near, middle, far = np.percentile(depth_m, (1, 50, 99))
    print(f"{args.picture}: depth percentiles: 1 % {near:.2f} m, 50 % {middle:.2f} m, 99 % {far:.2f} m")
    print(f"at the centre: {depth_m[rows // 2, columns // 2]:.2f} m")
    if args.output:
        np.save(args.output, depth_m)


if __name__ == "__main__":
    main()
'''
