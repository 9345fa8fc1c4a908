"""A model as NVIDIA's Triton Inference Server serves it: a folder of its model repository.

Sources: Triton's documentation, "Model Repository" and "Model Configuration" (docs/user_guide/model_repository.md and
model_configuration.md of github.com/triton-inference-server/server), and the configuration's schema, model_config.proto
of github.com/triton-inference-server/common, by which the tests read what is written here. A file whose batch is open
lets Triton put requests together, up to the most frames that it takes; `dims` are then without the batch. Of one whose
batch is fixed `max_batch_size` is 0, and `dims` are whole shapes.

Not yet served by Triton itself.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.manifest import Manifest, TensorSpec, manifest_path, read_manifest
from mirrordepth_edge.reference import copy_reference, reference_path
from mirrordepth_edge.support.files import sha256_of, unwritable

VERSION = "1"
FILES = {"onnx": "model.onnx", "plan": "model.plan"}
"""By the manifest's kind: what Triton takes for the model if told nothing."""
BACKENDS = {"onnx": "onnxruntime", "plan": "tensorrt"}
TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""It is a folder, and a part of the server's addresses."""


def write_triton_repository(model: Path, folder: Path, *, name: str | None = None, instances: int = 1) -> Path:
    """Put a model into a model repository, whole, with a description and a client in Python.

    Another run's `NAME` is replaced if it holds nothing but what this function writes.

    Args:
        model: an ONNX file or a TensorRT plan, with its manifest, which also says what will serve it: Triton's ONNX
            Runtime or its TensorRT backend.
        folder: the repository, which is what `tritonserver --model-repository` is given.
        name: what clients call the model; the file's, without its ending, where None.
        instances: how many run side by side, on each GPU or on the CPU.

    Returns:
        `folder/NAME`, with `config.pbtxt`, `README.md`, `client.py`, and in `1/` the model with its manifest.

    Raises:
        InputError: the model has no manifest, or something else is there already.
        OptionError: no such name, no instances, or a plan that Triton cannot load.
    """
    manifest = read_manifest(model)
    name = model.stem if name is None else name
    if NAME.fullmatch(name) is None:
        why = "It may have letters, digits, and _ . - after the first."
        raise OptionError(f"{name!r} is no name for a model of Triton's.", why, "Give it another one, such as depth.")
    if instances < 1:
        raise OptionError(f"{instances} instances serve nobody.", "There is at least one.", "Take 1.")
    if why_not := _not_for_triton(manifest):
        cure = "Give it an ONNX file, or an engine that mde build made with TensorRT, whole and of one size."
        raise OptionError(f"Triton cannot serve {model}.", why_not, cure)
    file = FILES[manifest.kind]
    target = folder / name
    _refuse_others(target, file)
    with _folder_written_whole(target) as temporary:
        (temporary / VERSION).mkdir()
        copy = temporary / VERSION / file
        shutil.copyfile(model, copy)
        if sha256_of(copy) != manifest.artefact_sha256:
            raise InputError(f"{model} changed while it was copied.", "Its sha256 is another now.", "Try again.")
        shutil.copyfile(manifest_path(model), manifest_path(copy))
        copy_reference(model, copy)
        for path, text in (
            ("config.pbtxt", config_pbtxt(manifest, name, instances=instances)),
            ("README.md", _readme(manifest, name, file)),
            ("client.py", CLIENT),
        ):
            (temporary / path).write_text(text, encoding="utf-8")
    return target


def _not_for_triton(manifest: Manifest) -> str | None:
    engine = manifest.engine
    if engine is not None and engine.flavour != "tensorrt":
        return f"It is an engine of {engine.flavour}, and Triton's TensorRT backend takes those of TensorRT."
    if engine is not None and engine.options is not None and engine.options.weights == "stripped":
        return "Its weights are not in it, and Triton does not put them back."
    if manifest.sizes is not None and set(manifest.sizes.dynamic_axes) & set("HW"):
        return "Its height and width are open, and a client could not tell which to send."
    if manifest.sizes is not None and manifest.sizes.min[0] > 1:
        return f"It takes no fewer than {manifest.sizes.min[0]} frames, and a request may come alone."
    return None


