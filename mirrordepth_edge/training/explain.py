"""Analysis of a trained mirror: ablation of the text feature, and nearest words.

"CLIP Can Understand Depth" (arXiv 2402.03251) claims that the mirror outperforms human prompts and random mirrors, and
that it moves towards objects such as humans and windows. `ablate` and `read_mirror` check both claims for a model;
`explain_picture.draw_reading` draws the second result.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
"""Unusual values: with the seed of a training, the random mirror would be the one the training started from."""
SHUFFLE_SEED = 0
SMALL_CHANGE, LARGE_CHANGE = 0.01, 0.1
"""Relative changes of AbsRel below which the decoder hardly uses its text feature, and from which it relies on it."""
CAVEAT = (
    "The mirror was replaced after training, and the decoder was trained with it: "
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
"""People, objects, surfaces and distances, indoors and outdoors."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Errors of one model with different text features."""

    prompt: str | None
    """None if this CLIP has no vocabulary."""
    results: dict[str, tuple[Evaluation, ...]]
    """By name of the text feature, the trained mirror first; one evaluation per seed."""

    def mean(self, name: str, metric: str) -> float:
        return float(np.mean(self._values(name, metric)))

    def spread(self, name: str, metric: str) -> float:
        """Sample standard deviation over at least two seeds."""
        return float(np.std(self._values(name, metric), ddof=1))

    def change(self, name: str, metric: str) -> float:
        """Relative change of a mean to that of the trained mirror."""
        return self.mean(name, metric) / self.mean(TRAINED, metric) - 1

    def extremes(self) -> tuple[tuple[str, float], tuple[str, float]]:
        """Name and relative change of AbsRel of the best and of the worst single replacement."""
        trained = self.mean(TRAINED, "abs_rel")
        changes = [
            (name if len(runs) == 1 else f"one {name}", value / trained - 1)
            for name, runs in self.results.items()
            if name != TRAINED
            for value in self._values(name, "abs_rel")
        ]
        return min(changes, key=itemgetter(1)), max(changes, key=itemgetter(1))

    def verdict(self) -> str:
        """Conclusion about the text feature, in one sentence."""
        (best, least), (worst, most) = self.extremes()
        largest = max(abs(least), abs(most))
        if largest == 0:
            return "Replacing the mirror changes nothing: the decoder does not use its text feature."
        if largest < SMALL_CHANGE:
            conclusion = f"below {SMALL_CHANGE:.0%}, the decoder hardly uses its text feature"
        elif largest < LARGE_CHANGE:
            conclusion = f"{SMALL_CHANGE:.0%} to {LARGE_CHANGE:.0%}, the decoder relies a little on its text feature"
        else:
            conclusion = f"{LARGE_CHANGE:.0%} or more, the decoder relies on its text feature"
        if largest >= SMALL_CHANGE > least:
            conclusion += f", but not on this mirror: {best} is at least as good"
        change = f"{100 * least:+.1f} % ({best}) to {100 * most:+.1f} % ({worst})"
        return f"Replacing the mirror changes AbsRel by {change}: {conclusion}."

    def remarks(self) -> list[str]:
        """Lines to print below the results: prompt, conclusion, caveat."""
        return [*([] if self.prompt is None else [f"prompt: {self.prompt}"]), self.verdict(), CAVEAT]

    def to_json(self) -> dict[str, Any]:
        """Plain values, including the errors of every image."""
        return {
            "prompt": self.prompt,
            "random_seeds": RANDOM_SEEDS,
            "verdict": self.verdict(),
            "caveat": CAVEAT,
            "results": {name: [run.to_json() for run in runs] for name, runs in self.results.items()},
        }

    def _values(self, name: str, metric: str) -> list[float]:
        return [getattr(run.mean, metric) for run in self.results[name]]


