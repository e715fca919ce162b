"""Judgements that are asked for once: a file that keeps them, and a pool of threads that asks for the rest.

An inquiry that a judge gives no verdict on is asked again by the next runs, as many as `MAX_RUNS`, and then no more, so
that a search that is over buys nothing however often it is started.
"""

import json
import logging
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from tune_dlrml.errors import JudgeEndedError, StorageError
from tune_dlrml.evaluation.judges.verdict_forms import HIGHEST, LOWEST
from tune_dlrml.evaluation.records import Inquiry, Judge, Judgement
from tune_dlrml.system.line_files import append_line, complete_lines

logger = logging.getLogger(__name__)

OnJudgement = Callable[[Judgement], None]
MAX_RUNS = 3
"""Runs in which a judge may leave an inquiry without a verdict, until it is unscored for good."""


class UnfinishedError(JudgeEndedError):
    """The judge ended before everything was judged.

    Attributes:
        judgements: What was judged until then, in the order of the inquiries.
    """

    def __init__(self, message: str, judgements: Sequence[Judgement]) -> None:
        super().__init__(message, judgements)
        self.judgements = list(judgements)

    def __str__(self) -> str:
        return str(self.args[0])


class ReplyCache:
    """Judgements in a file, one JSON line each, under the content key of their inquiry for the judge's identity.

    An object is one run: what was unscored in it is not asked for again by it, and what was unscored in `MAX_RUNS` runs
    by none. A judgement that was not heard is not kept: an outage says nothing about the judge.

    Several processes may share the file: a line is appended under a lock, and what others appended is read when a key
    is not known. A line is on the disk when `keep` returns; a torn one counts nowhere, see `line_files`. A complete
    line that is no judgement is passed over with a warning: it costs another call, no score.

    Args:
        path: The file; made with the first judgement.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._file_lock = FileLock(f"{path}.lock")
        self._known: dict[str, Judgement] = {}
        self._unscored: dict[str, list[Judgement]] = {}
        self._asked: set[str] = set()  # unscored in this run
        self._read = 0  # bytes of the file that are in _known

    def get(self, key: str) -> Judgement | None:
        """The judgement kept under a key, with 0 calls; None if the judge is to be asked.

        Raises:
            StorageError: The file cannot be read.
        """
        with self._lock:
            if key not in self._known:
                self._read_on()
            return self._known.get(key) or self._given_up(key)

    def keep(self, judgement: Judgement) -> None:
        """Keep a judgement under its key.

        Raises:
            StorageError: The file cannot be written.
        """
        if not judgement.heard:
            return
        line = json.dumps(judgement.as_json(), allow_nan=False).encode()
        with self._lock:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._file_lock:
                    append_line(self._path, line)
            except OSError as error:
                raise _storage_error(self._path, "written", error) from error
            self._read_on()
            if judgement.verdict is None:
                self._asked.add(judgement.key)

    def _given_up(self, key: str) -> Judgement | None:
        """The unscored judgement under a key if the judge is not asked again, in this run or at all."""
        unscored = self._unscored.get(key, [])
        if len(unscored) >= MAX_RUNS:
            return replace(unscored[-1], words=f"unscored for good after {MAX_RUNS} runs: {unscored[-1].words}")
        return unscored[-1] if key in self._asked else None

    def _read_on(self) -> None:
        """Read the complete lines after those that were read."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise _storage_error(self._path, "read", error) from error
        for line in complete_lines(data):
            judgement = _parsed(line)
            if judgement is None:
                logger.warning("%s: not a judgement, skipped: %r", self._path, line[:80])
            elif judgement.verdict is None:
                self._unscored.setdefault(judgement.key, []).append(judgement)
            else:
                self._known.setdefault(judgement.key, judgement)
        self._read += data.rfind(b"\n") + 1


