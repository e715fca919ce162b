"""A small search-space file, and what loading it with a change gives."""

import pytest

from tune_dlrml.config import load_config
from tune_dlrml.errors import InputError

DOCUMENT = """\
name: demo
model: org/model
dataset:
  train: train.jsonl
  eval: eval.jsonl
training:
  max_steps: 40
  learning_rate: 5e-7
  max_length: 128
  bf16: false
  lora:
    r: 8
search:
  num_trials: 4
  sampler: tpe
  scheduler:
    grace_period: 10
space:
  losses:
    - name: dpo
      beta: 0.1
    - name: dlrml
      beta_kl: 0.05
      c: 4
  training:
    learning_rate: {log_uniform: [1e-7, 1e-5]}
divergence:
  window: 20
resources:
  workers: 1
tracking:
  mlflow: null
"""


@pytest.fixture
def document():
    return DOCUMENT


@pytest.fixture
def load(tmp_path):
    def load(text=DOCUMENT, *overrides, **changes):
        path = tmp_path / "search.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, list(overrides), **changes)

    return load


@pytest.fixture
def refusal(load, tmp_path):
    """The message that refuses a file, with the file's folder cut off."""

    def refusal(text=DOCUMENT, *overrides, **changes):
        with pytest.raises(InputError) as caught:
            load(text, *overrides, **changes)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return refusal
