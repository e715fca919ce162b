"""The terminal's view of a bench. Renders for a rich console."""

from collections.abc import Iterator
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tune_dlrml.evaluation.records import Judgement
from tune_dlrml.views.search import score_text


class JudgingProgress:
    """Counts judgements on a terminal.

    Args:
        console: Where the count is shown.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            TextColumn("{task.completed} judged"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("answering and judging", total=None)

    def __enter__(self) -> "JudgingProgress":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_judgement(self, judgement: Judgement) -> None:
        """Count one more."""
        self._progress.advance(self._task)


def bench_lines(document: dict[str, Any]) -> Iterator[RenderableType]:
    """The numbers of a bench, each with its judge or its reward."""
    model = f"[bold]{escape(document['model'])}[/]"
    if document["bench"] == "mt-bench":
        yield f"{model}: {score_text(document)}"
        yield _categories(document)
        yield f"{document['calls']} calls, {document['cached']} judgements from the cache"
        yield from _unanswered(document)
    elif document["bench"] == "alpaca-eval":
        yield f"{model}: {_win_rate(document)}"
        yield from _unanswered(document)
        if document["length_controlled"] is not None:
            controlled = document["length_controlled"]
            yield f"length-controlled win rate {controlled['win_rate']:.2f} % +- {controlled['standard_error']:.2f}"
    elif document["bench"] == "win-rate":
        yield f"{model}: {_win_rate_of_pairs(document)}"
        yield from _unanswered(document)
    elif "trials" in document:
        for trial in document["trials"]:
            yield _frontier_line(trial)
        front = ", ".join(document["pareto"])
        yield f"on the Pareto front, by increasing KL: {escape(front)}; picture: frontier.png"
    else:
        yield _frontier_line(document)


def _unanswered(document: dict[str, Any]) -> Iterator[str]:
    if document["unanswered"]:
        yield (
            f"{document['unanswered']} questions got no reply from the model's endpoint and count as empty answers; "
            "the same command asks them again"
        )


def _frontier_line(document: dict[str, Any]) -> str:
    reward, kl = document["reward"], document["kl"]
    return (
        f"[bold]{escape(document['model'])}[/]: reward {_with_interval(reward)} by "
        f"{escape(document['reward_function'])}, KL {_with_interval(kl)} nats on {document['samples']} completions"
    )


def _with_interval(estimate: dict[str, Any]) -> str:
    low, high = estimate["interval"]
    return f"{estimate['mean']:.3f} ({low:.3f} to {high:.3f})"


def _categories(document: dict[str, Any]) -> Table:
    table = Table(header_style="bold", pad_edge=False)
    means = {f"turn {turn}": mean for turn, mean in document["turns"].items()} | dict(document["categories"])
    for heading in means:
        table.add_column(escape(heading), justify="right")
    table.add_row(*("-" if mean is None else f"{mean:.2f}" for mean in means.values()))
    return table


def _win_rate_of_pairs(document: dict[str, Any]) -> str:
    rate = document["win_rate_adjusted"]
    if rate is None:
        return escape(f"no win rate: {document['missing']}")
    low, high = document["interval"] or (rate, rate)
    return escape(
        f"preferred to {document['pairs']} in {100 * rate:.1f} % ({100 * low:.1f} to {100 * high:.1f}) of "
        f"{document['prompts']} prompts by {document['judge']}; {document['wins']} won, {document['ties']} tied, "
        f"{document['losses']} lost, {document['unscored']} unscored; a tie is one half"
    )


def _win_rate(document: dict[str, Any]) -> str:
    if document["score"] is None:
        return escape(f"no win rate: {document['missing']}")
    low, high = document["interval"] or (document["score"], document["score"])
    return escape(
        f"win rate {document['score']:.2f} % ({low:.2f} to {high:.2f}) on {document['questions']} instructions by "
        f"{document['judge']}; {document['wins']} won, {document['ties']} tied, {document['losses']} lost, "
        f"{document['unscored']} unscored"
    )
