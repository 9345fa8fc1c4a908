"""What a trained mirror is worth, and what it says.

"CLIP Can Understand Depth" (arXiv 2402.03251) claims that the mirror beats human prompts and random
mirrors, and that it drifts toward objects such as humans and windows. `ablate` and `read_mirror`
check both on one model; `draw_reading` makes the second a picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mirrordepth_edge import __version__
from mirrordepth_edge.data.sample import Sample
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.evaluation.evaluate import Evaluation, PictureResult, Protocol, evaluate
from mirrordepth_edge.evaluation.metrics import Depth
from mirrordepth_edge.imaging.postprocess import resize_depth_to
from mirrordepth_edge.imaging.preprocess import Frame, Preprocessor
from mirrordepth_edge.manifest import CheckpointInfo, read_checkpoint_info
from mirrordepth_edge.model.clip import Taps, Vocabulary, knows_words, open_vocabulary
from mirrordepth_edge.model.mirror import INITIAL_STD
from mirrordepth_edge.model.network import DepthNetwork, normalise_pixels
from mirrordepth_edge.support.files import existing_file

EXPLAIN_VERSION = 1
TRAINED, RANDOM, PROMPT, ZEROS, SHUFFLED = "trained mirror", "random mirror", "prompt", "zeros", "shuffled rows"
HUMAN_PROMPT = "How far is this location from the camera?"
RANDOM_SEEDS = (1001, 1002, 1003)
"""Not such as trainings are given: with a training's own seed this is the mirror that it began with."""
SHUFFLE_SEED = 0
LITTLE, MUCH = 0.01, 0.1
"""Relative changes of AbsRel: below the first the decoder does the work, from the second on it relies on its text."""
CAVEAT = (
    "These replace the mirror after training, and the decoder was trained with this mirror: "
    "a fair comparison of prompts retrains the decoder for each."
)

WORDS = (
    *("a person", "people", "a human face", "a child", "a hand", "an animal"),
    *("a window", "a door", "a mirror", "a wall", "a floor", "a ceiling", "a corner", "a corridor", "stairs"),
    *("a chair", "a table", "a sofa", "a bed", "a lamp", "a shelf", "a book", "a plant", "a computer"),
    *("a car", "a road", "a tree", "a building", "the sky", "grass"),
    *("close", "near", "far", "far away", "distance", "depth"),
    *("half a metre away", "1 metre away", "3 metres away", "10 metres away", "100 metres away"),
    *("a photo", "light", "shadow", "texture"),
)
"""Objects, people, surfaces and distances, of rooms and streets."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Errors of one model under several text features."""

    prompt: str | None
    """None where this CLIP reads no words."""
    results: dict[str, tuple[Evaluation, ...]]
    """The trained mirror first; one evaluation a seed."""

    def mean(self, name: str, metric: str) -> float:
        return float(np.mean(self._values(name, metric)))

    def spread(self, name: str, metric: str) -> float:
        """Sample standard deviation over seeds; at least two."""
        return float(np.std(self._values(name, metric), ddof=1))

    def change(self, name: str, metric: str) -> float:
        """By what share of the trained mirror's a mean differs from it."""
        return self.mean(name, metric) / self.mean(TRAINED, metric) - 1

    def extremes(self) -> tuple[tuple[str, float], tuple[str, float]]:
        """The best and the worst single replacement, and the share by which AbsRel changes with each."""
        trained = self.mean(TRAINED, "abs_rel")
        changes = [
            (name if len(runs) == 1 else f"one {name}", value / trained - 1)
            for name, runs in self.results.items()
            if name != TRAINED
            for value in self._values(name, "abs_rel")
        ]
        return min(changes, key=itemgetter(1)), max(changes, key=itemgetter(1))

    def verdict(self) -> str:
        """What the text side is worth in this model, in one sentence."""
        (best, least), (worst, most) = self.extremes()
        largest = max(abs(least), abs(most))
        if largest == 0:
            return "Replacing the mirror changes nothing at all: the decoder does not use its text feature."
        if largest < LITTLE:
            worth = f"under {LITTLE:.0%}, the decoder does the work"
        elif largest < MUCH:
            worth = f"between {LITTLE:.0%} and {MUCH:.0%}, the decoder relies a little on its text feature"
        else:
            worth = f"{MUCH:.0%} or more, the decoder relies on its text feature"
        if largest >= LITTLE > least:
            worth += f", though not on this mirror: {best} does no worse"
        change = f"{100 * least:+.1f} % ({best}) to {100 * most:+.1f} % ({worst})"
        return f"Replacing the mirror changes AbsRel by {change}: {worth}."

    def remarks(self) -> list[str]:
        """What belongs under the figures."""
        return [*([] if self.prompt is None else [f"prompt: {self.prompt}"]), self.verdict(), CAVEAT]

    def to_json(self) -> dict[str, Any]:
        """Plain values, every picture's errors included."""
        return {
            "prompt": self.prompt,
            "random_seeds": RANDOM_SEEDS,
            "verdict": self.verdict(),
            "caveat": CAVEAT,
            "results": {name: [each.to_json() for each in runs] for name, runs in self.results.items()},
        }

    def _values(self, name: str, metric: str) -> list[float]:
        return [getattr(run.mean, metric) for run in self.results[name]]


