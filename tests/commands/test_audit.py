"""`mde audit`, end to end: what it prints and writes, its exit codes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import onnx
import pytest

from mirrordepth_edge.artefact import NANO_CHECKPOINT, NANO_ONNX
from mirrordepth_edge.cli import run_app
from mirrordepth_edge.manifest import EngineInfo, Manifest, manifest_path, read_manifest
from mirrordepth_edge.support.files import sha256_of


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def describe(path: Path, manifest: Manifest) -> None:
    described = replace(manifest, artefact_sha256=sha256_of(path))
    manifest_path(path).write_text(json.dumps(asdict(described)), encoding="utf-8")


@pytest.mark.parametrize(("name", "precision"), [("nano", "FP32"), ("nano.fp16", "FP16")])
def test_the_shipped_models(name: str, precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["audit", name]) == 0
    out = capsys.readouterr().out
    assert f"The model is {precision}, as requested" in out
    assert "0.621 G multiply-adds" in out  # as mde inspect counts them
    assert "4 FP32" in out
    if precision == "FP32":
        assert "2 of 2 attention blocks cannot run as one TensorRT kernel" in out
        assert "next: Nothing to do for a CPU. For a GPU, mde export --fp16" in out
    else:
        assert "2 blocks, 2 that TensorRT can fuse" in out


def test_json_has_all_that_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["audit", "nano", "--json", "sub/audit.json"]) == 0
    assert "wrote sub/audit.json" in capsys.readouterr().out
    data = json.loads(Path("sub/audit.json").read_text(encoding="utf-8"))
    assert data["shares"] == {"FP32": 1.0}
    assert data["verdict"]["holds"] is True
    assert [finding["kind"] for finding in data["findings"]] == ["attention"]
    assert len(data["attention"]) == 2


def test_a_file_that_is_not_what_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    """FP32, and a manifest that says FP16: the findings are printed and written, then the gate fails."""
    shutil.copy(NANO_ONNX["fp32"], "model.onnx")
    describe(Path("model.onnx"), replace(read_manifest(NANO_ONNX["fp32"]), precision="fp16"))
    assert run_app(["audit", "model.onnx", "--json", "audit.json"]) == 3
    printed = capsys.readouterr()
    assert "attention blocks cannot run" in printed.out
    assert "error: model.onnx is not FP16." in printed.err
    assert "0.0% of the MACs run in FP16 or lower" in printed.err
    assert json.loads(Path("audit.json").read_text(encoding="utf-8"))["verdict"]["holds"] is False


def test_a_foreign_file_gets_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(NANO_ONNX["fp16"], "foreign.onnx")
    assert run_app(["audit", "foreign.onnx"]) == 0
    out = capsys.readouterr().out
    assert "FP16" in out
    assert "No verdict: the file has no manifest" in out


def test_a_changed_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(NANO_ONNX["fp32"], "model.onnx")
    shutil.copy(manifest_path(NANO_ONNX["fp16"]), "model.onnx.manifest.json")
    assert run_app(["audit", "model.onnx"]) == 1
    assert "is not the file its manifest describes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "code", "what", "cure"),
    [
        (str(NANO_CHECKPOINT), 2, "has no precision to audit", "then mde audit nano.onnx"),
        ("notes.txt", 2, "cannot be audited", "Give an ONNX file"),
        ("missing.onnx", 1, "There is no model at missing.onnx", "Check the path"),
        ("broken.onnx", 1, "cannot be read as an ONNX file", "mde export"),
        ("moving.onnx", 1, "is not fixed", "make_dynamic_shape_fixed"),
        ("other.json", 1, "not the output of TensorRT's engine inspector", "--exportLayerInfo=layers.json"),
        ("alone.plan", 1, "alone.plan has no manifest", "Copy the manifest"),
    ],
)
def test_what_is_refused(name: str, code: int, what: str, cure: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.txt").write_text("words", encoding="utf-8")
    Path("broken.onnx").write_bytes(b"\xff" * 100)
    Path("other.json").write_text("{}", encoding="utf-8")
    Path("alone.plan").write_bytes(b"plan")
    model = onnx.load(NANO_ONNX["fp32"])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "frames"
    del model.graph.value_info[:]
    onnx.save(model, "moving.onnx")
    assert run_app(["audit", name]) == code
    error = capsys.readouterr().err
    assert what in error
    assert cure in error


def test_an_engine_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from mirrordepth_edge.backends.trt import session as engine

    monkeypatch.setattr(engine, "nvidia_gpus", lambda: ())
    Path("model.plan").write_bytes(b"plan")
    info = EngineInfo(flavour="tensorrt", version="11.4", compute_capabilities=("8.7",), build_seconds=1.0)
    describe(Path("model.plan"), replace(read_manifest(NANO_ONNX["fp16"]), kind="plan", engine=info))
    assert run_app(["audit", "model.plan"]) == 4
    assert "needs an NVIDIA GPU" in capsys.readouterr().err


def test_layers_that_trtexec_wrote(capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {way: [{"Name": way, "Dimensions": [1], "Format/Datatype": "Half"}] for way in ("Inputs", "Outputs")}
    layers = [{"Name": "_gemm_mha_v2_myl0_4", "LayerType": "kgen", **tensors}]
    Path("layers.json").write_text(json.dumps({"Layers": layers, "Bindings": []}), encoding="utf-8")
    assert run_app(["audit", "layers.json"]) == 0
    out = capsys.readouterr().out
    assert "1 layer " in out
    assert "fused attention" in out
    assert "No verdict" in out
