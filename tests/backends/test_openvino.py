"""OpenVINO against ONNX Runtime on real frames, in the precision that was asked for, without copies or noise."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mirrordepth_edge.artefact import NANO_CHECKPOINT, NANO_ONNX
from mirrordepth_edge.backends import base
from mirrordepth_edge.backends import openvino as backend
from mirrordepth_edge.backends.base import Session
from mirrordepth_edge.backends.registry import backend_for, open_session
from mirrordepth_edge.cli import run_app
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import InputError, MissingError, OptionError
from mirrordepth_edge.export.parity import FRAMES_DIR, MAX_RELATIVE_FP32, reference_frames
from mirrordepth_edge.imaging.preprocess import Preprocessor
from mirrordepth_edge.manifest import TensorSpec

NANO = NANO_ONNX["fp32"]
ONNX_RUNTIME = SessionOptions(device="cpu", threads=1)
FP32 = SessionOptions(device="cpu", threads=1, backend="openvino")
BF16 = SessionOptions(device="cpu", threads=1, backend="openvino", bf16=True)
# Half a unit in the last of bfloat16's 8 bits is 2e-3; a network of some fifty layers makes more of it.
MEAN_RELATIVE_BF16 = 2e-2

installed = pytest.mark.skipif(
    isinstance(backend.probe(), backend.Unavailable), reason="OpenVINO is not installed, or does not work here"
)


@pytest.fixture
def _cpu_has_bf16() -> None:
    capabilities = backend.cpu_capabilities(backend.module().Core())
    if "BF16" not in capabilities:
        pytest.skip(f"this CPU does not support bfloat16, only in {', '.join(capabilities)}")


def depths(path: Path, options: SessionOptions) -> list[Any]:
    """float64 metres of the package's reference frames."""
    session, manifest = open_session(path, options)
    assert manifest is not None
    prepare = Preprocessor(manifest.preprocess, "uint8")
    with session:
        return [session.infer({"image": prepare(frame)})["depth"].astype(np.float64) for frame in reference_frames()]


def relative_errors(delivered: list[Any], expected: list[Any]) -> Any:
    return np.abs(np.stack(delivered) / np.stack(expected) - 1)


def precisions(options: SessionOptions) -> set[str]:
    """In what the operations of the compiled graph run, as OpenVINO itself says."""
    graph = backend.compiled_model(NANO, options).get_runtime_model()
    return {str(node.get_rt_info()["runtimePrecision"].astype(str)).lower() for node in graph.get_ops()}


@installed
def test_depth_is_onnx_runtimes() -> None:
    errors = relative_errors(depths(NANO, FP32), depths(NANO, ONNX_RUNTIME))
    assert errors.max() < MAX_RELATIVE_FP32


@installed
def test_depth_of_an_fp16_file_is_onnx_runtimes() -> None:
    """Both multiply in FP32; ONNX Runtime rounds to the file's FP16 in between, by up to 5e-4 each time."""
    errors = relative_errors(depths(NANO_ONNX["fp16"], FP32), depths(NANO_ONNX["fp16"], ONNX_RUNTIME))
    assert errors.mean() < 1e-3


@installed
@pytest.mark.usefixtures("_cpu_has_bf16")
def test_bf16_is_near_and_is_not_fp32() -> None:
    errors = relative_errors(depths(NANO, BF16), depths(NANO, ONNX_RUNTIME))
    assert errors.max() > 10 * MAX_RELATIVE_FP32
    assert errors.mean() < MEAN_RELATIVE_BF16


@installed
@pytest.mark.usefixtures("_cpu_has_bf16")
def test_nothing_is_multiplied_in_bf16_unless_asked_for() -> None:
    """On this CPU OpenVINO would choose it by itself."""
    assert "bf16" not in precisions(FP32)
    assert "bf16" in precisions(BF16)


@installed
@pytest.mark.usefixtures("_cpu_has_bf16")
def test_a_session_reports_its_precision() -> None:
    sessions = {}
    for name, path, options in (("a", NANO, FP32), ("b", NANO_ONNX["fp16"], FP32), ("c", NANO, BF16)):
        with open_session(path, options)[0] as session:
            sessions[name] = (session.precision, session.device, session.backend)
    assert sessions == {
        "a": ("fp32", "cpu", "openvino"),
        "b": ("fp16", "cpu", "openvino"),
        "c": ("bf16", "cpu", "openvino"),
    }


