"""The network: size, arithmetic against float64, trainable and frozen parts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("open_clip", reason="open_clip is not installed")

import torch
from torch import Tensor, nn

from mirrordepth_edge.config import PRESETS, ModelConfig, SizeHW
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.model.clip import Taps
from mirrordepth_edge.model.decoder import PyramidDecoder, TokenDecoder
from mirrordepth_edge.model.network import DepthNetwork, check_size, create_network

Array = NDArray[np.float64]


def random_images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.slow
def test_parameter_counts_of_the_paper(vitb16: DepthNetwork) -> None:
    assert sum(p.numel() for p in vitb16.trainable().values()) == 1_159_777
    assert (count(vitb16.decoder), count(vitb16.mirror)) == (1_127_009, 32_768)
    assert vitb16.mirror.embeddings.shape == (64, 512)
    visual = count(vitb16.clip.visual)
    # At 352x352 the position embedding has 22x22 + 1 rows instead of the published 14x14 + 1.
    visual -= (22 * 22 - 14 * 14) * 768
    assert visual == 86_192_640
    logit_scale = 1
    text = sum(p.numel() for name, p in vitb16.clip.named_parameters() if not name.startswith("visual."))
    assert text - logit_scale == 63_428_096
    assert visual + text == 149_620_737


class Float64Decoder:
    """Both decoders written a second time, in NumPy and float64, from their description alone."""

    def __init__(self, network: DepthNetwork) -> None:
        self.config = network.config
        self.w = {name: p.detach().double().numpy() for name, p in network.decoder.named_parameters()}

    def __call__(self, taps: list[Array], prefix: int, text_feature: Array) -> Array:
        gamma, beta = (self.linear(f"film.{name}", text_feature) for name in ("gamma", "beta"))
        if taps[0].ndim == 4:
            return self.pyramid(taps, gamma, beta)
        x = self.block(0, gamma * self.linear("reduces.0", taps[0]) + beta)
        for index in (1, 2):
            x = self.block(index, x + self.linear(f"reduces.{index}", taps[index]))
        height, width = (side // self.config.stride for side in self.config.size_hw)
        grid = x[:, prefix:].reshape(len(x), height, width, -1).transpose(0, 3, 1, 2)
        return self.head(grid)

    def pyramid(self, taps: list[Array], gamma: Array, beta: Array) -> Array:
        maps = [self.convolve(f"reduces.{index}", tap) for index, tap in enumerate(taps)]
        x = gamma[:, None, None] * maps[0] + beta[:, None, None]
        batch, channels, height, width = x.shape
        tokens = x.reshape(batch, channels, height * width).transpose(0, 2, 1)
        for index in range(self.config.blocks):
            tokens = self.block(index, tokens)
        x = tokens.transpose(0, 2, 1).reshape(x.shape)
        for index, finer in enumerate(maps[1:]):
            x = resized(self.convolve(f"steps.{index}.0", x), finer.shape[2:]) + finer
            hidden = self.convolve(f"refines.{index}.first", np.maximum(x, 0))
            x = x + self.convolve(f"refines.{index}.second", np.maximum(hidden, 0))
        return resized(np.exp(self.convolve("head.0", x)), self.config.size_hw)[:, 0]

    def convolve(self, name: str, x: Array) -> Array:
        kernel = self.w[f"{name}.weight"]
        edge = kernel.shape[-1] // 2
        padded = np.pad(x, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2:], axis=(2, 3))
        return np.einsum("bchwij,ocij->bohw", windows, kernel) + self.w[f"{name}.bias"][:, None, None]

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def block(self, index: int, x: Array) -> Array:
        name = f"blocks.{index}"
        x = self.norm(f"{name}.norm1", x + self.attention(f"{name}.self_attn", x))
        hidden = np.maximum(self.linear(f"{name}.linear1", x), 0)
        return self.norm(f"{name}.norm2", x + self.linear(f"{name}.linear2", hidden))

    def attention(self, name: str, x: Array) -> Array:
        weight, bias = self.w[f"{name}.in_proj_weight"], self.w[f"{name}.in_proj_bias"]
        b, n, d = x.shape
        qkv = (x @ weight.T + bias).reshape(b, n, 3, self.config.heads, d // self.config.heads)
        q, k, v = np.moveaxis(qkv, 2, 0)
        scores = np.exp(np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(d // self.config.heads))
        scores /= scores.sum(axis=-1, keepdims=True)
        return self.linear(f"{name}.out_proj", np.einsum("bhqk,bkhd->bqhd", scores, v).reshape(b, n, d))

    def norm(self, name: str, x: Array) -> Array:
        x = x - x.mean(axis=-1, keepdims=True)
        x /= np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5)
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def head(self, x: Array) -> Array:
        x = np.maximum(self.convolve("head.0", x), 0)
        x = np.maximum(self.upsample("head.2", x, self.config.head_strides[0]), 0)
        return np.logaddexp(self.upsample("head.4", x, self.config.head_strides[1]), 0)[:, 0]

    def upsample(self, name: str, x: Array, stride: int) -> Array:
        """Each cell becomes a tile of its own: its features times the kernel."""
        b, _, h, w = x.shape
        tiles = np.einsum("bchw,coij->bohiwj", x, self.w[f"{name}.weight"])
        return tiles.reshape(b, -1, h * stride, w * stride) + self.w[f"{name}.bias"][:, None, None]


def resized(x: Array, size_hw: tuple[int, ...]) -> Array:
    rows, columns = (bilinear(source, target) for source, target in zip(x.shape[2:], size_hw, strict=True))
    return np.einsum("yh,bohw,xw->boyx", rows, x, columns)


def bilinear(source: int, target: int) -> Array:
    """Matrix `[target, source]` of linear interpolation between pixel centres, flat beyond the edge."""
    at = ((np.arange(target) + 0.5) * source / target - 0.5).clip(0, source - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(source)))


@pytest.mark.parametrize("tower", ["vit", "map"])
def test_decoder_equals_its_float64_recomputation(
    tower: str, tiny_vit_config: ModelConfig, tiny_map_config: ModelConfig
) -> None:
    network = create_network({"vit": tiny_vit_config, "map": tiny_map_config}[tower]).eval()
    with torch.no_grad():
        for name, parameter in network.decoder.named_parameters():
            if name.startswith("head."):
                parameter.mul_(3)  # so that depth varies over the picture
        images = random_images(2)
        depth = network(images).numpy()
        taps = network.tower(images)
        text_feature = network.text_feature().double().numpy()
    expected = Float64Decoder(network)([t.double().numpy() for t in taps.features], taps.prefix, text_feature)
    assert depth.shape == expected.shape == (2, 64, 96)
    assert expected.std() > 0.05 * expected.mean()
    np.testing.assert_allclose(depth, expected, rtol=1e-5, atol=1e-7)  # a tenth of a micrometre


def test_only_mirror_and_decoder_get_gradients(network: DepthNetwork) -> None:
    network.zero_grad()
    network(random_images(1)).square().mean().backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    network.zero_grad()
    assert reached == set(network.trainable())
    assert {name.split(".")[0] for name in reached} == {"mirror", "decoder"}
    assert reached == {name for name, p in network.named_parameters() if p.requires_grad}


def test_every_mirror_row_gets_a_gradient(tiny_network: DepthNetwork) -> None:
    tiny_network.zero_grad()
    tiny_network(random_images(1)).mean().backward()
    gradient = tiny_network.mirror.embeddings.grad
    tiny_network.zero_grad()
    assert (gradient.abs().amax(dim=1) > 0).all(), "the last position must see all rows before it"


def test_training_mode_keeps_the_towers_in_eval_mode(tiny_map_config: ModelConfig) -> None:
    network = create_network(tiny_map_config)
    before = {name: tensor.clone() for name, tensor in network.clip.state_dict().items()}
    with torch.no_grad():
        in_eval = network.eval()(random_images(2))
        in_training = network.train()(random_images(2))
    assert network.training
    assert network.decoder.training
    assert not any(m.training for part in (network.clip, network.tower, network.text) for m in part.modules())
    assert any("running_mean" in name for name in before), "a tower without batch norm proves nothing"
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.clip.state_dict().items())
    torch.testing.assert_close(in_training, in_eval)


def test_images_of_a_batch_are_independent(network: DepthNetwork) -> None:
    images = random_images(3)
    with torch.no_grad():
        together = network(images)
        torch.testing.assert_close(together, torch.cat([network(image[None]) for image in images]), rtol=1e-5, atol=0)
        changed = images.clone()
        changed[1] = random_images(1, seed=9)[0] * 5
        after = network(changed)
    torch.testing.assert_close(after[[0, 2]], together[[0, 2]], rtol=1e-6, atol=0)
    assert (after[1] - together[1]).abs().max() > 1e-4


def test_each_cell_affects_depth_around_it(tiny_network: DepthNetwork) -> None:
    """The grid is laid out in rows, top first: a cell moves the depth around it, and nothing farther away."""
    decoder, config = tiny_network.decoder, tiny_network.config
    assert isinstance(decoder, TokenDecoder)
    height, width = config.size_hw
    rows, columns = height // config.stride, width // config.stride
    tokens = torch.randn(1, 1 + rows * columns, config.width, generator=torch.Generator().manual_seed(0))
    for row, column in ((0, 0), (0, columns - 1), (rows - 1, 0)):
        changed = tokens.clone()
        changed[:, 1 + row * columns + column] += 1
        with torch.no_grad():
            before = decoder.to_depth(tokens, 1, (height, width))
            change = (decoder.to_depth(changed, 1, (height, width)) - before).abs()[0]
        moved = change.reshape(rows, config.stride, columns, config.stride).amax(dim=(1, 3)) > 0
        far = (torch.arange(rows)[:, None] - row).abs().maximum((torch.arange(columns) - column).abs()) > 1
        assert moved[row, column]
        assert far.any()
        assert not (moved & far).any()


def test_untrained_pyramid_decoder_predicts_the_middle_of_a_room(tiny_map_network: DepthNetwork) -> None:
    with torch.no_grad():
        depth = tiny_map_network(random_images(2))
    assert depth.min() > 0.5
    assert depth.max() < 10


def test_a_pyramid_shows_no_checkerboard(tiny_map_config: ModelConfig) -> None:
    """Constant features give constant depth away from the border: there are no checkerboard artefacts."""
    config = replace(tiny_map_config, size_hw=(256, 256), pyramid=(24, 16))
    decoder = PyramidDecoder(config, [(8, (8, 8)), (8, (16, 16)), (8, (32, 32))], feature_width=4)
    flat = [torch.full((1, 8, side, side), 0.7) for side in (8, 16, 32)]
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
        depth = decoder(Taps(flat, 0), torch.ones(4), config.size_hw)[0]
    inner = depth[96:-96, 96:-96]
    assert depth.std() > 1e-3 * depth.mean(), "its border is not flat"
    assert inner.max() - inner.min() < 1e-5 * inner.mean()


def test_a_pyramid_needs_its_channels(tiny_map_config: ModelConfig) -> None:
    with pytest.raises(OptionError, match="3 taps, but a decoder for 2"):
        create_network(replace(tiny_map_config, pyramid=(96,)))


def test_initial_weights_follow_the_seed(tiny_vit_config: ModelConfig) -> None:
    first, again, other = (create_network(tiny_vit_config, seed=seed).trainable() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["mirror.embeddings"], other["mirror.embeddings"])
    assert 0.018 < first["mirror.embeddings"].std() < 0.022, "N(0, 0.02^2)"


@pytest.mark.parametrize(
    ("preset", "size_hw", "near"),
    [
        ("vitb16", (350, 352), "352x352"),
        ("vitb16", (480, 650), "480x656"),
        ("nano", (240, 320), "256x320"),
        ("nano", (7, 7), "32x32"),
        ("nano", (0, 320), "32x320"),
        ("nano", (-32, 320), "32x320"),
    ],
)
def test_a_size_that_does_not_fit_names_one_near(preset: str, size_hw: SizeHW, near: str) -> None:
    with pytest.raises(OptionError, match=f"{size_hw[0]}x{size_hw[1]}") as caught:
        check_size(PRESETS[preset], size_hw)
    assert caught.value.cure == f"--size {near}"
    check_size(PRESETS[preset], tuple(map(int, near.split("x"))))


def test_network_refuses_a_size_that_does_not_fit(tiny_vit_config: ModelConfig) -> None:
    with pytest.raises(OptionError, match="64x100"):
        create_network(replace(tiny_vit_config, size_hw=(64, 100)))


def test_mirror_length_is_limited_by_the_context(tiny_vit_config: ModelConfig) -> None:
    assert create_network(replace(tiny_vit_config, mirror_length=77)).text_feature().shape == (48,)
    with pytest.raises(OptionError, match="78 rows") as caught:
        create_network(replace(tiny_vit_config, mirror_length=78))
    assert "77" in caught.value.cure
