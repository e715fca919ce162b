"""What `run.py` measures, the most telling first; every part stands alone in a process of its own."""

import gc
import importlib.metadata
import inspect
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from gpu import attention, memory, steps
from gpu.made import FOUR_LAYERS, ONE_B, SEVEN_B, SMALL, TINY, Figures, Lengths, Shape, llama, word_tokenizer
from gpu.steps import Setting, emptied

TINY_LENGTHS = Lengths(16, 48, 2.0)


@dataclass(frozen=True)
class Machine:
    """Where the parts run; `tiny` replaces every model by one that a CPU trains in a second."""

    device: torch.device
    tiny: bool

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def setting(self, shape: Shape, **changes: Any) -> Setting:
        if not self.tiny:
            return Setting(shape, self.device, **changes)
        small = {"lengths": TINY_LENGTHS, "steps": 2, "per_step": 2}
        return Setting(TINY, self.device, **(changes | small))


def chip(machine: Machine) -> Iterator[Figures]:
    """The rates that everything else is measured against, and the versions."""
    names = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")
    yield {
        "device": torch.cuda.get_device_name() if machine.cuda else "CPU",
        "versions": {name: version(name) for name in names},
        "matrix_tflops": round(matrix_rate(machine.device, 512 if machine.tiny else 8192) / 1e12, 2),
        "copy_tb_per_s": round(copy_rate(machine.device, 2**20 if machine.tiny else 2**32) / 1e12, 3),
        "varlen_attn": str(inspect.signature(varlen_attn())),
    }


def varlen_attn() -> Callable[..., Any]:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def repeated(device: torch.device, call: Callable[[], Any], repeats: int = 20) -> float:
    """Median seconds of a call."""
    seconds = []
    for _ in range(repeats + 3):
        attention.synchronized(device)
        began = time.perf_counter()
        call()
        attention.synchronized(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[3:])


def matrix_rate(device: torch.device, size: int) -> float:
    """FLOP/s of a bfloat16 matrix product on random numbers."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / repeated(device, lambda: left @ right)


def copy_rate(device: torch.device, size: int) -> float:
    """Bytes a second, read and written."""
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / repeated(device, lambda: target.copy_(source))


def step_times(machine: Machine, shape: Shape, *, lora: bool) -> Iterator[Figures]:
    """A step of ours and of TRL's at its best settings, on the same pairs."""
    setting = machine.setting(shape, lora=lora, per_step=4 if lora else 2)
    what = {"model": setting.shape.name, "trains": "lora" if lora else "full", "pairs": setting.per_step}
    with emptied(machine.device):
        yield what | {"program": "ours"} | steps.ours(setting)
    # All weights of 7 B, their gradients and their optimizer leave no room for activations.
    again = shape is SEVEN_B and not lora
    with emptied(machine.device):
        yield what | {"program": "trl"} | steps.trl(setting, gradient_checkpointing=again)


def where_time_goes(machine: Machine) -> Iterator[Figures]:
    """One step under the profiler: kernels, and the share of its time in which the chip is busy."""
    for shape, per_step in ((ONE_B, 4), (ONE_B, 32), (SEVEN_B, 4))[: 1 if machine.tiny else None]:
        with emptied(machine.device):
            setting = machine.setting(shape, per_step=per_step, steps=3)
            clock = steps.ProfiledClock(machine.device)
            steps.trial(steps.group(setting), setting, clock=clock)
            yield {"model": setting.shape.name, "pairs": setting.per_step} | clock.profiled()


def attention_ways(machine: Machine, *, with_flex: bool) -> Iterator[Figures]:
    """One layer's attention, each way."""
    shape, lengths = (TINY, TINY_LENGTHS) if machine.tiny else (SEVEN_B, Lengths())
    for count in (4, 32):
        with emptied(machine.device):
            yield attention.compare(shape, machine.device, count, lengths, with_flex=with_flex)


def forms(machine: Machine) -> Iterator[Figures]:
    """A whole step packed, with attention at once and pair by pair, and padded."""
    from tune_dlrml.training.pairs import packed

    takes = packed._flash_takes
    for form, shared, flash in (("packed", True, True), ("packed, pair by pair", True, False), ("padded", False, True)):
        packed._flash_takes = takes if flash else lambda *_: False
        with emptied(machine.device):
            yield {"form": form} | steps.ours(machine.setting(ONE_B, per_step=8, changes={"shared_prompt": shared}))
    packed._flash_takes = takes


def batch_sizes(machine: Machine, shape: Shape, sizes: tuple[int, ...]) -> Iterator[Figures]:
    """Where the chip fills up: tokens a second against pairs a step."""
    for size in sizes[: 2 if machine.tiny else None]:
        with emptied(machine.device):
            setting = machine.setting(shape, per_step=size, steps=6)
            yield {"model": setting.shape.name, "pairs": size} | steps.ours(setting)