@installed
def test_bf16_is_refused_on_a_cpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "cpu_capabilities", lambda core: ("FP32", "INT8"))
    with pytest.raises(MissingError, match="does not support bfloat16") as caught:
        open_session(NANO, BF16)
    assert "FP32, INT8" in caught.value.why
    assert "--bf16" in caught.value.cure


@installed
@pytest.mark.parametrize("threads", [1, 2])
def test_one_frame_at_a_time_on_as_many_threads_as_asked_for(threads: int) -> None:
    compiled = backend.compiled_model(NANO, SessionOptions(threads=threads))
    assert compiled.get_property("INFERENCE_NUM_THREADS") == min(threads, os.cpu_count() or 1)
    assert str(compiled.get_property("PERFORMANCE_HINT")).endswith("LATENCY")
    assert compiled.get_property("NUM_STREAMS") == 1


def wide_session(tmp_path: Path) -> backend.OpenVinoSession:
    """A model of one multiplication by a half, whose output is 3 MiB."""
    from onnx import TensorProto, helper

    shape = (1, 512, 512, 3)
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, shape)
    depth = helper.make_tensor_value_info("depth", TensorProto.FLOAT, shape)
    half = helper.make_tensor("half", TensorProto.FLOAT, [1], [0.5])
    nodes = [
        helper.make_node("Cast", ["image"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "half"], ["depth"]),
    ]
    graph = helper.make_graph(nodes, "wide", [image], [depth], [half])
    path = tmp_path / "wide.onnx"
    path.write_bytes(
        helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    )
    about: Any = SimpleNamespace(
        inputs=(TensorSpec(name="image", dtype="uint8", shape=shape, layout="NHWC", range="0..255", unit=""),),
        outputs=(TensorSpec(name="depth", dtype="float32", shape=shape, layout="NHWC", range="", unit="metres"),),
        precision="fp32",
    )
    about.at = lambda *_: about
    return backend.OpenVinoSession(path, about, SessionOptions(threads=1))


@installed
def test_frames_are_neither_copied_nor_kept(tmp_path: Path) -> None:
    with wide_session(tmp_path) as session:
        feeds = {"image": np.zeros((1, 512, 512, 3), np.uint8)}
        first = session.infer(feeds)["depth"]
        for _ in range(20):
            session.infer(feeds)
        tracemalloc.start()
        try:
            session.infer(feeds)
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            for number in range(300):
                feeds["image"][:] = number % 256
                assert session.infer(feeds)["depth"] is first
                assert first[0, 511, 511, 2] == (number % 256) / 2
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert after - before < 100_000, "an eighth of one frame, after 300"
    assert peak - before < 400_000, "a copy of the smaller array would be 786432"


@installed
def test_a_read_only_frame_is_read_where_it_lies(tmp_path: Path) -> None:
    pixels = np.full((1, 512, 512, 3), 10, np.uint8)
    view = pixels[:]
    view.flags.writeable = False
    with wide_session(tmp_path) as session:
        assert (session.infer({"image": view})["depth"] == 5).all()
        pixels[:] = 20
        assert (session.infer({"image": view})["depth"] == 10).all()


@installed
def test_results_outlive_the_session_and_a_closed_session_raises(tmp_path: Path) -> None:
    feeds = {"image": np.full((1, 512, 512, 3), 200, np.uint8)}
    session = wide_session(tmp_path)
    depth = session.infer(feeds)["depth"]
    session.close()
    assert (depth == 100).all()
    with pytest.raises(InputError, match="closed"):
        session.infer(feeds)


@installed
def test_a_file_that_is_no_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("no model")
    with pytest.raises(InputError, match=r"cannot load .*model\.onnx") as caught:
        backend.compiled_model(path, FP32)
    assert "\n" not in caught.value.why
    assert "src/" not in caught.value.why
    assert capfd.readouterr() == ("", "")


PLAN: Any = SimpleNamespace(engine=SimpleNamespace(flavour="tensorrt"))


