"""Reading pages as a browser would."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from mirrordepth_edge.imaging.preprocess import Frame

# Elements without an end, as HTML defines them.
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
LOADING = {
    "src",
    "srcset",
    "href",
    "xlink:href",
    "data",
    "poster",
    "background",
    "action",
    "formaction",
    "ping",
    "cite",
}


class Page(HTMLParser):
    """Elements, text and addresses of a page; an element that is not closed is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not (self._open and self._open[-1] == "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def pictures(self) -> list[Frame]:
        """Every picture of the page, decoded."""
        found = []
        for image in self.all("img"):
            kind, content = image["src"].split(",", 1)
            assert kind == "data:image/jpeg;base64"
            picture = cv2.imdecode(np.frombuffer(base64.b64decode(content, validate=True), np.uint8), cv2.IMREAD_COLOR)
            found.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
        return found


def _loads_nothing(text: str) -> bool:
    """Whether a page needs nothing but itself."""
    page = Page(text)
    if {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "embed", "base", "form"}:
        return False
    addresses = [value for _, each in page.elements for name, value in each.items() if name in LOADING]
    handlers = [name for _, each in page.elements for name in each if name.startswith("on")]
    in_style = re.findall(r"url\(|@import|expression\(", text)
    return not handlers and not in_style and all(address.startswith("data:") for address in addresses)


@pytest.fixture
def page_of() -> type[Page]:
    return Page


@pytest.fixture
def loads_nothing() -> Callable[[str], bool]:
    return _loads_nothing
