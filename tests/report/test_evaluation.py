"""The report of an evaluation: everything in one page, nothing from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mirrordepth_edge.data.sample import DepthDataset, Sample
from mirrordepth_edge.evaluation.evaluate import Protocol, evaluate
from mirrordepth_edge.evaluation.metrics import Depth
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.report.evaluation import EvaluatedModel, EvaluationReport, evaluation_page, protocol_words
from mirrordepth_edge.report.examples import ExampleSheet

PROTOCOL = Protocol(limits_m=(1e-3, 10.0))
NASTY = '<script>alert("x")</script>&'


class Scenes(DepthDataset):
    """Consecutive frames of a step edge, each picture of a brightness of its own."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Sample:
        frame = np.random.default_rng(0).integers(0, 200, (48, 64, 3), dtype=np.uint8)
        frame[0, 0] = index
        depth_m = np.full((48, 64), 2, np.float32)
        depth_m[:, 30:] = 6
        depth_m[40:] = 0
        return Sample(self.name(index), frame, depth_m)

    def name(self, index: int) -> str:
        return f"{NASTY} {index}"

    def files(self) -> list[Path]:
        return []


def predictor(factor: float) -> Callable[[Frame], Depth]:
    def predict(frame: Frame) -> Depth:
        depth_m = np.full((48, 64), 2, np.float32)
        depth_m[:, 30:] = 6
        return depth_m * np.float32(factor + frame[0, 0, 0] / 100)

    return predict


def report(protocol: Protocol = PROTOCOL, models: tuple[str, ...] = ("a", NASTY)) -> EvaluationReport:
    sheet = ExampleSheet(Scenes())
    results = {}
    for index, model in enumerate(models):
        predict = predictor(1 + 0.01 * index)
        results[model] = evaluate(predict, Scenes(), protocol, spatial=True, temporal=True)
        sheet.add(model, predict, results[model])
    artefacts = {
        model: EvaluatedModel(
            path=f"runs/{model}", sha256="ab" * 32, backend="fake 1.0", device="cpu", precision="fp32", trained=True
        )
        for model in models
    }
    return EvaluationReport.here(NASTY, "nyu", protocol, results, artefacts, sheet.examples, True)


@pytest.fixture(scope="module")
def page() -> str:
    return evaluation_page(report())


def test_it_is_one_file_that_loads_nothing(page: str, loads_nothing: Callable[[str], bool]) -> None:
    assert loads_nothing(page)
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page


def test_the_check_would_notice(page: str, loads_nothing: Callable[[str], bool]) -> None:
    for thing in (
        '<script src="data:x"></script>',
        '<img src="https://example.org/a.png">',
        '<link rel="stylesheet" href="a.css">',
        "<p style=\"background: url('a.png')\">x</p>",
        '<p onclick="x()">x</p>',
    ):
        assert not loads_nothing(page.replace("</body>", f"{thing}</body>"))


def test_names_from_outside_are_escaped(page: str, page_of: type) -> None:
    read = page_of(page)
    assert NASTY in read.text
    assert f"{NASTY} 0" in read.text
    assert any(NASTY in image["alt"] for image in read.all("img"))


def test_it_has_every_part(page: str, page_of: type) -> None:
    read = page_of(page)
    for words in (
        "Metrics",
        "SPACE-CLIP",
        "arXiv 2601.17657",
        "Method",
        "strictly between 0.001 m and 10 m",
        "AbsRel by true depth",
        "Images by AbsRel",
        "AbsRel changes by +0.01",
        "Consistency",
        "OPW",
        "edge accuracy",
        "boundary F1, 16 px",
        "a, boundary F1: precision 1.0000, recall 1.0000.",
        "thresholds from 1.05 to 1.25",
        "Best, median and worst images",
        "ab" * 32,
        "fake 1.0 on cpu, fp32",
        "numpy",
    ):
        assert words in read.text, words
    assert len(read.all("svg")) == 4
    assert "0.0300" in read.text, "the mean AbsRel of the first model"
    # Six pictures of the seven; photo, truth, and two for each model.
    assert len(read.all("img")) == 6 * 6


