"""Ablation and reading of a mirror against closed forms, plain evaluation and open_clip."""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("open_clip", reason="open_clip is not installed")

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mirrordepth_edge.config import ModelConfig, SessionOptions, SizeHW
from mirrordepth_edge.data.sample import Sample
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.evaluation.evaluate import Evaluation, Protocol, evaluate
from mirrordepth_edge.imaging import draw
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.manifest import read_checkpoint_info
from mirrordepth_edge.model.checkpoint import save_checkpoint
from mirrordepth_edge.model.clip import Taps, knows_words, open_vocabulary
from mirrordepth_edge.model.network import DepthNetwork, create_network
from mirrordepth_edge.predictor import load
from mirrordepth_edge.training import explain, explain_picture
from mirrordepth_edge.training.explain import (
    PROMPT,
    RANDOM,
    SHUFFLED,
    TRAINED,
    ZEROS,
    Ablation,
    Reading,
    ablate,
    read_mirror,
    read_run,
    read_words,
    text_features,
    vocabulary_of,
)
from mirrordepth_edge.training.explain_picture import CURVE_COLOURS, CURVE_PX, PLOT_PX, ROW_PX, draw_reading

PROTOCOL = Protocol(limits_m=(1e-3, 10.0))
PROMPTS = ["How far is this location from the camera?", "a window", "1 metre away"]


@pytest.fixture
def samples(frames: list[Frame]) -> list[Sample]:
    rng = np.random.default_rng(1)
    return [
        Sample(str(index), frame, rng.uniform(0.5, 9.5, frame.shape[:2]).astype(np.float32))
        for index, frame in enumerate(frames)
    ]


@pytest.fixture
def own_network(tiny_network: DepthNetwork) -> DepthNetwork:
    """A copy that a test may change."""
    return copy.deepcopy(tiny_network)


def encoded(network: DepthNetwork, texts: list[str]) -> Tensor:
    """open_clip's own words for texts."""
    with torch.no_grad():
        return network.clip.encode_text(open_clip.tokenize(texts))


def unit(rows: Tensor) -> np.ndarray:
    array = rows.detach().double().numpy()
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


# Text features of the decoder


def test_a_prompt_is_open_clips_encode_text(tiny_network: DepthNetwork) -> None:
    vocabulary = vocabulary_of(tiny_network)
    assert vocabulary is not None
    torch.testing.assert_close(vocabulary.features(PROMPTS), encoded(tiny_network, PROMPTS), rtol=0, atol=0)
    features = text_features(tiny_network, PROMPTS[0])[PROMPT]
    assert len(features) == 1
    torch.testing.assert_close(features[0], encoded(tiny_network, PROMPTS)[0], rtol=1e-5, atol=1e-6)


def test_random_mirrors_differ_from_initial_mirrors(tiny_network: DepthNetwork) -> None:
    """With the training's seed, the random mirror would be the one that was trained."""
    begun = tiny_network.mirror()  # with the default seed, and untrained
    assert torch.equal(begun, explain.random_mirror(tiny_network, 0)), "this test has no point any more"
    assert not set(explain.RANDOM_SEEDS) & set(range(1000))


def test_mirror_and_zeros_pass_through_the_text_tower(tiny_network: DepthNetwork) -> None:
    features = text_features(tiny_network, None)
    assert torch.equal(features[TRAINED][0], tiny_network.text_feature())
    clip, length = tiny_network.clip, tiny_network.config.mirror_length
    with torch.no_grad():  # embeddings of zero leave the positions alone
        x = clip.transformer(clip.positional_embedding[None, :length], attn_mask=clip.attn_mask[:length, :length])
        expected = clip.ln_final(x[0, -1]) @ clip.text_projection
    torch.testing.assert_close(features[ZEROS][0], expected, rtol=1e-5, atol=1e-6)
    assert not features[TRAINED][0].requires_grad