@torch.no_grad()
def text_features(network: DepthNetwork, prompt: str | None) -> dict[str, list[Tensor]]:
    """What the decoder may be told, shape `[feature]` each, one a seed: the mirror's own text feature first.

    Args:
        prompt: a sentence; None leaves it out.

    Raises:
        OptionError: a prompt for a CLIP that reads no words, or one too long for it.
    """
    own = network.mirror()
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(SHUFFLE_SEED))
    features = {
        TRAINED: [network.text(own)],
        RANDOM: [network.text(random_mirror(network, seed)) for seed in RANDOM_SEEDS],
        ZEROS: [network.text(torch.zeros_like(own))],
        SHUFFLED: [network.text(own[order])],
    }
    if prompt is None:
        return features
    if (vocabulary := vocabulary_of(network)) is None:
        why = "Its text tower has no vocabulary of words."
        raise OptionError(f"{network.config.preset} cannot be given a prompt.", why, "Leave --prompt out.")
    return features | {PROMPT: [vocabulary.features([prompt])[0]]}


def vocabulary_of(network: DepthNetwork) -> Vocabulary | None:
    """The network's way from words to text features; None where it has none."""
    return open_vocabulary(network.clip, network.config.clip_model)


def why_unread(network: DepthNetwork) -> str | None:
    """Why its mirror is not held against words, as the rest of a sentence on the model; None where it is."""
    if not knows_words(network.config):
        return "its text tower was never trained on text, so words mean nothing to it"
    return "it reads words with another tokenizer than CLIP's own" if vocabulary_of(network) is None else None


def random_mirror(network: DepthNetwork, seed: int) -> Tensor:
    """A mirror as training starts with, `[length, width]`."""
    own = network.mirror()
    return (torch.randn(own.shape, generator=torch.Generator().manual_seed(seed)) * INITIAL_STD).to(own.device)


def ablate(network: DepthNetwork, samples: Iterable[Sample], protocol: Protocol, prompt: str | None = None) -> Ablation:
    """Evaluate a network under its own text feature and under others in its place.

    The frozen image tower runs once a picture; only the decoder runs anew for each text feature.
    Frames, preprocessing and metrics are those of a checkpoint's evaluation.

    Args:
        prompt: `HUMAN_PROMPT` where None, and none at all for a CLIP that reads no words.

    Raises:
        InputError: there are no pictures, or one cannot be evaluated.
        OptionError: a prompt for a CLIP that reads no words, or one too long for it.
    """
    if prompt is None and vocabulary_of(network) is not None:
        prompt = HUMAN_PROMPT
    features = text_features(network, prompt)
    pictures: dict[str, list[list[PictureResult]]] = {name: [[] for _ in each] for name, each in features.items()}
    for sample in samples:
        tower = _RememberedTower(network)
        for name, each in features.items():
            for feature, done in zip(each, pictures[name], strict=True):
                done += evaluate(_Told(tower, feature), [sample], protocol).pictures
    results = {
        name: tuple(Evaluation(protocol=protocol, pictures=tuple(run)) for run in runs)
        for name, runs in pictures.items()
    }
    ablation = Ablation(prompt=prompt, results=results)
    ablation.mean(TRAINED, "abs_rel")  # says so if there was no picture
    return ablation


class _RememberedTower:
    """The image tower, run once for each frame it is shown."""

    def __init__(self, network: DepthNetwork) -> None:
        self.network = network
        self._device = next(network.parameters()).device
        self._preprocess = Preprocessor(network.config.preprocess)
        self._taps: dict[bytes, Taps] = {}

    def __call__(self, frame: Frame) -> Taps:
        key = frame.tobytes()
        if key not in self._taps:
            pixels = torch.from_numpy(self._preprocess(frame)).to(self._device)
            self._taps[key] = self.network.tower(normalise_pixels(pixels, self.network.config.preprocess))
        return self._taps[key]


@dataclass(frozen=True)
class _Told:
    """A predictor whose decoder is told a given text feature."""

    tower: _RememberedTower
    feature: Tensor

    @torch.no_grad()
    def __call__(self, frame: Frame) -> Depth:
        network = self.tower.network
        depth_m = network.decoder(self.tower(frame), self.feature, network.config.size_hw)
        return resize_depth_to(depth_m[0].cpu().numpy(), (frame.shape[0], frame.shape[1]))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A mirror held against words; all values are cosines."""

    words: tuple[str, ...]
    cosines: tuple[float, ...]
    """Of the mirror's text feature with each word's."""
    by_chance: tuple[float, ...]
    """The same, mean over random mirrors: only what lies beyond it has been learnt."""
    rows: tuple[tuple[tuple[str, float], ...], ...]
    """The nearest entries of the vocabulary to each row of the mirror, nearest first."""
    rows_by_chance: float
    """Cosine of a random mirror's row with its nearest entry, mean over rows and random mirrors."""
    epochs: tuple[int, ...] = ()
    epoch_cosines: tuple[tuple[float, ...], ...] = ()
    """The cosines after each epoch of a training."""

    @property
    def order(self) -> list[int]:
        """Indices of the words, nearest first."""
        return sorted(range(len(self.words)), key=lambda index: -self.cosines[index])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "words": {
                word: {"cosine": cosine, "by_chance": chance}
                for word, cosine, chance in zip(self.words, self.cosines, self.by_chance, strict=True)
            },
            "rows": self.rows,
            "rows_by_chance": self.rows_by_chance,
            "epochs": {
                epoch: dict(zip(self.words, cosines, strict=True))
                for epoch, cosines in zip(self.epochs, self.epoch_cosines, strict=True)
            },
        }


