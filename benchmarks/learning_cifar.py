"""What a teacher is worth to a ResNet-20 on CIFAR-10: every match against the student alone.

Four questions, each with its control, SEEDS seeds each:

- `matches`: does any match of the fine-tuned ResNet-56 make a better ResNet-20 than the same
  training without a teacher? IMAGES images, EPOCHS epochs.
- `few`: the same with FEW of these images, with the gradients matched besides the outputs.
- `mutual`: do two networks that learn from each other become better than each alone? In both the
  last stage and the head are drawn anew, so that they start from different weights. Slower: with
  a fifth of the learning rate, which was tried after the harm of the other had been seen.
- `pruned`: is the pruned teacher a better student than a fresh network of equal MACs?

The images are those that `train_limit` takes of the training split, and the first FEW of them.
Nothing is chosen: the weights after the last epoch are kept, and settings are those of the papers
or of the library, fixed before the first run. With one seed, all see the same batches with the
same augmentations. Where layers are matched the teacher has a tenth of the loss and the match nine
times the weight that the paper gives it beside the task, so that the task's loss keeps about its
size. The test split is judged once for each setting and seed, when it is trained.

    overhaul run examples/cifar10_resnet56.yaml -o runs/resnet56
    python benchmarks/learning_cifar.py --out benchmarks/results/learning_cifar.json

What is there is not made again; `--minutes` ends a part of the work, and `--groups` and `--only`
name one.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from cifar_resnet import resnet20

import overhaul as oh
from overhaul.core import (
    Batch,
    CheckpointFolder,
    Context,
    Split,
    Splits,
    Step,
    derived_seed,
    seeded,
)
from overhaul.distillation import Match
from overhaul.evaluation import Predictions, compare, count_macs, count_parameters, predict

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared/data"
PRETRAINED = SHARED / "cifar_resnet/resnet20.safetensors"
SEEDS, IMAGES, EPOCHS, FEW, EPOCHS_OF_FEW, WATCHED = 3, 5000, 2, 500, 6, 500
# The MACs of a ResNet-20 over those of a ResNet-56.
MACS = 0.3232
RUNS = ROOT / "runs/learning_cifar"
TEACHER = oh.Network(
    factory="cifar_resnet:resnet56", weights=str(ROOT / "runs/resnet56/weights.safetensors")
)
ALONE = oh.Train(
    epochs=EPOCHS,
    batch_size=128,
    optimizer=oh.SGD(lr=0.02, weight_decay=0.0005),
    augmentations=(oh.Flip(), oh.Shift()),
    precision="bf16",
    keep="last",
)
ALONE_WITH_FEW = ALONE.model_copy(update={"epochs": EPOCHS_OF_FEW})
FRESH = ALONE.model_copy(update={"optimizer": oh.SGD(lr=0.1, weight_decay=0.0005)})
SOFT = oh.SoftTargets(temperature=4.0)


def learn(plan: oh.Train, *match: Match, weight: float, cache: bool = False) -> oh.Train:
    """Return the training with a teacher."""
    kept = oh.TeacherCache(folder=str(RUNS / "teacher")) if cache else None
    objective = oh.Distill(teacher=TEACHER, match=match, weight=weight, cache=kept)
    return plan.model_copy(update={"objective": objective})


def beside(match: Match) -> oh.Train:
    """Return the training by the task and this match, with its weight beside the task."""
    return learn(ALONE, match.model_copy(update={"weight": 9 * match.weight}), weight=0.1)


def with_a_peer(plan: oh.Train, rate: str = "") -> dict[str, "Setting"]:
    """Return the training of the first network alone, and with a peer that it learns from."""
    mutual = oh.Mutual(peers=(oh.Network(factory="learning_cifar:redrawn"),))
    both, alone = plan.model_copy(update={"objective": mutual}), f"first network, alone{rate}"
    return {
        alone: Setting("mutual", plan, start=_first),
        f"first network, mutual{rate}": Setting("mutual", both, alone, start=_first),
    }


def pretrained() -> nn.Module:
    """Return the ResNet-20 that was trained on the original images."""
    return oh.Network(factory="cifar_resnet:resnet20", weights=str(PRETRAINED)).build()


def redrawn() -> nn.Module:
    """Return it with the last stage and the head as a new network has them."""
    network = resnet20()
    known = load_file(PRETRAINED)
    kept = {k: v for k, v in known.items() if not k.startswith(("layer3.", "linear."))}
    network.load_state_dict(kept, strict=False)
    return network


@dataclass(frozen=True)
class Setting:
    """A training, and what it is compared with.

    Attributes:
        group: The question that it belongs to.
        step: What is done.
        control: The name of the setting that it is compared with.
        start: Returns the model to begin with, from a seed.
        images: How many the training sees.
    """

    group: str
    step: Step
    control: str | None = None
    start: Callable[[int], nn.Module] = lambda seed: pretrained()
    images: int = IMAGES


def settings() -> dict[str, Setting]:
    """Return every setting by its name, a control before what is compared with it."""
    matches = {
        "soft targets": learn(ALONE, SOFT, weight=0.9, cache=True),
        "decoupled targets": learn(ALONE, oh.DecoupledTargets(), weight=0.5, cache=True),
        "decoupled targets, beta 8": learn(
            ALONE, oh.DecoupledTargets(beta=8.0), weight=0.5, cache=True
        ),
        "correlation targets": learn(
            ALONE, oh.CorrelationTargets(inter=2.0, intra=2.0), weight=0.5, cache=True
        ),
        "hints": beside(oh.Hints(weight=100.0)),
        # 1,000 in the paper, whose program takes means over 1,024, 256 and 64 places and adds.
        "attention transfer": beside(oh.AttentionTransfer(weight=40.0)),
        # 3,000 in the paper, which divides by the batch of 128 once more.
        "similarity preserving": beside(oh.SimilarityPreserving(weight=23.0)),
        "relational": beside(oh.Relational(weight=25.0)),
        "contrastive": beside(oh.Contrastive(weight=0.8)),
        "gradient matching": beside(oh.GradientMatching(weight=1.0)),
    }
    soft_with_few = learn(ALONE_WITH_FEW, SOFT, weight=0.9)
    both_with_few = learn(ALONE_WITH_FEW, SOFT, oh.GradientMatching(), weight=0.9)
    pruned = oh.DistillInto(
        student=oh.PruneChannels(macs=MACS, scope="normalized"),
        train=ALONE.model_copy(update={"objective": oh.Distill(match=(SOFT,), weight=0.9)}),
    )
    fresh = oh.DistillInto(
        student=oh.Network(factory="cifar_resnet:resnet20"),
        train=FRESH.model_copy(update={"objective": oh.Distill(match=(SOFT,), weight=0.9)}),
    )
    return {
        "alone": Setting("matches", ALONE),
        **{name: Setting("matches", step, "alone") for name, step in matches.items()},
        "few, alone": Setting("few", ALONE_WITH_FEW, images=FEW),
        "few, soft targets": Setting("few", soft_with_few, "few, alone", images=FEW),
        "few, soft targets and gradient matching": Setting(
            "few", both_with_few, "few, soft targets", images=FEW
        ),
        "second network, alone": Setting("mutual", FRESH, start=_second),
        **with_a_peer(FRESH),
        **with_a_peer(ALONE, ", slower"),
        "pruned, alone": Setting("pruned", pruned.control(), start=_teacher),
        "pruned, learns": Setting("pruned", pruned, "pruned, alone", start=_teacher),
        "fresh, alone": Setting("pruned", fresh.control(), "pruned, alone", start=_teacher),
        "fresh, learns": Setting("pruned", fresh, "pruned, learns", start=_teacher),
    }


def _first(seed: int) -> nn.Module:
    with seeded(derived_seed(seed, "first network")):
        return redrawn()


def _second(seed: int) -> nn.Module:
    with seeded(derived_seed(seed, "peer", 1)):  # as `Mutual` builds it
        return redrawn()


def _teacher(seed: int) -> nn.Module:
    return TEACHER.build()


class First(Split):
    """The first samples of a split."""

    def __init__(self, whole: Split, count: int) -> None:
        self.whole, self.name, self.count = whole, whole.name, count

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Tensor) -> Batch:
        return self.whole.read(indices)

    def batches(self, index_batches: list[Tensor], workers: int = 0) -> Iterator[Batch]:
        return self.whole.batches(index_batches, workers)

    @property
    def fingerprint(self) -> str:
        return f"{self.whole.fingerprint}:{self.count}"


def task() -> oh.Classification:
    """Return the classification of IMAGES images."""
    return oh.Classification(
        data=oh.Cifar10(data_dir=str(SHARED / "cifar10")),
        preprocess=oh.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        train_limit=IMAGES,
    )


def make(name: str, setting: Setting, seed: int, what: oh.Task, data: Splits) -> None:
    """Train one setting with one seed, judge it on the test split, and keep both.

    The run is made by hand and not by `Recipe.run`, which would judge the original each time too.
    """
    folder = folder_of(name, seed)
    model = setting.start(seed)
    data = replace(data, train=First(data.train, setting.images), val=First(data.val, WATCHED))
    ctx = Context(
        task=what,
        data=data,
        original=setting.start(seed),
        checkpoints=CheckpointFolder(folder / "checkpoints"),
        artifact_folder=folder / "artifact",
        seed=seed,
        label="0 train",
    )
    setting.step.preflight(model, what, data)
    start = time.process_time()
    model = setting.step.apply(model, ctx).eval()
    cpu_s = time.process_time() - start
    found = predict(model.to(memory_format=torch.channels_last), data.test.open())
    assert isinstance(found.outputs, Tensor)
    assert isinstance(found.targets, Tensor)
    batch = next(data.train.in_order(1))
    row = {
        "cpu_s": cpu_s,
        "epoch_s": [fact.value for fact in ctx.facts if fact.name == "epoch_s"],
        "macs": count_macs(model, batch).per_sample,
        "parameters": count_parameters(model),
        "facts": [
            fact.model_dump(mode="json", exclude_none=True)
            for fact in ctx.facts
            if fact.name in ("val_accuracy", "layer_pair", "teacher_cache", "kept_macs")
        ],
    }
    save_file({"logits": found.outputs, "labels": found.targets}, folder / "test.safetensors")
    (folder / "row.json").write_text(json.dumps(row, indent=1) + "\n")


def folder_of(name: str, seed: int) -> Path:
    folder = RUNS / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def collect(what: oh.Task) -> dict[str, Any]:
    """Return what was found for each setting, over the seeds that are there."""
    every = settings()
    seeds = {name: [each for each in range(SEEDS) if _is_done(name, each)] for name in every}
    found = {(name, each): _predictions(name, each) for name in every for each in seeds[name]}
    runs = {
        key: json.loads((folder_of(*key) / "row.json").read_text(encoding="utf-8")) for key in found
    }
    rows: dict[str, Any] = {}
    for name, setting in every.items():
        if not seeds[name]:
            continue
        own = [runs[name, each] for each in seeds[name]]
        by_seed = [float(_right(found[name, each]).mean()) for each in seeds[name]]
        rows[name] = {
            "group": setting.group,
            "control": setting.control,
            "step": repr(setting.step).replace(f"{ROOT}/", "").replace(str(ROOT.parent), ".."),
            "images": setting.images,
            "seeds": seeds[name],
            "accuracy": statistics.mean(by_seed),
            "accuracy_by_seed": by_seed,
            "macs": own[0]["macs"],
            "parameters": own[0]["parameters"],
            "cpu_s": [run["cpu_s"] for run in own],
            "epoch_s": [run["epoch_s"] for run in own],
            "facts": [run["facts"] for run in own],
            "against": {},
        }
        for reference in _references(name, setting):
            common = [each for each in seeds[name] if each in seeds[reference]]
            if not common:
                continue
            pairs = [(found[name, each], found[reference, each]) for each in common]
            rows[name]["against"][reference] = {
                "seeds": common,
                **pooled([(_right(one), _right(two)) for one, two in pairs]),
                "each_seed": [
                    compare(
                        what, one, two, goal=oh.Goal(max_drop=0.005), reference=reference
                    ).model_dump(mode="json")
                    for one, two in pairs
                ],
                "time_ratio": statistics.median(
                    runs[name, each]["cpu_s"] / runs[reference, each]["cpu_s"] for each in common
                ),
            }
    return rows


def _references(name: str, setting: Setting) -> list[str]:
    """Return what a setting is compared with, the control last."""
    more = {
        "few, soft targets and gradient matching": ["few, alone"],
        "fresh, learns": ["fresh, alone"],
        "pruned, learns": ["soft targets"],
    }
    return more.get(name, []) + ([setting.control] if setting.control else [])


def _is_done(name: str, seed: int) -> bool:
    return (folder_of(name, seed) / "row.json").exists()


def _predictions(name: str, seed: int) -> Predictions:
    saved = load_file(folder_of(name, seed) / "test.safetensors")
    return Predictions(saved["logits"], saved["labels"])


def _right(found: Predictions) -> Tensor:
    assert isinstance(found.outputs, Tensor)
    assert isinstance(found.targets, Tensor)
    return (found.outputs.argmax(1) == found.targets).double()


def pooled(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Compare two settings over all seeds.

    The score of a test sample is the part of the seeds that are right about it. The interval is
    over samples, paired, for these very seeds; samples of several seeds are never taken for
    independent. A gain (or harm) is called shown if there are SEEDS seeds, the interval leaves out
    0, and the difference has the same sign for each seed.

    Args:
        pairs: For each seed, whether each sample is right, with the setting and with the other.
    """
    gains_N = torch.stack([one - two for one, two in pairs]).mean(0)
    mean, half = float(gains_N.mean()), 1.96 * float(gains_N.std()) / len(gains_N) ** 0.5
    by_seed = [float((one - two).mean()) for one, two in pairs]
    low, high = mean - half, mean + half
    effect = "not shown" if len(pairs) >= SEEDS else "too few seeds"
    if len(pairs) >= SEEDS and low > 0 and min(by_seed) > 0:
        effect = "gain"
    if len(pairs) >= SEEDS and high < 0 and max(by_seed) < 0:
        effect = "harm"
    return {
        "difference": mean,
        "interval": (low, high),
        "difference_by_seed": by_seed,
        "effect": effect,
    }


