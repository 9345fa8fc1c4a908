"""CLIP as this project uses it: two frozen towers, built and weighted by open_clip.

Nothing of CLIP is re-implemented here. The image tower is read through its own
`forward_intermediates`; the text tower's own blocks are run on embeddings instead of token ids.
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
"""open_clip's CLIP or CustomTextCLIP: an `nn.Module` whose parts carry no types."""

NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
"""What TorchScript archives carry beside the weights: OpenAI's integers, and a traced constant."""

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
    # open_clip warns through the root logger that a random model is random; here that is meant.
    with quiet_log(logging.ERROR):
        if config.pretrained == EMBEDDED or config.pretrained.startswith(RANDOM_PREFIX):
            if clip_weights is not None:
                raise OptionError(
                    f"--clip-weights does not apply to {config.preset}.",
                    f"Its CLIP weights are {config.pretrained!r}: nothing is downloaded.",
                    "Leave --clip-weights out.",
                )
            clip = _random_clip(config.clip_model, config.pretrained)
        else:
            clip = _pretrained_clip(config, clip_weights)
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
        f"On a connected machine download {_where_to_get(config)}, copy the file here and pass it with "
        "--clip-weights FILE (.safetensors, .bin or .pt)."
    )
    if clip_weights is not None and not clip_weights.is_file():
        raise InputError(f"There are no CLIP weights at {clip_weights}.", "No such file.", cure)
    try:
        if clip_weights is not None and _is_torchscript(clip_weights):
            clip = _random_clip(config.clip_model, config.pretrained)
            clip.load_state_dict(_torchscript_state(clip_weights))
            return clip
        return open_clip.create_model(config.clip_model, pretrained=str(clip_weights or config.pretrained))
    except Exception as error:  # open_clip raises whatever its download or torch.load raised
        what = f"file {clip_weights}" if clip_weights else f"tag {config.pretrained!r}"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        raise InputError(f"Cannot load CLIP {config.clip_model} from {what}.", reason, cure) from error


def _where_to_get(config: ModelConfig) -> str:
    """The file that holds a tag's weights, as open_clip knows it."""
    import open_clip

    source = open_clip.get_pretrained_cfg(config.clip_model, config.pretrained) or {}
    if source.get("hf_hub"):
        return f"open_clip_model.safetensors from https://huggingface.co/{source['hf_hub'].strip('/')}"
    return source.get("url") or f"the {config.pretrained!r} weights of {config.clip_model}"


def _is_torchscript(file: Path) -> bool:
    """OpenAI publishes its weights as TorchScript archives, which `torch.load` refuses to read safely."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())


def _torchscript_state(file: Path) -> dict[str, Tensor]:
    """Weights of a TorchScript archive; none of its code is run."""
    state = torch.jit.load(str(file), map_location="cpu").state_dict()
    return {name: tensor for name, tensor in state.items() if name not in NO_WEIGHTS}


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
    """Make a ViT tower accept `size_hw` pixels by resizing its position embedding.

    The resize is open_clip's (bicubic, antialiased, class token untouched). Its own function cannot
    be called: it compares numbers of tokens, and so leaves 2x8 cells with an embedding for 4x4.
    The embedding that CLIP was trained with is kept, and every later resize begins from it again.
    Convolutional towers take any size and are left alone.
    """
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


def _text_tower(clip: ClipModel) -> Any:
    """open_clip keeps the text tower's parts either on CLIP itself or under `.text`."""
    return clip.text if hasattr(clip, "text") else clip


class TextPath(nn.Module):
    """The frozen text tower, entered at embedding level."""

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


def knows_words(config: ModelConfig) -> bool:
    """False where the text tower was never trained on text: its features of words are noise."""
    return config.pretrained != EMBEDDED and not config.pretrained.startswith(RANDOM_PREFIX)


class Vocabulary:
    """CLIP's own way from text to features: its tokenizer, its word embeddings and `encode_text`."""

    def __init__(self, clip: ClipModel, tokenizer: Any) -> None:
        self._clip = clip
        self._tokenizer = tokenizer

    @property
    def embeddings(self) -> Tensor:
        """One row for each entry of the vocabulary, shape `[entries, width]`."""
        return _text_tower(self._clip).token_embedding.weight

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> Tensor:
        """Text features by open_clip's `encode_text`, shape `[texts, feature]`, not normalised.

        Raises:
            OptionError: a text is too long for the text tower, which would read only its beginning.
        """
        room = self._tokenizer.context_length - 2  # start and end of text
        for text in texts:
            if (length := len(self._tokenizer.encode(text))) > room:
                raise OptionError(
                    f"The text {text[:40]!r}… is too long.",
                    f"It has {length} tokens; CLIP's text tower has room for {room}.",
                    "Shorten it.",
                )
        return self._clip.encode_text(self._tokenizer(list(texts)).to(self.embeddings.device))

    def spelling(self, entry: int) -> str:
        """An entry as text; one that only begins a word ends in a hyphen."""
        text = self._tokenizer.decode([entry])
        ends_word = text.endswith(" ") or entry in self._tokenizer.all_special_ids
        text = text.removesuffix(" ") if text.isprintable() else ascii(text)[1:-1]
        return text if ends_word else f"{text}-"


def open_vocabulary(clip: ClipModel, name: str) -> Vocabulary | None:
    """The vocabulary of a CLIP, by its open_clip name.

    Returns:
        None where there are no words to it: `nano`'s 64 entries stand for none, and towers with
        another tokenizer than CLIP's own are not read here.
    """
    tokenizer = _tokenizer(name)
    if tokenizer is None or tokenizer.vocab_size != _text_tower(clip).token_embedding.num_embeddings:
        return None
    return Vocabulary(clip, tokenizer)


@cache  # it reads 49,408 entries each time
def _tokenizer(name: str) -> Any:
    """CLIP's own tokenizer; None for a model that has another."""
    import open_clip

    config = open_clip.get_model_config(name)
    assert config is not None, "create_clip knew it"
    return None if "hf_tokenizer_name" in config["text_cfg"] else open_clip.get_tokenizer(name)
