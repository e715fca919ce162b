"""What this project does on a GPU: speed against TRL, attention, repeatability, memory. Prints a JSON line a figure.

Run: python tests/gpu/run.py [--only lora_1b attention] [--out FILE]
Without a GPU: python tests/gpu/run.py --device cpu --tiny    (runs every part on a tiny model; its times mean nothing)

Each part runs in a process of its own and is ended at its time limit.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what repeatable matrix products need
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from gpu import older_torch
from gpu.made import Figures, quiet
from gpu.parts import PARTS, Machine


def measure(name: str, machine: Machine, line: Connection) -> None:
    """That it is ready; once told to go on, a part's figures, one by one, then None; an exception goes the same way."""
    quiet()
    older_torch.adapt()
    if not machine.cuda:
        torch.set_num_threads(1)
    line.send("ready")
    line.recv()
    try:
        for figures in PARTS[name].run(machine):
            line.send(figures)
    except Exception as error:
        line.send({"error": f"{type(error).__name__}: {error}"[:600], "at": traceback.format_exc()[-900:]})
    line.send(None)


class PartProcess:
    """A part in a process of its own, which imports what it needs while the part before it still runs."""

    def __init__(self, name: str, machine: Machine) -> None:
        self.name, self._limit_s = name, PARTS[name].limit_s
        self._line, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=measure, args=(name, machine, theirs))
        self._process.start()
        theirs.close()

    def figures(self) -> Iterator[Figures]:
        """What the part comes to within its limit, which begins when its imports are done; it is ended afterwards."""
        try:
            self._line.recv()
            self._line.send("go")
            began = time.perf_counter()
            while True:
                left = self._limit_s - (time.perf_counter() - began)
                if not self._line.poll(max(0.0, left)):
                    yield {"error": f"not done within {self._limit_s:g} s"}
                    return
                figures = self._line.recv()
                if figures is None:
                    return
                yield figures | {"after_s": round(time.perf_counter() - began, 1)}
        except (EOFError, OSError):
            self._process.join()
            yield {"error": f"its process ended with {self._process.exitcode}"}
        finally:
            self._process.kill()
            self._process.join()


def run_parts(names: list[str], machine: Machine) -> Iterator[Figures]:
    """The figures of one part after another, each as soon as it is there."""
    following = PartProcess(names[0], machine)
    for name in [*names[1:], ""]:
        part = following
        if name:
            following = PartProcess(name, machine)
        for figures in part.figures():
            yield {"part": part.name} | figures


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
    failed = False
    with contextlib.ExitStack() as files:
        out = None if arguments.out is None else files.enter_context(arguments.out.open("w", encoding="utf-8"))
        for line in run_parts(arguments.only, machine):
            failed = failed or "error" in line
            for file in filter(None, (sys.stdout, out)):
                print(json.dumps(line), file=file, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
