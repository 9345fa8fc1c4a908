"""Checkpoints: round trip, verification and errors."""

from __future__ import annotations

import errno
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("open_clip", reason="open_clip is not installed")

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mirrordepth_edge.config import ModelConfig
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.manifest import CHECKPOINT_KEY
from mirrordepth_edge.model.checkpoint import load_checkpoint, save_checkpoint
from mirrordepth_edge.model.clip import clip_sha256, create_clip
from mirrordepth_edge.model.network import DepthNetwork, create_network

IMAGES_SEED = 3


def depth_of(network: DepthNetwork) -> torch.Tensor:
    images = torch.randn(1, 3, *network.config.size_hw, generator=torch.Generator().manual_seed(IMAGES_SEED))
    with torch.no_grad():
        return network(images)


def header_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="numpy") as file:
        header: dict[str, Any] = json.loads(file.metadata()[CHECKPOINT_KEY])
    return header


def rewrite(path: Path, edit: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> None:
    """Change header or tensors of a checkpoint as `edit` does."""
    header, tensors = header_of(path), load_file(path)
    edit(header, tensors)
    save_file(tensors, path, metadata={CHECKPOINT_KEY: json.dumps(header)})


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copy(tiny_checkpoint, tmp_path / "copy.safetensors"))


def test_roundtrip(tiny_checkpoint: Path, tiny_network: DepthNetwork) -> None:
    loaded, info = load_checkpoint(tiny_checkpoint)
    assert info.model == loaded.config == tiny_network.config
    assert not loaded.training
    assert torch.equal(depth_of(loaded), depth_of(tiny_network))
    for name, parameter in tiny_network.trainable().items():
        assert torch.equal(loaded.trainable()[name], parameter), name


def test_file_holds_the_trained_part_and_its_description(tiny_checkpoint: Path, tiny_network: DepthNetwork) -> None:
    assert set(load_file(tiny_checkpoint)) == set(tiny_network.trainable())
    header = header_of(tiny_checkpoint)
    assert header["training"] == {"epochs": 3, "abs_rel": 0.25}
    assert header["clip_sha256"] == clip_sha256(create_clip(tiny_network.config)), "of the weights before the resize"
    assert header["model"]["clip_model"] == tiny_network.config.clip_model
    assert header["model"]["size_hw"] == [64, 96]


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.999])
def test_truncated_file(copy: Path, share: float) -> None:
    copy.write_bytes(copy.read_bytes()[: int(copy.stat().st_size * share)])
    check_refused(copy, match="empty|truncated")


def test_altered_byte_in_a_tensor(copy: Path) -> None:
    content = bytearray(copy.read_bytes())
    (header_size,) = struct.unpack_from("<Q", content)
    content[8 + header_size + 4 * 100] ^= 1  # the lowest bit of the hundredth number
    copy.write_bytes(content)
    check_refused(copy, match="altered")


@pytest.mark.parametrize("content", [b"PK\x03\x04" * 500, b"\x08\x09\x12\x07pytorch" * 50, b"x"])
def test_another_kind_of_file(copy: Path, content: bytes) -> None:
    copy.write_bytes(content)
    check_refused(copy, match="not a safetensors file")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    check_refused(tmp_path / "nowhere.safetensors", match="No such file")
    check_refused(tmp_path, match="folder")


def test_header_that_names_other_clip_weights(copy: Path) -> None:
    rewrite(copy, lambda header, tensors: header["model"].update(pretrained="random-1"))
    check_refused(copy, match="other CLIP weights")


def test_header_of_another_width(copy: Path) -> None:
    rewrite(copy, lambda header, tensors: header["model"].update(width=64))
    check_refused(copy, match="does not match its model")


def test_header_with_an_unknown_key(copy: Path) -> None:
    rewrite(copy, lambda header, tensors: header["model"].update(depth_unit="feet"))
    check_refused(copy, match="depth_unit")


def test_header_of_a_later_version(copy: Path) -> None:
    rewrite(copy, lambda header, tensors: header.update(version=99))
    check_refused(copy, match="version")


