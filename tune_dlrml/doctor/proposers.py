"""Whether the proposers of a discovery can be asked, and what its caps allow, before anything is trained."""

import math
from collections.abc import Iterator
from contextlib import closing

from tune_dlrml.config import DiscoveryConfig, SearchConfig
from tune_dlrml.discovery.archive import ProposalRecord
from tune_dlrml.discovery.asking import asker_of
from tune_dlrml.discovery.prompt import EXAMPLE, question
from tune_dlrml.discovery.scores import Score
from tune_dlrml.doctor.cost import number_of_trials
from tune_dlrml.doctor.finding import Finding
from tune_dlrml.errors import InputError, TuneDlrmlError
from tune_dlrml.evaluation.endpoint.completion import CHARACTERS_PER_TOKEN
from tune_dlrml.evaluation.endpoint.settings import read_key
from tune_dlrml.losses.custom.config import CustomParams
from tune_dlrml.losses.proposed.config import ProposedLoss
from tune_dlrml.models.loading import context_length, parse_model_reference
from tune_dlrml.space import SearchSpace

LOCAL = "local:"


def examine_proposers(config: SearchConfig, key: str | None) -> Iterator[Finding]:
    """Ask every proposer for a first word, and compare the caps with the expected length of a question.

    Args:
        config: The search; one without `discovery` needs no check.
        key: For an endpoint, if no file holds it.
    """
    section = config.discovery
    if section is None:
        return
    prompt = expected_tokens(config)
    try:
        key = key if section.proposer_key_file is None else read_key(section.proposer_key_file)
    except InputError as error:
        yield Finding("discovery.proposer_key_file", "error", str(error))
        return
    for name in section.proposer:
        yield _first_word(name, section, key)
        yield from _room(name, section, prompt)
    yield _caps(section, prompt)
    yield _trials(config, section)


def expected_tokens(config: SearchConfig) -> int:
    """Tokens of a question with as many losses as `discovery.context` shows, each as long as the prompt's example.

    They are estimated from the number of characters.
    """
    section = config.discovery
    assert section is not None
    example = ProposedLoss(code=EXAMPLE, params=CustomParams(beta=0.1))
    losses = SearchSpace(config).branches | {f"example_{at}": example for at in range(section.context.best)}
    score = Score(1, 0.5, 0.02, {"beta": 0.1}, {"eval_kl": 1.0, "eval_trap_fraction": 0.0}, {"complete": 3}, {})
    records = [
        ProposalRecord(number=at, proposer="", reply=EXAMPLE, stage="checks", loss=example.model_dump(), reason=EXAMPLE)
        for at in range(section.context.recent)
    ]
    scores = {"baseline": score, **dict.fromkeys(losses, score)}
    asked = question(section, config.search.metric, losses, scores, records)
    return math.ceil(sum(len(each["content"]) for each in asked.messages) / CHARACTERS_PER_TOKEN)


def _first_word(name: str, section: DiscoveryConfig, key: str | None) -> Finding:
    try:
        with closing(asker_of(name, section, key)) as asker:
            return Finding("discovery.proposer", "ok", f"{name} {asker.first_word()}")
    except InputError as error:
        return Finding("discovery.proposer", "error", str(error))
    except TuneDlrmlError as error:
        return Finding("discovery.proposer", "warning", str(error))


def _room(name: str, section: DiscoveryConfig, prompt: int) -> Iterator[Finding]:
    """Whether a model in this process has positions for a question and its reply."""
    if not name.startswith(LOCAL):
        return
    try:
        positions = context_length(parse_model_reference(name.removeprefix(LOCAL)))
    except InputError:
        return  # said by its first word
    if positions is not None and prompt + section.max_new_tokens > positions:
        yield Finding(
            "discovery.max_new_tokens",
            "warning",
            f"a question of about {prompt:,} tokens and its reply must fit the {positions:,} positions of {name}, but "
            f"got max_new_tokens={section.max_new_tokens}: the beginning of the question would be cut off; lower it, "
            "or discovery.context",
        )


def _caps(section: DiscoveryConfig, prompt: int) -> Finding:
    """What the caps allow, and whether every candidate can be asked for at least once."""
    limits, longest = section.limits, section.max_new_tokens
    least, most = limits.tokens // (prompt + longest), limits.tokens // prompt
    price = section.price_per_million_tokens
    cost = "" if price is None else f", which cost {price * limits.tokens / 1e6:.3g} at most"
    text = (
        f"{limits.calls:,} requests and {limits.tokens:,} tokens{cost}; a question takes about {prompt:,} tokens and "
        f"its reply at most {longest:,}, so the tokens are enough for {least:,} to {most:,} questions; nothing is "
        f"asked later than {limits.deadline_s:g} s after the start of a run"
    )
    wanted, caps = section.candidates, f"but the caps are {text}"
    if limits.calls < wanted:
        return _too_few(f"`calls >= candidates` must hold for {wanted} candidates, {caps}", "calls", wanted)
    if least < wanted:
        enough = wanted * (prompt + longest)
        return _too_few(f"{wanted} candidates take a question each at least, {caps}", "tokens", enough)
    return Finding("discovery.limits", "ok", text)


def _too_few(text: str, key: str, enough: int) -> Finding:
    return Finding("discovery.limits", "warning", f"{text}; raise discovery.limits.{key} to {enough:,} or more")


def _trials(config: SearchConfig, section: DiscoveryConfig) -> Finding:
    known = config.known_losses().branches()
    budget = config.search.time_budget_s
    time = "--measure tells their time" if budget is None else f"search.time_budget_s ends them after {budget:g} s"
    return Finding(
        "discovery",
        "ok",
        f"at most {number_of_trials(config)} trials: {section.candidates} candidates and {len(known)} known losses "
        f"({', '.join(known)}), {section.trials_per_candidate} trials each where there is something to vary; {time}",
    )
