"""CLIP as this project uses it: two frozen towers, built and weighted by open_clip.

Nothing of CLIP is re-implemented here. The image tower is read through its own
`forward_intermediates`; the text tower's own blocks are run on embeddings instead of token ids.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from mirrordepth_edge.config import ModelConfig, SizeHW
from mirrordepth_edge.errors import InputError, OptionError

CLIP_CONFIG_DIR = Path(__file__).parent.parent / "models" / "clip"
ClipModel: TypeAlias = Any
"""open_clip's CLIP or CustomTextCLIP: an `nn.Module` whose parts carry no types."""

EMBEDDED = "embedded"
RANDOM_PREFIX = "random-"


class Taps(NamedTuple):
    """Intermediate features of one image batch, deepest first."""

    features: list[Tensor]
    """Token taps `[B, prefix + h*w, C]` (class token first), or maps `[B, C, h, w]`."""
    prefix: int
    """Leading tokens that are no image position: 1 for a ViT with a class token, 0 for maps."""


def create_clip(config: ModelConfig, clip_weights: Path | None = None) -> ClipModel:
    """Build CLIP at its native size with the weights that `config` names.

    Args:
        config: the model; `pretrained` is an open_clip tag, `embedded` or `random-SEED`.
        clip_weights: a local file that replaces the download of an open_clip tag.

    Returns:
        open_clip's model, FP32, eval mode, no gradients. With `embedded` its weights are still
        random: the checkpoint that embeds them fills them in.

    Raises:
        InputError: the weights are neither given nor downloadable, or do not fit the model.
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
    with _quiet_open_clip():
        if config.pretrained == EMBEDDED or config.pretrained.startswith(RANDOM_PREFIX):
            seed = int(config.pretrained.removeprefix(RANDOM_PREFIX)) if config.pretrained != EMBEDDED else 0
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                clip = open_clip.create_model(config.clip_model, pretrained_image=False, pretrained_text=False)
        else:
            clip = _pretrained_clip(config, clip_weights)
    return clip.float().eval().requires_grad_(False)


def _pretrained_clip(config: ModelConfig, clip_weights: Path | None) -> ClipModel:
    import open_clip

    cure = (
        f"Download the {config.pretrained!r} weights of {config.clip_model} on a connected machine "
        "and pass them with --clip-weights FILE (.pt, .bin or .safetensors)."
    )
    if clip_weights is not None and not clip_weights.is_file():
        raise InputError(f"There are no CLIP weights at {clip_weights}.", "No such file.", cure)
    try:
        return open_clip.create_model(config.clip_model, pretrained=str(clip_weights or config.pretrained))
    except Exception as error:  # open_clip raises whatever its download or torch.load raised
        what = f"file {clip_weights}" if clip_weights else f"tag {config.pretrained!r}"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"Cannot load CLIP {config.clip_model} from {what}.", reason, cure) from error


@contextmanager
def _quiet_open_clip() -> Iterator[None]:
    """open_clip warns through the root logger that a random model is random; here that is meant."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(previous)


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values of tensors, in name order.

    The values are hashed as little-endian FP32 (integers as they are), so that the same weights
    have one hash whichever file format, dtype or machine they come from.
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
    """Hash of CLIP's weights; call it before `resize_input`, which changes a ViT's."""
    return tensors_sha256(clip.state_dict())


def resize_input(clip: ClipModel, size_hw: SizeHW) -> None:
    """Make a ViT tower accept `size_hw` pixels, with open_clip's own position-embedding resize.

    Convolutional towers take any size and are left alone.
    """
    visual = clip.visual
    if not hasattr(visual, "grid_size"):
        return
    from open_clip.model import resize_pos_embed

    patch_h, patch_w = visual.patch_size
    visual.grid_size = (size_hw[0] // patch_h, size_hw[1] // patch_w)
    visual.image_size = size_hw
    state = {"visual.positional_embedding": visual.positional_embedding.detach()}
    with _quiet_open_clip():
        resize_pos_embed(state, clip)
    visual.positional_embedding = nn.Parameter(state["visual.positional_embedding"], requires_grad=False)


class ImageTower(nn.Module):
    """The frozen image tower, seen as a list of taps."""

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
            images: normalised RGB, float32, shape `[B, 3, H, W]`.

        Returns:
            The taps, deepest first. Blocks after the deepest tap are not run.
        """
        if self.has_tokens:
            out = self.visual.forward_intermediates(
                images,
                indices=list(self.taps),
                stop_early=True,
                intermediates_only=True,
                output_fmt="NLC",
                output_extra_tokens=True,
            )
            prefixes = out["image_intermediates_prefix"]
            features = [torch.cat(pair, dim=1) for pair in zip(prefixes, out["image_intermediates"], strict=True)]
            return Taps(features[::-1], prefix=prefixes[0].shape[1])
        out = self.visual.forward_intermediates(
            images, indices=list(self.taps), stop_early=True, intermediates_only=True, output_fmt="NCHW"
        )
        return Taps(out["image_intermediates"][::-1], prefix=0)

    @torch.no_grad()
    def probe(self, size_hw: SizeHW) -> list[tuple[int, SizeHW | None]]:
        """Channels and map size of each tap at `size_hw`, deepest first; size None for tokens."""
        taps = self(torch.zeros(1, 3, *size_hw))
        if self.has_tokens:
            return [(tap.shape[-1], None) for tap in taps.features]
        return [(tap.shape[1], (tap.shape[2], tap.shape[3])) for tap in taps.features]


class TextPath(nn.Module):
    """The frozen text tower, entered at embedding level."""

    transformer: Any
    positional_embedding: Tensor
    ln_final: Any
    text_projection: Any
    attn_mask: Tensor | None

    def __init__(self, clip: ClipModel) -> None:
        super().__init__()
        # open_clip keeps the text tower's parts either on CLIP itself or under `.text`.
        text = clip.text if hasattr(clip, "text") else clip
        if getattr(text, "cls_emb", None) is not None or not hasattr(text, "token_embedding"):
            raise OptionError(
                "This CLIP's text tower cannot take a mirror.",
                "It is no plain open_clip text transformer (a Hugging Face or CoCa tower).",
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
        """Text feature of a sequence of embeddings, pooled at its last position.

        The steps are those of openai/CLIP's `encode_text` after its embedding lookup; there the
        pooled position is the end-of-text token, here it is the mirror's last row.

        Args:
            embeddings: shape `[length, width]`, in place of word embeddings; no position added.

        Returns:
            Shape `[feature]`, not normalised.
        """
        length = embeddings.shape[0]
        mask = None if self.attn_mask is None else self.attn_mask[:length, :length]
        x = (embeddings + self.positional_embedding[:length])[None]
        x = self.ln_final(self.transformer(x, attn_mask=mask))[0, -1]
        if self.text_projection is None:
            return x
        return self.text_projection(x) if isinstance(self.text_projection, nn.Linear) else x @ self.text_projection