def check_refused(path: Path, match: str) -> None:
    """An `InputError` that names the file and says why and what to do."""
    with pytest.raises(InputError, match=match) as caught:
        load_checkpoint(path)
    assert str(path) in caught.value.what
    assert caught.value.why
    assert caught.value.cure


def test_local_clip_weights(tiny_vit_config: ModelConfig, tmp_path: Path) -> None:
    right, wrong, path = (tmp_path / name for name in ("right.pt", "wrong.pt", "model.safetensors"))
    torch.save(create_clip(replace(tiny_vit_config, pretrained="random-4")).state_dict(), right)
    torch.save(create_clip(replace(tiny_vit_config, pretrained="random-5")).state_dict(), wrong)
    network = create_network(replace(tiny_vit_config, pretrained="openai"), right).eval()
    save_checkpoint(network, path)
    loaded, _ = load_checkpoint(path, clip_weights=right)
    assert torch.equal(depth_of(loaded), depth_of(network))
    with pytest.raises(InputError, match=r"wrong\.pt holds other CLIP weights") as caught:
        load_checkpoint(path, clip_weights=wrong)
    assert "--clip-weights" in caught.value.cure


@pytest.mark.parametrize("size_hw", [(32, 64), (96, 96)])
def test_loading_at_another_size(tiny_checkpoint: Path, size_hw: tuple[int, int]) -> None:
    network, info = load_checkpoint(tiny_checkpoint, size_hw=size_hw)
    assert network.config.size_hw == size_hw
    assert info.model.size_hw == (64, 96), "the file still says what it was trained at"
    assert depth_of(network).shape == (1, *size_hw)


def test_loading_at_a_size_that_does_not_fit(tiny_checkpoint: Path) -> None:
    with pytest.raises(OptionError, match="65x96") as caught:
        load_checkpoint(tiny_checkpoint, size_hw=(65, 96))
    assert caught.value.cure == "--size 64x96"


@pytest.fixture(scope="module")
def embedded(tiny_map_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[DepthNetwork, Path]:
    """A network whose towers, rounded to FP16, travel in its checkpoint."""
    clip = create_clip(tiny_map_config)
    clip.load_state_dict({n: t.half().float() if t.is_floating_point() else t for n, t in clip.state_dict().items()})
    network = DepthNetwork(replace(tiny_map_config, pretrained="embedded"), clip).eval()
    path = tmp_path_factory.mktemp("embedded") / "nano.safetensors"
    save_checkpoint(network, path)
    return network, path


def test_embedded_towers(embedded: tuple[DepthNetwork, Path]) -> None:
    network, path = embedded
    towers = {name: tensor for name, tensor in load_file(path).items() if name.startswith("clip.")}
    assert {tensor.dtype for tensor in towers.values()} == {torch.float16, torch.int64}
    assert len(towers) == len(network.clip.state_dict())
    loaded, _ = load_checkpoint(path)
    assert torch.equal(depth_of(loaded), depth_of(network))
    assert all(p.dtype == torch.float32 for p in loaded.parameters())


def test_altered_embedded_towers(embedded: tuple[DepthNetwork, Path], tmp_path: Path) -> None:
    path = Path(shutil.copy(embedded[1], tmp_path / "copy.safetensors"))
    rewrite(path, lambda header, tensors: tensors["clip.ln_final.bias"].add_(0.5))
    check_refused(path, match="other CLIP weights")


def test_missing_embedded_towers(embedded: tuple[DepthNetwork, Path], tmp_path: Path) -> None:
    path = Path(shutil.copy(embedded[1], tmp_path / "copy.safetensors"))
    rewrite(path, lambda header, tensors: tensors.__delitem__("clip.ln_final.bias"))
    check_refused(path, match="fit|missing|damaged")


def test_interrupted_save_leaves_no_file(
    tiny_network: DepthNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tiny_network, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(tiny_network: DepthNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="No space left"):
        save_checkpoint(tiny_network, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
