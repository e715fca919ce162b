"""Asks for losses in one thread, while others are trained."""

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from tune_dlrml.cluster.cluster import local_capacity
from tune_dlrml.config import AnyLoss, ResourcesConfig
from tune_dlrml.discovery.archive import Archive, ProposalRecord
from tune_dlrml.discovery.asking import Answer, Asker, asker_of
from tune_dlrml.discovery.examining import Examiner
from tune_dlrml.discovery.prompt import question
from tune_dlrml.discovery.scores import Score, scores_of
from tune_dlrml.errors import InputError
from tune_dlrml.search.idle import IdleTime
from tune_dlrml.search.preparation import PreparedSearch
from tune_dlrml.search.result import SearchResult, read_search
from tune_dlrml.space import SearchSpace
from tune_dlrml.study.sampling import derived_seed

LEAVE_S = 10.0
"""How long a search that ends waits for the question that is under way."""
SHORTEST_S = 1.0
"""Least time that a question has."""
FAULT_S = 5.0
"""Wait after a question without a reply."""
KEPT_S = 10.0
"""Seconds of waiting after which they are on disk, also while a question is under way."""


def spare_threads(resources: ResourcesConfig) -> int:
    """CPU threads that a local proposer may take: those of this machine that are no worker's, at least one."""
    taken = resources.workers * resources.concurrent_trials * resources.cpus_per_worker
    return max(1, math.floor(local_capacity()["CPU"] - taken))


