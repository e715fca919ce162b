"""A model's answers to a questionnaire, and the files that keep them so that none is made or paid for twice."""

import hashlib
import json
import threading
from collections import UserDict
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_dlrml.benches.subject import Subject
from tune_dlrml.errors import StorageError
from tune_dlrml.evaluation.engines.registry import ENGINES, make_engine
from tune_dlrml.evaluation.mt_bench.answering import answer, read_answers, write_answers
from tune_dlrml.evaluation.mt_bench.questionnaire import Questionnaire
from tune_dlrml.evaluation.records import Answers
from tune_dlrml.system.line_files import append_line, complete_lines


@dataclass(frozen=True)
class Answered:
    """What a model answered.

    Attributes:
        answers: In the order of the questions.
        unanswered: Turns to which its endpoint gives no reply, though it replies to others; their answer is empty.
    """

    answers: list[Answers]
    unanswered: int = 0


def fingerprint(*parts: Any) -> str:
    """A short name for what something was made from; equal only for parts that are equal as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def answers_of(subject: Subject, questionnaire: Questionnaire, folder: Path) -> Answered:
    """A model's answers, made as far as the folder does not hold them.

    They are in `answers-<fingerprint>.jsonl`, in FastChat's format; other weights, questions, lengths and seeds have
    another fingerprint. What an endpoint replied is in a file beside it, reply by reply, so that a run that ended early
    resumes. A turn without a reply is asked for again by the next run.

    Raises:
        InputError: The endpoint refuses the requests, or the file was changed and is not a file of answers any more.
        JudgeEndedError: The endpoint has reached its limits, or is unavailable.
        StorageError: A reply cannot be stored.
    """
    made_from = fingerprint(subject.identity(), questionnaire.fingerprint)
    path = folder / f"answers-{made_from}.jsonl"
    if path.exists() and not ENGINES[subject.engine].remote:
        return Answered(read_answers(path))
    with closing(
        make_engine(
            subject.engine,
            subject,
            max_new_tokens=questionnaire.max_new_tokens,
            batch_size=questionnaire.batch_size,
            kept=KeptTexts(folder / f"replies-{made_from}.jsonl"),
        )
    ) as engine:
        answers = answer(questionnaire.questions, engine, seed=questionnaire.seed)
        answered = Answered(answers, engine.unanswered)
    write_answers(path, answered.answers, subject.name)
    return answered


class KeptTexts(UserDict[str, str]):
    """Texts under keys, each also a JSON line of a file; may be used from several threads.

    A line is on the disk when it is set. One that is no text, such as one that a crash tore, is passed over.

    Args:
        path: The file; made with the first text.

    Raises:
        StorageError: It cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._lock = threading.Lock()
        try:
            lines = complete_lines(path.read_bytes()) if path.exists() else []
        except OSError as error:
            raise _storage_error(path, "readable", error) from error
        self.data |= dict(filter(None, map(_key_and_text, lines)))

    def __setitem__(self, key: str, text: str) -> None:
        line = json.dumps({"key": key, "text": text}).encode()
        with self._lock:
            try:
                append_line(self._path, line)
            except OSError as error:
                raise _storage_error(self._path, "writable", error) from error
            self.data[key] = text


def _key_and_text(line: bytes) -> tuple[str, str] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    match row:
        case {"key": str() as key, "text": str() as text}:
            return key, text
    return None


def _storage_error(path: Path, what: str, error: OSError) -> StorageError:
    return StorageError(
        f"{path} must be {what}, so that no answer is paid for twice, but: {error.strerror}; check the disk, then "
        "give the same command again"
    )
