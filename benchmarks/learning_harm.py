"""Where distillation hurts: a narrow network on MNIST-1D, and a teacher that is far better.

The student is a multilayer perceptron with two hidden layers of 16 units, which is too small for
what a convolutional teacher knows. First (`search`) each setting of teacher, temperature and weight
is trained on SEARCH_SEEDS and judged on `val`; the test split stays sealed. Then the setting that
was worst there, by the mean over seeds, is run as a recipe (`confirm`) with CONFIRM_SEEDS: other
data, drawn by the same generator, other teachers and other initial weights; the test split of each
is opened once. Beside it, as it would be set without a search, stands `Distill()` with its default
values, and the setting that was best on `val`.

    pip install mnist1d
    python benchmarks/learning_harm.py --out benchmarks/results/learning_harm.json

A run that was interrupted goes on; `--minutes 5` ends it after so long.
"""

import argparse
import time
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from learning_runs import QUIET, on_val, over_seeds, points, read, row, without_test, write
from torch import nn

import overhaul as oh

ROOT = Path(__file__).resolve().parents[1]
SEARCH_SEEDS, CONFIRM_SEEDS = (0, 1), (10, 11, 12)
TEACHERS, TEMPERATURES, WEIGHTS = ("cnn", "mlp"), (1.0, 4.0, 20.0), (0.5, 0.9)
TRAIN, VAL, TEST = 4000, 1000, 5000
WIDTH, EPOCHS, BATCH = 16, 30, 100


