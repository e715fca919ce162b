import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import typer
from made_search import LOSSES, Fate, confirmed
from typer.testing import CliRunner

from tune_dlrml.cli.report import report
from tune_dlrml.discovery.archive import ProposalRecord
from tune_dlrml.errors import InputError, StorageError
from tune_dlrml.report import write_report, writing
from tune_dlrml.report.arms import Arm, Mean
from tune_dlrml.report.reading import read_data
from tune_dlrml.search.confirm.verdicts import Confirmation

QUANTILES = (-4.0, -2.0, -0.5, 0.3, 1.0, 2.0, 5.0)


class Page(HTMLParser):
    """Sections of a page: their pictures, their texts and whether they say why there is no picture."""

    def __init__(self, text):
        super().__init__()
        self.links, self.pictures, self.reasons, self.tags = [], {}, {}, []
        self._section = self._reason = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.links += [attrs[name] for name in ("src", "href") if name in attrs]
        if tag == "section":
            self._section = attrs["id"]
        if tag == "img":
            self.pictures[self._section] = attrs
        self._reason = self._section if attrs.get("class") == "none" else None

    def handle_data(self, data):
        if self._reason:
            self.reasons[self._reason] = data
            self._reason = None


@pytest.fixture(scope="module")
def rich(make_search):
    """The report of a search with every end and every loss."""

    def fate_of(spec):
        rate = spec.training.learning_rate
        if rate > 3e-5:
            return Fate(diverges_at=6, nonfinite=0.2)
        if spec.number == 2:
            return Fate(fails_at=3, reason="ValueError: <b>bold</b> & more")
        trapped = spec.branch == "discopop"
        return Fate(
            0.4 if trapped else 0.6 + rate * 1e3, trap_fraction=0.9 * trapped, quantiles=QUANTILES, kl=rate * 1e5
        )

    return written(make_search(LOSSES, num_trials=30, model="any<script>alert(1)</script>").run(fate_of))


def written(search, **options):
    files = write_report(search.config.name, search.place, **options)
    return files, Page(files.page.read_text(encoding="utf-8"))


def test_a_page_holds_every_picture_and_needs_nothing_from_elsewhere(rich):
    files, page = rich
    assert set(page.pictures) == {
        "learning_curves",
        "training_margin",
        "stability_map",
        "nonfinite",
        "kl_frontier",
        "parallel_coordinates",
        "parameter_importance",
        "margins",
        "learned_parameters",
        "budget",
    }
    assert all(link.startswith(("data:image/svg+xml;base64,", "#")) for link in page.links)
    assert not {"script", "link", "iframe", "object"} & {*page.tags}
    assert all(picture["alt"] for picture in page.pictures.values())
    assert files.page == files.page.parent / "index.html" and files.page.parent.name == "report"
    assert {path.stem for path in files.pictures} == set(page.pictures)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files.pictures)


