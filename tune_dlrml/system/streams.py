"""Stdout and stderr of this process while a search runs: the terminal is the search's, a file is everybody else's."""

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
    """Where people read. What it prints are names and paths, in which `:m:` is no emoji.

    Args:
        stream: Stdout by default.
        width: In characters; None asks the terminal.
        terminal: Whether it is one; None looks.
    """
    return Console(file=stream, width=width, force_terminal=terminal, emoji=False)


@contextmanager
def noise_to(path: Path, out: IO[str]) -> Iterator[IO[str]]:
    """Send what Ray and the other libraries print into a file.

    The file descriptors are moved, not only Python's streams, since Ray also prints from C++.

    Args:
        path: The file; it is added to.
        out: Where people read.

    Yields:
        A stream that still reaches `out`, and goes on without a word if that goes away.
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
    """A stream whose reader may go away, as a terminal does whose window is closed or a pipe whose reader ends.

    The search goes on then: all that it had to tell is in its study and its event logs as well.
    """

    def write(self, text: str) -> int:
        """As any text stream; what nobody reads any more is dropped."""
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
        _log.warning("nobody reads what the search tells any more (%s); it goes on", error.strerror)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # also for what the buffer still holds
        os.close(nowhere)
