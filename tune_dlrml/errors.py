"""The one family of exceptions. Every message states the law, the value and the remedy; all survive pickling."""

import re

REASON_LENGTH = 420
"""Characters of an exception that fit a table; all of it is in the study."""


class TuneDlrmlError(Exception):
    """Base of every error that the command line answers with a message instead of a traceback."""

    exit_code = 1


class InputError(TuneDlrmlError):
    """The input is at fault: a search-space file, data, a model reference or the resources asked for."""

    exit_code = 2


class StorageError(TuneDlrmlError):
    """A disk is full or read-only, or the study's database is away: the search stops and can go on later."""

    exit_code = 130


class GroupDiedError(TuneDlrmlError):
    """A worker group ended while a trial was training in it."""


class NotFiniteError(TuneDlrmlError):
    """A number that must be finite where it is used is not."""


class UnansweredError(TuneDlrmlError):
    """Trials that have ended could not be asked; they stay as they are, and the same command asks them again."""

    exit_code = 130


class JudgeEndedError(TuneDlrmlError):
    """A judge may not be called any more or does not answer; what it has said is kept, and the same command goes on."""

    exit_code = 130


def one_line(error: BaseException) -> str:
    """What an exception says, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def headline(error: BaseException) -> str:
    """Type of an exception and its last line: the first sentence, and those after it that fit a table."""
    lines = str(error).strip().splitlines() or [""]
    first, *others = re.split(r"(?<=\.)\s+", lines[-1].strip())
    told = first[:REASON_LENGTH]
    for sentence in others:  # what a library says to do stands behind what is wrong
        if len(told) + 1 + len(sentence) > REASON_LENGTH:
            break
        told += f" {sentence}"
    return f"{type(error).__name__}: {told}"
