"""The frozen CLIP towers, built by open_clip.

CLIP is not re-implemented. The image tower is read through open_clip's `forward_intermediates`. The blocks of the text
tower are run on embeddings instead of token ids.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirrordepth_edge.config import ModelConfig, SizeHW
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.support.quiet import quiet_log

CLIP_CONFIG_DIR = Path(__file__).parent.parent / "models" / "clip"
ClipModel: TypeAlias = Any
"""open_clip's CLIP or CustomTextCLIP: an `nn.Module` with untyped attributes."""

NON_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
"""Entries of TorchScript archives that are not weights: OpenAI's integers and a traced constant."""

EMBEDDED = "embedded"
RANDOM_PREFIX = "random-"


class Taps(NamedTuple):
    """Intermediate features of the image tower for a batch, deepest first."""

    features: list[Tensor]
    """Of a ViT: tokens `[B, prefix + h*w, C]`, class token first. Of a convolutional tower: maps `[B, C, h, w]`."""
    prefix: int
    """Number of leading tokens without image position: 1 for a ViT with class token, 0 for maps."""


def create_clip(config: ModelConfig, clip_weights: Path | None = None) -> ClipModel:
    """Build CLIP at its native input size.

    Args:
        config: the model; `pretrained` is an open_clip tag, `embedded` or `random-SEED`.
        clip_weights: local weights file, used instead of downloading the open_clip tag.

    Returns:
        open_clip's model in FP32 and eval mode, without gradients. For `embedded` the weights are random until
        the checkpoint that embeds them is loaded.

    Raises:
        InputError: the weights cannot be read or downloaded, or do not match the model.
        OptionError: open_clip does not know the model, or `clip_weights` does not apply to it.
    """
    import open_clip

    if config.clip_model not in open_clip.list_models():
        open_clip.add_model_config(CLIP_CONFIG_DIR)
    if config.clip_model not in open_clip.list_models():
        raise OptionError(
            f"open_clip {open_clip.__version__} has no model named {config.clip_model!r}.",
            "The name is misspelt, or this open_clip is too old for it.",
            "pip install -U open_clip_torch, or choose a name from open_clip.list_models().",
        )
    # Random weights are intended here; open_clip warns about them through the root logger.
    with quiet_log(logging.ERROR):
        if config.pretrained == EMBEDDED or config.pretrained.startswith(RANDOM_PREFIX):
            if clip_weights is not None:
                raise OptionError(
                    f"--clip-weights does not apply to {config.preset}.",
                    f"Its CLIP weights are {config.pretrained!r} and need no download.",
                    "Leave --clip-weights out.",
                )
            clip = _random_clip(config.clip_model, config.pretrained)
        else:
            clip = _pretrained_clip(config, clip_weights)
    # OpenAI's weights are stored in FP16.
    return clip.float().eval().requires_grad_(False)


def _random_clip(name: str, pretrained: str) -> ClipModel:
    import open_clip

    seed = pretrained.removeprefix(RANDOM_PREFIX)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed) if seed.isdecimal() else 0)
        return open_clip.create_model(name, pretrained_image=False, pretrained_text=False)


def _pretrained_clip(config: ModelConfig, clip_weights: Path | None) -> ClipModel:
    import open_clip

    cure = (
        f"Download {_download_source(config)} on a connected machine, copy it here and pass it with "
        "--clip-weights FILE (.safetensors, .bin or .pt)."
    )
    if clip_weights is not None and not clip_weights.is_file():
        raise InputError(f"CLIP weights {clip_weights} do not exist.", "No such file.", cure)
    try:
        if clip_weights is not None and _is_torchscript(clip_weights):
            # OpenAI's archives; their code is not run.
            state = torch.jit.load(str(clip_weights), map_location="cpu").state_dict()
            clip = _random_clip(config.clip_model, config.pretrained)
            clip.load_state_dict({name: tensor for name, tensor in state.items() if name not in NON_WEIGHTS})
            return clip
        return open_clip.create_model(config.clip_model, pretrained=str(clip_weights or config.pretrained))
    except Exception as error:  # open_clip raises whatever its download or torch.load raised
        what = f"file {clip_weights}" if clip_weights else f"tag {config.pretrained!r}"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        raise InputError(f"Cannot load CLIP {config.clip_model} from {what}.", reason, cure) from error


