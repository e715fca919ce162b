"""A discovery on the toy whose proposer is a script, undisturbed and with its driver killed with -9 ten times.

The script plays good, broken, hostile, repeated and slow replies, and the faults of an endpoint: 429, 5xx, a reset.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlflow
from evaluation.endpoint_server import Act, EndpointServer, fails, reset, says

from faults.toy_search import (
    PROGRESS_S,
    Failure,
    ToySearch,
    check_ended,
    check_mlflow,
    ended_afterwards,
    generator,
    outcome,
    require,
    row,
    wait_for,
)
from tune_dlrml.config.yaml_text import as_yaml_text
from tune_dlrml.discovery.table import TABLE

CANDIDATES, TRIALS_EACH, STEPS = 12, 2, 60
SEEDS = 2
"""Losses that are trained first, with as many trials each."""
PLANTED = "straight"
"""The one candidate whose slope never gets smaller, so that its margins are the largest."""

HEAD = "    # beta: 1 to 5, log\n    z = beta * pairs.margin_B\n"
FORMS = {
    "cosine_and_softplus": "torch.log(torch.cosh(0.7 * (z - 0.5))) + 0.3 * F.softplus(-z)",
    "log_square": "torch.log1p((1 - z) ** 2) + 0.1 * F.softplus(-z)",
    "cosine_hyperbolic": "torch.log(torch.cosh(z - 0.4))",
    "root": "torch.sqrt(1 + (z - 0.5) ** 2) - 0.8 * z",
    "softplus_twice": "F.softplus(-z) + 0.5 * F.softplus(0.3 - 3 * z)",
    PLANTED: "-z",
    "arctangent": "-torch.atan(2 * z)",
    "hinge_squared": "torch.relu(0.6 - z) ** 2",
    "huber": "F.smooth_l1_loss(z, torch.ones_like(z) * 0.7, reduction='none')",
    "softplus_square": "F.softplus(-z) ** 2",
    "logistic_of_cube": "F.softplus(-(z + 0.2 * z ** 3))",
    "tilted": "F.softplus(-z) - 0.1 * torch.tanh(z)",
}


def _function(name: str, form: str) -> str:
    return f"An idea.\n\n```python\ndef {name}(pairs, *, beta):\n{HEAD}    return {form}\n```\n"


GOOD = [_function(name, form) for name, form in FORMS.items()]
BAD = {
    "prose": "I would rather talk about the weather.",
    "broken": "```python\ndef half(pairs, *, beta):\n    return F.softplus(-beta *\n```",
    "hostile": "```python\ndef steal(pairs, *, beta):\n    import os\n    return pairs.margin_B * os.getpid()\n```",
    "uphill": _function("uphill", "z"),
    "another_name": _function("sigmoid_by_hand", "torch.log(1 + torch.exp(-z))"),
    "again": GOOD[0].replace("cosine_and_softplus", "once_more"),
}


def script() -> list[list[Act]]:
    """What is done to the requests of each question in turn."""
    bad = [[says(text, usage=100)] for text in BAD.values()]
    good = [[says(text, usage=200)] for text in GOOD]
    good[2].insert(0, fails(429, retry_after="0"))
    good[3].insert(0, fails(503))
    good[4].insert(0, reset(GOOD[4]))
    mixed: list[list[Act]] = []
    for index, acts in enumerate(good):
        mixed.append(acts)
        if index % 2 == 0:
            mixed.append(bad[index // 2])
    return mixed


class Proposer:
    """Plays the script by question, which a request's seed tells; slow with every fourth."""

    def __init__(self, search: ToySearch) -> None:
        self._search, self._script = search, script()
        self._questions: list[int] = []
        self.asked_again: list[int] = []
        self.server = EndpointServer(lambda messages: self._act())

    def _act(self) -> Act:
        seed = self.server.requests[-1]["body"]["seed"]
        if seed not in self._questions:
            self._questions.append(seed)
        number = self._questions.index(seed)
        if any(record["number"] == number and record["reply"] is not None for record in records(self._search)):
            self.asked_again.append(number)
        if number % 4 == 3:
            time.sleep(1.0)
        acts = self._script[number]
        return acts.pop(0) if len(acts) > 1 else acts[0]


def records(search: ToySearch) -> list[dict[str, Any]]:
    paths = sorted((search.place / "proposals").glob("[0-9]*.json"))
    return [json.loads(path.read_bytes()) for path in paths]