class SeenBy(nn.Module):
    """Passes embeddings on as their sum, and keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, embeddings: Tensor) -> Tensor:
        self.seen.append(embeddings)
        return embeddings.sum(0)


def test_replacements_match_their_names(own_network: DepthNetwork) -> None:
    own_network.text = SeenBy()
    assert PROMPT not in text_features(own_network, None)
    seen = own_network.text.seen
    own = own_network.mirror()
    (trained,) = (mirror for mirror in seen if torch.equal(mirror, own))
    (zeros,) = (mirror for mirror in seen if not mirror.any())
    (shuffled,) = (
        mirror for mirror in seen if not torch.equal(mirror, own) and sorted(mirror.tolist()) == sorted(own.tolist())
    )
    random = [mirror for mirror in seen if not any(mirror is other for other in (trained, zeros, shuffled))]
    assert len(random) == 3
    assert {mirror.shape for mirror in random} == {own.shape}
    assert len({tuple(mirror.flatten().tolist()) for mirror in random}) == 3
    values = torch.stack(random)  # 3 x 16 x 32 draws: the standard errors are 2 % of 0.02 at most
    assert values.std().item() == pytest.approx(0.02, rel=0.08)
    assert values.mean().item() == pytest.approx(0, abs=0.002)
    own_network.text = SeenBy()
    text_features(own_network, None)
    assert all(torch.equal(a, b) for a, b in zip(seen, own_network.text.seen, strict=True)), "not reproducible"


# What the mirror is worth


@pytest.mark.parametrize("flip", [False, True])
def test_the_trained_mirrors_errors_are_those_of_plain_evaluation(
    network: DepthNetwork, samples: list[Sample], tmp_path: Path, flip: bool
) -> None:
    save_checkpoint(network, tmp_path / "model.safetensors")
    protocol = replace(PROTOCOL, flip=flip)
    with load(tmp_path / "model.safetensors", SessionOptions(device="cpu")) as predictor:
        expected = evaluate(predictor, samples, protocol)
    assert ablate(network, samples, protocol).results[TRAINED] == (expected,)


def test_tower_runs_once_per_image(own_network: DepthNetwork, samples: list[Sample]) -> None:
    runs: list[int] = []
    own_network.tower.register_forward_hook(lambda *_: runs.append(1))
    ablate(own_network, samples, PROTOCOL)
    assert len(runs) == len(samples)
    ablate(own_network, samples, replace(PROTOCOL, flip=True))
    assert len(runs) == 3 * len(samples)


class FirstNumberAhead(nn.Module):
    """A decoder that sees a wall, 3 m away plus the text feature's first number."""

    def forward(self, taps: Taps, text_feature: Tensor, size_hw: SizeHW) -> Tensor:
        return (3 + text_feature[0]).expand(1, *size_hw)


def test_errors_of_a_decoder_driven_by_text_only(own_network: DepthNetwork, frames: list[Frame]) -> None:
    own_network.text, own_network.decoder = SeenBy(), FirstNumberAhead()
    with torch.no_grad():
        own_network.mirror.embeddings.zero_()
        own_network.mirror.embeddings[3, 0] = 1.0
    walls = [Sample(str(i), frame, np.full(frame.shape[:2], 5.0, np.float32)) for i, frame in enumerate(frames)]
    ablation = ablate(own_network, walls, PROTOCOL, PROMPTS[1])
    assert ablation.prompt == PROMPTS[1]
    # It is seen at 4 m, 3 m without the mirror, and the sum of the rows does not know their order.
    assert ablation.mean(TRAINED, "abs_rel") == pytest.approx(0.2)
    assert ablation.mean(ZEROS, "abs_rel") == pytest.approx(0.4)
    assert ablation.mean(ZEROS, "rmse") == pytest.approx(2.0)
    assert ablation.change(ZEROS, "abs_rel") == pytest.approx(1.0)
    assert ablation.change(SHUFFLED, "abs_rel") == 0
    prompt_depth = float(encoded(own_network, PROMPTS[1:2])[0, 0])
    assert ablation.mean(PROMPT, "abs_rel") == pytest.approx(abs(2 - prompt_depth) / 5, rel=1e-5)
    sums = [float(mirror.sum(0)[0]) for mirror in own_network.text.seen if 0 < mirror.std() < 0.03]
    errors = [(2 - total) / 5 for total in sums[:3]]
    assert ablation.mean(RANDOM, "abs_rel") == pytest.approx(statistics.mean(errors), rel=1e-5)
    assert ablation.spread(RANDOM, "abs_rel") == pytest.approx(statistics.stdev(errors), rel=1e-4)


