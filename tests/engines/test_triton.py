"""Triton model repositories: layout, configuration parsed with Triton's schema, and the client against a server."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from mirrordepth_edge.artefact import NANO_ONNX, read_reference
from mirrordepth_edge.commands.parameters import parse_range
from mirrordepth_edge.config import BuildConfig, SessionOptions, SizeRange
from mirrordepth_edge.engines.triton import CLIENT, config_pbtxt, write_triton_repository
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.imaging.preprocess import Frame, Preprocessor
from mirrordepth_edge.manifest import EngineInfo, Manifest, Quantisation, manifest_path, read_manifest
from mirrordepth_edge.predictor import load
from mirrordepth_edge.support.files import sha256_of

NANO = NANO_ONNX["fp32"]
CPU = SessionOptions(device="cpu", threads=1)


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return read_manifest(NANO)


def float_io(manifest: Manifest) -> Manifest:
    """The manifest of a file with normalised input and different statistics per channel."""
    (image,) = manifest.inputs
    height, width = manifest.preprocess.size_hw
    return replace(
        manifest,
        inputs=(replace(image, dtype="float32", shape=(1, 3, height, width), layout="NCHW"),),
        preprocess=replace(manifest.preprocess, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0)),
    )


def plan_of(manifest: Manifest, folder: Path, flavour: Any = "tensorrt", options: BuildConfig | None = None) -> Path:
    """A file with the manifest of an engine."""
    path = folder / "depth.plan"
    path.write_bytes(b"machine code")
    capabilities = ("8.7",)
    engine = EngineInfo(
        flavour=flavour, version="10.3.0", compute_capabilities=capabilities, build_seconds=1.0, options=options
    )
    described = replace(manifest, kind="plan", artefact_sha256=sha256_of(path), engine=engine)
    manifest_path(path).write_text(json.dumps(asdict(described)), encoding="utf-8")
    return path


def test_a_repository(tmp_path: Path, manifest: Manifest) -> None:
    target = write_triton_repository(NANO, tmp_path / "repository", name="depth")
    assert target == tmp_path / "repository" / "depth"
    assert [path.name for path in target.parent.iterdir()] == ["depth"]
    assert {path.relative_to(target).as_posix() for path in target.rglob("*")} == {
        "1",
        "1/model.onnx",
        "1/model.onnx.manifest.json",
        "1/model.onnx.reference.npz",
        "README.md",
        "client.py",
        "config.pbtxt",
    }
    copy = target / "1" / "model.onnx"
    assert read_manifest(copy) == manifest
    assert read_reference(copy) is not None
    text = (target / "README.md").read_text(encoding="utf-8")
    assert "| input | `image` | UINT8 | `[1, 224, 288, 3]` NHWC | 0..255 | RGB |" in text
    assert "| output | `depth` | FP32 | `[1, 224, 288]` NHW | > 0 | metres |" in text
    assert "resized to 224 rows and 288 columns" in text
    assert "random" not in text


def test_the_default_name_is_the_files_stem(tmp_path: Path) -> None:
    assert write_triton_repository(NANO, tmp_path).name == "nano"


def test_the_readme_of_an_engine(tmp_path: Path, manifest: Manifest) -> None:
    untrained = replace(manifest, trained=False)
    text = (write_triton_repository(plan_of(untrained, tmp_path), tmp_path) / "README.md").read_text(encoding="utf-8")
    assert "built by TensorRT 10.3.0 for compute capability 8.7" in text
    assert "weights are random" in text
    assert "version-compatible" not in text
    plan = plan_of(manifest, tmp_path, options=BuildConfig(version_compat=True))
    text = (write_triton_repository(plan, tmp_path) / "README.md").read_text(encoding="utf-8")
    assert "--backend-config=tensorrt,version-compatible=true" in text


def parsed(text: str) -> Any:
    """Parse with Triton's schema, in which unknown fields are errors."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed")
    from google.protobuf import text_format

    return text_format.Parse(text, schema.ModelConfig())