@torch.no_grad()
def text_features(network: DepthNetwork, prompt: str | None) -> dict[str, list[Tensor]]:
    """Text features for the ablation, the mirror's own first.

    Args:
        network: the model.
        prompt: a sentence; None for none.

    Returns:
        By name, one text feature `[feature]` per seed.

    Raises:
        OptionError: the CLIP has no vocabulary, or the prompt is too long.
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
        why = "Its text tower has no vocabulary."
        raise OptionError(f"{network.config.preset} cannot be given a prompt.", why, "Leave --prompt out.")
    return features | {PROMPT: [vocabulary.features([prompt])[0]]}


def vocabulary_of(network: DepthNetwork) -> Vocabulary | None:
    """Vocabulary of a network's CLIP; None if it has none."""
    return open_vocabulary(network.clip, network.config.clip_model)


def why_unread(network: DepthNetwork) -> str | None:
    """Why a mirror cannot be compared with words, as a clause; None if it can."""
    if not knows_words(network.config):
        return "its text tower was never trained on text, so its features of words are random"
    return "it uses another tokenizer than CLIP's" if vocabulary_of(network) is None else None


def random_mirror(network: DepthNetwork, seed: int) -> Tensor:
    """A mirror as initialised for training, `[length, width]`."""
    own = network.mirror()
    return (torch.randn(own.shape, generator=torch.Generator().manual_seed(seed)) * INITIAL_STD).to(own.device)


def ablate(network: DepthNetwork, samples: Iterable[Sample], protocol: Protocol, prompt: str | None = None) -> Ablation:
    """Evaluate a network with its own text feature and with replacements of it.

    Frames, preprocessing and metrics are those of `evaluate`. The image tower runs once per image, only the decoder
    runs for each text feature.

    Args:
        network: the model.
        samples: images with depth.
        protocol: evaluation protocol.
        prompt: a human prompt; None for `HUMAN_PROMPT`, or for none if the CLIP has no vocabulary.

    Raises:
        InputError: there are no images, or one cannot be evaluated.
        OptionError: the CLIP has no vocabulary, or the prompt is too long.
    """
    if prompt is None and vocabulary_of(network) is not None:
        prompt = HUMAN_PROMPT
    features = text_features(network, prompt)
    pictures: dict[str, list[list[PictureResult]]] = {name: [[] for _ in seeds] for name, seeds in features.items()}
    for sample in samples:
        # One cache per image: the features of a data set may not fit into memory.
        tower = _CachedTower(network)
        for name, seeds in features.items():
            for feature, results_of_seed in zip(seeds, pictures[name], strict=True):
                results_of_seed += evaluate(partial(_predict, tower, feature), [sample], protocol).pictures
    results = {
        name: tuple(Evaluation(protocol=protocol, pictures=tuple(run)) for run in runs)
        for name, runs in pictures.items()
    }
    ablation = Ablation(prompt=prompt, results=results)
    ablation.mean(TRAINED, "abs_rel")  # raises if there was no image
    return ablation


class _CachedTower:
    """The image tower with a cache of its features by frame."""

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


