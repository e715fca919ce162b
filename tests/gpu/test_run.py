"""Every part of the GPU run works on a tiny model on a CPU; what it measures there means nothing."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gpu.parts import PARTS, Machine


@pytest.fixture(autouse=True)
def any_algorithm() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_a_part_comes_to_figures_without_a_gpu(part: str) -> None:
    if part == "nf4":
        pytest.importorskip("bitsandbytes", reason="the extra `quantization` is not installed")
    figures = list(PARTS[part].run(Machine(torch.device("cpu", 0), tiny=True)))
    assert figures
    json.dumps(figures, allow_nan=False)


@pytest.mark.slow
def test_a_line_is_printed_for_each_figure_and_each_failure(tmp_path: Path) -> None:
    command = [sys.executable, Path(__file__).with_name("run.py"), "--device", "cpu", "--tiny", "--only", "chip"]
    done = subprocess.run([*command, "--out", tmp_path / "lines"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "lines").read_text() == done.stdout
    assert json.loads(done.stdout)["part"] == "chip"