def with_text_weights(network: DepthNetwork, factor: float) -> DepthNetwork:
    with torch.no_grad():
        for layer in (network.decoder.film.gamma, network.decoder.film.beta):
            layer.weight.mul_(factor)
    return network


def test_a_decoder_that_ignores_its_text_feature(own_network: DepthNetwork, samples: list[Sample]) -> None:
    ablation = ablate(with_text_weights(own_network, 0.0), samples, PROTOCOL)
    assert {run.mean for runs in ablation.results.values() for run in runs} == {ablation.results[TRAINED][0].mean}
    assert ablation.extremes()[0][1] == ablation.extremes()[1][1] == 0
    assert "changes nothing" in ablation.verdict()


def test_a_decoder_that_uses_its_text_feature(own_network: DepthNetwork, samples: list[Sample]) -> None:
    """The change equals that of the same network with another mirror in its checkpoint."""
    with torch.no_grad():
        own_network.decoder.head[2].weight.mul_(5)  # an untrained one sees the same everywhere
        own_network.decoder.head[4].weight.mul_(30)
    ablation = ablate(with_text_weights(own_network, 30.0), samples, PROTOCOL)
    with torch.no_grad():
        own_network.mirror.embeddings.zero_()
    without = ablate(own_network, samples, PROTOCOL)
    assert ablation.results[ZEROS] == without.results[TRAINED]
    assert abs(ablation.change(ZEROS, "abs_rel")) > 0.01
    assert without.change(SHUFFLED, "abs_rel") == 0, "rows of zeros have no order"


def test_ablation_without_images(tiny_network: DepthNetwork) -> None:
    with pytest.raises(InputError, match="nothing to average"):
        ablate(tiny_network, [], PROTOCOL)


def ablation_of(**abs_rel: float | list[float]) -> Ablation:
    """Results with the given errors: a wall at 1 m, seen that much too far away."""
    wall = Sample("wall", np.zeros((4, 6, 3), np.uint8), np.ones((4, 6), np.float32))

    def run(error: float) -> Evaluation:
        return evaluate(lambda _: np.full((4, 6), 1 + error, np.float32), [wall], PROTOCOL)

    results = {
        name.replace("_", " "): tuple(map(run, errors if isinstance(errors, list) else [errors]))
        for name, errors in abs_rel.items()
    }
    return Ablation(prompt=None, results=results)


@pytest.mark.parametrize(
    ("random", "zeros", "words"),
    [
        ([0.2, 0.2], 0.2, "changes nothing"),
        (
            [0.2, 0.2012],
            0.1996,
            "by -0.2 % (zeros) to +0.6 % (one random mirror): below 1%, the decoder hardly uses its text feature.",
        ),
        (
            [0.203, 0.204],
            0.21,
            "to +5.0 % (zeros): 1% to 10%, the decoder relies a little on its text feature.",
        ),
        (
            [0.3, 0.25],
            0.5,
            "by +25.0 % (one random mirror) to +150.0 % (zeros): 10% or more, the decoder relies on its text feature.",
        ),
        (
            [0.3, 0.201],
            0.5,
            "10% or more, the decoder relies on its text feature, but not on this mirror: one random mirror is at",
        ),
        ([0.19, 0.2], 0.2, "1% to 10%, the decoder relies a little on its text feature, but not on this"),
    ],
)
def test_verdict(random: list[float], zeros: float, words: str) -> None:
    """The verdict is about single replacements, not about their means."""
    assert words in ablation_of(trained_mirror=0.2, random_mirror=random, zeros=zeros).verdict()