def test_configuration_of_an_onnx_file(manifest: Manifest) -> None:
    config = parsed(config_pbtxt(manifest, "depth"))
    assert (config.name, config.backend, config.max_batch_size) == ("depth", "onnxruntime", 0)
    (given,), (wanted,) = config.input, config.output
    # DataType: 2 is TYPE_UINT8, 11 is TYPE_FP32. Kind: 0 is KIND_AUTO.
    assert (given.name, given.data_type, list(given.dims)) == ("image", 2, [1, 224, 288, 3])
    assert (wanted.name, wanted.data_type, list(wanted.dims)) == ("depth", 11, [1, 224, 288])
    assert config.version_policy.latest.num_versions == 1
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, 0)]
    assert not config.HasField("dynamic_batching")
    assert not config.parameters


def with_sizes(manifest: Manifest, sizes: SizeRange) -> Manifest:
    inputs, outputs = (
        tuple(spec.at(sizes.opt).with_dynamic_axes(sizes.dynamic_axes) for spec in specs)
        for specs in (manifest.inputs, manifest.outputs)
    )
    return replace(manifest, sizes=sizes, inputs=inputs, outputs=outputs)


def test_requests_are_batched_if_the_batch_is_dynamic(manifest: Manifest) -> None:
    config = parsed(config_pbtxt(with_sizes(manifest, parse_range("1x224x288,4x224x288,8x224x288")), "depth"))
    assert config.max_batch_size == 8
    assert config.HasField("dynamic_batching")
    (given,), (wanted,) = config.input, config.output
    assert (list(given.dims), list(wanted.dims)) == ([224, 288, 3], [224, 288])


def test_configuration_of_an_engine(tmp_path: Path, manifest: Manifest) -> None:
    target = write_triton_repository(plan_of(manifest, tmp_path), tmp_path / "repository")
    assert (target / "1" / "model.plan").read_bytes() == b"machine code"
    config = parsed((target / "config.pbtxt").read_text(encoding="utf-8"))
    assert (config.name, config.backend) == ("depth", "tensorrt")
    assert config.instance_group[0].kind == 1  # KIND_GPU


def test_configuration_of_float_input(manifest: Manifest) -> None:
    config = parsed(config_pbtxt(float_io(manifest), "depth"))
    assert (config.input[0].data_type, list(config.input[0].dims)) == (11, [1, 3, 224, 288])
    stated = {key: [float(number) for number in value.string_value.split()] for key, value in config.parameters.items()}
    assert stated == {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 2.0]}


def test_int8_for_the_cpu_runs_on_the_cpu(manifest: Manifest) -> None:
    quantised = Quantisation(
        scheme="cpu",
        method="max",
        calibration="some",
        calibration_sha256="0" * 64,
        calibration_frames=1,
        int8_nodes=(),
        fp_fallback=(),
        accuracy=None,
    )
    assert "kind: KIND_CPU" in config_pbtxt(replace(manifest, precision="int8", quantisation=quantised), "depth")


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "two words"])
def test_invalid_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is not a valid Triton model name"):
        write_triton_repository(NANO, tmp_path / "repository", name=name)
    assert not (tmp_path / "repository").exists()


def test_unsupported_models_are_refused(tmp_path: Path, manifest: Manifest) -> None:
    for flavour, options, why in (
        ("tensorrt-rtx", None, "a tensorrt-rtx engine"),
        ("tensorrt", BuildConfig(weights="stripped"), "stripped of its weights"),
    ):
        with pytest.raises(OptionError, match="cannot serve") as caught:
            write_triton_repository(plan_of(manifest, tmp_path, flavour, options), tmp_path)
        assert why in caught.value.why
    for sizes, why in (
        ("64x64,64x64,96x96", "height and width are dynamic"),
        ("2x64x64,4x64x64,4x64x64", "minimum batch is 2"),
    ):
        opened = with_sizes(manifest, parse_range(sizes))
        with pytest.raises(OptionError, match="cannot serve") as caught:
            write_triton_repository(plan_of(opened, tmp_path), tmp_path)
        assert why in caught.value.why


def test_an_existing_repository_is_replaced(tmp_path: Path) -> None:
    first = write_triton_repository(NANO, tmp_path)
    (first / "README.md").write_text("old", encoding="utf-8")
    second = write_triton_repository(NANO, tmp_path)
    assert first == second
    assert (second / "README.md").read_text(encoding="utf-8") != "old"
    assert [path.name for path in tmp_path.iterdir()] == ["nano"]