def discovery(folder: Path, seed: int) -> ToySearch:
    """The toy's search with a discovery, whose endpoint is named when it is known."""
    search = ToySearch(folder, steps=STEPS, seed=seed, max_failures=30)
    search.trials = 1 + SEEDS * TRIALS_EACH + CANDIDATES * TRIALS_EACH
    return search


def run(*, seed: int, kills: int = 10) -> dict[str, Any]:
    """Two discoveries under one script; the second is killed and goes on."""
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fault_discovery_") as name:
        undisturbed, killed = (discovery(Path(name) / each, seed) for each in ("undisturbed", "killed"))
        points = 0
        try:
            _run(undisturbed, kills=0, seed=seed, failures=failures)
            points = _run(killed, kills=kills, seed=seed, failures=failures)
            _compare(killed, undisturbed)
        except Failure as failure:
            failures.append(str(failure))
    detail = f"{CANDIDATES} candidates of {len(script())} proposals, {points} metric points in MLflow once each"
    return row("discovery", kills, failures, detail)


def _run(search: ToySearch, *, kills: int, seed: int, failures: list[str]) -> int:
    proposer, rng = Proposer(search), generator("discovery", seed)
    with proposer.server as server:
        _write(search, server.url)
        for kill in range(kills):
            before = search.progress(), len(records(search))
            driver = search.start()
            with ended_afterwards(driver):
                wait_for(
                    lambda before=before: (search.progress(), len(records(search))) != before,  # type: ignore[misc]
                    PROGRESS_S,
                    "progress after a restart",
                    driver,
                )
                time.sleep(rng.uniform(0, 8))
                require(driver.poll() is None, f"it ended before it could be killed: {search.said()[-500:]}")
                driver.kill()
                driver.wait()
            print(f"discovery: kill {kill + 1} of {kills}, {len(records(search))} proposals", file=sys.stderr)
        search.run()
    check_ended(search)
    require(not proposer.asked_again, f"questions {proposer.asked_again} were asked again though they had a reply")
    best = max((each for each in search.rows() if each.value is not None), key=lambda each: each.value or 0.0)
    require(best.spec is not None and best.spec.branch == PLANTED, f"the best loss is {best.spec and best.spec.branch}")
    points = check_mlflow(search)
    _check_proposals_in_mlflow(search)
    return points


def _check_proposals_in_mlflow(search: ToySearch) -> None:
    """The table of the parent run has every proposal once, as its file has it, and the trials name theirs."""
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{search.runs / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tune_dlrml")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    (parent,) = [run for run in runs if "tune_dlrml.trial" not in run.data.tags]
    table = json.loads(mlflow.artifacts.load_text(f"{parent.info.artifact_uri}/{TABLE}"))
    shown = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    kept = [(each["number"], each["stage"], each["label"], each["scores"].get("value")) for each in records(search)]
    require([(each["proposal"], each["stage"], each["loss"], each["value"]) for each in shown] == kept, f"{shown}")
    named = {each["label"]: str(each["number"]) for each in records(search) if each["label"]}
    for run in runs:
        require(run.data.tags.get("proposal") == named.get(run.data.tags.get("branch")), f"tags {run.data.tags}")


def _write(search: ToySearch, url: str) -> None:
    path = search.folder / "toy.yaml"
    document = json.loads(json.dumps(_read(path)))
    document["search"] |= {"metric": "eval_margin", "scheduler": {"grace_period": 20, "reduction_factor": 2}}
    document["search"].pop("num_trials", None)
    document["space"] = {}
    document["training"]["learning_rate"] = 5e-3
    document["search"]["baseline"] = {"beta": 3}
    document["discovery"] = {
        "proposer": "openai:script",
        "proposer_url": url,
        "candidates": CANDIDATES,
        "trials_per_candidate": TRIALS_EACH,
        "seeds_losses": [
            {"name": "dpo", "beta": {"log_uniform": [1, 5]}},
            {"name": "hinge", "beta": {"log_uniform": [1, 5]}},
        ],
    }
    path.write_text(as_yaml_text(document))


def _read(path: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML

    return dict(YAML(typ="safe").load(path))


def _compare(killed: ToySearch, undisturbed: ToySearch) -> None:
    kept = ("number", "reply", "stage", "reason", "label", "loss")
    mine, other = ([{key: each[key] for key in kept} for each in records(of)] for of in (killed, undisturbed))
    require(mine == other, f"the proposals differ: {mine} and {other}")
    for ours, theirs in zip(outcome(killed.rows()), outcome(undisturbed.rows()), strict=True):
        require(ours == theirs, f"the killed search decided {ours}, the undisturbed one {theirs}")
