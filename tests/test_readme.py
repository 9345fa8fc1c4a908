"""The README is executed: its commands run, those for other machines at least parse."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer.main

from mirrordepth_edge.cli import app, run_app
from mirrordepth_edge.engines.build import load_targets
from mirrordepth_edge.machine.device import nvidia_gpus

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
# Blocks that begin with one of these words as a comment are for machines that are not this one.
ELSEWHERE = ("# jetson", "# desktop", "# training")
VERBS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def mde_lines(*, elsewhere: bool) -> list[str]:
    """`mde …` command lines of the README, comments cut off."""
    lines = []
    for language, text in BLOCKS:
        if language != "sh" or text.startswith(ELSEWHERE) is not elsewhere:
            continue
        lines += [line for line in text.splitlines() if line.startswith("mde ")]
    return lines


def needs_more(line: str) -> bool:
    return "needs a camera" in line or ("needs a GPU" in line and not nvidia_gpus())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the README names."""
    path = tmp_path_factory.mktemp("readme")
    photo = np.tile(np.linspace(0, 255, 160, dtype=np.uint8)[None, :, None], (120, 1, 3))
    cv2.imwrite(str(path / "photo.jpg"), photo)
    writer = cv2.VideoWriter(str(path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 30, (160, 120))
    for shift in range(5):
        writer.write(np.roll(photo, 8 * shift, axis=1))
    writer.release()
    return path


@pytest.mark.slow
def test_commands_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one test and in order, because one command's output is the next one's input."""
    pytest.importorskip("torch", reason="mde export needs PyTorch")
    pytest.importorskip("tensorrt_rtx", reason="mde build --target rtx-ada needs TensorRT for RTX")
    monkeypatch.chdir(folder)
    ran = 0
    for line in mde_lines(elsewhere=False):
        if needs_more(line):
            continue
        assert run_app(shlex.split(line, comments=True)[1:]) == 0, line
        ran += 1
    assert ran >= 6
    assert {"model.onnx", "model.plan", "depth"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    "line", [line for line in mde_lines(elsewhere=False) if needs_more(line)] + mde_lines(elsewhere=True)
)
def test_commands_for_other_machines_parse(line: str) -> None:
    verb, *arguments = shlex.split(line, comments=True)[1:]
    command = VERBS[verb]
    with command.make_context(verb, arguments, resilient_parsing=False) as context:
        target = context.params.get("target")
    if target:
        load_targets(target)


def test_python_runs(folder: Path) -> None:
    (code,) = (text for language, text in BLOCKS if language == "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+\.\d\d to \d+\.\d\d m\n", done.stdout)


def test_make_and_pip_lines_name_what_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    shell = "\n".join(text for language, text in BLOCKS if language == "sh")
    for target in re.findall(r"^make (\w+)", shell, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    extras = {name for group in re.findall(r"\[([\w,]+)\]'", shell) for name in group.split(",")}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in extras:
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def test_every_verb_and_exit_code_is_in_the_readme() -> None:
    for verb in VERBS:
        assert f"mde {verb}" in README, verb
    from mirrordepth_edge import cli, errors

    codes = {0, cli.EXIT_USAGE, cli.EXIT_BUG, cli.EXIT_INTERRUPTED, cli.EXIT_TERMINATED}
    codes |= {kind.exit_code for kind in (errors.MdeError, errors.OptionError, errors.GateError, errors.MissingError)}
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert listed == codes


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target