def test_verdict_if_a_replacement_is_better() -> None:
    verdict = ablation_of(trained_mirror=0.2, zeros=0.1).verdict()
    assert "-50.0 % (zeros)" in verdict
    assert "not on this mirror: zeros is at least as good" in verdict


def test_remarks_name_prompt_and_caveat() -> None:
    ablation = ablation_of(trained_mirror=0.2, zeros=0.4)
    assert [len(ablation.remarks()), len(replace(ablation, prompt="how far?").remarks())] == [2, 3]
    assert "retrains the decoder for each" in ablation.remarks()[-1]


def test_a_clip_without_a_vocabulary_has_no_prompt(tiny_map_network: DepthNetwork, samples: list[Sample]) -> None:
    ablation = ablate(tiny_map_network, samples, PROTOCOL)
    assert set(ablation.results) == {TRAINED, RANDOM, ZEROS, SHUFFLED}
    assert ablation.prompt is None
    with pytest.raises(OptionError, match="cannot be given a prompt"):
        ablate(tiny_map_network, samples, PROTOCOL, "how far?")


def test_a_prompt_longer_than_the_text_tower(tiny_network: DepthNetwork) -> None:
    assert text_features(tiny_network, "far " * 75)[PROMPT]
    with pytest.raises(OptionError, match="too long") as caught:
        text_features(tiny_network, "far " * 76)
    assert "76 tokens" in caught.value.why


# What the mirror says


def test_untrained_text_tower_is_not_compared_with_words(
    network: DepthNetwork, tiny_map_network: DepthNetwork, tiny_vit_config: ModelConfig
) -> None:
    assert read_mirror(network) is None
    assert read_mirror(tiny_map_network, force=True) is None, "its 64 entries are no words"
    assert not knows_words(tiny_vit_config)
    assert not knows_words(replace(tiny_vit_config, pretrained="embedded"))
    assert knows_words(replace(tiny_vit_config, pretrained="openai"))


