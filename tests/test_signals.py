import os
import signal
import threading
from pathlib import Path

import pytest
import toy
from command_line import called

from tune_dlrml.config.yaml_text import as_yaml_text
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


def test_a_search_that_is_interrupted_says_how_it_is_resumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toy_model: Path
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    pairs = (toy.write_pairs(tmp_path / f"{seed}.jsonl", 8, seed=seed) for seed in (0, 1))
    (tmp_path / "space.yaml").write_text(as_yaml_text(toy.document(toy_model, *pairs)))
    monkeypatch.setattr("tune_dlrml.search.driver.run_search", interrupt)
    done = called("search", "space.yaml", folder=tmp_path, environment=dict(os.environ))
    assert done.returncode == 130 and "interrupted at once; the same command resumes the search" in done.stderr
