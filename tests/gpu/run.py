"""What this project does on a GPU: speed against TRL, attention, repeatability, memory. Prints a JSON line a figure.

Run: python tests/gpu/run.py [--only lora_1b attention] [--out FILE]
Without a GPU: python tests/gpu/run.py --device cpu --tiny    (runs every part on a tiny model; its times mean nothing)

Each part runs in a process of its own, forked from one that has imported everything, and is ended at its time limit.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
# Asking whether there is a GPU must not start CUDA in the process that the parts are forked from.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what repeatable matrix products need
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from gpu import older_torch
from gpu.made import quiet
from gpu.parts import PARTS, Machine


def measure(name: str, machine: Machine, results: Connection) -> None:
    """A part's figures, one by one, then None; an exception goes the same way."""
    quiet()
    older_torch.adapt()
    if not machine.cuda:
        torch.set_num_threads(1)
    try:
        for figures in PARTS[name].run(machine):
            results.send(figures)
    except Exception as error:
        results.send({"error": f"{type(error).__name__}: {error}"[:600], "at": traceback.format_exc()[-900:]})
    results.send(None)


def run_part(name: str, machine: Machine) -> list[dict[str, Any]]:
    """The figures that a part came to within its limit."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=measure, args=(name, machine, theirs))
    began = time.perf_counter()
    process.start()
    theirs.close()
    lines: list[dict[str, Any]] = []

    def told(line: dict[str, Any]) -> None:
        lines.append({"part": name} | line | {"after_s": round(time.perf_counter() - began, 1)})
        print(json.dumps(lines[-1]), flush=True)

    while True:
        left = PARTS[name].limit_s - (time.perf_counter() - began)
        try:
            if not ours.poll(max(0.0, left)):
                told({"error": f"not done within {PARTS[name].limit_s:g} s"})
                break
            line = ours.recv()
        except EOFError:
            told({"error": f"its process ended with {process.exitcode}"})
            break
        if line is None:
            break
        told(line)
    process.kill()
    process.join()
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="Tiny models and short pairs, to see that all of it works.")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="Parts, in this order.")
    parser.add_argument("--out", type=Path, default=None, help="A file for the lines, too.")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("needs a CUDA device; --device cpu --tiny runs every part without one", file=sys.stderr)
        return 2
    machine = Machine(torch.device(arguments.device, 0), arguments.tiny)
    lines = []
    for name in arguments.only:
        lines += run_part(name, machine)
        if arguments.out is not None:
            arguments.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return int(any("error" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