def twenty_trials(machine: Machine, *, deterministic: bool) -> Iterator[Figures]:
    """Trials in one group: the first and the last bit for bit, and what memory they leave."""
    torch.use_deterministic_algorithms(deterministic)  # with `warn_only` the flash kernel's backward stays as it was
    torch.utils.deterministic.fill_uninitialized_memory = False
    setting = machine.setting(FOUR_LAYERS, steps=3)
    resident = steps.group(setting)
    curves, memory, seconds = [], [], []
    for number in range(2 if machine.tiny else 20):
        began = time.perf_counter()
        curves.append(steps.trial(resident, setting, number=number).losses())
        seconds.append(time.perf_counter() - began)
        gc.collect()
        memory.append(steps.allocated(machine.device))
    yield {
        "deterministic": deterministic,
        "bit_identical": curves[0] == curves[-1],
        "largest_difference": max(abs(a - b) for a, b in zip(curves[0], curves[-1], strict=True)),
        "memory_left": round(memory[-1] / memory[0], 5) if memory[0] else 1.0,
        "seconds_a_trial": round(statistics.median(seconds), 3),
        "steps": setting.all_steps,
    }


def generation(machine: Machine) -> Iterator[Figures]:
    """Answers in the loop, with an adapter on, by the engine that trials use."""
    from peft import get_peft_model

    from tune_dlrml.evaluation.engines.transformers import TransformersEngine

    setting = machine.setting(ONE_B)
    model = llama(setting.shape, machine.device, setting.dtype)
    model.generation_config.eos_token_id = None
    policy = get_peft_model(model, steps.adapter())
    new = 8 if machine.tiny else 128
    for batch in (4, 8) if machine.tiny else (16, 64):
        engine = TransformersEngine(
            policy, word_tokenizer(setting.shape), max_new_tokens=new, batch_size=batch, name="random"
        )
        prompts = [" ".join(f"w{word}" for word in pair.prompt[:256]) for pair in setting.pairs()][:batch]
        prompts += prompts[: batch - len(prompts)] * batch
        prompts = prompts[:batch]
        with torch.autocast(machine.device.type, dtype=torch.bfloat16, enabled=setting.bf16):
            engine.sample(prompts[:2], temperature=0.0, seed=0)
            began = time.perf_counter()
            rows = engine.sample(prompts, temperature=0.7, seed=0)
        seconds = time.perf_counter() - began
        tokens = sum(len(row.completion_ids) for row in rows)
        yield {"batch": batch, "new_tokens": tokens, "tokens_per_s": round(tokens / seconds)}


def nf4(machine: Machine) -> Iterator[Figures]:
    """LoRA steps on a base in NF4."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    setting = machine.setting(ONE_B)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        llama(setting.shape, machine.device, setting.dtype).save_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config, dtype=setting.dtype, device_map={"": machine.device}
        )
    rest = steps.allocated(machine.device) / 2**30
    yield {"at_rest_gib": round(rest, 2)} | steps.ours(setting, loaded.eval())


def sharded_full(machine: Machine) -> Iterator[Figures]:
    """All weights as the shards of one rank: the peak of a step, planned and measured."""
    yield memory.one_rank_of_shards(machine.setting(SEVEN_B, lora=False, per_step=2, steps=4))


@dataclass(frozen=True)
class Part:
    """A part, and the seconds after which it is ended."""

    run: Callable[[Machine], Iterator[Figures]]
    limit_s: float


PARTS: dict[str, Part] = {
    "chip": Part(chip, 60),
    "profile": Part(where_time_goes, 90),
    "trials_deterministic": Part(lambda machine: twenty_trials(machine, deterministic=True), 60),
    "full_7b": Part(lambda machine: step_times(machine, SEVEN_B, lora=False), 120),
    "sharded_7b": Part(sharded_full, 120),
    "lora_1b": Part(lambda machine: step_times(machine, ONE_B, lora=True), 60),
    "batch_1b": Part(lambda machine: batch_sizes(machine, ONE_B, (1, 8, 32)), 60),
    "nf4": Part(nf4, 60),
    "generation": Part(generation, 60),
    "lora_7b": Part(lambda machine: step_times(machine, SEVEN_B, lora=True), 120),
    "forms": Part(forms, 60),
    "attention": Part(lambda machine: attention_ways(machine, with_flex=False), 40),
    "batch_135m": Part(lambda machine: batch_sizes(machine, SMALL, (1, 8, 64)), 60),
    "trials": Part(lambda machine: twenty_trials(machine, deterministic=False), 60),
    "full_1b": Part(lambda machine: step_times(machine, ONE_B, lora=False), 60),
    "flex": Part(lambda machine: attention_ways(machine, with_flex=True), 90),
}
