"""`Artefact`: a model file is opened, verified and hashed once; its reference depth is stored beside it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from mirrordepth_edge import artefact, manifest
from mirrordepth_edge.artefact import (
    NANO_CHECKPOINT,
    NANO_ONNX,
    Artefact,
    Reference,
    copy_reference,
    kind_of,
    read_reference,
    reference_path,
    shipped_name,
    write_reference,
)
from mirrordepth_edge.cli import run_app
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.manifest import manifest_path, read_manifest
from mirrordepth_edge.support.files import sha256_of

RNG = np.random.default_rng(0)
REFERENCE = Reference(RNG.integers(0, 256, (3, 4, 6, 3), np.uint8), RNG.uniform(0.5, 10, (3, 4, 6)).astype(np.float32))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Paths of the files that were hashed, in order."""
    paths: list[Path] = []

    def record(path: Path) -> str:
        paths.append(path)
        return sha256_of(path)

    for module in (artefact, manifest):
        monkeypatch.setattr(module, "sha256_of", record)
    return paths


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    shutil.copyfile(NANO_ONNX["fp32"], path)
    shutil.copyfile(manifest_path(NANO_ONNX["fp32"]), manifest_path(path))
    return path


@pytest.mark.parametrize(("name", "precision"), [("nano", "fp32"), ("nano.fp16", "fp16")])
def test_shipped_model_is_opened_by_name(name: str, precision: str, hashed: list[Path]) -> None:
    opened = Artefact.open(name)
    assert (opened.path, opened.kind) == (NANO_ONNX[precision], "onnx")
    assert opened.manifest == read_manifest(NANO_ONNX[precision], verify=False)
    assert opened.sha256 == opened.sha256 == sha256_of(NANO_ONNX[precision])
    assert hashed == [NANO_ONNX[precision]]
    assert shipped_name(opened.sha256) == name


def test_reference_is_read_when_it_is_needed(onnx: Path) -> None:
    opened = Artefact.open(onnx)
    shutil.copyfile(reference_path(NANO_ONNX["fp32"]), reference_path(onnx))
    assert opened.reference is not None
    assert opened.reference is opened.reference
    assert Artefact.open(NANO_CHECKPOINT).reference is None


def test_checkpoint_is_hashed_only_on_demand(hashed: list[Path]) -> None:
    opened = Artefact.open(NANO_CHECKPOINT)
    assert (opened.kind, opened.sidecar, hashed) == ("checkpoint", None, [])
    assert opened.checkpoint_info.model.preset == "nano"
    assert opened.sha256 == opened.sha256 == sha256_of(NANO_CHECKPOINT)
    assert hashed == [NANO_CHECKPOINT]
    with pytest.raises(InputError, match="has no manifest") as caught:
        _ = opened.manifest
    assert "mde export" in caught.value.cure


def test_changed_file_is_refused(onnx: Path) -> None:
    with onnx.open("ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match="is not the file its manifest describes"):
        Artefact.open(onnx)


def test_only_a_trusted_plan_may_lack_its_manifest(tmp_path: Path) -> None:
    plan, onnx = tmp_path / "model.plan", tmp_path / "model.onnx"
    for path in (plan, onnx):
        path.write_bytes(b"content")
        with pytest.raises(InputError, match="has no manifest"):
            Artefact.open(path)
    with pytest.raises(InputError, match="has no manifest"):
        Artefact.open(onnx, trust=True)
    opened = Artefact.open(plan, trust=True)
    assert (opened.kind, opened.sidecar, opened.sha256) == ("plan", None, sha256_of(plan))
    with pytest.raises(InputError, match="has no manifest"):
        _ = opened.manifest


def test_trust_does_not_skip_the_hash(onnx: Path, tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"changed")
    shutil.copyfile(manifest_path(onnx), manifest_path(plan))
    with pytest.raises(InputError, match="is not the file its manifest describes"):
        Artefact.open(plan, trust=True)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.onnx", "onnx"), ("a.plan", "plan"), ("a.engine", "plan"), ("a.safetensors", "checkpoint")]
)
def test_kind_follows_from_the_suffix(name: str, kind: str) -> None:
    assert kind_of(Path(name)) == kind


def test_what_is_not_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no"):
        Artefact.open(tmp_path / "missing.onnx")
    with pytest.raises(InputError, match="There is no"):
        Artefact.open(tmp_path / "missing.pt")
    (tmp_path / "model.pt").write_bytes(b"weights")
    with pytest.raises(InputError, match=r"model\.pt is not a model"):
        Artefact.open(tmp_path / "model.pt")


@pytest.fixture
def hashed_anywhere(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Paths of the files that any module of the package hashes, in order."""
    paths: list[Path] = []

    def record(path: Path) -> str:
        paths.append(path)
        return sha256_of(path)

    for name, module in list(sys.modules.items()):
        if name.startswith("mirrordepth_edge") and hasattr(module, "sha256_of"):
            monkeypatch.setattr(module, "sha256_of", record)
    return paths


@pytest.mark.parametrize(
    "command",
    [
        ["inspect"],
        ["audit"],
        ["verify", "--device", "cpu"],
        ["bench", "--iterations", "2", "--warmup", "0", "--device", "cpu", "--engine"],
    ],
    ids=lambda command: command[0],
)
def test_commands_hash_a_model_once(command: list[str], hashed_anywhere: list[Path]) -> None:
    assert run_app([*command, "nano"]) == 0
    assert hashed_anywhere == [NANO_ONNX["fp32"]]


def test_reference_is_written_read_and_copied(tmp_path: Path) -> None:
    model, plan = tmp_path / "model.onnx", tmp_path / "model.plan"
    assert read_reference(model) is None
    copy_reference(model, plan)
    assert read_reference(plan) is None
    write_reference(model, REFERENCE)
    copy_reference(model, plan)
    for path in (model, plan):
        stored = read_reference(path)
        assert stored is not None
        np.testing.assert_array_equal(stored.images, REFERENCE.images)
        np.testing.assert_array_equal(stored.depth_m, REFERENCE.depth_m)
    assert reference_path(model).read_bytes() == reference_path(plan).read_bytes()


def test_reference_batches_wrap_around() -> None:
    images, depth_m = REFERENCE.batch(2, 4)
    for index, frame in enumerate((2, 0, 1, 2)):
        np.testing.assert_array_equal(images[index], REFERENCE.images[frame])
        np.testing.assert_array_equal(depth_m[index], REFERENCE.depth_m[frame])


def test_damaged_reference_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    write_reference(model, REFERENCE)
    whole = reference_path(model).read_bytes()
    for content in (b"", whole[:100], b"no archive"):
        reference_path(model).write_bytes(content)
        with pytest.raises(InputError, match="is damaged"):
            read_reference(model)
    for broken in (
        Reference(REFERENCE.images[:2], REFERENCE.depth_m),
        Reference(REFERENCE.images[:0], REFERENCE.depth_m[:0]),
        Reference(REFERENCE.images, 0 * REFERENCE.depth_m),
        Reference(REFERENCE.images, np.nan * REFERENCE.depth_m),
    ):
        write_reference(model, broken)
        with pytest.raises(InputError, match="positive depth"):
            read_reference(model)