@pytest.mark.parametrize(
    ("path", "manifest", "wanted", "why"),
    [
        (NANO_CHECKPOINT, None, "openvino", "torch"),
        (Path("model.plan"), PLAN, "openvino", "tensorrt"),
        (Path("model.plan"), PLAN, "tensorrt-rtx", "tensorrt"),
        (NANO, None, "tensorrt", "onnxruntime or openvino"),
        (NANO, None, "torch", "onnxruntime or openvino"),
    ],
)
def test_a_backend_that_cannot_open_a_file_is_refused(path: Path, manifest: Any, wanted: str, why: str) -> None:
    with pytest.raises(OptionError, match=rf"{wanted} cannot open .*{path.name}") as caught:
        backend_for(path, manifest, wanted)
    assert f"run in {why}." in caught.value.why
    assert "--backend" in caught.value.cure


def test_the_backend_of_an_onnx_file() -> None:
    assert backend_for(NANO, None) == "onnxruntime"
    assert backend_for(NANO, None, "onnxruntime") == "onnxruntime"
    assert backend_for(NANO, None, "openvino") == "openvino"
    assert backend_for(Path("model.plan"), PLAN, "tensorrt") == "tensorrt"
    with pytest.raises(OptionError, match="Unknown backend 'vino'"):
        backend_for(NANO, None, "vino")


@pytest.mark.parametrize(("path", "wanted"), [(NANO, None), (NANO, "onnxruntime"), (NANO_CHECKPOINT, None)])
def test_bf16_is_refused_where_it_would_be_ignored(path: Path, wanted: str | None) -> None:
    with pytest.raises(OptionError, match="does not support --bf16") as caught:
        open_session(path, SessionOptions(device="cpu", backend=wanted, bf16=True))
    assert "--backend openvino" in caught.value.cure


def test_it_has_no_gpu() -> None:
    with pytest.raises(OptionError, match="NVIDIA GPU") as caught:
        open_session(NANO, SessionOptions(device="cuda", backend="openvino"))
    assert "--device cpu" in caught.value.cure


def test_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda package: None)
    with pytest.raises(MissingError, match="needs OpenVINO") as caught:
        open_session(NANO, FP32)
    assert caught.value.cure == "pip install 'mirrordepth-edge[openvino]'"


@installed
def test_no_telemetry_is_sent_and_nothing_is_printed(tmp_path: Path) -> None:
    """Imported as usual, the package tells Google Analytics, and keeps an identity in the user's home."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from mirrordepth_edge.backends.registry import open_session\n"
        "from mirrordepth_edge.config import SessionOptions\n"
        f"with open_session(Path({str(NANO)!r}), SessionOptions(backend='openvino', threads=1))[0] as session:\n"
        "    session.infer({'image': np.zeros(session.inputs[0].shape, np.uint8)})\n"
        "imported = [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
        "sys.exit(f'imported {imported}' if imported else 0)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment |= {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@installed
def test_a_telemetry_that_was_there_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ModuleType(backend.TELEMETRY)
    monkeypatch.setitem(sys.modules, backend.TELEMETRY, own)
    backend.module()
    assert sys.modules[backend.TELEMETRY] is own


@installed
def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = str(FRAMES_DIR / "coffee.jpg")
    for name in ("onnxruntime", "openvino"):
        arguments = ["run", photo, "-o", str(tmp_path / name), "--formats", "npy", "--device", "cpu"]
        assert run_app([*arguments, "--backend", name]) == 0
    assert "(openvino 20" in capsys.readouterr().err.replace("\n", " ")
    first, second = (np.load(tmp_path / name / "coffee.depth.npy") for name in ("onnxruntime", "openvino"))
    np.testing.assert_allclose(second, first, rtol=MAX_RELATIVE_FP32)
    assert run_app(["run", photo, "-o", str(tmp_path / "no"), "--bf16"]) == 2
    assert not (tmp_path / "no").exists()


def test_a_session_has_the_attributes_of_the_contract() -> None:
    members = {name for name in dir(Session) if not name.startswith("_")}
    assert members <= set(dir(backend.OpenVinoSession))
