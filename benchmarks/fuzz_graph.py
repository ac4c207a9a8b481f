"""Random networks: what can be removed is removed and compared, and refusals are counted.

python benchmarks/fuzz_graph.py --networks 20000 --processes 2 \
    --out benchmarks/results/fuzz_graph.json

The networks are those of the seeds 0, 1, 2, ... A run that was stopped goes on from its `--out`
with `--go-on`; what it has counted is written after every 500 networks.
"""

import argparse
import json
import multiprocessing
import platform
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from tests.graph.fuzzing import Judgement, judge

AT_A_TIME = 500


def judged(seed: int) -> Judgement:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return judge(seed)


def add_(counts: dict[str, Any], found: Judgement) -> None:
    counts["networks"] += 1
    counts["groups"] += found.groups
    counts["removals"] += found.removals
    counts["compared_twice"] += found.zeroed
    counts["refused_together"] += found.together
    counts["wrong"] += found.wrong
    counts["refusals"] = dict((Counter(counts["refusals"]) + found.refusals).most_common())
    refused = sum(counts["refusals"].values())
    counts["refused_rate"] = refused / max(1, refused + counts["groups"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=20000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--go-on", action="store_true", help="add to what --out has counted")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    counts: dict[str, Any] = {
        "networks": 0,
        "groups": 0,
        "removals": 0,
        "compared_twice": 0,
        "refused_together": 0,
        "wrong": [],
        "refusals": {},
        "seconds": 0.0,
    }
    if options.go_on:
        counts |= json.loads(options.out.read_text())
    counts["versions"] = {"python": platform.python_version(), "torch": str(torch.__version__)}
    counts["command"] = "python benchmarks/fuzz_graph.py " + " ".join(sys.argv[1:])
    before, begun = counts["seconds"], time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        seeds = range(counts["networks"], options.networks)
        for found in pool.imap(judged, seeds, chunksize=10):
            add_(counts, found)
            for text in found.wrong:
                print("WRONG", text[:400], flush=True)
            counts["seconds"] = round(before + time.perf_counter() - begun, 1)
            whole = counts["networks"] % AT_A_TIME == 0
            if options.out and (whole or counts["networks"] == options.networks):
                options.out.write_text(json.dumps(counts, indent=2) + "\n")
    for name, value in counts.items():
        print(f"{name:16} {value}")


if __name__ == "__main__":
    main()
