"""Every search-space file that ships loads, means legal trials in every corner, and asks what its comment says."""

import itertools
import re
from pathlib import Path

import pytest

from tune_dlrml.builtin import question
from tune_dlrml.config import load_config, to_yaml
from tune_dlrml.data import parse_dataset_reference
from tune_dlrml.domains import Choice, Domain, Range
from tune_dlrml.errors import InputError
from tune_dlrml.losses.registry import LOSSES, published
from tune_dlrml.models.loading import parse_model_reference
from tune_dlrml.space import BRANCH, SearchSpace, TrialSpec

FOLDER = Path(__file__).parents[1] / "search_spaces"
FILES = sorted(FOLDER.glob("*.yaml"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def samples(domain: Domain):
    """Both ends of a domain and a value inside it."""
    if isinstance(domain, Choice):
        return list(domain.values)
    inside = (domain.low * domain.high) ** 0.5 if domain.log else (domain.low + domain.high) / 2
    return [domain.low, round(inside) if domain.integer else inside, domain.high]


def points(space: SearchSpace):
    for branch in space.branches:
        domains = space.domains(branch)
        for values in itertools.product(*map(samples, domains.values())):
            yield {BRANCH: branch} | dict(zip(domains, values, strict=True))


def test_the_experiments_that_the_readme_promises_are_shipped():
    promised = {"quickstart", "seed-experiment", "seed-experiment-lora", "stability-grid", "safe-band"}
    promised |= {
        "learnable-beta-mix",
        "dlrml-vs-discopop",
        "real-pairs",
        "imdb-small",
        "imdb-full",
        "published-settings",
    }
    promised |= {"discovered-family", "scoring-rules", "reference-free", "every-loss", "pairwise-or-pointwise"}
    promised |= {"tldr", "dialogue"}
    assert promised <= {path.stem for path in FILES}


@every_file
def test_a_file_is_named_as_its_search(path):
    assert load_config(path).name == path.stem


@every_file
def test_a_file_begins_with_the_question_it_answers(path):
    first, *_ = path.read_text().splitlines()
    assert first.startswith("# ")
    assert "?" in first
    assert question(path) in first


@every_file
def test_a_file_is_built_in_by_its_name(path):
    assert load_config(Path(f"builtin:{path.stem}")) == load_config(path)


def test_an_unknown_built_in_search_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"'quikstart'; did you mean quickstart\?"):
        load_config(Path("builtin:quikstart"))


@every_file
def test_model_and_data_have_a_legal_form(path):
    config = load_config(path)
    assert parse_model_reference(config.model).kind in ("package", "hub")
    for reference in (config.dataset.train, config.dataset.eval):
        assert str(parse_dataset_reference(str(parse_dataset_reference(reference)))) == str(
            parse_dataset_reference(reference)
        )


@every_file
def test_every_corner_and_the_middle_of_every_branch_is_a_trial(path):
    space = SearchSpace(load_config(path))
    for number, point in enumerate(points(space)):
        spec = space.spec(number, point)
        assert spec.branch == point[BRANCH]
        assert spec.loss.domains() == {}
        assert TrialSpec.from_json(spec.model_dump(mode="json")) == spec


def test_the_grid_of_every_grid_search_holds_each_point_once_and_its_corners_are_trials():
    grids = [space for space in map(load_config, FILES) if space.search.sampler == "grid"]
    assert len(grids) >= 2
    for space in map(SearchSpace, grids):
        grid = list(space.grid())
        assert len({tuple(point.items()) for point in grid}) == len(grid)
        for point in (grid[0], grid[-1]):
            assert space.spec(0, point).loss.domains() == {}


@every_file
def test_the_resolved_file_means_the_same_search(path, tmp_path):
    config = load_config(path)
    resolved = tmp_path / path.name
    resolved.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(resolved) == config


def test_the_stability_grid_has_a_trial_for_every_cell_of_its_box():
    config = load_config(FOLDER / "stability-grid.yaml")
    cells = {tuple(point.values()) for point in SearchSpace(config).grid()}
    beta_kl, beta_mix = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5), (0.05, 0.1, 0.2, 0.25, 0.5)
    assert cells == set(itertools.product(beta_kl, beta_mix))
    assert config.search.scheduler is None