def most_at_once(manifest: Manifest) -> int:
    """Requests that Triton may put together; 0 where the batch is fixed."""
    return 0 if manifest.sizes is None else manifest.sizes.max[0]


def config_pbtxt(manifest: Manifest, name: str, *, instances: int = 1) -> str:
    """Triton's `ModelConfig` of a model, as protobuf text.

    A network with normalised float input has mean and std among the parameters, from which the client takes them.
    """
    on_cpu = manifest.quantisation is not None and manifest.quantisation.scheme == "cpu"
    kind = "KIND_GPU" if manifest.kind == "plan" else "KIND_CPU" if on_cpu else "KIND_AUTO"
    lines = [
        f"name: {json.dumps(name)}",
        f"backend: {json.dumps(BACKENDS[manifest.kind])}",
        f"max_batch_size: {most}" if (most := most_at_once(manifest)) else "max_batch_size: 0  # the batch is fixed",
        *_tensors("input", manifest.inputs, batched=most > 0),
        *_tensors("output", manifest.outputs, batched=most > 0),
        *(["dynamic_batching { }"] if most else []),
        "version_policy: { latest: { num_versions: 1 } }",
        f"instance_group [ {{ count: {instances} kind: {kind} }} ]",
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


def _written(file: str) -> set[str]:
    version = Path(VERSION)
    own = (Path(file), manifest_path(Path(file)), reference_path(Path(file)))
    return {"config.pbtxt", "README.md", "client.py", VERSION, *((version / each).as_posix() for each in own)}


def _refuse_others(target: Path, file: str) -> None:
    """Nothing of anyone else's is deleted, such as a version 2."""
    if not target.exists():
        return
    there = {path.relative_to(target).as_posix() for path in target.rglob("*")} if target.is_dir() else {target.name}
    if others := sorted(there - _written(file)):
        raise InputError(
            f"{target} is there already, and is not what would be replaced.",
            f"It holds {', '.join(others[:3])}{' and more' if len(others) > 3 else ''}.",
            "Name another folder or another model, or delete it.",
        )


@contextmanager
def _folder_written_whole(target: Path) -> Iterator[Path]:
    """Yield a new folder beside `target`, which takes its place only if the block succeeds."""
    token = secrets.token_hex(4)
    temporary, old = (target.with_name(f".{token}.{target.name}{end}") for end in ("", ".old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if target.exists():
            target.rename(old)
        try:
            temporary.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _readme(manifest: Manifest, name: str, file: str) -> str:
    height, width = manifest.preprocess.size_hw
    described = "\n".join(
        f"| {kind} | `{spec.name}` | {TYPES[spec.dtype].removeprefix('TYPE_')} "
        f"| `[{', '.join(map(str, spec.shape))}]` {spec.layout} | {spec.range} | {spec.unit} |"
        for kind, specs in (("input", manifest.inputs), ("output", manifest.outputs))
        for spec in specs
    )
    normalised = (
        f" Then each channel, as 0 to 1, less its mean and over its std: mean {_words(manifest.preprocess.mean)}, std "
        f"{_words(manifest.preprocess.std)}, laid out as channels, rows, columns."
        if _takes_float(manifest)
        else " The network normalises it."
    )
    engine = manifest.engine
    where = (
        "ONNX Runtime takes a GPU if there is one, else the CPU."
        if engine is None
        else f"The engine was built by TensorRT {engine.version} for compute capability "
        f"{', '.join(engine.compute_capabilities)}, and runs there only: take the container whose TensorRT has that "
        "version (docs.nvidia.com/deeplearning/frameworks/support-matrix). On another, mde build makes another."
    )
    if engine is not None and engine.options is not None and engine.options.version_compat:
        where += " Being version-compatible it runs in later ones too, if tritonserver is also given\n"
        where += "`--backend-config=tensorrt,version-compatible=true`."
    together = (
        f"Requests that wait at the same time are run together, up to {most} (`dynamic_batching` in `config.pbtxt`)."
        if (most := most_at_once(manifest))
        else "One picture a request: the batch is fixed, so there is no dynamic batching. More at a time take more "
        "instances\n(`instance_group` in `config.pbtxt`), or a file with an open batch: mde export --dynamic "
        f"1x{height}x{width},4x{height}x{width},8x{height}x{width}."
    )
    trained = (
        "" if manifest.trained else "\nIts weights are random: it is for measuring speed, and its depth is none.\n"
    )
    return f"""# {name}

Metric depth of one picture: {manifest.model.preset}, {manifest.precision.upper()}, {height} x {width} pixels, for
Triton's {BACKENDS[manifest.kind]} backend. `{VERSION}/{file}.manifest.json` says where the file is from and how it
was checked.
{trained}
## Serve

    docker run --rm -p8000:8000 -v REPOSITORY:/models nvcr.io/nvidia/tritonserver:YY.MM-py3 \\
        tritonserver --model-repository=/models

REPOSITORY is the folder that holds this one; a GPU is let in with `--gpus all`. {where}

## Ask

    pip install 'tritonclient[http]' opencv-python
    python client.py picture.jpg --url localhost:8000

| | name | type | shape | range | unit |
|---|---|---|---|---|---|
{described}

Before: an RGB picture, stretched to {height} rows and {width} columns by averaging over areas, as `client.py` does it;
other ways to shrink it change the depth a little.{normalised}

After: depth is metres at the network's size, to be stretched bilinearly to the picture's. They are metres as the camera
saw them that the model was trained with; for another lens they are multiplied by the ratio of focal lengths, as
`mde run --fov-deg` does.

{together}
"""


def _words(numbers: tuple[float, ...]) -> str:
    return ", ".join(map(str, numbers))


CLIENT = '''"""Depth of a picture from a Triton server, in metres: python client.py picture.jpg --url localhost:8000"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import tritonclient.http as triton


def shrink(frame, height, width):
    """A picture [H, W, 3] at the network's size, averaged over areas."""
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
    options.add_argument("--url", default="localhost:8000", help="of the server's HTTP port")
    options.add_argument("--model", default=Path(__file__).resolve().parent.name, help="its name on the server")
    options.add_argument("--output", help="write the metres, float32 [H, W], as .npy")
    told = options.parse_args()
    picture = cv2.imread(told.picture, cv2.IMREAD_COLOR)
    if picture is None:
        raise SystemExit(f"{told.picture} is no picture that OpenCV reads")
    frame = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)

    server = triton.InferenceServerClient(told.url)
    described = server.get_model_metadata(told.model)
    (given,), (wanted,) = described["inputs"], described["outputs"]
    shape = [1, *(int(side) for side in given["shape"][1:])]
    if given["datatype"] == "UINT8":
        image = shrink(frame, *shape[1:3])[None]
    else:
        stated = server.get_model_config(told.model)["parameters"]
        mean, std = (np.array(stated[key]["string_value"].split(), np.float32) for key in ("mean", "std"))
        image = (shrink(frame, *shape[2:4]).astype(np.float32) / np.float32(255) - mean) / std
        image = np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)
    fed = triton.InferInput(given["name"], shape, given["datatype"])
    fed.set_data_from_numpy(np.ascontiguousarray(image))
    answer = server.infer(told.model, [fed], outputs=[triton.InferRequestedOutput(wanted["name"])])
    depth_m = cv2.resize(answer.as_numpy(wanted["name"])[0], frame.shape[1::-1], interpolation=cv2.INTER_LINEAR)

    rows, columns = depth_m.shape
    near, middle, far = np.percentile(depth_m, (1, 50, 99))
    print(f"{told.picture}: 1 % of it within {near:.2f} m, half within {middle:.2f} m, 99 % within {far:.2f} m")
    print(f"at the centre: {depth_m[rows // 2, columns // 2]:.2f} m")
    if told.output:
        np.save(told.output, depth_m)


if __name__ == "__main__":
    main()
'''
