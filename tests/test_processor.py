"""In what precision a search computes where its file does not say: what the processor and the GPUs are fast at."""

from pathlib import Path
from typing import Any

import pytest
import torch
from made_search import small_search

from tune_dlrml.config import SearchConfig
from tune_dlrml.errors import InputError
from tune_dlrml.search.validity import slow_precision
from tune_dlrml.study.proposer import proposer_of
from tune_dlrml.study.study import SearchStudy
from tune_dlrml.system.processor import multiplies_bfloat16

PROCESSORS = {
    "Zen 3": ("flags\t\t: fpu sse2 avx f16c avx2 bmi2 vaes", False),
    "Skylake-X": ("flags : fpu avx2 avx512f avx512dq avx512cd avx512bw avx512vl", True),
    "Zen 4": ("flags : avx2 avx512f avx512dq avx512bw avx512vl avx512_bf16", True),
    "Knights Landing": ("flags : avx2 avx512f avx512pf avx512er avx512cd", False),
    "Graviton 3": ("Features\t: fp asimd sve bf16 i8mm", True),
    "Graviton 2": ("Features\t: fp asimd aes atomics", False),
    "none listed": ("processor : 0", False),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_what_a_processor_says_of_itself(name: str, tmp_path: Path) -> None:
    line, fast = PROCESSORS[name]
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: bf16 avx512bw\n{line}\nbogomips : 1\n")
    assert multiplies_bfloat16(tmp_path / "cpuinfo") is fast


def test_a_machine_that_says_nothing_has_none(tmp_path: Path) -> None:
    assert not multiplies_bfloat16(tmp_path / "cpuinfo")


def test_torch_says_the_same_of_this_machine() -> None:
    assert multiplies_bfloat16() == torch.ops.mkldnn._is_mkldnn_bf16_supported()


def config_of(bf16: Any = None, **changes: Any) -> SearchConfig:
    training = {"max_steps": 4, "lora": {"r": 8}} | ({} if bf16 is None else {"bf16": bf16})
    sections = {
        "training": training | changes.pop("training", {}),
        "search": {"num_trials": 2, "scheduler": None},
        "space": {"losses": [{"name": "dpo", "beta": {"log_uniform": [0.01, 0.5]}}]},
    }
    return small_search(**sections | changes)


@pytest.fixture(params=[True, False], ids=["fast", "slow"])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    for module in ("config.schema", "search.validity"):
        monkeypatch.setattr(f"tune_dlrml.{module}.multiplies_bfloat16", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize("written", [None, "auto"])
def test_auto_is_answered_when_a_file_is_read(fast: bool, written: Any) -> None:
    assert config_of(written).training.bf16 is fast
    assert config_of(written, resources={"gpus_per_worker": 1}).training.bf16 is True
    assert config_of(written, training={"quantization": {"load_in_4bit": True}}).training.bf16 is True


@pytest.mark.parametrize("written", [True, False])
def test_an_answer_of_the_file_stays(fast: bool, written: bool) -> None:
    assert config_of(written).training.bf16 is written
    assert config_of(written, resources={"gpus_per_worker": 1}).training.bf16 is written


def test_a_file_that_wants_the_slow_one_is_warned_of_it(fast: bool) -> None:
    told = slow_precision(config_of(True))
    assert (told is None) if fast else (told is not None and told.startswith("a CPU needs AVX-512") and "auto" in told)
    for other in (config_of(), config_of(False), config_of(True, resources={"gpus_per_worker": 1})):
        assert slow_precision(other) is None


def test_a_search_goes_on_in_its_own_precision_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    for fast in (True, False):
        monkeypatch.setattr("tune_dlrml.config.schema.multiplies_bfloat16", lambda fast=fast: fast)
        config = config_of()
        if fast:
            SearchStudy(config, proposer_of(config), url, 4).close()
    with pytest.raises(InputError, match=r"training\.bf16: was true, is now false"):
        SearchStudy(config, proposer_of(config), url, 4)
    SearchStudy(config_of(True), proposer_of(config), url, 4).close()