class Discovering:
    """Finds the candidates of a search with `discovery`; does nothing without one.

    One candidate for each worker group is found ahead, so that no group waits for a proposer as long as that is
    faster than training. What is asked, replied and found is in the archive before it is acted on.

    Args:
        prepared: The search.
    """

    def __init__(self, prepared: PreparedSearch) -> None:
        self._prepared, self._archive = prepared, prepared.archive
        self._config = prepared.config.discovery
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._askers: dict[str, Asker] = {}
        self._notify: Callable[[str], None] = lambda text: None
        self._error: Exception | None = None
        self._until = math.inf
        self._idle = IdleTime(prepared.config.resources.concurrent_trials)

    def begin(self, on_notice: Callable[[str], None]) -> None:
        """Start to ask; `on_notice` is called with what the user should know, from another thread."""
        if self._archive is None or self._archive.ended or self._config is None:
            return
        self._notify = on_notice
        self._until = time.monotonic() + self._config.limits.deadline_s
        key = self._prepared.proposer_key
        threads = spare_threads(self._prepared.config.resources)
        self._askers = {name: asker_of(name, self._config, key, threads) for name in self._config.proposer}
        self._thread = threading.Thread(target=self._work, name="discovering", daemon=True)
        self._thread.start()

    def on_change(self) -> None:
        """A trial was issued or has ended: another candidate may be wanted."""
        self._idle.stop()
        self._wake.set()

    def on_judged(self) -> None:
        """A trial's answers were rated: what proposers are told has changed; called from another thread."""
        self._wake.set()

    def on_wait(self, running: int) -> None:
        """The next trial is not known while so many run; called again and again until it is."""
        if self._idle.start(running) >= KEPT_S:
            self._keep_idle()

    def leave(self) -> None:
        """Stop asking, after a short wait for the question under way; the next driver goes on."""
        self._stop.set()
        self._wake.set()
        for asker in self._askers.values():
            asker.close()
        if self._thread is not None:
            self._thread.join(LEAVE_S)
            self._thread = None
            self._keep_idle()

    def _keep_idle(self) -> None:
        """Put the time in which groups waited on disk, as far as they were seen to wait."""
        if self._archive is not None and self._archive.records():
            self._archive.waited(self._idle.take())

    def finish(self) -> None:
        """Stop asking, and put the scores of all trials into the proposals' files.

        Raises:
            Exception: What ended the thread that asks.
        """
        self.leave()
        if self._archive is not None:
            self._score(self._archive)
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        archive = self._archive
        assert archive is not None
        try:
            with Examiner(self._prepared.config) as examiner:
                while not self._stop.is_set() and not self._is_over(archive):
                    if self._wants_more(archive):
                        self._turn(archive, examiner)
                    else:
                        self._rest(archive)
            archive.ended = not self._stop.is_set()
            while not self._stop.is_set():
                self._rest(archive)
        except Exception as error:
            self._error = error
            archive.ended = not self._stop.is_set()

    def _rest(self, archive: Archive) -> None:
        """Wait for a trial that is issued or ends, and put its scores into the proposals' files."""
        self._wake.wait()
        self._wake.clear()
        if not self._stop.is_set():
            self._score(archive)

    def _is_over(self, archive: Archive) -> bool:
        if archive.is_full():
            return True
        why = self._why_over(archive)
        if why and self._config is not None:
            self._notify(f"{why}: {len(archive.accepted())} of {self._config.candidates} candidates were found")
        return bool(why)

    def _why_over(self, archive: Archive) -> str:
        """Why nothing is asked any more though candidates are missing; empty if something is."""
        if not self._askers:
            return "no proposer is asked any more"
        if time.monotonic() >= self._until:
            return "discovery.limits.deadline_s is over for this run of the command"
        return archive.spent()

    def _wants_more(self, archive: Archive) -> bool:
        """Whether fewer candidates than worker groups wait to be trained."""
        issued = {row.spec.branch for row in self._read().rows if row.spec is not None}
        waiting = [each for each in archive.accepted() if each.label not in issued]
        return len(waiting) < self._prepared.config.resources.concurrent_trials

    def _turn(self, archive: Archive, examiner: Examiner) -> None:
        """One question and what comes of it, from where an earlier driver left it."""
        record = self._next(archive)
        if record.reply is None:
            record = self._asked(archive, record)
        if record.reply is not None:
            self._examine(archive, record, examiner)

    def _asked(self, archive: Archive, record: ProposalRecord) -> ProposalRecord:
        """The record with its reply; it is on disk before and after the question."""
        record = archive.write(replace(record, times_asked=record.times_asked + 1))
        calls, tokens = archive.left()
        seed = derived_seed(self._prepared.config.search.seed, record.number, "proposal") % 2**31
        began = time.monotonic()
        try:
            answer = self._askers[record.proposer].ask(
                record.messages, seed=seed, calls=calls + 1, tokens=tokens, seconds=max(self._until - began, SHORTEST_S)
            )
        except InputError as error:
            del self._askers[record.proposer]
            answer = Answer(None, f"it is asked no more: {error}")
        if answer.text is None and self._stop.is_set():
            return record  # the next driver asks again
        record = replace(
            record,
            reply=answer.text,
            calls=answer.calls,
            tokens=answer.tokens,
            estimated=answer.estimated,
            seconds=round(time.monotonic() - began, 3),
        )
        if answer.text is None:
            record = replace(record, stage="answer", reason=f"no reply: {answer.reason}")
        record = archive.write(record, self._idle.since_last())
        if answer.text is not None:
            return record
        self._notify(f"proposal {record.number}: no reply by {record.proposer}: {answer.reason}")
        self._stop.wait(FAULT_S)
        return record

    def _next(self, archive: Archive) -> ProposalRecord:
        """The question that an earlier driver has not brought to its end, or else a new one."""
        assert self._config is not None
        records = archive.records()
        if records and records[-1].stage == "asked":
            return records[-1]
        scores = self._score(archive)
        asked = question(self._config, self._prepared.config.search.metric, self._losses(archive), scores, records)
        names = list(self._askers)
        return ProposalRecord(
            number=len(records),
            proposer=names[len(records) % len(names)],
            parents=tuple(asked.parents),
            refusals=tuple(asked.refusals),
            messages=tuple(asked.messages),
        )

    def _examine(self, archive: Archive, record: ProposalRecord, examiner: Examiner) -> None:
        assert record.reply is not None
        seen = examiner.examine(record.reply, self._losses(archive))
        found = replace(
            record,
            stage=seen.stage,
            reason=seen.reason,
            reasoning=seen.reasoning,
            found=seen.found,
            loss=None if seen.loss is None else seen.loss.model_dump(mode="json"),
        )
        if seen.stage == "accepted":
            found = replace(found, label=archive.label_of(seen.name, ["baseline", "training", *self._losses(archive)]))
        archive.write(found, self._idle.since_last())
        said = f"accepted as {found.label}" if found.label else f"refused: {seen.reason}"
        self._notify(f"proposal {record.number} by {record.proposer}: {said}")

    def _losses(self, archive: Archive) -> dict[str, AnyLoss]:
        return {**SearchSpace(self._prepared.config).branches, **dict(archive.accepted())}

    def _read(self) -> SearchResult:
        return read_search(self._prepared.config.name, self._prepared.place)

    def _score(self, archive: Archive) -> Mapping[str, Score]:
        result = self._read()
        config = self._prepared.config
        scores = scores_of(
            result.rows,
            result.metrics,
            config.search.metric,
            maximize=config.search.maximize,
            judged=result.judged,
        )
        for label, score in scores.items():
            archive.score(label, score.as_json())
        return scores
