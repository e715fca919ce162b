"""A mistake in a search-space file gets one message: the line, the key, the value and what is allowed."""

from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Mistake:
    """The document with `new` in place of `old`, and what the message must say.

    The message begins with file, line and `key`; the line is the last one of `new` unless `line_has` tells another.
    """

    key: str
    old: str
    new: str
    says: tuple[str, ...]
    line_has: str = ""

    def line(self, document: str) -> int:
        before, after = document.split(self.old)
        if self.line_has:
            lines = f"{before}{self.new}{after}".splitlines()
            return next(number for number, line in enumerate(lines, start=1) if self.line_has in line)
        return f"{before}{self.new}".count("\n") + 1


def put(key, old, new, *says, line_has=""):
    return Mistake(key, old, new, says, line_has)


def add(key, after, new, *says, line_has=""):
    return Mistake(key, after, f"{after}\n{new}", says, line_has)


def beta(new, *says):
    return put("space.losses[0].beta", "      beta: 0.1", f"      beta: {new}", *says)


def mix(key, new, *says):
    return put(f"space.losses[1].beta_mix{key}", "      c: 4", f"      beta_mix: {new}", *says)


def rate(new, *says):
    old = "    learning_rate: {log_uniform: [1e-7, 1e-5]}"
    return put("space.training.learning_rate", old, f"    learning_rate: {new}", *says)


BATCH = "per_device_train_batch_size"

UNKNOWN_KEYS = [
    add("modle", "model: org/model", "modle: x", "did you mean model?", "allowed: name, model"),
    add("dataset.evall", "  eval: eval.jsonl", "  evall: x", "did you mean eval?", "train, eval, test"),
    add("training.max_lenght", "  max_length: 128", "  max_lenght: 1", "did you mean max_length?"),
    add("training.beta", "  max_length: 128", "  beta: 0.1", "is not a key of this section", "learning_rate"),
    add("training.lora.rank", "    r: 8", "    rank: 8", "allowed: r, lora_alpha"),
    add("search.n_trials", "  num_trials: 4", "  n_trials: 4", "did you mean num_trials?"),
    add(
        "search.scheduler.max_t",
        "    grace_period: 10",
        "    max_t: 9",
        "allowed: type, grace_period, reduction_factor",
    ),
    put("space.loss", "  losses:\n", "  loss: []\n  losses:\n", "did you mean losses?", line_has="loss: []"),
    put("space.training.rate", "    learning_rate: {", "    rate: {", "allowed: learning_rate, lr_scheduler_type"),
    add("divergence.windows", "  window: 20", "  windows: 2", "did you mean window?"),
    add("resources.gpus", "  workers: 1", "  gpus: 1", "gpus_per_worker"),
    add("tracking.mlfow", "  mlflow: null", "  mlfow: x", "did you mean mlflow?"),
    add(
        "space.losses[0].beta_mix",
        "      beta: 0.1",
        "      beta_mix: 0.1",
        "allowed: name, label, sft, ld_alpha, weighting, f_divergence, beta",
    ),
    mix(".lr", "{learnable: true, c_init: 4, lr: 1}", "allowed: learnable, init, c_init, learning_rate, c_bounds"),
]

WRONG_TYPES = [
    put("model", "model: org/model", "model: [a]", "valid string", '["a"]'),
    put("dataset", "dataset:\n  train: train.jsonl\n  eval: eval.jsonl", "dataset: a.jsonl", "mapping", '"a.jsonl"'),
    put("training.max_steps", "max_steps: 40", "max_steps: true", "valid integer", "true"),
    put("training.max_steps", "max_steps: 40", "max_steps: '40'", "valid integer", '"40"'),
    put("training.max_steps", "max_steps: 40", "max_steps: 1e2", "valid integer", "100.0"),
    put("training.max_steps", "max_steps: 40", "max_steps: 2020-01-01", "valid integer", '"2020-01-01"'),
    put("training.learning_rate", "rate: 5e-7", "rate: '5e-7'", "valid number", '"5e-7"'),
    put("training.learning_rate", "rate: 5e-7", "rate: 1,000.5", "valid number", '"1,000.5"'),
    put("training.learning_rate", "rate: 5e-7", "rate: true", "valid number", "true"),
    put("training.bf16", "bf16: false", "bf16: 0", "valid boolean", "0"),
    put("training.lora.target_modules", "    r: 8", "    target_modules: []", "list of module names", "[]"),
    put("training.lora.target_modules", "    r: 8", "    target_modules: [1]", "list of module names", "[1]"),
    put("search.scheduler", "  scheduler:\n    grace_period: 10", "  scheduler: asha", "mapping", '"asha"'),
    put("divergence", "divergence:\n  window: 20", "divergence:", "mapping", "null"),
    put("space.losses[0]", "- name: dpo\n      beta: 0.1", "- dpo", "mapping", '"dpo"'),
    beta("null", "valid number", "null"),
    beta("[0.1, 0.2]", "valid number", "[0.1, 0.2]"),
    mix(".c_bounds[0]", "{learnable: true, c_init: 4, c_bounds: ['1', 9]}", "valid number", '"1"'),
]