def test_a_clip_with_another_tokenizer(
    tiny_network: DepthNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = open_clip.get_model_config(tiny_network.config.clip_model)
    config["text_cfg"]["hf_tokenizer_name"] = "somebody/tokenizer"
    (tmp_path / "mirrordepth-test-other.json").write_text(json.dumps(config), encoding="utf-8")
    open_clip.add_model_config(tmp_path)
    assert open_vocabulary(tiny_network.clip, "mirrordepth-test-other") is None
    monkeypatch.setattr(tiny_network, "config", replace(tiny_network.config, pretrained="some-tag"))
    assert explain.why_unread(tiny_network) is None
    monkeypatch.setattr(tiny_network, "config", replace(tiny_network.config, clip_model="mirrordepth-test-other"))
    assert "another tokenizer" in (explain.why_unread(tiny_network) or "")
    assert read_mirror(tiny_network) is None


def test_cosines_with_words(tiny_network: DepthNetwork) -> None:
    reading = read_mirror(tiny_network, PROMPTS, force=True)
    assert reading is not None
    words = unit(encoded(tiny_network, PROMPTS))
    np.testing.assert_allclose(reading.cosines, words @ unit(tiny_network.text_feature()), atol=1e-6)
    random = text_features(tiny_network, None)[RANDOM]
    np.testing.assert_allclose(reading.by_chance, np.mean([words @ unit(feature) for feature in random], 0), atol=1e-6)
    assert [reading.cosines[index] for index in reading.order] == sorted(reading.cosines, reverse=True)
    assert json.loads(json.dumps(reading.to_json()))["words"]["a window"]["cosine"] == reading.cosines[1]


def test_mirror_of_a_prompts_embeddings(own_network: DepthNetwork) -> None:
    """Its text feature is that prompt's, and its rows are that prompt's words."""
    tokens = open_clip.tokenize("the window is far")[0]
    tokens = tokens[: int(tokens.argmax()) + 1]
    own_network.mirror.embeddings = nn.Parameter(own_network.clip.token_embedding(tokens).detach())
    reading = read_mirror(own_network, ["a dog", "the window is far"], force=True)
    assert reading is not None
    assert reading.cosines[1] == pytest.approx(1, abs=1e-5)
    assert reading.order == [1, 0]
    names = [row[0][0] for row in reading.rows]
    assert names == ["<start_of_text>", "the", "window", "is", "far", "<end_of_text>"]
    assert all(row[0][1] == pytest.approx(1, abs=1e-5) for row in reading.rows)


def test_nearest_entries_of_the_vocabulary(tiny_network: DepthNetwork) -> None:
    reading = read_mirror(tiny_network, PROMPTS, nearest=2, force=True)
    assert reading is not None
    table = unit(tiny_network.clip.token_embedding.weight)
    cosines = unit(tiny_network.mirror()) @ table.T
    assert len(reading.rows) == tiny_network.config.mirror_length
    for row, expected in zip(reading.rows, cosines, strict=True):
        np.testing.assert_allclose([cosine for _, cosine in row], np.sort(expected)[:-3:-1], atol=1e-5)
    best = np.mean(
        [(unit(explain.random_mirror(tiny_network, seed)) @ table.T).max(1).mean() for seed in explain.RANDOM_SEEDS]
    )
    assert reading.rows_by_chance == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize(("text", "entries"), [("window", ["window"]), ("unwindowed", ["un-", "windo-", "wed"])])
def test_entries_that_begin_a_word_end_in_a_hyphen(tiny_network: DepthNetwork, text: str, entries: list[str]) -> None:
    vocabulary = vocabulary_of(tiny_network)
    assert vocabulary is not None
    tokens = open_clip.tokenize(text)[0]
    assert [vocabulary.spelling(int(token)) for token in tokens[1 : int(tokens.argmax())]] == entries


def test_every_entry_can_be_printed(tiny_network: DepthNetwork) -> None:
    vocabulary = vocabulary_of(tiny_network)
    assert vocabulary is not None
    assert all(vocabulary.spelling(entry).isprintable() for entry in range(len(vocabulary.embeddings)))


def test_the_default_words() -> None:
    assert 35 <= len(explain.WORDS) <= 50
    assert len(set(explain.WORDS)) == len(explain.WORDS)
    assert {"a person", "a window", "close", "far", "1 metre away"} <= set(explain.WORDS)


def test_a_list_of_words(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("a door\n\n  ein Fenster für dich \na door\n", encoding="utf-8")
    assert read_words(path) == ["a door", "ein Fenster für dich"]
    for content, words in ((b"", "is empty"), (b" \n\n", "has no words"), (b"\xff\xfe\x00w", "is not text")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=words):
            read_words(path)
    with pytest.raises(InputError, match="There is no list of words"):
        read_words(tmp_path / "absent.txt")


# How the mirror came there


@pytest.fixture
def run(own_network: DepthNetwork, tmp_path: Path) -> Path:
    """A training whose mirror grew by one with every epoch, and a file that is no epoch."""
    folder = tmp_path / "run" / "checkpoints"
    for epoch in (1, 2, 10):
        with torch.no_grad():
            own_network.mirror.embeddings.fill_(epoch)
        save_checkpoint(own_network, folder / f"epoch-{epoch}.safetensors")
    (folder / "epoch-best.safetensors").write_text("none of ours")
    return tmp_path / "run"


def test_mirrors_of_a_run_come_in_order(run: Path) -> None:
    checkpoint = run / "checkpoints" / "epoch-10.safetensors"
    mirrors = read_run(run, checkpoint, read_checkpoint_info(checkpoint))
    assert list(mirrors) == [1, 2, 10]
    assert [float(mirror.mean()) for mirror in mirrors.values()] == [1, 2, 10]


def test_cosines_of_epochs_are_those_of_their_models(own_network: DepthNetwork) -> None:
    generator = torch.Generator().manual_seed(3)
    mirrors = {epoch: torch.randn(16, 32, generator=generator) for epoch in (1, 5)}
    reading = read_mirror(own_network, PROMPTS, mirrors, force=True)
    assert reading is not None
    assert reading.epochs == (1, 5)
    for mirror, cosines in zip(mirrors.values(), reading.epoch_cosines, strict=True):
        own_network.mirror.embeddings = nn.Parameter(mirror)
        expected = unit(encoded(own_network, PROMPTS)) @ unit(own_network.text_feature())
        np.testing.assert_allclose(cosines, expected, atol=1e-6)


def test_a_run_without_checkpoints(run: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    info = read_checkpoint_info(tiny_checkpoint)
    for path in (run / "checkpoints").glob("epoch-*0*"):
        path.unlink()
    with pytest.raises(InputError, match="has no epoch checkpoints") as caught:
        read_run(tmp_path, tiny_checkpoint, info)
    assert "no folder named checkpoints" in caught.value.why
    for path in (run / "checkpoints").glob("epoch-?.safetensors"):
        path.unlink()
    with pytest.raises(InputError, match="has no epoch checkpoints") as caught:
        read_run(run, tiny_checkpoint, info)
    assert "has no epoch-*.safetensors" in caught.value.why


@pytest.mark.parametrize(("change", "word"), [({"pretrained": "random-9"}, "tower"), ({"width": 16}, "decoder")])
def test_epochs_of_another_model(
    run: Path, tiny_vit_config: ModelConfig, tmp_path: Path, change: dict[str, object], word: str
) -> None:
    other = tmp_path / "other.safetensors"
    save_checkpoint(create_network(replace(tiny_vit_config, **change)), other)
    with pytest.raises(InputError, match="another model") as caught:
        read_run(run, other, read_checkpoint_info(other))
    assert word in caught.value.why
    info = read_checkpoint_info(run / "checkpoints" / "epoch-1.safetensors")
    with pytest.raises(InputError, match="another model") as caught:
        read_run(run, other, replace(info, clip_sha256="0" * 64))
    assert "other CLIP weights" in caught.value.why


def test_an_epoch_without_a_mirror(run: Path) -> None:
    from safetensors import safe_open

    path = run / "checkpoints" / "epoch-2.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({"decoder.weight": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(InputError, match="has no mirror"):
        read_run(run, path, read_checkpoint_info(path))


# Pictures


def reading_of(values: np.ndarray, epochs: tuple[int, ...] = (), words: tuple[str, ...] = ()) -> Reading:
    """Values `[words]`, or `[epochs, words]` of which the last are the mirror's own."""
    history = np.atleast_2d(values)
    count = history.shape[1]
    return Reading(
        words=words or tuple(f"word {index}" for index in range(count)),
        cosines=tuple(history[-1].tolist()),
        by_chance=(0.1,) * count,
        rows=(),
        rows_by_chance=0.1,
        epochs=epochs,
        epoch_cosines=tuple(tuple(row.tolist()) for row in history) if epochs else (),
    )


def uncut(picture: Frame) -> bool:
    return all(bool((edge == 255).all()) for edge in (picture[0], picture[-1], picture[:, 0]))


def test_bars_are_as_long_as_their_cosines() -> None:
    values = np.array([0.4, -0.2, 0.8, 0.2])
    picture = draw_reading(reading_of(values))
    assert uncut(picture)
    blue = (picture == CURVE_COLOURS[0]).all(-1)
    rows = np.flatnonzero(blue.any(1))
    starts = rows[np.diff(rows, prepend=-9) > 1]
    assert len(starts) == 4
    # Nearest first; the ends of a bar, where the mark of the random mirrors hides nothing.
    lengths = [int(np.ptp(np.flatnonzero(blue[row]))) for row in starts + 2]
    scale = lengths[0] / 0.8
    assert [round(length / scale, 2) for length in lengths] == pytest.approx([0.8, 0.4, 0.2, 0.2], abs=0.01)
    zero = np.flatnonzero(blue[starts[0] + 2])[0]
    assert abs(int(np.flatnonzero(blue[starts[3] + 2])[-1]) - int(zero)) <= 1, "negative ones go left"


@pytest.fixture
def heat(monkeypatch: pytest.MonkeyPatch) -> list[Frame]:
    """The heat map's plots, caught on their way."""
    plots: list[Frame] = []
    resize = cv2.resize

    def caught(*arguments: object, **options: object) -> Frame:
        plots.append(resize(*arguments, **options))  # type: ignore[call-overload]
        return plots[-1]

    monkeypatch.setattr(cv2, "resize", caught)
    return plots


def test_heat_map_has_one_row_per_word_and_one_column_per_epoch(heat: list[Frame]) -> None:
    values = np.array([[0.0, 0.3, 0.1], [0.2, 0.6, 0.1]])
    picture = draw_reading(reading_of(values, epochs=(1, 2)))
    (plot,) = heat
    assert plot.shape == (3 * ROW_PX, PLOT_PX, 3)
    cells = plot[ROW_PX // 2 :: ROW_PX, PLOT_PX // 4 :: PLOT_PX // 2].astype(int)
    brightness = cells.sum(-1)
    expected = values.T[[1, 0, 2]]  # nearest in the end first
    assert np.array_equal(np.argsort(brightness.ravel()), np.argsort(expected.ravel()))
    ends = np.arange(2, dtype=np.uint8)[None] * 255
    colours = cv2.cvtColor(cv2.applyColorMap(ends, cv2.COLORMAP_CIVIDIS), cv2.COLOR_BGR2RGB)[0]
    assert np.array_equal(cells[0, 1], colours[1])
    assert np.array_equal(cells[1, 0], colours[0])
    assert any(
        np.array_equal(picture[top : top + plot.shape[0], left : left + plot.shape[1]], plot)
        for top, left in zip(*np.nonzero((picture == plot[0, 0]).all(-1)), strict=True)
    )


def caught_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    put: Callable[..., None] = draw.put_text
    monkeypatch.setattr(draw, "put_text", lambda canvas, text, *where: (texts.append(text), put(canvas, text, *where)))
    return texts


@pytest.mark.parametrize("epochs", [1, 3, 40, 700])
def test_charts_are_labelled_for_any_number_of_epochs(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = caught_texts(monkeypatch)
    values = np.random.default_rng(0).normal(0.2, 0.1, (epochs, 9))
    picture = draw_reading(reading_of(values, epochs=tuple(range(1, epochs + 1))))
    assert uncut(picture)
    assert picture.shape[1] < 1100
    assert {f"word {index}" for index in range(9)} <= set(texts)
    assert texts.count("epoch") == 2
    numbers = [int(text) for text in texts if text.isdecimal() and int(text) > 0]
    assert numbers[0] == 1
    assert len(numbers) <= 40


def test_charts_with_unusual_words(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = caught_texts(monkeypatch)
    words = ("a sentence that is much too long to stand beside a bar", "für [dich]")
    for epochs in ((), (1, 2)):
        texts.clear()
        values = np.full((2, 2) if epochs else 2, 0.25)  # all alike
        assert uncut(draw_reading(reading_of(values, epochs, words)))
        assert "f?r [dich]" in texts
        assert max(len(text) for text in texts if text.startswith("a sentence")) == explain_picture.LABEL_CHARACTERS


def test_curve_labels_do_not_overlap() -> None:
    for rows in ([100] * 6, [230, 5, 120, 121, 122, 236], [0, 1, 2, 3, 4, 5]):
        places = explain_picture._spread(rows)
        assert [places[i] for i in np.argsort(rows, kind="stable")] == sorted(places)
        assert min(np.diff(sorted(places))) >= ROW_PX
        assert max(places) <= CURVE_PX - ROW_PX // 2
    assert explain_picture._spread([50, 100, 150]) == [50, 100, 150]
