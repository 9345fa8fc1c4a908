"""The models that ship: whole, small enough, one chain of hashes, and as good as the card says."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from mirrordepth_edge.artefact import MODELS_DIR, NANO_CHECKPOINT, NANO_ONNX
from mirrordepth_edge.config import PRESETS, SessionOptions
from mirrordepth_edge.data.choose import NYU_CAMERA
from mirrordepth_edge.export.parity import FRAMES_DIR, reference_frames
from mirrordepth_edge.imaging.images import read_image
from mirrordepth_edge.manifest import read_checkpoint_info, read_manifest
from mirrordepth_edge.predictor import load
from mirrordepth_edge.support.files import sha256_of

CARD = (MODELS_DIR / "nano.md").read_text(encoding="utf-8")
MAX_BYTES = 16_000_000


def test_small_enough_to_ship() -> None:
    for path in (NANO_CHECKPOINT, *NANO_ONNX.values()):
        assert path.stat().st_size <= MAX_BYTES, path.name


def test_one_chain_of_hashes() -> None:
    checkpoint = read_checkpoint_info(NANO_CHECKPOINT)
    assert replace(checkpoint.model, focal=None) == PRESETS["nano"]
    assert checkpoint.model.focal == pytest.approx(NYU_CAMERA.focal)
    for precision, path in NANO_ONNX.items():
        manifest = read_manifest(path)  # verifies the file's own hash
        assert manifest.precision == precision
        assert manifest.parent_sha256 == manifest.checkpoint_sha256 == sha256_of(NANO_CHECKPOINT)
        assert manifest.clip_sha256 == checkpoint.clip_sha256
        assert manifest.model == checkpoint.model
        assert manifest.trained


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_shipped_onnx_is_the_checkpoint(precision: str) -> None:
    pytest.importorskip("torch", reason="the reference is the PyTorch model")
    from mirrordepth_edge.export.parity import check_parity, measure_parity
    from mirrordepth_edge.model.checkpoint import load_checkpoint

    network, _ = load_checkpoint(NANO_CHECKPOINT)
    parity = measure_parity(NANO_ONNX[precision], network, reference_frames(), precision, "uint8")  # type: ignore[arg-type]
    check_parity(parity, precision)  # type: ignore[arg-type]


def test_the_cards_figures_are_the_checkpoints() -> None:
    training = read_checkpoint_info(NANO_CHECKPOINT).training
    assert training is not None
    validation = training["validation"]
    row = re.search(r"^\| \*\*nano\*\* \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", CARD, re.MULTILINE)
    assert row is not None
    stated = [float(figure) for figure in row.groups()]
    measured = [validation[name] for name in ("abs_rel", "rmse", "delta1")]
    np.testing.assert_allclose(stated, measured, atol=5e-4)
    assert f"{training['pictures']} training pictures" in CARD


def test_every_reference_frame_has_its_origin() -> None:
    readme = (FRAMES_DIR / "README.md").read_text(encoding="utf-8")
    for path in FRAMES_DIR.glob("*.jpg"):
        assert f"`{path.name}`" in readme


def test_nano_sees_depth_in_a_photograph() -> None:
    """Coarse, and true of any depth model: in a portrait the person is nearer than what is behind her."""
    with load("nano", SessionOptions(device="cpu")) as predictor:
        depth_m = predictor(read_image(FRAMES_DIR / "astronaut.jpg"))
    assert depth_m.shape == (480, 480)
    person, background = depth_m[150:350, 190:290], depth_m[:120, 20:120]
    assert np.median(person) < np.median(background)
    assert 0.3 < np.median(person) < 5.0