ILLEGAL_VALUES = [
    put("name", "name: demo", "name: ../demo", "pattern", '"../demo"'),
    put("name", "name: demo", 'name: "a\\nb"', "pattern", '"a\\nb"'),
    put("model", "model: org/model", "model: ''", "at least 1 character", '""'),
    put("training.max_steps", "max_steps: 40", "max_steps: -1", "greater than or equal to 1", "-1"),
    put("training.learning_rate", "rate: 5e-7", "rate: 0", "greater than 0", "0"),
    put("training.learning_rate", "rate: 5e-7", "rate: .nan", "finite number", "NaN"),
    put("training.learning_rate", "rate: 5e-7", "rate: .inf", "finite number", "Infinity"),
    put("training.learning_rate", "rate: 5e-7", "rate: 1e999", "finite number", "Infinity"),
    put("training.max_steps", "max_steps: 40", f"max_steps: {'9' * 5000}", "is no number", "999"),
    put("training.max_steps", "max_steps: 40", "max_steps: 0x_", "is no number", "0x_"),
    put("search.sampler", "sampler: tpe", "sampler: bayes", "'tpe', 'random' or 'grid'", '"bayes"'),
    put("space.losses[0].name", "name: dpo", "name: dpoo", "did you mean dpo?", "dpo, discopop, dlrml", '"dpoo"'),
    put(
        "space.losses[0].name", "name: dpo", "name: tr_dpo", "tr_dpo is not here, because", "sync_ref_model", '"tr_dpo"'
    ),
    put("space.losses[0].name", "- name: dpo\n", "- label: a\n", "dpo, discopop, dlrml", "null", line_has="label: a"),
    add("space.losses[0].label", "beta: 0.1", "      label: a.b", "pattern", '"a.b"'),
    add("space.losses[0].label", "beta: 0.1", "      label: training", "is reserved in tables", "'training'"),
    add("space.losses[1].numerics", "      c: 4", "      numerics: fast", "'stable' or 'published'", '"fast"'),
    put("resources.gpus_per_worker", "workers: 1", "gpus_per_worker: -1", "greater than or equal to 0", "-1"),
    put("resources.gpus_per_worker", "workers: 1", "gpus_per_worker: 1.5", "a whole number of them", "1.5"),
]

DOMAINS = [
    beta("{log_uniform: []}", "[low, high]", "[]"),
    beta("{log_uniform: [0.5, 0.01]}", "`low < high` must hold", "low=0.5, high=0.01"),
    beta("{uniform: [0.1, 0.1]}", "`low < high` must hold", "low=0.1, high=0.1"),
    beta("{log_uniform: [0, 0.5]}", "needs low > 0"),
    beta("{uniform: [0, 0.5]}", "greater than 0", '{"uniform": [0, 0.5]}'),
    beta("{uniform: [.nan, 1]}", "two finite numbers", "NaN"),
    beta(f"{{uniform: [1, 1{'0' * 400}]}}", "two finite numbers", "[1, 1000"),
    beta("{loguniform: [0.01, 0.5]}", "did you mean log_uniform?", "choice"),
    beta("{uniform: [0.1, 0.2], choice: [1]}", "a domain is one of"),
    beta("{uniform: [0.1, 0.2], num: 1}", "at least 2", "1"),
    beta("{choice: []}", "at least one value", "[]"),
    beta("{choice: [0.1, 0.1]}", "must differ", "[0.1, 0.1]"),
    beta("{choice: [1, 1.0]}", "must differ", "[1, 1.0]"),
    beta("{choice: [0.1, b]}", "valid number", '"b"'),
    beta("{choice: [0.1], num: 3}", "takes no `num`"),
    rate("1e-5", "input should be a domain or null", "1e-05"),
    put(
        f"space.training.{BATCH}",
        "learning_rate: {log_uniform: [1e-7, 1e-5]}",
        f"{BATCH}: {{uniform: [1, 8]}}",
        "valid integer",
        "int_uniform",
        '{"uniform": [1, 8]}',
    ),
]

