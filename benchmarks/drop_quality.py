"""Which blocks of a ResNet-56 are missed least after a little distillation.

    python benchmarks/drop_quality.py --out benchmarks/results/drop_quality.json

Each row drops blocks of the original of `one_recipe.py`, so many of each stage, all at once, and
distills it for an epoch on IMAGES images. All are judged on `val`, and `test` stays sealed: this is
a look for a direction. `--only` makes one row; a run that was interrupted goes on.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from learning_runs import without_test
from one_recipe import DECOUPLED, ROOT, cifar, distill, dropped, folder_of, original
from torch import nn

import overhaul as oh
from overhaul.core import Step
from overhaul.evaluation import predict

IMAGES = 12000
STAGES = tuple((f"layer{stage}", f"layer{stage}") for stage in (1, 2, 3))
ALIKE = oh.SimilarityPreserving(layers=STAGES, weight=23.0)


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
        if options.only in (name, None) and name not in found:
            folder = folder_of(options.runs, f"look {name}")
            found[name] = quality(start, cifar(IMAGES), folder, steps)
            options.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
            print(name, found[name], flush=True)


def rows() -> dict[str, tuple[Step, ...]]:
    four, twelve, learn = dropped(4, 4, 5), dropped(6, 5, 1), distill(1)
    faster = learn.model_copy(update={"optimizer": oh.SGD(lr=0.05, weight_decay=0.0005)})
    return {
        "8-4-0": (*dropped(8, 4, 0), learn),
        "7-3-2": (*dropped(7, 3, 2), learn),
        "6-4-2": (*dropped(6, 4, 2), learn),
        "6-5-1": (*twelve, learn),
        "6-5-1, decoupled targets": (*twelve, distill(1, targets=DECOUPLED)),
        "6-5-1, similarities of the stages too": (*twelve, distill(1, ALIKE)),
        "6-5-1, decoupled targets and similarities": (
            *twelve,
            distill(1, ALIKE, targets=DECOUPLED),
        ),
        "4-4-5": (*four, learn),
        "4-4-5, learning rate 0.05": (*four, faster),
        "4-4-5, similarities of the stages too": (*four, distill(1, ALIKE)),
    }


def quality(
    start: nn.Module, task: oh.Task, folder: Path, steps: tuple[Step, ...]
) -> dict[str, Any]:
    """Apply the steps with `start` as the teacher, and return what `val` says at the end."""
    model = start
    for number, step in enumerate(steps):
        model = without_test(step, model, task, folder / str(number), seed=0, original=start)
    on_val = predict(model.to(memory_format=torch.channels_last), task.prepare().val)
    return task.metrics(on_val.outputs, on_val.targets)


if __name__ == "__main__":
    main()