def test_images_match_their_captions(page: str, page_of: type) -> None:
    read = page_of(page)
    named = list(zip([image["alt"] for image in read.all("img")], read.pictures(), strict=True))
    (photo,) = (picture for alt, picture in named if alt == f"photo of {NASTY} 3")
    assert photo.shape == (48, 64, 3)
    (truth,) = (picture for alt, picture in named if alt == f"true depth of {NASTY} 3")
    near, far, none = truth[10:30, 5:25], truth[10:30, 40:60], truth[44:, 10:50]
    assert near.mean() > far.mean() + 30, "near is bright"
    assert none.mean() > 245, "white where nothing was measured"
    errors = {alt: picture for alt, picture in named if alt.startswith("a, error")}
    best, worst = errors[f"a, error of {NASTY} 0"], errors[f"a, error of {NASTY} 6"]
    assert best[5:35].mean() < 10 < worst[5:35].mean(), "no error is black"
    assert np.abs(best[44:, 10:50].astype(int) - 128).mean() < 12, "nor is what cannot be known"


def test_a_model_with_larger_errors_is_above_the_line(page: str, page_of: type) -> None:
    paths = [attributes for attributes in page_of(page).all("path") if attributes["class"] in ("rule", "dots s1")]
    rule, dots = paths[-2:]
    assert (rule["class"], dots["class"]) == ("rule", "dots s1"), "the last chart's"
    (level,) = {float(y) for y in re.findall(r",([\d.]+)", rule["d"])}
    heights = [float(y) for y in re.findall(r",([\d.]+)h0", dots["d"])]
    assert len(heights) == 7
    assert max(heights) < level, "y counts down"


@pytest.mark.parametrize(("align", "metric"), [("none", True), ("median", False), ("lsq", False)])
def test_alignment_is_never_silent(align: str, metric: bool, page_of: type) -> None:
    read = page_of(evaluation_page(report(replace(PROTOCOL, align=align), ("a",))))  # type: ignore[arg-type]
    assert ("NOT METRIC" in read.text) != metric
    assert ("Not metric." in read.text) != metric
    assert ("aligned to the truth (" in read.text) != metric, "published figures do not compare"


def test_one_model_has_no_comparison(page_of: type) -> None:
    made = report(models=("a",))
    read = page_of(evaluation_page(replace(made, baselines=False)))
    assert len(read.all("svg")) == 3
    assert "Difference to" not in read.text
    assert "SPACE-CLIP" not in read.text
    assert len(read.all("img")) == 6 * 4


def test_random_weights_are_stated(page_of: type) -> None:
    made = report(models=("a",))
    artefacts = {"a": replace(made.artefacts["a"], trained=False)}
    assert "Random weights." in page_of(evaluation_page(replace(made, artefacts=artefacts))).text


def test_a_page_without_consistency_and_examples(page_of: type) -> None:
    results = {"a": evaluate(predictor(1.1), Scenes(), PROTOCOL)}
    read = page_of(evaluation_page(replace(report(models=("a",)), results=results, examples=())))
    assert "Consistency" not in read.text
    assert read.all("img") == []


def test_a_truth_without_contours_leaves_boundary_f1_open(page_of: type) -> None:
    made = report(models=("a",))
    pictures = tuple(replace(each, boundary_f1=None) for each in made.results["a"].pictures)
    read = page_of(evaluation_page(replace(made, results={"a": replace(made.results["a"], pictures=pictures)})))
    assert "boundary F1: on the 0 of 7 images" in read.text
    assert "a, boundary F1: precision" not in read.text
    assert "a, boundary F1, 16 px: precision" in read.text
    assert "None" not in read.text


def test_protocols_in_words() -> None:
    words = " ".join(protocol_words(Protocol(limits_m=(1e-3, 80.0), crop="garg", flip=True)))
    assert "between 0.001 m and 80 m, inside the crop of Garg" in words
    assert "mean of those of the image and of its mirror image" in words
    assert "rows 45 to 470" in " ".join(protocol_words(replace(PROTOCOL, crop="eigen")))


def test_json_has_the_models_and_their_backends() -> None:
    data = json.loads(json.dumps(report().to_json(), allow_nan=False))
    assert data["schema_version"] == 2
    assert data["data"] == {"source": NASTY, "kind": "nyu"}
    assert list(data["models"]) == ["a", NASTY]
    first = data["models"]["a"]
    assert first["artefact"]["sha256"] == "ab" * 32
    assert first["evaluation"]["mean"]["abs_rel"] == pytest.approx(0.03)
    assert len(first["evaluation"]["pictures"]) == 7
    assert data["machine"]["cores"] >= 1
    assert "numpy" in data["packages"]
