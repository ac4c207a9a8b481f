"""Random networks: every removal is proved, and what is refused is counted.

python benchmarks/fuzz_graph.py --networks 2000 --processes 2 \
    --out benchmarks/results/fuzz_graph.json
"""

import argparse
import json
import multiprocessing
import platform
import random
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from overhaul.core import ModelError
from overhaul.graph import Graph, check_removal
from tests.graph.random_networks import random_network

OTHER_FACTOR = "another factor of the same dimension is removed instead of it"


@dataclass
class Outcome:
    """What one seed gave."""

    seed: int
    groups: int = 0
    removals: int = 0
    refused_joint: int = 0
    wrong: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)


def fuzz(seed: int) -> Outcome:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    outcome = Outcome(seed)
    model, inputs = random_network(seed)
    try:
        graph = Graph(model, inputs)
    except Exception as error:  # a crash of the analysis is as wrong as a wrong removal
        outcome.wrong.append(f"Graph: {type(error).__name__}: {error}")
        return outcome
    outcome.groups = len(graph.groups)
    reasons = [each.reason.text for each in graph.refusals]
    outcome.refusals = [text for text in reasons if OTHER_FACTOR not in text]
    draw = random.Random(seed)
    plans = [
        {g.name: draw.sample(range(g.units), draw.randint(1, g.units - 1))} for g in graph.groups
    ]
    joint = {g.name: draw.sample(range(g.units), g.units // 2) for g in graph.groups}
    plans += [joint] if len(joint) > 1 else []
    for units in plans:
        try:
            check_removal(model, graph, units, inputs)
        except ModelError as error:
            if len(units) > 1 and "cannot be removed together" in str(error):
                outcome.refused_joint += 1
                continue
            outcome.wrong.append(f"{units}: {error}")
        except Exception as error:
            outcome.wrong.append(f"{units}: {type(error).__name__}: {error}")
        outcome.removals += 1
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    begun = time.perf_counter()
    outcomes: list[Outcome] = []
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for outcome in pool.imap(fuzz, range(options.networks), chunksize=5):
            outcomes.append(outcome)
            for text in outcome.wrong:
                print("WRONG", outcome.seed, text[:400], flush=True)
            if time.perf_counter() - begun > options.seconds:
                break
    refusals = Counter(text for outcome in outcomes for text in outcome.refusals)
    groups = sum(outcome.groups for outcome in outcomes)
    result = {
        "networks": len(outcomes),
        "groups": groups,
        "removals": sum(outcome.removals for outcome in outcomes),
        "refused_joint": sum(outcome.refused_joint for outcome in outcomes),
        "wrong": [outcome.seed for outcome in outcomes if outcome.wrong],
        "refusals": dict(refusals.most_common()),
        "rate": refusals.total() / max(1, refusals.total() + groups),
        "seconds": round(time.perf_counter() - begun, 1),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "command": "python benchmarks/fuzz_graph.py " + " ".join(sys.argv[1:]),
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    for name, value in result.items():
        print(f"{name:14} {value}")


if __name__ == "__main__":
    main()