@torch.no_grad()
def _predict(tower: _CachedTower, feature: Tensor, frame: Frame) -> Depth:
    """Predict depth with a given text feature."""
    depth_m = tower.network.decoder(tower(frame), feature, tower.network.config.size_hw)
    return resize_depth_to(depth_m[0].cpu().numpy(), (frame.shape[0], frame.shape[1]))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Cosine similarities of a mirror and words."""

    words: tuple[str, ...]
    cosines: tuple[float, ...]
    """Of the mirror's text feature and the text feature of each word."""
    by_chance: tuple[float, ...]
    """The same for random mirrors, on average: the baseline of an untrained mirror."""
    rows: tuple[tuple[tuple[str, float], ...], ...]
    """Vocabulary entries nearest to each row of the mirror, with their cosines, nearest first."""
    rows_by_chance: float
    """Mean cosine of the rows of random mirrors and their nearest entry."""
    epochs: tuple[int, ...] = ()
    epoch_cosines: tuple[tuple[float, ...], ...] = ()
    """`cosines` after each of `epochs`."""

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
    """Compare a mirror with words.

    Args:
        network: the model.
        words: words or phrases.
        epochs: mirrors `[length, width]` of a training, by epoch.
        nearest: number of vocabulary entries per row.
        force: also compare if the text tower was never trained on text.

    Returns:
        None if a comparison is meaningless (`why_unread`).
    """
    vocabulary = vocabulary_of(network)
    if vocabulary is None or (why_unread(network) and not force):
        return None
    with torch.no_grad():
        word_features = vocabulary.features(words)

        def cosines_to_words(mirror: Tensor) -> Tensor:
            return _cosines(network.text(mirror.to(word_features.device))[None], word_features)[0]

        randoms = [random_mirror(network, seed) for seed in RANDOM_SEEDS]
        table = vocabulary.embeddings
        best = _cosines(network.mirror(), table).topk(nearest)
        chance = torch.cat([_cosines(mirror, table).amax(1) for mirror in randoms])
        return Reading(
            words=tuple(words),
            cosines=tuple(cosines_to_words(network.mirror()).tolist()),
            by_chance=tuple(torch.stack([cosines_to_words(mirror) for mirror in randoms]).mean(0).tolist()),
            rows=tuple(
                tuple((vocabulary.spelling(entry), cosine) for entry, cosine in zip(entries, cosines, strict=True))
                for entries, cosines in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ),
            rows_by_chance=chance.mean().item(),
            epochs=tuple(epochs or ()),
            epoch_cosines=tuple(tuple(cosines_to_words(mirror).tolist()) for mirror in (epochs or {}).values()),
        )


def to_json(info: CheckpointInfo, ablation: Ablation | None, reading: Reading | None) -> dict[str, Any]:
    """Results for a checkpoint as plain values."""
    return {
        "schema_version": EXPLAIN_VERSION,
        "mirrordepth_edge": __version__,
        "weights_sha256": info.weights_sha256,
        "ablation": None if ablation is None else ablation.to_json(),
        "reading": None if reading is None else reading.to_json(),
    }


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarities `[m, n]` of `[m, width]` and `[n, width]`."""
    return torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T


def read_words(path: Path) -> list[str]:
    """Read words or prompts from a text file, one per line, without empty and repeated lines.

    Raises:
        InputError: the file is missing, not UTF-8, or empty.
    """
    existing_file(path, "list of words")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text.", f"It is not UTF-8 ({error.reason}).", "Save it as UTF-8.") from error
    if not any(lines):
        raise InputError(f"{path} has no words.", "All lines are empty.", "Write one word or prompt per line.")
    return [line for line in dict.fromkeys(lines) if line]


def read_run(run: Path, checkpoint: Path, info: CheckpointInfo) -> dict[int, Tensor]:
    """Read the mirrors after each epoch of a training, `[length, width]` each, by epoch.

    Args:
        run: folder of the training, with `checkpoints/epoch-*.safetensors`.
        checkpoint, info: the model that they must belong to.

    Raises:
        InputError: there are no checkpoints, or they are of another model.
    """
    folder = run / "checkpoints"
    matches = ((re.fullmatch(r"epoch-(\d+)\.safetensors", path.name), path) for path in folder.glob("epoch-*"))
    files = dict(sorted((int(match[1]), path) for match, path in matches if match))
    if not files:
        why = f"{folder} has no epoch-*.safetensors." if folder.is_dir() else f"It has no folder named {folder.name}/."
        cure = "Give the folder of a training run: --run RUN_DIR"
        raise InputError(f"{run} has no epoch checkpoints.", why, cure)
    mirrors = {}
    for epoch, path in files.items():
        other = read_checkpoint_info(path)
        if other.model != info.model or other.clip_sha256 != info.clip_sha256:
            what = "other CLIP weights" if other.model == info.model else "another tower, size or decoder"
            raise InputError(
                f"{path} has another model than {checkpoint}.",
                f"It was trained with {what} ({other.model.preset}).",
                f"Name the run of {checkpoint.name}, or leave --run out.",
            )
        try:
            with safe_open(path, framework="pt") as tensors:
                mirrors[epoch] = tensors.get_tensor("mirror.embeddings")
        except SafetensorError as error:
            raise InputError(f"The checkpoint {path} has no mirror.", str(error), "Train it again.") from error
    return mirrors