class Cnn(nn.Sequential):
    """Three convolutions over the 40 places."""

    def __init__(self) -> None:
        super().__init__(
            nn.Unflatten(1, (1, 40)),
            nn.Conv1d(1, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv1d(32, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv1d(32, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(160, 10),
        )


class Mlp(nn.Sequential):
    """Two hidden layers."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(40, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 10),
        )


@cache
def task_of(seed: int) -> oh.Classification:
    """Return new data of the generator of MNIST-1D; nothing is downloaded."""
    from mnist1d.data import get_dataset_args, make_dataset

    args = get_dataset_args()
    args.num_samples, args.train_split, args.seed = TRAIN + VAL + TEST, 1.0, seed
    made = make_dataset(args)
    x, y = torch.from_numpy(made["x"]).float(), torch.from_numpy(made["y"]).long()
    parts = zip(x.split([TRAIN, VAL, TEST]), y.split([TRAIN, VAL, TEST]), strict=True)
    train, val, test = parts
    return oh.Classification(train=train, val=val, test=test, classes=10)


def teacher_of(kind: str, seed: int, runs: Path) -> nn.Module:
    torch.manual_seed(seed)
    network = Cnn() if kind == "cnn" else Mlp(width=256)
    step = oh.Train(epochs=20, batch_size=BATCH, optimizer=oh.AdamW(lr=3e-3))
    return without_test(step, network, task_of(seed), runs / f"teacher-{kind}-{seed}", seed)


def into_student(temperature: float, weight: float) -> oh.DistillInto:
    objective = oh.Distill(match=[oh.SoftTargets(temperature=temperature)], weight=weight)
    return oh.DistillInto(
        student=oh.Network(factory=Mlp, arguments={"width": WIDTH}),
        train=oh.Train(
            epochs=EPOCHS, batch_size=BATCH, optimizer=oh.AdamW(lr=3e-3), objective=objective
        ),
    )


def setting(teacher: str, temperature: float, weight: float) -> str:
    return f"{teacher}, T = {temperature:g}, weight {weight:g}"


SETTINGS = {setting(*each): each for each in product(TEACHERS, TEMPERATURES, WEIGHTS)}
DEFAULT = setting("cnn", 4.0, 0.5)


def on_val_of(name: str, seed: int, runs: Path) -> float:
    """Return the accuracy on `val` of a setting, of `alone`, or of a teacher."""
    task = task_of(seed)
    folder = runs / f"search-{seed}" / name.replace(", ", "-").replace(" ", "")
    if name in TEACHERS:
        teacher = teacher_of(name, seed, runs)
        return on_val(oh.Freeze(), teacher, task, folder, seed)
    kind, temperature, weight = SETTINGS.get(name, ("cnn", 1.0, 0.0))
    step = into_student(temperature, weight)
    teacher = teacher_of(kind, seed, runs)
    return on_val(step.control() if name == "alone" else step, teacher, task, folder, seed)


def gains_on_val(search: dict[str, dict[str, float]]) -> dict[str, list[float]]:
    """Return what each setting gained over the student alone, seed by seed."""
    alone = search["alone"]
    return {
        name: [search[name][str(seed)] - alone[str(seed)] for seed in SEARCH_SEEDS]
        for name in SETTINGS
    }


def chosen(search: dict[str, dict[str, float]]) -> dict[str, str]:
    gains = {name: mean(each) for name, each in gains_on_val(search).items()}
    return {
        "worst on val": min(gains, key=lambda name: gains[name]),
        "default": DEFAULT,
        "best on val": max(gains, key=lambda name: gains[name]),
    }


def confirm(name: str, seed: int, runs: Path) -> dict[str, Any]:
    kind, temperature, weight = SETTINGS[name]
    run = oh.Recipe(into_student(temperature, weight)).run(
        teacher_of(kind, seed, runs),
        task_of(seed),
        out=runs / f"confirm-{seed}-{name.replace(', ', '-').replace(' ', '')}",
        seed=seed,
        cost=False,
        progress=QUIET,
    )
    return row(run)


def tables(results: dict[str, Any]) -> str:
    search = results["search"]
    of = {name: mean(search[name].values()) for name in ("alone", *TEACHERS)}
    cells = [f"| {kind}, {100 * of[kind]:.1f} % |" for kind in TEACHERS]
    gains = gains_on_val(search)
    lines = [
        f"Student alone on val: {100 * of['alone']:.1f} % (mean of {len(SEARCH_SEEDS)} seeds). "
        "Gain of each setting in points, mean and range over seeds:",
        "",
        "| teacher, its accuracy | "
        + " | ".join(f"T = {t:g}, weight {w:g}" for t, w in product(TEMPERATURES, WEIGHTS))
        + " |",
        "|---" * (1 + len(TEMPERATURES) * len(WEIGHTS)) + "|",
    ]
    for kind, begin in zip(TEACHERS, cells, strict=True):
        own = [gains[setting(kind, t, w)] for t, w in product(TEMPERATURES, WEIGHTS)]
        lines.append(
            begin
            + " | ".join(
                f" {100 * mean(g):+.1f} ({100 * min(g):+.1f} to {100 * max(g):+.1f})" for g in own
            )
            + " |"
        )
    lines += [
        "",
        "| setting | seed | teacher | student alone | distilled | against alone, 95 % interval "
        "| the run says |",
        "|---|---|---|---|---|---|---|",
    ]
    for why, name in chosen(search).items():
        rows = results["confirm"].get(name, {})
        for seed, each in rows.items():
            values = " | ".join(f"{100 * each[k]:.1f} %" for k in ("teacher", "control", "student"))
            lines.append(
                f"| {name} ({why}) | {seed} | {values} "
                f"| {points(each['difference'], each['interval'])} | {each['effect']} |"
            )
        if len(rows) > 1:
            middle, half = over_seeds([each["difference"] for each in rows.values()])
            interval = points(middle, (middle - half, middle + half))
            lines.append(f"| {name} ({why}) | all | | | | {interval}, over seeds | |")
    return "\n".join(lines)


def todo(results: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Yield what is not measured yet; the second part when the first is complete."""
    for seed, name in product(SEARCH_SEEDS, ("alone", *TEACHERS, *SETTINGS)):
        if str(seed) not in results["search"].get(name, {}):
            yield "search", name, seed
    for seed, name in product(CONFIRM_SEEDS, dict.fromkeys(chosen(results["search"]).values())):
        if str(seed) not in results["confirm"].get(name, {}):
            yield "confirm", name, seed


def main() -> None:
    """Search on val, confirm on test, write JSON, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/learning_harm")
    parser.add_argument("--minutes", type=float, default=1e9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    until = time.monotonic() + 60 * options.minutes
    results = {"search": {}, "confirm": {}} | read(options.out)
    for part, name, seed in todo(results):
        if time.monotonic() > until:
            print("there is more to do")
            return
        work = on_val_of if part == "search" else confirm
        found = work(name, seed, options.runs)
        results[part].setdefault(name, {})[str(seed)] = found
        write(options.out, results)
        print(part, name, seed, found, flush=True)
    print(tables(results))


if __name__ == "__main__":
    main()
