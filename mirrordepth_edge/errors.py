"""Errors for users: what failed, why, and what to type next.

Each class has its own exit code; `cli.main` is the only place that exits the process.
"""

from __future__ import annotations

from typing import ClassVar


class MdeError(Exception):
    """An expected failure, described in three parts.

    Args:
        what: what failed, in one sentence, with the name of the file or option.
        why: the reason, as far as it is known.
        cure: what to type or change next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, why: str, cure: str) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.what}\n  why:  {self.why}\n  next: {self.cure}"


class InputError(MdeError):
    """A file or a device that the user named cannot be used."""


class DeviceError(MdeError):
    """A GPU exists but failed, for example because its memory was exhausted."""


class OptionError(MdeError):
    """An option or a combination of options is invalid."""

    exit_code = 2


class GateError(MdeError):
    """A quality check failed; nothing was written."""

    exit_code = 3


class MissingError(MdeError):
    """Hardware or a package is missing on this machine."""

    exit_code = 4


def missing_package(package: str, needed_for: str, extra: str) -> MissingError:
    """Return the error for an optional dependency that is not installed."""
    return MissingError(
        f"{needed_for} needs {package}, which is not installed.",
        f"{package} is in the optional extra '{extra}'.",
        f"pip install 'mirrordepth-edge[{extra}]'",
    )