def _download_source(config: ModelConfig) -> str:
    """Where the weights of an open_clip tag can be downloaded."""
    import open_clip

    source = open_clip.get_pretrained_cfg(config.clip_model, config.pretrained) or {}
    if source.get("hf_hub"):
        return f"open_clip_model.safetensors from https://huggingface.co/{source['hf_hub'].strip('/')}"
    return source.get("url") or f"the {config.pretrained!r} weights of {config.clip_model}"


def _is_torchscript(file: Path) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI publishes; `torch.load` refuses those with weights_only."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values of tensors, in name order.

    Floating-point values are hashed as FP32, so the hash does not depend on file format or storage precision.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.float()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def clip_sha256(clip: ClipModel) -> str:
    """SHA-256 of CLIP's weights. Call it before `resize_input`, which changes those of a ViT."""
    return tensors_sha256(clip.state_dict())


def resize_input(clip: ClipModel, size_hw: SizeHW) -> None:
    """Adapt a ViT to images of `size_hw` pixels by interpolating its position embedding, in place.

    Same interpolation as open_clip's `resize_pos_embed`: bicubic, antialiased, class token unchanged. Convolutional
    towers accept any size and are not changed.
    """
    # open_clip's own function compares only the number of tokens, so it would use an embedding for 4x4 cells
    # unchanged for 2x8. The trained embedding is kept, so repeated resizes do not accumulate blur.
    visual = clip.visual
    if not hasattr(visual, "grid_size"):
        return
    patch_h, patch_w = visual.patch_size
    if not hasattr(visual, "trained_positions"):
        visual.trained_positions = visual.positional_embedding.detach(), tuple(visual.grid_size)
    embedding, old_grid = visual.trained_positions
    new_grid = (size_hw[0] // patch_h, size_hw[1] // patch_w)
    if new_grid == tuple(visual.grid_size):
        return
    class_token, cells = embedding[:1], embedding[1:]
    cells = cells.reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    cells = F.interpolate(cells, size=new_grid, mode="bicubic", antialias=True, align_corners=False)
    cells = cells.permute(0, 2, 3, 1).reshape(new_grid[0] * new_grid[1], -1)
    visual.positional_embedding = nn.Parameter(torch.cat([class_token, cells]), requires_grad=False)
    visual.grid_size, visual.image_size = new_grid, size_hw


class ImageTower(nn.Module):
    """The frozen image tower; returns intermediate features (taps).

    Args:
        clip: open_clip's model.
        taps: indices of the blocks or stages to read, shallowest first.
    """

    visual: Any

    def __init__(self, clip: ClipModel, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.visual = clip.visual
        self.taps = taps
        self.has_tokens = hasattr(clip.visual, "class_embedding")

    @torch.no_grad()
    def forward(self, images: Tensor) -> Taps:
        """
        Args:
            images: normalised RGB, float32 `[B, 3, H, W]`.

        Returns:
            The taps, deepest first. Blocks after the deepest tap are not computed.
        """
        layout = {"output_fmt": "NLC", "output_extra_tokens": True} if self.has_tokens else {"output_fmt": "NCHW"}
        out = self.visual.forward_intermediates(
            images, indices=list(self.taps), stop_early=True, intermediates_only=True, **layout
        )
        features = out["image_intermediates"]
        if not self.has_tokens:
            return Taps(features[::-1], prefix=0)
        prefixes = out["image_intermediates_prefix"]
        features = [torch.cat(pair, dim=1) for pair in zip(prefixes, features, strict=True)]
        return Taps(features[::-1], prefix=prefixes[0].shape[1])

    @torch.no_grad()
    def probe(self, size_hw: SizeHW) -> list[tuple[int, SizeHW | None]]:
        """Number of channels and map size of each tap for images of `size_hw`, deepest first; no size for tokens."""
        taps = self(torch.zeros(1, 3, *size_hw))
        if self.has_tokens:
            return [(tap.shape[-1], None) for tap in taps.features]
        return [(tap.shape[1], (tap.shape[2], tap.shape[3])) for tap in taps.features]


def _text_tower(clip: ClipModel) -> Any:
    """Text tower of a CLIP: open_clip stores its parts in `clip.text` or in `clip` itself."""
    return clip.text if hasattr(clip, "text") else clip


class TextPath(nn.Module):
    """The frozen text tower, applied to embeddings instead of token ids."""

    transformer: Any
    positional_embedding: Tensor
    ln_final: Any
    text_projection: Any
    attn_mask: Tensor | None

    def __init__(self, clip: ClipModel) -> None:
        super().__init__()
        text = _text_tower(clip)
        if getattr(text, "cls_emb", None) is not None or not hasattr(text, "token_embedding"):
            raise OptionError(
                "This CLIP's text tower cannot take a mirror.",
                "It is not a plain open_clip text transformer, but a Hugging Face or CoCa tower.",
                "Choose a CLIP with a plain text transformer, such as ViT-B-16-quickgelu.",
            )
        self.transformer = text.transformer
        self.positional_embedding = text.positional_embedding
        self.ln_final = text.ln_final
        self.text_projection = text.text_projection
        self.register_buffer("attn_mask", text.attn_mask, persistent=False)

    @property
    def embedding_width(self) -> int:
        return self.positional_embedding.shape[1]

    @property
    def context_length(self) -> int:
        return self.positional_embedding.shape[0]

    @property
    def feature_width(self) -> int:
        if self.text_projection is None:
            return self.embedding_width
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection.out_features
        return self.text_projection.shape[1]

    def forward(self, embeddings: Tensor) -> Tensor:
        """Encode a sequence of embeddings to a text feature.

        Same as openai/CLIP's `encode_text` after the embedding lookup, except for pooling: CLIP pools at the
        end-of-text token, here the last position is pooled.

        Args:
            embeddings: float32 `[length, width]`, used as token embeddings, without position embedding.

        Returns:
            Text feature `[feature]`, not normalised.
        """
        length = embeddings.shape[0]
        mask = None if self.attn_mask is None else self.attn_mask[:length, :length]
        x = (embeddings + self.positional_embedding[:length])[None]
        x = self.ln_final(self.transformer(x, attn_mask=mask))[0, -1]
        if self.text_projection is None:
            return x
        return self.text_projection(x) if isinstance(self.text_projection, nn.Linear) else x @ self.text_projection


def knows_words(config: ModelConfig) -> bool:
    """Whether the text tower was trained on text; if not, its features of words are noise."""
    return config.pretrained != EMBEDDED and not config.pretrained.startswith(RANDOM_PREFIX)


class Vocabulary:
    """CLIP's tokenizer, token embeddings and text encoder."""

    def __init__(self, clip: ClipModel, tokenizer: Any) -> None:
        self._clip = clip
        self._tokenizer = tokenizer

    @property
    def embeddings(self) -> Tensor:
        """Token embeddings, `[entries, width]`."""
        return _text_tower(self._clip).token_embedding.weight

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> Tensor:
        """Text features `[texts, feature]` by open_clip's `encode_text`, not normalised.

        Raises:
            OptionError: a text is longer than the context of the text tower, which would truncate it.
        """
        max_length = self._tokenizer.context_length - 2  # without start-of-text and end-of-text
        for text in texts:
            if (length := len(self._tokenizer.encode(text))) > max_length:
                raise OptionError(
                    f"The text {text[:40]!r}… is too long.",
                    f"It has {length} tokens; CLIP's text tower takes at most {max_length}.",
                    "Shorten it.",
                )
        return self._clip.encode_text(self._tokenizer(list(texts)).to(self.embeddings.device))

    def spelling(self, entry: int) -> str:
        """Text of a vocabulary entry; a hyphen marks one that does not end a word."""
        text = self._tokenizer.decode([entry])
        ends_word = text.endswith(" ") or entry in self._tokenizer.all_special_ids
        text = text.removesuffix(" ") if text.isprintable() else ascii(text)[1:-1]
        return text if ends_word else f"{text}-"


def open_vocabulary(clip: ClipModel, name: str) -> Vocabulary | None:
    """Open the vocabulary of a CLIP model.

    Args:
        clip: open_clip's model.
        name: its open_clip name.

    Returns:
        None if the model has no CLIP vocabulary: `nano` has 64 entries without meaning, and some towers use
        another tokenizer.
    """
    tokenizer = _tokenizer(name)
    if tokenizer is None or tokenizer.vocab_size != _text_tower(clip).token_embedding.num_embeddings:
        return None
    return Vocabulary(clip, tokenizer)


@cache  # loading reads 49,408 entries
def _tokenizer(name: str) -> Any:
    """CLIP's tokenizer; None for a model with another one."""
    import open_clip

    config = open_clip.get_model_config(name)
    assert config is not None, "create_clip has checked the name"
    return None if "hf_tokenizer_name" in config["text_cfg"] else open_clip.get_tokenizer(name)
