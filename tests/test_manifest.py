"""Sidecars and checkpoint headers: what fits is read, what does not is refused by name."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mirrordepth_edge.backends.registry import open_session
from mirrordepth_edge.config import PRESETS, SizeRange
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.manifest import (
    Accuracy,
    DepthFigures,
    EngineInfo,
    Manifest,
    Parity,
    Quantisation,
    TensorSpec,
    manifest_path,
    read_checkpoint_info,
    read_manifest,
    write_artefact,
)


def tensor(name: str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=(1, 3, 4), layout="NHW", range="> 0", unit="metres")


CONTENT = b"not really ONNX; manifests do not look inside"


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        kind="onnx",
        artefact_sha256=hashlib.sha256(CONTENT).hexdigest(),
        parent_sha256="a" * 64,
        checkpoint_sha256="a" * 64,
        clip_sha256="b" * 64,
        trained=True,
        model=PRESETS["nano"],
        preprocess=PRESETS["nano"].preprocess,
        inputs=(tensor("image"),),
        outputs=(tensor("depth"),),
        precision="fp16",
        opset=18,
        parity=Parity(
            backend="onnxruntime",
            runner="onnxruntime 1.0",
            frames=2,
            max_relative=1e-5,
            mean_relative=1e-6,
            limit="<= 1e-4",
        ),
        tools={"torch": "2.0"},
    )


@pytest.fixture
def artefact(tmp_path: Path, manifest: Manifest) -> Path:
    """A model and its sidecar."""
    path = tmp_path / "model.onnx"
    write_artefact(path, CONTENT, manifest)
    return path


def rewrite(artefact: Path, **changes: Any) -> None:
    sidecar = manifest_path(artefact)
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | changes))


def test_roundtrip(artefact: Path, manifest: Manifest) -> None:
    assert artefact.read_bytes() == CONTENT
    assert sorted(p.name for p in artefact.parent.iterdir()) == ["model.onnx", "model.onnx.manifest.json"]
    assert read_manifest(artefact) == manifest


def test_roundtrip_of_a_plan(tmp_path: Path, manifest: Manifest) -> None:
    engine = EngineInfo(flavour="tensorrt", version="10.3", compute_capabilities=("8.7",), build_seconds=2.5)
    plan = replace(manifest, kind="plan", engine=engine)
    write_artefact(tmp_path / "model.plan", CONTENT, plan)
    assert read_manifest(tmp_path / "model.plan") == plan


def test_an_interrupted_write_leaves_the_old_pair(
    artefact: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    newer = replace(manifest, artefact_sha256="c" * 64)
    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_artefact(artefact, b"new", newer)
    assert read_manifest(artefact) == manifest
    assert len(list(artefact.parent.iterdir())) == 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"surprise": 1}, "surprise"),
        ({"schema_version": 3}, "schema_version"),
        ({"precision": "int4"}, "precision"),
        ({"opset": "eighteen"}, "opset"),
        ({"parity": None}, "parity"),
        ({"inputs": [{"name": "image"}]}, r"inputs\.0\.dtype"),
    ],
)
def test_what_does_not_belong_is_refused_by_name(artefact: Path, changes: dict[str, Any], named: str) -> None:
    rewrite(artefact, **changes)
    with pytest.raises(InputError, match=named) as caught:
        read_manifest(artefact)
    assert "mde export" in caught.value.cure


def test_a_manifest_of_schema_version_1_is_read(artefact: Path, manifest: Manifest) -> None:
    """Four keys had other names, and the backend was only part of a text."""
    figures = DepthFigures(abs_rel=0.1, delta1=0.9, boundary_f1=None)
    accuracy = Accuracy(
        data="NYU", frames=8, figures=figures, fp32=figures, mean_relative=0.01, max_relative=0.1, limit=0.01
    )
    quantisation = Quantisation(
        scheme="gpu",
        method="percentile",
        calibration="hall",
        calibration_sha256="c" * 64,
        calibration_frames=64,
        int8_nodes=("a",),
        fp_fallback=("b",),
        accuracy=accuracy,
    )
    sizes = SizeRange(min=(1, 32, 32), opt=(1, 64, 64), max=(2, 96, 96))
    written = replace(manifest, sizes=sizes, quantisation=quantisation)
    write_artefact(artefact, CONTENT, written)
    sidecar = manifest_path(artefact)
    old = sidecar.read_text(encoding="utf-8").replace('"schema_version": 2', '"schema_version": 1')
    for new_name, old_name in (
        ("fp_fallback", "given_back"),
        ("min", "smallest"),
        ("opt", "usual"),
        ("max", "largest"),
    ):
        assert f'"{new_name}"' in old
        old = old.replace(f'"{new_name}"', f'"{old_name}"')
    assert '"backend": "onnxruntime",' in old
    old = old.replace('"backend": "onnxruntime",', "")
    sidecar.write_text(old, encoding="utf-8")
    assert read_manifest(artefact) == written


def test_another_file_under_the_same_name_is_refused(artefact: Path, manifest: Manifest) -> None:
    artefact.write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match="not the file its manifest describes"):
        read_manifest(artefact)
    assert read_manifest(artefact, verify=False) == manifest


def test_a_manifest_without_its_file(artefact: Path) -> None:
    artefact.unlink()
    with pytest.raises(InputError, match=r"describes model\.onnx, which does not exist"):
        read_manifest(artefact)


def test_a_model_without_its_manifest(artefact: Path) -> None:
    manifest_path(artefact).unlink()
    with pytest.raises(InputError, match="has no manifest") as caught:
        read_manifest(artefact)
    assert "model.onnx.manifest.json" in caught.value.why
    with pytest.raises(InputError, match="has no manifest"):
        open_session(artefact)


def test_neither_model_nor_manifest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model at"):
        read_manifest(tmp_path / "model.onnx")


@pytest.mark.parametrize("broken", [b"", b'{"kind": "onnx"', b"\xff\xfe\x00"])
def test_broken_json(artefact: Path, broken: bytes) -> None:
    manifest_path(artefact).write_bytes(broken)
    with pytest.raises(InputError, match=r"not valid JSON|is empty"):
        read_manifest(artefact)


@pytest.mark.parametrize("whole", ["[]", "null", "3"])
def test_json_of_another_kind(artefact: Path, whole: str) -> None:
    manifest_path(artefact).write_text(whole)
    with pytest.raises(InputError, match="is not valid"):
        read_manifest(artefact)


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        (None, "not a mirrordepth-edge checkpoint"),
        ({"format": "pt"}, "not a mirrordepth-edge checkpoint"),
        ({"mirrordepth": "{}"}, "Field required"),
        ({"mirrordepth": "not JSON"}, "JSON"),
    ],
)
def test_a_header_that_is_not_ours(tmp_path: Path, metadata: dict[str, str] | None, told: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": np.zeros(3, np.float32)}, path, metadata=metadata)
    with pytest.raises(InputError, match=told):
        read_checkpoint_info(path)
