import signal
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tune_dlrml.cli.main import app
from tune_dlrml.system.signals import kept_handlers


def leave_a_handler() -> None:
    """What Ray and Ray Tune do."""
    with kept_handlers(signal.SIGUSR1):
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, lambda *_: None)


def test_a_handler_that_a_library_leaves_is_gone_afterwards_also_where_it_fails() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    leave_a_handler()
    assert signal.getsignal(signal.SIGUSR1) is before
    with pytest.raises(OSError), kept_handlers(signal.SIGUSR1):  # noqa: PT011, PT012: any error does
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        raise OSError
    assert signal.getsignal(signal.SIGUSR1) is before


def test_in_another_thread_nothing_is_set_and_nothing_fails() -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            leave_a_handler()
        except ValueError as error:  # "signal only works in main thread"
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failed


def test_a_command_that_is_interrupted_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tune_dlrml.search.result.read_search", interrupt)
    done = CliRunner().invoke(app, ["status", "toy", "--storage", str(tmp_path)])
    assert done.exit_code == 130 and "interrupted at once; the same command resumes the search" in done.stderr