def table(rows: dict[str, Any]) -> str:
    """Return a Markdown table for each question."""
    lines = []
    for group in dict.fromkeys(row["group"] for row in rows.values()):
        lines += [
            "| | test accuracy (each seed) | against | difference, 95 % interval (each seed) "
            "| gain | time |",
            "|---|---|---|---|---|---|",
        ]
        for name, row in rows.items():
            if row["group"] != group:
                continue
            seeds = ", ".join(f"{100 * each:.2f}" for each in row["accuracy_by_seed"])
            start = f"| {name} | {100 * row['accuracy']:.2f} % ({seeds}) "
            against = row["against"]
            if not against:
                lines.append(f"{start}| | | | {statistics.median(row['cpu_s']):.0f} s |")
            for reference, found in against.items():
                low, high = found["interval"]
                each = ", ".join(f"{100 * d:+.2f}" for d in found["difference_by_seed"])
                lines.append(
                    f"{start}| {reference} | {100 * found['difference']:+.2f} "
                    f"({100 * low:+.2f} to {100 * high:+.2f}; {each}) | {found['effect']} "
                    f"| {found['time_ratio']:.2f} x |"
                )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, write JSON, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--groups", nargs="*", help="only these questions")
    parser.add_argument("--only", nargs="*", help="only these settings")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(SEEDS)))
    parser.add_argument("--minutes", type=float, default=1e9, help="begin nothing after these")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, what, left = time.monotonic(), task(), 0
    for seed in options.seeds:
        for name, setting in settings().items():
            wanted = not options.only or name in options.only
            wanted = wanted and (not options.groups or setting.group in options.groups)
            late = time.monotonic() - began > 60 * options.minutes
            if not wanted or _is_done(name, seed):
                continue
            if late:
                left += 1
                continue
            print(f"{name}, seed {seed}", flush=True)
            make(name, setting, seed, what, what.prepare())
    rows = collect(what)
    options.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    print(table(rows))
    print(f"{left} trainings are left." if left else "All of these are trained.")


if __name__ == "__main__":
    main()