@pytest.mark.parametrize("mine", ["2/model.onnx", "labels.txt"])
def test_files_of_others_are_not_deleted(mine: str, tmp_path: Path) -> None:
    path = write_triton_repository(NANO, tmp_path) / mine
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="already exists"):
        write_triton_repository(NANO, tmp_path)
    assert path.read_text(encoding="utf-8") == "mine"


def test_an_existing_file_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "nano").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="already exists"):
        write_triton_repository(NANO, tmp_path)


def test_a_failed_write_leaves_the_old_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_triton_repository(NANO, tmp_path)
    before = (first / "config.pbtxt").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mirrordepth_edge.engines.triton.copy_reference", full)
    for place in (tmp_path, tmp_path / "new"):
        with pytest.raises(InputError, match="Cannot write"):
            write_triton_repository(NANO, place)
    assert (first / "config.pbtxt").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"nano", "new"}
    assert list((tmp_path / "new").iterdir()) == []


# A server of the KServe protocol with Triton's binary extension, for one model; and a stand-in for tritonclient.
# github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md.
NUMPY = {"UINT8": np.uint8, "FP32": np.float32}


def metadata(manifest: Manifest) -> dict[str, Any]:
    names = {"uint8": "UINT8", "float32": "FP32"}
    fields = {
        "inputs": manifest.inputs,
        "outputs": manifest.outputs,
    }
    return {
        field: [{"name": spec.name, "datatype": names[spec.dtype], "shape": list(spec.shape)} for spec in specs]
        for field, specs in fields.items()
    }


def configured(manifest: Manifest) -> dict[str, Any]:
    stated = {key: " ".join(map(str, getattr(manifest.preprocess, key))) for key in ("mean", "std")}
    return {"parameters": {key: {"string_value": text} for key, text in stated.items()}}


@pytest.fixture
def pictures(tmp_path: Path, frames: list[Frame]) -> dict[str, Frame]:
    """One that is a little larger than the network, and one that is much larger, both smooth."""
    made = {}
    for name, size in (("near", (331, 251)), ("large", (1280, 960))):
        made[name] = cv2.resize(frames[0], size, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(tmp_path / f"{name}.png"), cv2.cvtColor(made[name], cv2.COLOR_RGB2BGR))
    return made


class Stub:
    """`tritonclient.http`, as far as the client uses it, in front of a function from inputs to depth."""

    def __init__(self, manifest: Manifest, answer: Any) -> None:
        self.manifest, self.answer = manifest, answer
        self.fed: dict[str, npt.NDArray[Any]] = {}

    def module(self) -> dict[str, Any]:
        stub = self

        class InferInput:
            def __init__(self, name: str, shape: list[int], datatype: str) -> None:
                self.name, self.shape, self.datatype = name, shape, datatype

            def set_data_from_numpy(self, array: npt.NDArray[Any]) -> None:
                assert (list(array.shape), array.dtype) == (self.shape, NUMPY[self.datatype])
                stub.fed[self.name] = array

        class InferRequestedOutput:
            def __init__(self, name: str) -> None:
                self.name = name

        class InferenceServerClient:
            def __init__(self, url: str) -> None:
                assert url == "localhost:8000"

            def get_model_metadata(self, name: str) -> dict[str, Any]:
                return metadata(stub.manifest)

            def get_model_config(self, name: str) -> dict[str, Any]:
                return configured(stub.manifest)

            def infer(self, name: str, inputs: list[Any], outputs: list[Any]) -> Any:
                assert name == "nano"
                assert [output.name for output in outputs] == ["depth"]
                return self

            def as_numpy(self, name: str) -> npt.NDArray[np.float32]:
                depth: npt.NDArray[np.float32] = stub.answer(stub.fed)
                return depth

        return {
            "InferInput": InferInput,
            "InferRequestedOutput": InferRequestedOutput,
            "InferenceServerClient": InferenceServerClient,
        }


