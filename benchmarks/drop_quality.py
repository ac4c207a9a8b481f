"""Which blocks of a ResNet-56 are missed least after a little distillation.

    python benchmarks/drop_quality.py --out benchmarks/results/drop_quality.json

Each row drops blocks of the original of `one_recipe.py` and distills it for an epoch on 12,000
images (for one more after a second drop). All are judged on `val`: this is a look for a direction,
and nothing is chosen on the test split. `--only` makes one row, and keeps the others as they are; a
run that was interrupted goes on.
"""

import argparse
import json
import warnings
from pathlib import Path

import torch
from one_recipe import ROOT, cifar, distill, folder_of, original, trained

import overhaul as oh
from overhaul.core import Step

IMAGES = 12000
MISSED_LEAST = (4, 8, 5, 0, 2, 6, 1, 3)
"""Blocks of the first stage, in the order in which `DropLayers` drops them on 256 samples."""
FIRST, LATER = ("layer1.*",), ("layer2.*", "layer3.*")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/one_recipe")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=tuple(rows()))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    start = original(options.runs).model
    for name, steps in rows().items():
        if options.only in (name, None):
            run = trained(start, cifar(IMAGES), folder_of(options.runs, f"look {name}"), *steps)
            found[name] = [fact.value for fact in run.facts if fact.name == "val_accuracy"]
            options.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
            print(name, found[name], flush=True)


def rows() -> dict[str, tuple[Step, ...]]:
    all_of_first = oh.DropLayers(count=8, layers=FIRST, samples=256)
    behind = oh.DropLayers(count=5, layers=LATER, samples=256)
    two_behind = oh.DropLayers(count=2, layers=LATER, samples=64)
    spread = [oh.DropLayers(count=3, layers=(stage,), samples=64) for stage in LATER]
    faster = distill(1).model_copy(update={"optimizer": oh.SGD(lr=0.06, weight_decay=0.0005)})
    return {
        "8 of the first, then 5 behind": (all_of_first, distill(1), behind, distill(1)),
        "8 of the first, learning rate 0.06": (all_of_first, faster),
        "8 of the first and 2 behind": (of_first(8), two_behind, distill(1)),
        "5 of the first, 3 and 3 behind": (of_first(5), *spread, distill(1)),
    }


def of_first(count: int) -> oh.DropLayers:
    blocks = sorted(MISSED_LEAST[:count])
    return oh.DropLayers(
        count=count, layers=tuple(f"layer1.{number}" for number in blocks), samples=16
    )


if __name__ == "__main__":
    main()
