"""Remove personal data from a report: names of people and machines, addresses and paths."""

from __future__ import annotations

import getpass
import os
import platform
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

REDACTED: Final = "…"
MIN_LETTERS = 3
"""Of a name that is removed. Shorter ones are part of too many other words, and identify nobody."""
COMMON: Final = re.compile(
    r"admin|agx|computer|cuda|desktop|dev|home|jetson|linux|localhost|nano|nvidia|nx|orin|pi|python|rock|root|runner|"
    r"tensorrt|test|thor|ubuntu|user|users|work|xavier",
    re.IGNORECASE,
)
"""Default names of boards and system images. They identify nobody, and are words of the report."""
NAME_VARIABLES = ("USER", "USERNAME", "LOGNAME", "SUDO_USER", "HOSTNAME", "COMPUTERNAME", "HOST", "USERDOMAIN")
SERIAL_FILES = (
    "proc/device-tree/serial-number",
    "sys/firmware/devicetree/base/serial-number",
    "sys/class/dmi/id/product_serial",
    "sys/class/dmi/id/product_uuid",
    "sys/class/dmi/id/board_serial",
    "etc/machine-id",
    "etc/hostname",
)

ROOTS = frozenset(
    ("data", "etc", "home", "media", "mnt", "opt", "private", "root", "srv", "tmp", "Users", "usr", "var", "Volumes")
)
"""Top-level folders, in addition to this machine's. Names of network nodes start with a slash too, but differently."""
# A path starts with a slash, a drive or the home folder. The slash must not be in a word, a fraction or a web address.
PATH = re.compile(r"(?:(?<![\w.:/…])(?:file:/*)?(?:[A-Za-z]:[\\/]|\\\\|~[\w.-]*/|/(?=[\w.~])))[^\s'\"`,;:()<>|]*")
IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\d)")
VERSION = re.compile(r"[\w.+~-]+")
OTHERS = (
    re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}(?![\w:])"),  # MAC
    re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:{1,2}){3,7}[0-9A-Fa-f]{0,4}(?![\w:])|fe80::[0-9A-Fa-f:]+"),  # IPv6
    re.compile(r"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}"),  # UUID, such as a GPU's
    re.compile(r"serial(?: number| no\.?)?\s*[:=]?\s*(?=\S*\d)[\w-]{6,}", re.IGNORECASE),
    re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"),  # e-mail
)


@dataclass(frozen=True)
class Anonymiser:
    """Remove known personal data from texts, and everything that looks like a path or an address."""

    names: tuple[str, ...]
    """Names of the user and the machine, and serial numbers, the longest first."""
    folders: tuple[str, ...]
    """Folders whose names are personal, the longest first."""
    roots: frozenset[str] = ROOTS

    @classmethod
    def here(cls, root: Path = Path("/")) -> Anonymiser:
        """Collect the names of this machine and its user."""
        names = [os.environ.get(variable, "") for variable in NAME_VARIABLES]
        names += [platform.node(), platform.node().split(".")[0]]
        with suppress(OSError, KeyError, ImportError):  # a user without an entry, as in a container
            names.append(getpass.getuser())
        names += [_text(root / file) for file in SERIAL_FILES]
        home = os.path.expanduser("~")  # noqa: PTH111  Path.home() raises where there is none
        anonymiser = cls.of(names, [home, str(Path.cwd()), Path(home).name])
        with suppress(OSError):
            return replace(anonymiser, roots=ROOTS | {path.name for path in root.iterdir()})
        return anonymiser

    @classmethod
    def of(cls, names: Iterable[str], folders: Iterable[str]) -> Anonymiser:
        """Create one from names and folders; empty and common ones are ignored."""
        folders = list(folders)
        people = {name.strip() for name in (*names, *(part for part in folders if _plain(part)))}
        people = {name for name in people if len(name) >= MIN_LETTERS and not COMMON.fullmatch(name)}
        places = {place for place in folders if not _plain(place) and len(Path(place).parts) > 1}
        return cls(tuple(sorted(people, key=len, reverse=True)), tuple(sorted(places, key=len, reverse=True)))

    def text(self, text: str) -> str:
        """Clean free text, such as an error message. Of a path, the file name stays."""
        return self._without_names(IPV4.sub(REDACTED, text))

    def version(self, text: str) -> str:
        """Clean a version, which may look like an IPv4 address. Other text is cleaned as free text."""
        return self._without_names(text) if VERSION.fullmatch(text) else self.text(text)

    def _without_names(self, text: str) -> str:
        for pattern in OTHERS:
            text = pattern.sub(REDACTED, text)
        for folder in self.folders:
            text = text.replace(folder, REDACTED)
        text = PATH.sub(self._last_part, text)
        for name in self.names:
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", REDACTED, text, flags=re.IGNORECASE)
        return text

    def value(self, value: Any, versions: frozenset[str] = frozenset(), fixed: frozenset[str] = frozenset()) -> Any:
        """Clean all texts in a JSON value.

        Args:
            versions: keys whose values are or contain versions.
            fixed: keys whose values are not changed.
        """
        return self._value(value, versions, fixed, self.text)

    def _value(self, value: Any, versions: frozenset[str], fixed: frozenset[str], clean: Callable[[str], str]) -> Any:
        if isinstance(value, dict):
            return {
                key: own
                if key in fixed
                else self._value(own, versions, fixed, self.version if key in versions else clean)
                for key, own in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self._value(own, versions, fixed, clean) for own in value]
        return clean(value) if isinstance(value, str) else value

    def _last_part(self, path: re.Match[str]) -> str:
        """Such as `…/model.onnx`."""
        parts = re.split(r"[\\/]", path[0].rstrip("\\/."))
        if path[0].startswith("/") and len(parts) > 1 and parts[1] not in self.roots:
            return path[0]
        return f"{REDACTED}/{parts[-1]}" if "." in parts[-1].strip(".") else REDACTED


def _plain(text: str) -> bool:
    return not re.search(r"[\\/]", text)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="ignore").strip("\0\n ")
    except OSError:
        return ""