class CachedJudge:
    """A judge that is asked only for what the cache does not hold, and once at a time for the same inquiry.

    Args:
        judge: Who is asked.
        cache: Keeps what it says.
    """

    def __init__(self, judge: Judge, cache: ReplyCache) -> None:
        self.name, self.identity = judge.name, judge.identity
        self._judge, self._cache = judge, cache
        self._under_way: dict[str, threading.Lock] = {}

    def ask(self, inquiry: Inquiry) -> Judgement:
        """The kept judgement, with 0 calls, or the judge's, which is kept; see `Judge.ask`."""
        key = inquiry.key(self.identity)
        with self._under_way.setdefault(key, threading.Lock()):
            kept = self._cache.get(key)
            if kept is not None:
                return replace(kept, key=inquiry.key(self.name), question_id=inquiry.question_id, turn=inquiry.turn)
            judgement = self._judge.ask(inquiry)
            self._cache.keep(replace(judgement, key=key))
            return judgement


def judge_all(
    inquiries: Sequence[Inquiry], judge: Judge, *, concurrency: int, on_judgement: OnJudgement | None = None
) -> list[Judgement]:
    """The judgement of every inquiry, in their order; inquiries with the same key are asked once.

    After the first error no inquiry starts; running ones are awaited and count.

    Args:
        inquiries: What is to be judged.
        judge: Who judges.
        concurrency: Inquiries at the same time.
        on_judgement: Told every judgement as it comes, in this thread; one call for each inquiry.

    Raises:
        UnfinishedError: The judge ended; it holds what was judged.
    """
    by_key: dict[str, list[int]] = {}
    for index, inquiry in enumerate(inquiries):
        by_key.setdefault(inquiry.key(judge.name), []).append(index)
    judged: dict[int, Judgement] = {}
    errors: list[Exception] = []
    with closing(_asked({key: inquiries[same[0]] for key, same in by_key.items()}, judge, concurrency)) as outcomes:
        for key, outcome in outcomes:
            if isinstance(outcome, Exception):
                errors.append(outcome)
                continue
            for index, judgement in _copies(outcome, by_key[key], inquiries):
                judged[index] = judgement
                if on_judgement is not None:
                    on_judgement(judgement)
    judgements = [judged[index] for index in sorted(judged)]
    # Other errors say more than that the judge ended: a wrong key, a full disk.
    for error in sorted(errors, key=lambda error: isinstance(error, JudgeEndedError)):
        if isinstance(error, JudgeEndedError):
            raise UnfinishedError(str(error), judgements) from error
        raise error
    return judgements


def _copies(judgement: Judgement, same: list[int], inquiries: Sequence[Inquiry]) -> Iterator[tuple[int, Judgement]]:
    """The judgement for every inquiry that has its key; the calls count for the first one."""
    for index in same:
        inquiry, calls = inquiries[index], judgement.calls if index == same[0] else 0
        yield index, replace(judgement, question_id=inquiry.question_id, turn=inquiry.turn, calls=calls)


def _asked(
    inquiries: Mapping[str, Inquiry], judge: Judge, concurrency: int
) -> Generator[tuple[str, Judgement | Exception]]:
    """The result of each inquiry as it comes; after the first error no other inquiry starts.

    If it is closed early, as by an interrupt, it does not wait for running inquiries, which could take minutes.
    """
    stopped = threading.Event()

    def ask(inquiry: Inquiry) -> Judgement | Exception | None:
        if stopped.is_set():
            return None
        try:
            return judge.ask(inquiry)
        except Exception as error:  # carried to the thread that waits
            stopped.set()
            return error

    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="judge")
    try:
        futures = {pool.submit(ask, inquiry): key for key, inquiry in inquiries.items()}
        for future in as_completed(futures):
            outcome = future.result()
            if outcome is not None:
                yield futures[future], outcome
    finally:
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _parsed(line: bytes) -> Judgement | None:
    """The judgement in a line; None if it is none."""
    try:
        judgement = replace(Judgement(**json.loads(line)), calls=0)
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (judgement.judge, judgement.key, judgement.words)
    whole = all(isinstance(text, str) for text in texts) and isinstance(judgement.turn, int)
    return judgement if whole and _is_verdict(judgement.verdict) else None


def _is_verdict(verdict: object) -> bool:
    if verdict is None:
        return True
    if isinstance(verdict, str):
        return verdict in ("A", "B", "tie")
    return isinstance(verdict, float | int) and LOWEST <= verdict <= HIGHEST


def _storage_error(path: Path, done: str, error: OSError) -> StorageError:
    return StorageError(
        f"{path} must be {done} so that no reply of a judge is paid for twice, but: {error.strerror}; "
        "check the disk, then run the same command again"
    )