def read_mirror(
    network: DepthNetwork,
    words: Sequence[str] = WORDS,
    epochs: Mapping[int, Tensor] | None = None,
    *,
    nearest: int = 3,
    force: bool = False,
) -> Reading | None:
    """Hold the mirror against words.

    Args:
        epochs: mirrors of a training by epoch, `[length, width]` each.
        nearest: entries of the vocabulary to name for each row.
        force: read even what was never trained on text.

    Returns:
        None where there is a reason not to (`why_unread`).
    """
    vocabulary = vocabulary_of(network)
    if vocabulary is None or (why_unread(network) and not force):
        return None
    with torch.no_grad():
        of_words = vocabulary.features(words)

        def to_words(mirror: Tensor) -> Tensor:
            return _cosines(network.text(mirror.to(of_words.device))[None], of_words)[0]

        randoms = [random_mirror(network, seed) for seed in RANDOM_SEEDS]
        table = vocabulary.embeddings
        best = _cosines(network.mirror(), table).topk(nearest)
        chance = torch.cat([_cosines(mirror, table).amax(1) for mirror in randoms])
        return Reading(
            words=tuple(words),
            cosines=tuple(to_words(network.mirror()).tolist()),
            by_chance=tuple(torch.stack([to_words(mirror) for mirror in randoms]).mean(0).tolist()),
            rows=tuple(
                tuple((vocabulary.spelling(entry), cosine) for entry, cosine in zip(entries, cosines, strict=True))
                for entries, cosines in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ),
            rows_by_chance=chance.mean().item(),
            epochs=tuple(epochs or ()),
            epoch_cosines=tuple(tuple(to_words(mirror).tolist()) for mirror in (epochs or {}).values()),
        )


def to_json(info: CheckpointInfo, ablation: Ablation | None, reading: Reading | None) -> dict[str, Any]:
    """All that was found out of a checkpoint, as plain values."""
    return {
        "schema_version": EXPLAIN_VERSION,
        "mirrordepth_edge": __version__,
        "weights_sha256": info.weights_sha256,
        "ablation": None if ablation is None else ablation.to_json(),
        "reading": None if reading is None else reading.to_json(),
    }


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """`[m, width]` and `[n, width]` to `[m, n]`."""
    return torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T


def read_words(path: Path) -> list[str]:
    """Words or prompts from a text file, one a line; empty lines and repeated ones do not count.

    Raises:
        InputError: the file is missing, no UTF-8 text, or holds none.
    """
    existing_file(path, "list of words")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text.", f"It is not UTF-8 ({error.reason}).", "Save it as UTF-8.") from error
    if not any(lines):
        raise InputError(f"{path} holds no words.", "All of its lines are empty.", "Write one word or prompt a line.")
    return [line for line in dict.fromkeys(lines) if line]


def read_run(run: Path, checkpoint: Path, info: CheckpointInfo) -> dict[int, Tensor]:
    """The mirrors that a training left after its epochs, `[length, width]` each, by epoch.

    Args:
        run: the training's folder, with `checkpoints/epoch-*.safetensors`.
        checkpoint, info: the model that they must belong to.

    Raises:
        InputError: there are none, or they are of another model.
    """
    folder = run / "checkpoints"
    found = ((re.fullmatch(r"epoch-(\d+)\.safetensors", path.name), path) for path in folder.glob("epoch-*"))
    files = dict(sorted((int(match[1]), path) for match, path in found if match))
    if not files:
        why = f"{folder} holds no epoch-*.safetensors." if folder.is_dir() else f"It has no folder {folder.name}."
        cure = "Name the folder of a training: --run RUN_DIR"
        raise InputError(f"There are no checkpoints of epochs in {run}.", why, cure)
    mirrors = {}
    for epoch, path in files.items():
        other = read_checkpoint_info(path)
        if other.model != info.model or other.clip_sha256 != info.clip_sha256:
            what = "other CLIP weights" if other.model == info.model else "another tower, size or decoder"
            raise InputError(
                f"{path} is of another model than {checkpoint}.",
                f"It was trained with {what} ({other.model.preset}).",
                f"Name the run that {checkpoint.name} comes from, or leave --run out.",
            )
        try:
            with safe_open(path, framework="pt") as tensors:
                mirrors[epoch] = tensors.get_tensor("mirror.embeddings")
        except SafetensorError as error:
            raise InputError(f"The checkpoint {path} has no mirror.", str(error), "Train it again.") from error
    return mirrors