@pytest.mark.parametrize("name", ["seed-experiment", "seed-experiment-lora"])
def test_the_seed_experiment_compares_its_three_losses_and_prunes_none(name):
    config = load_config(FOLDER / f"{name}.yaml")
    space = SearchSpace(config)
    losses = [space.spec(number, point).loss for number, point in enumerate(space.grid())]
    assert [(loss.name, getattr(loss, "beta", None)) for loss in losses] == [
        ("dpo", 0.05),
        ("discopop", 0.05),
        ("dlrml", None),
    ]
    assert (losses[2].beta_kl, losses[2].beta_mix, losses[2].tau) == (0.05, 0.2, 0.05)
    assert config.training.steps(6750, workers=1) == 844  # 2 epochs of 6750 pairs, 16 a step
    assert config.search.scheduler is None


def test_the_seed_experiment_trains_all_weights_and_its_sister_an_adapter_at_ten_times_the_rate():
    full, lora = (load_config(FOLDER / f"{name}.yaml") for name in ("seed-experiment", "seed-experiment-lora"))
    assert full.training.lora is None and full.training.learning_rate == 5e-7 and full.training.bf16
    assert full.resources.fsdp is True and full.resources.workers == 8
    assert full.evaluation.judges and full.evaluation.when == "never"
    assert lora.training.lora is not None and lora.training.learning_rate == pytest.approx(5e-6)


def test_the_safe_band_stays_inside_the_band_without_a_trap():
    branch = SearchSpace(load_config(FOLDER / "safe-band.yaml")).branches["dlrml_c"]
    assert isinstance(branch.c, Range)
    assert 1 <= branch.c.low < branch.c.high <= 9.109
    assert branch.c.log


def test_the_learnable_searches_differ_in_what_bounds_beta_mix():
    branches = SearchSpace(load_config(FOLDER / "learnable-beta-mix.yaml")).branches
    assert [loss.beta_mix.c_bounds for loss in branches.values()] == [(1, 9.1), (1, 80), None]


def test_every_loss_is_in_the_search_of_every_loss_once():
    space = SearchSpace(load_config(FOLDER / "every-loss.yaml"))
    assert sorted(loss.name for loss in space.branches.values()) == sorted(
        name for name in LOSSES if published(name) is not None
    )


def test_the_search_of_every_loss_begins_with_each_as_published():
    config = load_config(FOLDER / "every-loss.yaml")
    space = SearchSpace(config)
    first = [space.baseline_point(), *config.search.points]
    losses = [space.spec(number, point).loss for number, point in enumerate(first)]
    assert [loss.name for loss in losses] == [loss.name for loss in space.branches.values()]
    for loss in losses:
        assert loss.model_copy(update={"label": None, "sft": None}) == published(loss.name)


def test_the_small_form_of_the_summaries_that_their_file_gives_is_legal():
    path = FOLDER / "tldr.yaml"
    overrides = re.findall(r"--set (\S+)", path.read_text())
    small = load_config(path, overrides)
    assert small.model.startswith("package:") and small.training.max_steps == 20
    assert small.resources.gpus_per_worker == 0


def test_pairwise_and_pointwise_losses_are_compared_at_the_same_strengths():
    config = load_config(FOLDER / "pairwise-or-pointwise.yaml")
    space = SearchSpace(config)
    strengths: dict[str, list[float]] = {}
    for number, point in enumerate(space.grid()):
        spec = space.spec(number, point)
        strengths.setdefault(spec.branch, []).append(spec.loss.strength)
    assert {tuple(each) for each in strengths.values()} == {(0.03, 0.1, 0.3)}
    kinds = [loss.kind for loss in space.branches.values()]
    assert kinds.count("pairwise") == kinds.count("pointwise") >= 3
    assert config.search.confirm.per_loss == 1 and config.search.confirm.top == len(kinds)
