"""The one family of exceptions. Every message states the law, the value and the remedy; all survive pickling."""

import re

REASON_LENGTH = 420
"""Characters of an exception that fit a table; all of it is in the study."""


class TuneDlrmlError(Exception):
    """Base of every error that the command line answers with a message instead of a traceback."""

    exit_code = 1


class InputError(TuneDlrmlError):
    """The input is invalid: a search-space file, data, a model reference or the requested resources."""

    exit_code = 2


class StorageError(TuneDlrmlError):
    """A disk is full or read-only, or the study's database is unavailable: the search stops and can be resumed."""

    exit_code = 130


class GroupDiedError(TuneDlrmlError):
    """A worker group ended while a trial was training in it."""


class NotFiniteError(TuneDlrmlError):
    """A number that must be finite where it is used is not."""


class UnansweredError(TuneDlrmlError):
    """Trials that have ended could not answer the questions; the same command asks them again."""

    exit_code = 130


class JudgeEndedError(TuneDlrmlError):
    """A judge has reached its limits or does not answer; its replies are kept, and the same command resumes."""

    exit_code = 130


def one_line(error: BaseException) -> str:
    """The message of an exception, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def headline(error: BaseException) -> str:
    """Type of an exception and its last line: the first sentence, and those after it that fit a table."""
    lines = str(error).strip().splitlines() or [""]
    first, *others = re.split(r"(?<=\.)\s+", lines[-1].strip())
    text = first[:REASON_LENGTH]
    for sentence in others:  # the remedy in a library's message follows the problem
        if len(text) + 1 + len(sentence) > REASON_LENGTH:
            break
        text += f" {sentence}"
    return f"{type(error).__name__}: {text}"
