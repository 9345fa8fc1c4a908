"""Folding does not change the network's depth."""

from __future__ import annotations

import copy

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("open_clip", reason="open_clip is not installed")

import torch
from torch import nn

from mirrordepth_edge.config import CLIP_MEAN, CLIP_STD, InputKind, PreprocessConfig
from mirrordepth_edge.export.fold import ExplicitAttention, FoldedBlock, FoldedNetwork, fold_film, fold_normalisation
from mirrordepth_edge.imaging.preprocess import Frame, Preprocessor
from mirrordepth_edge.model.decoder import FiLM
from mirrordepth_edge.model.network import DepthNetwork

PREPROCESS = PreprocessConfig(size_hw=(64, 96), mean=CLIP_MEAN, std=CLIP_STD)


@pytest.mark.parametrize("io", ["uint8", "float"])
def test_folded_network_gives_the_same_depth(network: DepthNetwork, frames: list[Frame], io: InputKind) -> None:
    folded = FoldedNetwork(network, io)
    preprocess = Preprocessor(network.config.preprocess)
    for frame in frames:
        pixels = preprocess(frame)
        normalised = (pixels.astype(np.float64) / 255 - network.config.mean) / network.config.std
        image = torch.from_numpy(normalised.transpose(0, 3, 1, 2).astype(np.float32).copy())
        with torch.no_grad():
            expected = network(image)
            depth = folded(torch.from_numpy(pixels) if io == "uint8" else image)
        assert depth.shape == (1, 64, 96)
        torch.testing.assert_close(depth, expected, rtol=1e-5, atol=0)
    assert expected.max() > 1.001 * expected.min(), "a flat picture proves little"


def test_folding_does_not_change_the_network(network: DepthNetwork) -> None:
    state = copy.deepcopy(network.state_dict())
    modules = [type(module) for module in network.modules()]
    learning = {name for name, p in network.named_parameters() if p.requires_grad}
    folded = FoldedNetwork(network)
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert [type(module) for module in network.modules()] == modules
    assert {name for name, p in network.named_parameters() if p.requires_grad} == learning


def test_folded_network_has_no_text_side(network: DepthNetwork) -> None:
    folded = FoldedNetwork(network)
    assert not [name for name, _ in folded.named_modules() if "film" in name or "text" in name or "mirror" in name]
    assert not [module for module in folded.modules() if isinstance(module, nn.MultiheadAttention)]
    assert not any(parameter.requires_grad for parameter in folded.parameters())


@pytest.mark.parametrize(("width", "heads"), [(64, 4), (48, 3), (16, 1)])
def test_explicit_attention_matches_pytorch(width: int, heads: int) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(width, heads, batch_first=True).eval()
    nn.init.normal_(attention.in_proj_bias)
    nn.init.normal_(attention.out_proj.bias)
    x = 3 * torch.randn(2, 11, width)
    with torch.no_grad():
        expected, _ = attention(x, x, x, need_weights=False)
        delivered, weights = ExplicitAttention(attention)(x, x, x, need_weights=False, attn_mask=None)
    assert weights is None
    torch.testing.assert_close(delivered, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"batch_first": False}, {"add_bias_kv": True}, {"kdim": 8, "vdim": 8}])
def test_unsupported_attention_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="batch-first self-attention"):
        ExplicitAttention(nn.MultiheadAttention(16, 2, **({"batch_first": True} | options)))


def test_folded_block_matches_pytorch() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, dim_feedforward=48, dropout=0.3, batch_first=True).eval()
    x = torch.randn(2, 7, 32)
    with torch.no_grad():
        torch.testing.assert_close(FoldedBlock(layer).eval()(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tap", ["tokens", "map"])
def test_film_folds_exactly(tap: str) -> None:
    torch.manual_seed(0)
    film, text_feature = FiLM(12, 8).double(), torch.randn(12, dtype=torch.float64)
    reduce: nn.Linear | nn.Conv2d
    reduce, x = (
        (nn.Linear(5, 8), torch.randn(2, 24, 5)) if tap == "tokens" else (nn.Conv2d(5, 8, 1), torch.randn(2, 5, 4, 6))
    )
    reduce, x = reduce.double(), x.double()
    with torch.no_grad():
        before = reduce(x)
        expected = film(before, text_feature)
        torch.testing.assert_close(fold_film(reduce, film, text_feature)(x), expected)
        assert torch.equal(reduce(x), before), "folding works on a copy"
        gamma = film.gamma.weight @ text_feature + film.gamma.bias
        beta = film.beta.weight @ text_feature + film.beta.bias
        channels_last = (lambda y: y) if tap == "tokens" else (lambda y: y.permute(0, 2, 3, 1))
        torch.testing.assert_close(channels_last(expected), gamma * channels_last(before) + beta)


@pytest.mark.parametrize("bias", [False, True])
def test_normalisation_folds_exactly(bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 9, kernel_size=4, stride=4, bias=bias)
    pixels = torch.randint(0, 256, (2, 3, 16, 24)).float()
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        expected = conv((pixels / 255 - mean) / std)
        torch.testing.assert_close(fold_normalisation(conv, PREPROCESS)(pixels), expected, rtol=1e-5, atol=1e-5)


def test_normalisation_is_not_folded_into_padding() -> None:
    with pytest.raises(ValueError, match="padding"):
        fold_normalisation(nn.Conv2d(3, 8, 3, padding=1), PREPROCESS)
