"""The documentation is executed: its commands run, those for other machines at least parse."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer.main

from mirrordepth_edge.artefact import NANO_ONNX
from mirrordepth_edge.cli import app, run_app
from mirrordepth_edge.engines.build import load_targets
from mirrordepth_edge.machine.device import nvidia_gpus

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
# Blocks that begin with one of these words as a comment are for machines that are not this one.
ELSEWHERE = ("# jetson", "# desktop", "# training")
VERBS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXTS[page], re.DOTALL)


def mde_lines(page: Path, *, elsewhere: bool = False) -> list[str]:
    """`mde …` command lines of a page, with their comments."""
    chosen = (text for text in blocks(page, "sh") if text.startswith(ELSEWHERE) is elsewhere)
    return [line for text in chosen for line in text.splitlines() if line.startswith("mde ")]


def bare(line: str) -> str:
    return line.partition(" #")[0].rstrip()


def needs_more(line: str) -> bool:
    return "needs a camera" in line or ("needs a GPU" in line and not nvidia_gpus())


def command_of(line: str) -> list[str]:
    return shlex.split(line, comments=True)[1:]


RUN = {page: [line for line in mde_lines(page) if not needs_more(line)] for page in PAGES}
# What the README runs is not run once more; its model stands in the other pages' folders.
RUN |= {page: [line for line in RUN[page] if bare(line) not in map(bare, RUN[README])] for page in PAGES[1:]}
PARSED = {
    line: None for page in PAGES for line in (*filter(needs_more, mde_lines(page)), *mde_lines(page, elsewhere=True))
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that the documentation names."""
    path = tmp_path
    photo = np.tile(np.linspace(0, 255, 160, dtype=np.uint8)[None, :, None], (120, 1, 3))
    cv2.imwrite(str(path / "photo.jpg"), photo)
    writer = cv2.VideoWriter(str(path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 30, (160, 120))
    for shift in range(5):
        writer.write(np.roll(photo, 8 * shift, axis=1))
    writer.release()
    return path


@pytest.mark.slow
def test_the_readmes_commands_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one test and in order, because one command's output is the next one's input."""
    pytest.importorskip("torch", reason="mde export needs PyTorch")
    pytest.importorskip("tensorrt_rtx", reason="mde build --target rtx-ada needs TensorRT for RTX")
    monkeypatch.chdir(folder)
    for line in RUN[README]:
        assert run_app(command_of(line)) == 0, line
    assert len(RUN[README]) >= 6
    assert {"model.onnx", "model.plan", "depth"} <= {path.name for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("line", dict.fromkeys(bare(line) for page in PAGES[1:] for line in RUN[page]))
def test_the_other_pages_commands_run(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each on its own: all they need is a model and an image."""
    pytest.importorskip("tensorrt_rtx", reason="mde build --target rtx-ada needs TensorRT for RTX")
    for suffix in ("", ".manifest.json", ".reference.npz"):
        source = NANO_ONNX["fp32"]
        shutil.copy(source.with_name(source.name + suffix), folder / f"model.onnx{suffix}")
    monkeypatch.chdir(folder)
    assert run_app(command_of(line)) == 0


@pytest.mark.parametrize("line", PARSED)
def test_commands_for_other_machines_parse(line: str) -> None:
    verb, *arguments = command_of(line)
    command = VERBS[verb]
    with command.make_context(verb, arguments, resilient_parsing=False) as context:
        target = context.params.get("target")
    if target:
        load_targets(target)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_runs(page: Path, folder: Path) -> None:
    for code in blocks(page, "python"):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, done.stderr
        assert re.match(r"\d+\.\d\d (to \d+\.\d\d )?m\b", done.stdout), done.stdout


def test_make_and_pip_lines_name_what_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    shell = "\n".join(text for page in PAGES for text in blocks(page, "sh"))
    for target in re.findall(r"^make ([\w-]+)", shell, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    extras = {name for group in re.findall(r"\[([\w,]+)\]'", shell) for name in group.split(",")}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in extras:
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def test_every_verb_and_exit_code_is_in_the_reference() -> None:
    reference = TEXTS[ROOT / "docs" / "reference.md"]
    for verb in VERBS:
        assert f"`mde {verb}`" in reference, verb
    from mirrordepth_edge import cli, errors

    codes = {0, cli.EXIT_USAGE, cli.EXIT_BUG, cli.EXIT_INTERRUPTED, cli.EXIT_TERMINATED}
    codes |= {kind.exit_code for kind in (errors.MdeError, errors.OptionError, errors.GateError, errors.MissingError)}
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", reference, re.MULTILINE)}
    assert listed == codes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_images_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXTS[page]):
        assert (page.parent / target).is_file(), target


def test_the_readme_links_every_page() -> None:
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= set(re.findall(r"\]\(([^)]+)\)", TEXTS[README]))


def test_start_commands_and_a_result_come_first() -> None:
    first = TEXTS[README].splitlines()[:60]
    assert {"## Start", "## Commands"} <= set(first)
    assert any("AbsRel" in line for line in first)


def test_contributing_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/-]+(?:\.py|\.md|/))`", text))
    assert len(named) > 30
    assert not {name for name in named if not any((root / name).exists() for root in (ROOT, ROOT / "mirrordepth_edge"))}
