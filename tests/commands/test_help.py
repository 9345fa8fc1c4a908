"""`mde --help`: verbs are imported on demand, and their summaries match their own help."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer.main

from mirrordepth_edge.cli import app, run_app
from mirrordepth_edge.commands.bench.command import APPLIES_TO, bench_app
from mirrordepth_edge.commands.verbs import VERBS, load_verb


@pytest.mark.parametrize("verb", VERBS)
def test_summary_is_the_first_line_of_the_verbs_help(verb: str) -> None:
    assert load_verb(verb).help.splitlines()[0] == VERBS[verb].summary


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, verb in VERBS.items():
        assert f"{name} {verb.summary}" in text


def test_a_verb_imports_only_its_own_module() -> None:
    code = "\n".join(
        (
            "import sys",
            "from mirrordepth_edge.cli import run_app",
            "prefix = 'mirrordepth_edge.commands.'",
            "loaded = lambda: {n.removeprefix(prefix).split('.')[0] for n in sys.modules if n.startswith(prefix)}",
            "run_app(['--help'])",
            "assert loaded() == {'verbs'}, loaded()",
            "run_app(['bench', '--help'])",
            "assert loaded() == {'verbs', 'parameters', 'bench'}, loaded()",
        )
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def test_help_of_every_verb_imports_nothing_heavy() -> None:
    code = "\n".join(
        (
            "import sys",
            "from mirrordepth_edge.cli import run_app",
            "from mirrordepth_edge.commands.verbs import VERBS",
            "for verb in VERBS:",
            "    run_app([verb, '--help'])",
            "    heavy = {'numpy', 'cv2', 'onnx', 'rich', 'torch'} & set(sys.modules)",  # typer itself imports pydantic
            "    assert not heavy, (verb, heavy)",
        )
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def test_misspelt_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["exprot"]) == 2
    assert "Did you mean 'export'?" in capsys.readouterr().err


def test_options_are_listed_in_sections(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["export", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.index("\nArguments:") < text.index("\nOptions:") < text.index("\nINT8 options:")
    for option in typer.main.get_command(app).commands["export"].params:  # type: ignore[attr-defined]
        assert option.opts[0] in text


def test_options_with_modes_exist() -> None:
    options = {option.opts[0] for option in typer.main.get_command(bench_app).params}
    assert APPLIES_TO.keys() <= options