def test_the_page_and_the_document_hold_finite_numbers_and_say_the_same(rich):
    files, _ = rich
    text = re.sub(r'"data:[^"]*"', "", files.page.read_text(encoding="utf-8"))
    assert not re.search(r"\b(nan|NaN|inf|None|Undefined)\b", text)
    document = json.loads(files.numbers.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert document == json.loads(json.dumps(files.document, allow_nan=False))
    assert f"{document['ranking'][0]['value']:.3f}" in text
    assert document["diverged"][0]["condition"].startswith("learning_rate > ")
    assert document["diverged"][0]["condition"].replace(">", "&gt;") in text


@pytest.mark.parametrize(
    ("losses", "kinds"),
    [(["dpo", "bco_pair"], ["pairwise"] * 4 + ["pointwise"] * 3), (["dpo", "ipo"], [])],
)
def test_the_ranking_says_which_losses_look_at_each_answer_where_they_differ(make_search, nothing_drawn, losses, kinds):
    made = make_search([{"name": name} for name in losses], num_trials=None, sampler="grid", scheduler=None)
    made.run(lambda spec: Fate(0.9 - 0.1 * (spec.loss.name == losses[1])))
    html = write_report("planted", made.place).page.read_text(encoding="utf-8")
    shown = re.findall("<td>(pairwise|pointwise)</td>", html)
    assert ("<th>kind</th>" in html) is bool(kinds)
    assert shown == kinds


def test_the_facts_have_the_bounds_and_how_many_trials_break_one(make_search, nothing_drawn):
    constraints = {"eval_kl": {"max": 5, "min": 0.5}, "eval_margin": {"min": 0.25}}
    made = make_search(num_trials=3, scheduler=None, constraints=constraints)
    made.run(lambda spec: Fate(diverges_at=9) if spec.number == 2 else Fate(kl=9.0 if spec.number else 1.0))
    html = write_report("planted", made.place).page.read_text(encoding="utf-8")
    bounds = "eval_kl &lt;= 5, eval_kl &gt;= 0.5, eval_margin &gt;= 0.25"
    assert f"{bounds}; 1 of 2 complete trials infeasible" in html


def test_a_discovery_shows_its_proposals_with_their_formulas_and_why_others_were_refused(make_search, nothing_drawn):
    made = make_search([{"name": "dpo"}], discovery={"proposer": "openai:some", "candidates": 2}, scheduler=None)
    code = "def bend(pairs, *, beta):\n    # a < b\n    return F.softplus(-beta * pairs.margin_B)"
    loss = {"name": "proposed", "code": code, "params": {"beta": 0.2}}
    shape = {"slope": -0.5, "trap": None, "barrier": None, "bounded": True, "coupled": True, "shape": ["it <rises>"]}
    asked = {"proposer": "openai:some", "times_asked": 1, "reply": "<b>prose</b>", "calls": 1, "tokens": 70}
    records = [
        {"stage": "accepted", "label": "bend", "loss": loss, "found": shape, "parents": ("dpo",), "refusals": (1,)},
        {"stage": "syntax", "reason": "the reply has no function"},
    ]
    for number, record in enumerate(records):
        made.archive.write(ProposalRecord(number=number, **asked, **record))
    made.archive.ended = True
    made.run(lambda spec: Fate(0.8 if spec.branch == "bend" else 0.6, kl=2.0))
    files, page = written(made)
    html = files.page.read_text(encoding="utf-8")
    assert "2 proposals (1 refused at syntax, 1 accepted)" in html and "# a &lt; b" in html
    for words in (
        "slope -0.5 at the start",
        "no trap",
        "pairs of a batch coupled",
        "it &lt;rises&gt;",
        "shown: dpo; refused 1",
    ):
        assert words in html
    assert page.pictures["proposals"]["src"].startswith("data:image/svg+xml;base64,")
    assert "the reply has no function" in html and "&lt;b&gt;prose&lt;/b&gt;" in html
    (bend, refused) = files.document["discovery"]["proposals"]
    assert (bend["value"], bend["kl"], refused["reply"]) == (pytest.approx(0.8), 2.0, "<b>prose</b>")


def test_what_comes_from_users_is_escaped(rich):
    files, page = rich
    text = files.page.read_text(encoding="utf-8")
    assert "script" not in page.tags and "b" not in page.tags
    assert "any&lt;script&gt;" in text and "&lt;b&gt;bold&lt;/b&gt; &amp; more" in text


def test_an_empty_search_says_so_everywhere(make_search):
    files, page = written(make_search(LOSSES))
    assert page.pictures == {} and files.pictures == ()
    assert len(page.reasons) == 10 and all(len(reason) > 20 for reason in page.reasons.values())
    assert files.document["verdict"]["best"] is None


def test_a_search_without_mixing_has_no_stability_map_and_says_so(make_search, nothing_drawn):
    search = make_search([LOSSES[0]], num_trials=4).run(lambda _: Fate())
    _, page = written(search)
    assert "no trial of this search has a loss with mixing" in page.reasons["stability_map"].lower()
    assert "learned_parameters" in page.reasons


@pytest.mark.parametrize(
    ("loss", "fate"),
    [
        (LOSSES[0], Fate()),
        (LOSSES[1], Fate(diverges_at=2)),
        (LOSSES[2], Fate(fails_at=1)),
        (LOSSES[3], Fate(stops_at=3)),
    ],
    ids=["dpo complete", "discopop diverged", "dlrml failed", "dlrml_learnable running"],
)
def test_a_single_trial_gives_a_page(make_search, loss, fate):
    search = make_search([loss], num_trials=1, baseline=None).run(lambda _: fate)
    files, page = written(search)
    assert len(page.reasons) + len(page.pictures) == 10
    assert files.document["verdict"]["warning"] == ""
    assert "parallel_coordinates" in page.reasons and "parameter_importance" in page.reasons


def test_few_trials_give_no_importance_but_the_reason(make_search, nothing_drawn):
    _, page = written(make_search(LOSSES, num_trials=8).run(lambda _: Fate()))
    assert (
        "at least 20" in page.reasons["parameter_importance"] and "there are 8" in page.reasons["parameter_importance"]
    )


def test_reports_without_margins_leave_their_picture_out(make_search, nothing_drawn):
    _, page = written(make_search(LOSSES, num_trials=4).run(lambda _: Fate()))
    assert "do not have the distribution" in page.reasons["margins"]


def test_a_running_search_can_be_reported_and_its_half_written_line_counts_nowhere(make_search, nothing_drawn):
    search = make_search(LOSSES, num_trials=6).run(lambda spec: Fate(stops_at=12 if spec.number == 2 else None), 3)
    before, _ = written(search)
    with search.log.path(2).open("ab") as file:
        file.write(b'{"kind": "report", "number": 2, "step": 13')
    after, _ = written(search)
    assert after.document | {"read_at": ""} == before.document | {"read_at": ""}
    text = after.page.read_text(encoding="utf-8")
    assert "trial 2 running" in text and "3 of 6 trials have been started" in text


def test_an_older_picture_goes_where_there_is_none_any_more(make_search, tmp_path):
    written(make_search([LOSSES[0]], num_trials=1).run(lambda _: Fate()), out=tmp_path / "out")
    assert (tmp_path / "out" / "budget.png").exists()
    files, _ = written(make_search(LOSSES), out=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.html", "report.json"]
    assert files.paths == [tmp_path / "out" / "index.html", tmp_path / "out" / "report.json"]


def test_confirmed_trials_have_a_section_of_their_own(make_search, nothing_drawn, monkeypatch):
    search = make_search(LOSSES, num_trials=4).run(lambda _: Fate())
    assert "<h2>Confirmed</h2>" not in written(search)[0].page.read_text(encoding="utf-8")
    finalists = (
        confirmed(1, "better", 0.0413, (0.0101, 0.0725), p=0.0123, diverged=1),
        confirmed(3, "cannot tell", -0.2, loss="discopop"),
    )
    told = Confirmation(baseline=0, metric="eval_accuracy", data="dataset.eval", seeds=5, finalists=finalists)
    monkeypatch.setattr(writing, "read_confirmation", lambda *_: told)
    monkeypatch.setattr(writing, "read_data", lambda name, place: read_data(name.removesuffix("/confirm"), place))
    kl = Mean(0.3214, None, None)
    arm = Arm(1, "dpo", "pairwise", {"beta": 0.1}, 5, 0, Mean(0.61237, 0.5, 0.75), kl, Mean(0.25, 0.125, 0.375))
    monkeypatch.setattr(writing, "arms", lambda *_: [arm])
    files, _ = written(search)
    text = files.page.read_text(encoding="utf-8")
    assert (
        "<h2>Confirmed</h2>" in text
        and "+0.010 to +0.072" in text
        and "0.012" in text
        and "<strong>cannot tell</strong>" in text
    )
    assert [one["verdict"] for one in files.document["confirmed"]] == ["better", "cannot tell"]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", text.partition("Results of each setting")[2].partition("</table>")[0])
    assert cells == ["1", "dpo", "beta 0.1", "5", "0", "0.612", "0.500 to 0.750", "0.321", "–", "25", "12 to 38"]
    assert files.document["confirming"][0]["kl"] == {"value": 0.3214, "low": None, "high": None}
    assert "which the search never used" not in text and "the held-out pairs that the search selected by" in text


def test_judged_scores_stand_beside_the_ranking(make_search, nothing_drawn):
    search = make_search(LOSSES, num_trials=2, scheduler=None).run(lambda _: Fate())
    (search.folder / "ranking.json").write_text(json.dumps({"questionnaire": "abc", "judges": ["openai:x<y"]}))
    for number, score in enumerate((4.0, 6.5)):
        own = {"judge": "openai:x<y", "score": score, "interval": [score - 0.5, score + 0.5]}
        above = {"judge": "openai:x<y", "score": 2.5, "interval": [2.0, 3.0]}
        judged = {"questionnaire": "abc", "scores": [own], "differences": [above] * number, "pairs": []}
        (search.folder / "trials" / str(number) / "judged.json").write_text(json.dumps(judged))
    files, _ = written(search)
    text = files.page.read_text(encoding="utf-8")
    table = text[text.index('<section id="judged">') :]
    assert table.index("6.50") < table.index("4.00") and "+2.50" in table and "openai:x&lt;y" in table
    by_trial = {line["trial"]: line["judged"] for line in files.document["ranking"]}
    assert by_trial[1][0]["above_baseline"] == 2.5 and by_trial[0][0]["above_baseline"] is None


def test_the_command_prints_one_document_or_the_verdict(make_search, nothing_drawn):
    search = make_search(LOSSES, num_trials=2).run(lambda _: Fate())
    app = typer.Typer()
    app.command()(report)
    argv = ["planted", "--storage", str(search.place.storage)]
    said = CliRunner().invoke(app, [*argv, "--json"])
    assert said.exit_code == 0 and json.loads(said.stdout)["name"] == "planted"
    told = CliRunner().invoke(app, argv)
    assert "has the best held-out accuracy" in told.stdout and "index.html" in told.stdout


def test_an_unknown_search_is_an_input_error_and_a_bad_folder_a_storage_error(make_search, tmp_path):
    search = make_search(LOSSES)
    with pytest.raises(InputError, match="there is no search 'other'"):
        write_report("other", search.place)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="--out"):
        write_report("planted", search.place, out=tmp_path / "file" / "below")


def test_a_report_needs_no_heavy_library(make_search):
    search = make_search(LOSSES, num_trials=3).run(lambda _: Fate(quantiles=QUANTILES))
    heavy = ["torch", "transformers", "trl", "peft", "datasets", "ray", "mlflow", "sklearn"]
    program = (
        "import sys, pathlib\n"
        "from tune_dlrml.report import write_report\n"
        "from tune_dlrml.search.result import SearchPlace\n"
        f"write_report('planted', SearchPlace(pathlib.Path({str(search.place.storage)!r})))\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
