"""Pages of one file: nothing loaded, everything escaped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from jinja2 import TemplateNotFound, UndefinedError

from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.machine.device import Gpu, Machine
from mirrordepth_edge.report import html
from mirrordepth_edge.report.html import check_name, describe_machine, image_uri, render_page, save_page

MACHINE = Machine(
    system="Linux", architecture="x86_64", python="3.11", cpu="a CPU", cores=2, gpus=(), jetson=None, l4t=None
)


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shared page with a body of one value."""
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "page.html.j2").write_text((html.TEMPLATES / "page.html.j2").read_text(encoding="utf-8"))
    (folder / "one.html.j2").write_text(
        '{% extends "page.html.j2" %}{% block title %}{{ word }}{% endblock %}'
        '{% block body %}<p title="{{ word }}">{{ word }}</p>{% endblock %}'
    )
    monkeypatch.setattr(html, "TEMPLATES", folder)
    return folder


def test_values_are_escaped(templates: Path, page_of: type) -> None:
    nasty = """<script>alert(1)</script>"' onload="x" & é"""
    text = render_page("one.html.j2", word=nasty)
    page = page_of(text)
    assert "<script" not in text
    assert page.all("p") == [{"title": nasty}]
    assert nasty in page.text


def test_a_page_says_that_it_loads_nothing_and_reads_on_phones(templates: Path, page_of: type) -> None:
    metas = page_of(render_page("one.html.j2", word="x")).all("meta")
    (policy,) = (meta["content"] for meta in metas if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "script" not in policy
    named = {meta["name"]: meta["content"] for meta in metas if "name" in meta}
    assert "width=device-width" in named["viewport"]
    assert named["color-scheme"] == "light dark"


def test_a_missing_value_or_template_is_an_error(templates: Path) -> None:
    with pytest.raises(UndefinedError):
        render_page("one.html.j2")
    with pytest.raises(TemplateNotFound):
        render_page("two.html.j2")


def test_pictures_are_made_small_and_keep_their_colours(page_of: type) -> None:
    picture = np.zeros((300, 600, 3), np.uint8)
    picture[..., 0] = 200
    (found,) = page_of(f'<img src="{image_uri(picture, 120)}">').pictures()
    assert found.shape == (60, 120, 3)
    np.testing.assert_allclose(found.mean(axis=(0, 1)), (200, 0, 0), atol=3)
    (small,) = page_of(f'<img src="{image_uri(picture[:9, :7], 120)}">').pictures()
    assert small.shape == (9, 7, 3), "never made larger"


def test_pages_are_written_whole(tmp_path: Path) -> None:
    save_page(tmp_path / "new" / "page.html", "<p>é</p>")
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8") == "<p>é</p>"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write"):
        save_page(tmp_path / "file" / "page.html", "")


def test_a_report_needs_a_name_that_browsers_open() -> None:
    check_name(Path("a.html"), "--report")
    with pytest.raises(OptionError, match=r"a\.pdf has the wrong suffix for a report") as caught:
        check_name(Path("a.pdf"), "--report")
    assert caught.value.cure == "--report a.html"


def test_a_machine_in_words() -> None:
    assert describe_machine(MACHINE) == [("system", "Linux, x86_64"), ("CPU", "a CPU, 2 cores"), ("Python", "3.11")]
    gpu = Gpu(name="Orin", compute_capability="8.7", memory_mib=1, integrated=True, cuda="12.6")
    board = Machine(**{**vars(MACHINE), "gpus": (gpu,), "jetson": "Jetson Orin Nano", "l4t": "36.4.3"})
    assert ("GPU", "Orin, compute capability 8.7") in describe_machine(board)
    assert ("board", "Jetson Orin Nano, Jetson Linux 36.4.3") in describe_machine(board)
