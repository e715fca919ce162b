"""Stdout and stderr of this process while a search runs: the search writes to the terminal, libraries to a file."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rich.console import Console

_log = logging.getLogger(__name__)


def reading_console(
    stream: IO[str] | None = None, *, width: int | None = None, terminal: bool | None = None
) -> Console:
    """A console for the user. It prints names and paths, in which `:m:` is not an emoji.

    Args:
        stream: Stdout by default.
        width: In characters; None asks the terminal.
        terminal: Whether it is one; None detects it.
    """
    return Console(file=stream, width=width, force_terminal=terminal, emoji=False)


@contextmanager
def noise_to(path: Path, out: IO[str]) -> Iterator[IO[str]]:
    """Redirect the output of Ray and the other libraries to a file.

    The file descriptors are redirected, not only Python's streams, since Ray also prints from C++.

    Args:
        path: The file, to which the output is appended.
        out: The user's stream.

    Yields:
        A stream that still writes to `out`, and drops its output once `out` is closed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(out.fileno())
    saved = {number: os.dup(number) for number in (1, 2)}
    with path.open("ab") as sink, LastingStream(os.fdopen(kept, "wb"), encoding="utf-8", line_buffering=True) as stream:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(handler)
        for number in saved:
            os.dup2(sink.fileno(), number)
        try:
            yield stream
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            logging.getLogger().removeHandler(handler)
            for number, copy in saved.items():
                os.dup2(copy, number)
                os.close(copy)


class LastingStream(io.TextIOWrapper):
    """A stream whose reader may disappear, such as a terminal whose window is closed or a pipe whose reader ends.

    The search then continues: its study and its event logs have everything.
    """

    def write(self, text: str) -> int:
        """As any text stream; once the reader is gone the text is dropped."""
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """As any text stream."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        _log.warning("the search's output has no reader any more (%s); the search continues", error.strerror)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # also for what the buffer still holds
        os.close(nowhere)
