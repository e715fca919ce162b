"""What the checks of a proposal take: processor and wall time of a child, for doubles, refused and new ones.

`python -m benchmarks.proposal_checks` prints a table; the start of the process that forks the children is not counted.
"""

import os
import sys
import time

from tune_dlrml.discovery.checks import Checker
from tune_dlrml.losses.proposed.config import ProposedLoss

MIXED = "m = torch.sigmoid({c} * z)\nreturn (1 - m) * F.softplus(-z) + m * torch.exp(-z)"
BODIES = {
    "DPO": "return torch.log1p(torch.exp(-z))",
    "hinge": "return F.relu(1 - z)",
    "IPO": "return (z - 0.5) ** 2",
    "DiscoPOP, tau 0.05": MIXED.format(c=20),
    "DiscoPOP, tau 0.07": MIXED.format(c="1 / 0.07"),
    "CELL": "return 0.5 * (torch.exp(-z) + F.softplus(-z))",
    "dLRML, c 5": MIXED.format(c=5),
    "KTO, coupled": (
        "a = beta * (pairs.chosen_logratio_B - pairs.rejected_logratio_B.mean().clamp(min=0))\n"
        "b = beta * (pairs.chosen_logratio_B.mean().clamp(min=0) - pairs.rejected_logratio_B)\n"
        "return 2 - torch.sigmoid(a) - torch.sigmoid(b)"
    ),
    "refused: not finite": "return torch.log(z)",
    "refused: a mean": "return z.mean()",
    "new: DPO with a parabola": "return F.softplus(-z) + 0.05 * z ** 2",
    "new: two logistic parts": "m = torch.sigmoid(5 * z)\nreturn (1 - m) * F.softplus(-z) + m * F.softplus(-2 * z)",
}


def proposed(body: str) -> ProposedLoss:
    """A proposal with this body, whose beta is searched."""
    lines = "".join(f"    {line}\n" for line in ["z = beta * pairs.margin_B", *body.split("\n")])
    params = {"beta": {"log_uniform": [0.02, 0.5]}}
    return ProposedLoss.model_validate({"code": f"def mine(pairs, *, beta):\n{lines}", "params": params})


def main() -> None:
    """Print the table."""
    with Checker() as checker:
        checker.start()
        sys.stdout.write(f"load {os.getloadavg()[0]:.1f}\n{'proposal':26} processor s   wall s   found\n")
        for name, body in BODIES.items():
            began = time.monotonic()
            findings = checker.check(proposed(body), {})
            wall = time.monotonic() - began
            said = findings.refusal or (f"same as {findings.double}" if findings.double else "new")
            sys.stdout.write(f"{name:26} {findings.processor_s:11.2f} {wall:8.2f}   {said[:60]}\n")


if __name__ == "__main__":
    main()