LAWS = [
    add(
        "space.losses[1]", "      c: 4", "      beta_mix: 0.1", "exactly one of", "got c and", line_has="- name: dlrml"
    ),
    put(
        "space.losses[1]", "\n      c: 4", "", "exactly one of `c` and `beta_mix`", "neither", line_has="- name: dlrml"
    ),
    add("space.losses[1].tau", "      c: 4", "      tau: {choice: [0.05, 0.1]}", "depends on c alone"),
    mix("", "{learnable: true}", "exactly one of `init` and `c_init`", "got neither"),
    mix("", "{learnable: true, init: 1, c_init: 4}", "exactly one of `init` and `c_init`", "init and c_init"),
    mix(".init", "{learnable: true, init: 0.2}", "inside c_bounds=[1.0, 9.1]", "= 80"),
    mix(".c_init", "{learnable: true, c_init: 9.1}", "inside c_bounds=[1.0, 9.1]", "c_init=9.1"),
    mix(".c_init", "{learnable: true, c_init: {uniform: [2, 20]}}", "inside c_bounds=[1.0, 9.1]", "c_init=20"),
    mix(".c_bounds", "{learnable: true, c_init: 4, c_bounds: [9, 1]}", "low < high", "[9.0, 1.0]"),
    put(
        "space.losses[1].label",
        "      beta: 0.1\n    - name: dlrml",
        "      label: a\n    - name: dlrml\n      label: a",
        "every loss needs its own label",
        "'a' is used twice",
    ),
    add("training.num_train_epochs", "  max_steps: 40", "  num_train_epochs: 1", "exactly one of", "got both"),
    put("training", "\n  max_steps: 40", "", "exactly one of `max_steps` and", "got neither", line_has="training:"),
    add("training.lora.lora_dropout", "    r: 8", "    lora_dropout: 0.1", "disable_dropout", "0.1"),
    put("search.scheduler.grace_period", "grace_period: 10", "grace_period: 300", "=300", "max_steps=40"),
    put(
        "search.scheduler.grace_period",
        "max_steps: 40",
        "max_steps: 9",
        "`grace_period <= max_steps` must hold, but got grace_period=10, max_steps=9",
        line_has="grace_period",
    ),
    put("search.num_trials", "\n  num_trials: 4", "", "sampler tpe needs", "null", line_has="search:"),
    put(
        "space.training.learning_rate",
        "sampler: tpe",
        "sampler: grid",
        "`num`, the number of points",
        '{"log_uniform": [1e-07, 1e-05]}',
        line_has="log_uniform",
    ),
]

CASES = [*UNKNOWN_KEYS, *WRONG_TYPES, *ILLEGAL_VALUES, *DOMAINS, *LAWS]


@pytest.mark.parametrize("mistake", CASES, ids=lambda mistake: f"{mistake.key}: {mistake.new.split(chr(10))[-1][:40]}")
def test_a_mistake_is_answered_by_its_line_its_key_its_value_and_what_is_allowed(mistake, document, refusal):
    assert document.count(mistake.old) == 1
    message = refusal(document.replace(mistake.old, mistake.new))
    assert message.startswith(f"search.yaml:{mistake.line(document)}: {mistake.key}: ")
    for text in mistake.says:
        assert text in message
    assert len(message) < 1000


ACROSS_SECTIONS = [
    ("lora: {r: {choice: [4, 8]}}", ["training.lora=null"], "lora", "needs a `lora` section in training"),
    ("lora: {lora_dropout: {choice: [0.1, 0.2]}}", [], "lora.lora_dropout", "training.disable_dropout: false"),
    ("warmup_steps: {choice: [0, 5]}", ["training.lr_scheduler_type=constant"], "warmup_steps", "changes nothing"),
    ("adam_beta2: {choice: [0.9, 0.99]}", ["training.optim=sgd"], "adam_beta2", "changes nothing"),
    (
        "gradient_accumulation_steps: {choice: [1, 2]}",
        ["training.max_steps=null", "training.num_train_epochs=2"],
        "gradient_accumulation_steps",
        "needs `training.max_steps`",
    ),
]


@pytest.mark.parametrize(("domain", "overrides", "key", "law"), ACROSS_SECTIONS)
def test_a_law_across_sections_is_reported_at_the_searched_key(domain, overrides, key, law, document, refusal):
    text = document.replace("learning_rate: {log_uniform: [1e-7, 1e-5]}", domain)
    message = refusal(text, *overrides)
    line = text[: text.index(domain)].count("\n") + 1
    assert message.startswith(f"search.yaml:{line}: space.training.{key}: ")
    assert law in message


def test_every_mistake_of_a_file_is_reported_at_once(document, refusal):
    message = refusal(document.replace("max_steps: 40", "max_steps: -1").replace("beta: 0.1", "beta: -1"))
    keys = [line.split(": ")[1] for line in message.splitlines()]
    assert keys == ["training.max_steps", "space.losses[0].beta"]
