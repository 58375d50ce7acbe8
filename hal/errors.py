"""Every error haian raises on purpose, and the status codes they share with C.

A message is one line: what came, what was needed, the next step.  Each class also derives from the
built-in exception a Python user would expect, so ``except ValueError`` works without knowing haian.
"""
from __future__ import annotations

__all__ = [
    "AliasError", "ArgumentError", "Busy", "CODES", "DTypeError", "DeviceLost", "EnvironmentMissing", "HaianError",
    "IndexOutOfBounds", "InternalError", "InvalidHandle", "NotReady", "OutOfMemory", "OutOfRange", "PermissionRefused", "RanksDiffer",
    "ShapeError", "Timeout", "Unsupported", "VersionMismatch", "from_code", "one_line", "wrong_type",
]


class HaianError(Exception):
    """Base of all haian errors; ``code`` is the number the same failure has in C."""

    code = 13


class ArgumentError(HaianError, ValueError):
    """A value outside its contract (code 1, INVALID_ARGUMENT)."""

    code = 1


class InvalidHandle(HaianError, ValueError):
    """A handle or address that is not, or no longer, alive (code 2)."""

    code = 2


class OutOfRange(HaianError, IndexError):
    """An access that leaves its buffer (code 3)."""

    code = 3


class OutOfMemory(HaianError, MemoryError):
    """No memory left; everything already allocated stays usable (code 4)."""

    code = 4


class Unsupported(HaianError, NotImplementedError):
    """The device, adapter or operator does not offer this (code 5)."""

    code = 5


class EnvironmentMissing(HaianError, ImportError):
    """Something that must be installed or present is not (code 6, NOT_FOUND)."""

    code = 6


class NotReady(HaianError, RuntimeError):
    """Asked for the result of work that has not happened yet (code 7)."""

    code = 7


class Timeout(HaianError, TimeoutError):
    """Work did not finish in the time given (code 8)."""

    code = 8


class RanksDiffer(Timeout):
    """Ranks made different calls, which would have waited for one another for ever; seen before the time was over (code 8)."""


class Busy(HaianError, RuntimeError):
    """The object is in use by queued work (code 9)."""

    code = 9


class DeviceLost(HaianError, RuntimeError):
    """The device stopped; sticky until it is reset (code 10)."""

    code = 10


class VersionMismatch(HaianError, RuntimeError):
    """An adapter speaks another major version of the contract (code 11)."""

    code = 11


class PermissionRefused(HaianError, PermissionError):
    """A loading route or file that haian does not trust (code 12)."""

    code = 12


class InternalError(HaianError, RuntimeError):
    """A fault of haian or of a driver (code 13)."""

    code = 13


# Operators say more precisely what was wrong with an argument; their codes start past the HAL's fourteen.
class ShapeError(ArgumentError):
    """Shapes or ranks that do not fit (code 32)."""

    code = 32


class DTypeError(HaianError, TypeError):
    """A dtype the operator does not accept (code 33)."""

    code = 33


class AliasError(ArgumentError):
    """An output that overlaps an input, or itself, in a way that cannot be computed exactly (code 34)."""

    code = 34


class IndexOutOfBounds(HaianError, IndexError):
    """An index value outside the axis it selects from (code 35)."""

    code = 35


CODES: dict[int, type[HaianError]] = {
    c.code: c
    for c in (ArgumentError, InvalidHandle, OutOfRange, OutOfMemory, Unsupported, EnvironmentMissing, NotReady, Timeout,
              Busy, DeviceLost, VersionMismatch, PermissionRefused, InternalError, ShapeError, DTypeError, AliasError,
              IndexOutOfBounds)
}


def from_code(code: int, message: str) -> HaianError:
    """The exception for a C status code; an unknown code is an InternalError that names it.

    A driver that fails with an unknown code seldom leaves a message, and what ``last_error`` then has is of an earlier failure.
    """
    cls = CODES.get(code)
    return cls(message) if cls else InternalError(f"{message} (status code {code} is unknown, needs one of hal_status; the message may be of an earlier failure)")


def wrong_type(what: str, value: object, needed: str) -> ArgumentError:
    """The error for an argument of another type; needed: what it should be, and how one gets it."""
    text = " ".join(repr(value).split())
    return ArgumentError(f"{what}: {text if len(text) <= 60 else text[:57] + '...'} is a {type(value).__name__}; needs {needed}")


def one_line(error: BaseException) -> str:
    """Its message without line breaks: somebody else's may have some."""
    return " ".join(str(error).split()) if "\n" in str(error) else str(error)
