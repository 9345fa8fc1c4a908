"""CLIP's towers against open_clip and timm themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("open_clip", reason="open_clip is not installed")

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mirrordepth_edge.config import PRESETS, ModelConfig, SizeHW
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.model.clip import ImageTower, TextPath, clip_sha256, create_clip, resize_input, tensors_sha256
from mirrordepth_edge.model.network import DepthNetwork, create_network

PROMPTS = ["a photo of a cat", "depth", "how far away is the chair beside the window, in metres?"]


def check_text_path(clip: nn.Module, tokens: Tensor) -> None:
    """The path, fed with word embeddings cut after the end-of-text token, is `encode_text`."""
    path = TextPath(clip)
    text = getattr(clip, "text", clip)
    with torch.no_grad():
        expected = clip.encode_text(tokens)
        for row, reference in zip(tokens, expected, strict=True):
            end = int(row.argmax())  # the end-of-text token is the largest id
            feature = path(text.token_embedding(row[: end + 1]))
            torch.testing.assert_close(feature, reference, rtol=0, atol=1e-5 * float(reference.abs().max()))
    assert (expected[0] - expected[1]).norm() > 0.01 * expected[0].norm(), "prompts that read alike prove nothing"


def test_text_path_is_encode_text(tiny_vit_config: ModelConfig) -> None:
    tokens = open_clip.get_tokenizer(tiny_vit_config.clip_model)(PROMPTS)
    check_text_path(create_clip(tiny_vit_config), tokens)


def test_text_path_is_encode_text_for_nano(tiny_map_config: ModelConfig) -> None:
    clip = create_clip(tiny_map_config)
    tokens = torch.randint(0, 62, (3, 64), generator=torch.Generator().manual_seed(0))
    tokens[range(3), [9, 40, 63]] = 63
    check_text_path(clip, tokens)


@pytest.mark.slow
def test_text_path_is_encode_text_at_full_size(vitb16: DepthNetwork) -> None:
    check_text_path(vitb16.clip, open_clip.get_tokenizer(vitb16.config.clip_model)(PROMPTS))


def test_taps_are_the_outputs_of_the_towers_own_blocks(tiny_network: DepthNetwork) -> None:
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    visual = tiny_network.clip.visual
    outputs = outputs_of([visual.transformer.resblocks[i] for i in (2, 1, 0)], lambda: visual(images))
    taps = tiny_network.tower(images)
    assert taps.prefix == 1
    assert taps.features[0].shape == (2, 1 + 4 * 6, 64), "the class token is there"
    for tap, expected in zip(taps.features, outputs, strict=True):
        torch.testing.assert_close(tap, expected, rtol=0, atol=1e-6)


def test_map_taps_are_timms_own(tiny_map_network: DepthNetwork) -> None:
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    trunk = tiny_map_network.clip.visual.trunk
    # EfficientNet's last stages at strides 32, 16 and 8.
    outputs = outputs_of([trunk.blocks[i] for i in (6, 4, 2)], lambda: trunk.forward_features(images))
    taps = tiny_map_network.tower(images)
    assert taps.prefix == 0
    assert [tuple(tap.shape[2:]) for tap in taps.features] == [(2, 3), (4, 6), (8, 12)]
    for tap, expected in zip(taps.features, outputs, strict=True):
        torch.testing.assert_close(tap, expected, rtol=0, atol=1e-6)


def outputs_of(modules: list[nn.Module], run: Callable[[], Any]) -> list[Tensor]:
    """Outputs of `modules` while `run` runs, recorded by forward hooks."""
    seen: dict[nn.Module, Tensor] = {}
    hooks = [m.register_forward_hook(lambda module, _, output: seen.update({module: output})) for m in modules]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return [seen[module] for module in modules]


def test_blocks_after_the_last_tap_do_not_run(tiny_network: DepthNetwork) -> None:
    visual = tiny_network.clip.visual
    with pytest.raises(KeyError):
        outputs_of([visual.transformer.resblocks[3]], lambda: tiny_network.tower(torch.zeros(1, 3, 64, 96)))


@pytest.mark.parametrize("size_hw", [(64, 96), (32, 32), (128, 64)])
def test_position_embedding_is_resized_as_open_clip_does(
    tiny_vit_config: ModelConfig, tmp_path: Path, size_hw: SizeHW
) -> None:
    clip = create_clip(tiny_vit_config)
    weights = tmp_path / "weights.pt"
    torch.save(clip.state_dict(), weights)
    resized = open_clip.create_model(tiny_vit_config.clip_model, pretrained=str(weights), force_image_size=size_hw)
    resize_input(clip, size_hw)
    assert torch.equal(clip.visual.positional_embedding, resized.visual.positional_embedding)
    images = torch.randn(1, 3, *size_hw, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(clip.visual(images), resized.eval().visual(images))


def test_position_embedding_is_resized_where_only_the_aspect_changes(tiny_vit_config: ModelConfig) -> None:
    clip = create_clip(tiny_vit_config)  # its own grid is 4x4; 2x8 has as many cells
    native = clip.visual.positional_embedding.clone()
    resize_input(clip, (32, 128))
    assert not torch.equal(clip.visual.positional_embedding, native)


def test_native_size_changes_nothing(tiny_vit_config: ModelConfig) -> None:
    clip = create_clip(tiny_vit_config)
    before = clip_sha256(clip)
    resize_input(clip, (64, 64))
    assert clip_sha256(clip) == before


def test_hash_is_of_values_not_of_files(tiny_vit_config: ModelConfig, tmp_path: Path) -> None:
    source = create_clip(replace(tiny_vit_config, pretrained="random-7"))
    source.load_state_dict({name: tensor.half().float() for name, tensor in source.state_dict().items()})
    half = {name: tensor.half() for name, tensor in source.state_dict().items()}
    torch.save(source.state_dict(), tmp_path / "full.pt")
    torch.save(dict(reversed(half.items())), tmp_path / "half.bin")
    save_file(half, tmp_path / "half.safetensors")
    config = replace(tiny_vit_config, pretrained="some tag")
    hashes = {clip_sha256(create_clip(config, tmp_path / name)) for name in ("full.pt", "half.bin", "half.safetensors")}
    assert hashes == {clip_sha256(source)}


def test_hash_changes_with_any_weight(tiny_vit_config: ModelConfig) -> None:
    state = create_clip(tiny_vit_config).state_dict()
    original = tensors_sha256(state)
    for name in state:
        nudged = state[name].clone()
        nudged.view(-1)[-1] += 1e-3
        assert tensors_sha256({**state, name: nudged}) != original, name
    weight = torch.arange(6.0)
    assert tensors_sha256({"a": weight.half()}) == tensors_sha256({"a": weight})
    assert tensors_sha256({"a": weight, "b": weight + 1}) == tensors_sha256({"b": weight + 1, "a": weight})
    assert tensors_sha256({"a": weight.view(2, 3)}) != tensors_sha256({"a": weight.view(3, 2)})
    assert tensors_sha256({"a": weight}) != tensors_sha256({"b": weight})


def test_random_weights_depend_on_their_seed_and_keep_torchs_generator(tiny_vit_config: ModelConfig) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = clip_sha256(create_clip(tiny_vit_config))
    assert torch.equal(torch.rand(3), expected)
    assert clip_sha256(create_clip(tiny_vit_config)) == first
    assert clip_sha256(create_clip(replace(tiny_vit_config, pretrained="random-1"))) != first


def test_clip_comes_frozen_in_eval_mode(tiny_vit_config: ModelConfig) -> None:
    clip = create_clip(tiny_vit_config)
    assert not any(module.training for module in clip.modules())
    assert not any(parameter.requires_grad for parameter in clip.parameters())


def test_unknown_model_name(tiny_vit_config: ModelConfig) -> None:
    with pytest.raises(OptionError, match="ViT-Z-99") as caught:
        create_clip(replace(tiny_vit_config, clip_model="ViT-Z-99"))
    assert "list_models" in caught.value.cure


def test_missing_weights_file(tiny_vit_config: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.pt") as caught:
        create_clip(replace(tiny_vit_config, pretrained="openai"), tmp_path / "nowhere.pt")
    assert "--clip-weights" in caught.value.cure


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_garbage_weights_file(tiny_vit_config: ModelConfig, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"garbage{suffix}"
    path.write_bytes(b"\x17garbage" * 100)
    with pytest.raises(InputError, match=path.name) as caught:
        create_clip(replace(tiny_vit_config, pretrained="openai"), path)
    assert "--clip-weights" in caught.value.cure


def test_weights_of_another_model(tiny_vit_config: ModelConfig, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"visual.conv1.weight": torch.zeros(64, 3, 16, 16)}, path)
    with pytest.raises(InputError, match=r"other\.pt"):
        create_clip(replace(tiny_vit_config, pretrained="openai"), path)


def test_no_network_to_download_from(tiny_vit_config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **options: Any) -> None:
        raise OSError("Temporary failure in name resolution\nand a long trace")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(InputError, match="name resolution") as caught:
        create_clip(replace(tiny_vit_config, pretrained="openai"))
    assert "'openai'" in caught.value.what
    assert "--clip-weights" in caught.value.cure
    assert "long trace" not in str(caught.value)


@pytest.mark.parametrize(("preset", "tag"), [("vitb16", "openai"), ("rn50", "openai"), ("mobileclip2-s0", "dfndr2b")])
def test_presets_use_the_statistics_of_their_weights(preset: str, tag: str) -> None:
    config = PRESETS[preset]
    published = open_clip.get_pretrained_cfg(config.clip_model, tag)
    assert config.pretrained == tag
    assert published, f"open_clip knows no weights {tag!r} for {config.clip_model}"
    assert config.mean == published.get("mean", open_clip.OPENAI_DATASET_MEAN)
    assert config.std == published.get("std", open_clip.OPENAI_DATASET_STD)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["rn50", "mobileclip2-s0"])
def test_other_towers_give_depth(preset: str) -> None:
    config = replace(PRESETS[preset], pretrained="random-0", size_hw=(128, 192))
    network = create_network(config).eval()
    with torch.no_grad():
        depth = network(torch.randn(1, 3, 128, 192, generator=torch.Generator().manual_seed(0)))
    assert depth.shape == (1, 128, 192)
    assert torch.isfinite(depth).all()
    assert (depth > 0).all()


def test_probe_returns_the_shapes_of_the_taps(network: DepthNetwork) -> None:
    tower = ImageTower(network.clip, network.config.taps)
    probed = tower.probe(network.config.size_hw)
    for (channels, map_hw), tap in zip(probed, tower(torch.zeros(1, 3, 64, 96)).features, strict=True):
        assert tap.shape[2:] == map_hw if map_hw else tap.shape[1:] == (25, channels)
        assert channels == (tap.shape[1] if map_hw else tap.shape[2])


def test_openais_own_archive_loads(tiny_vit_config: ModelConfig, tmp_path: Path) -> None:
    """OpenAI's files are TorchScript archives, which a safe `torch.load` refuses."""
    source = create_clip(replace(tiny_vit_config, pretrained="random-3"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is on its way out of PyTorch; the archives are not
        archive = torch.jit.trace_module(source, {"encode_text": torch.zeros(1, 77, dtype=torch.int)})
        torch.jit.save(archive, str(tmp_path / "archive.pt"))
        loaded = create_clip(replace(tiny_vit_config, pretrained="some tag"), tmp_path / "archive.pt")
    assert clip_sha256(loaded) == clip_sha256(source)


def test_weights_for_a_model_that_needs_none(tiny_vit_config: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="does not apply"):
        create_clip(tiny_vit_config, tmp_path / "weights.pt")


def test_the_error_names_the_file_to_get(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object, **options: object) -> None:
        raise RuntimeError("no route to host")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(InputError, match="openai") as caught:
        create_clip(PRESETS["vitb16"])
    assert "open_clip_model.safetensors" in caught.value.cure
    assert "timm/vit_base_patch16_clip_224.openai" in caught.value.cure
    assert "--clip-weights" in caught.value.cure