def run_client(stub: Stub, folder: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> npt.NDArray[np.float32]:
    import types

    client = folder / "nano" / "client.py"
    client.parent.mkdir(exist_ok=True)
    client.write_text(CLIENT, encoding="utf-8")
    package, module = types.ModuleType("tritonclient"), types.ModuleType("tritonclient.http")
    vars(module).update(stub.module())
    vars(package)["http"] = module
    monkeypatch.setitem(sys.modules, "tritonclient", package)
    monkeypatch.setitem(sys.modules, "tritonclient.http", module)
    written = folder / "depth.npy"
    monkeypatch.setattr(sys, "argv", ["client.py", str(picture), "--output", str(written)])
    runpy.run_path(str(client), run_name="__main__")
    depth: npt.NDArray[np.float32] = np.load(written)
    return depth


def test_the_client_sends_one_image_to_a_dynamic_batch(
    tmp_path: Path, pictures: dict[str, Frame], manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = with_sizes(manifest, parse_range("1x224x288,4x224x288,8x224x288"))
    stub = Stub(opened, lambda fed: np.full((1, 224, 288), 2.5, np.float32))
    assert run_client(stub, tmp_path, tmp_path / "near.png", monkeypatch).max() == 2.5
    assert stub.fed["image"].shape == (1, 224, 288, 3)


@pytest.mark.parametrize("name", ["near", "large"])
def test_the_client_preprocesses_as_mde_does(
    name: str,
    tmp_path: Path,
    pictures: dict[str, Frame],
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Network input and depth are equal in every pixel."""
    with load(NANO, CPU) as predictor:
        expected = predictor(pictures[name]).copy()
        stub = Stub(manifest, lambda fed: predictor.session.infer(fed)["depth"])
        depth_m = run_client(stub, tmp_path, tmp_path / f"{name}.png", monkeypatch)
    np.testing.assert_array_equal(stub.fed["image"], Preprocessor(manifest.preprocess)(pictures[name]))
    np.testing.assert_allclose(depth_m, expected, rtol=1e-5)
    rows, columns = expected.shape
    assert f"at the centre: {expected[rows // 2, columns // 2]:.2f} m" in capsys.readouterr().out


def test_the_client_normalises_for_float_input(
    tmp_path: Path, pictures: dict[str, Frame], manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = float_io(manifest)
    stub = Stub(described, lambda fed: np.ones((1, 224, 288), np.float32))
    run_client(stub, tmp_path, tmp_path / "near.png", monkeypatch)
    np.testing.assert_array_equal(stub.fed["image"], Preprocessor(described.preprocess, "float")(pictures["near"]))


def test_a_file_that_is_not_an_image(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="cannot be read as an image"):
        run_client(Stub(manifest, None), tmp_path, tmp_path / "absent.png", monkeypatch)


class Server(BaseHTTPRequestHandler):
    """Metadata, and inference with binary tensors."""

    manifest: ClassVar[Manifest]
    answer: ClassVar[Any]

    def do_GET(self) -> None:
        assert self.path == "/v2/models/nano"
        self._send(json.dumps(metadata(self.manifest)).encode(), {"Content-Type": "application/json"})

    def do_POST(self) -> None:
        assert self.path == "/v2/models/nano/infer"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = int(self.headers["Inference-Header-Content-Length"])
        (given,) = json.loads(body[:length])["inputs"]
        array = np.frombuffer(body[length:], NUMPY[given["datatype"]]).reshape(given["shape"])
        depth = type(self).answer({given["name"]: array})
        tensor = {"name": "depth", "datatype": "FP32", "shape": list(depth.shape)}
        tensor["parameters"] = {"binary_data_size": depth.nbytes}
        head = json.dumps({"model_name": "nano", "model_version": "1", "outputs": [tensor]}).encode()
        self._send(head + depth.tobytes(), {"Inference-Header-Content-Length": str(len(head))})

    def _send(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(manifest: Manifest, answer: Any) -> Iterator[str]:
    handler = type("Handler", (Server,), {"manifest": manifest, "answer": staticmethod(answer)})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_real_client_library_over_http(tmp_path: Path, pictures: dict[str, Frame], manifest: Manifest) -> None:
    """In a separate process, as a user runs it."""
    have = subprocess.run([sys.executable, "-c", "import tritonclient.http"], capture_output=True, check=False)
    if have.returncode:
        pytest.skip("tritonclient[http] is not installed")
    client = write_triton_repository(NANO, tmp_path) / "client.py"
    with load(NANO, CPU) as predictor, serving(manifest, lambda fed: predictor.session.infer(fed)["depth"]) as url:
        expected = predictor(pictures["near"]).copy()
        words = [client, tmp_path / "near.png", "--url", url, "--output", tmp_path / "depth.npy"]
        ended = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert "at the centre:" in ended.stdout
    np.testing.assert_allclose(np.load(tmp_path / "depth.npy"), expected, rtol=1e-5)
