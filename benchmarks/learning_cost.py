"""What learning from a teacher costs: the library's loop, the cache, the matching of gradients.

- `objectives`: an epoch of `Train` with each objective against a plain PyTorch loop that computes
  the same, in turn, one thread. Both have to end in the same weights.
- `cache`: an epoch of ResNet-56 -> ResNet-20 without and with a `TeacherCache` that has everything.
- `gradient_matching`: what a step costs beyond one with `SoftTargets`, in backward passes of the
  student.

What is in the file already is not measured again.

    python benchmarks/learning_cost.py --out benchmarks/results/learning_cost.json
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train_overhead import compare, seconds_of

import overhaul as oh
from overhaul.core import CheckpointFolder, Context, Splits, derived_seed, model_tensors, seeded
from overhaul.distillation import Match
from overhaul.distillation._teacher_cache import CachedTeacher
from overhaul.training import SGD, Cosine, Objective

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from cifar_resnet import CifarResNet, resnet20, resnet56

# Of the processor, since other work may run on the machine; one thread, nothing waits but the disk.
clock = time.process_time
SAMPLES, BATCH, LR = 4096, 64, 0.0005
LAYERS = ("layer1", "layer2", "layer3")
ALL, LAST = tuple((path, path) for path in LAYERS), (("layer3", "layer3"),)

StepLosses = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""Of images and labels: the losses to differentiate one after the other, the model's last."""


def small_student() -> CifarResNet:
    """Return a ResNet-20 of half the usual width."""
    return resnet20(width=8)


def small_teacher(seed: int = 1) -> CifarResNet:
    """Return a ResNet-56 of half the usual width; what it knows does not matter to time."""
    with seeded(seed):
        return resnet56(width=8).eval().requires_grad_(False)


class Hand:
    """A student and what a hand-written loss needs beside it."""

    def __init__(self, student: CifarResNet, teachers: int = 1) -> None:
        """Watch the layers of both networks by hooks."""
        self.student = student
        self.teachers = [
            small_teacher(1 + n).to(memory_format=torch.channels_last) for n in range(teachers)
        ]
        self.extra: list[nn.Module] = []
        self.peers: list[nn.Module] = []
        self.own: dict[str, Tensor] = {}
        self.theirs: dict[str, Tensor] = {}

    def watch(self, paths: Sequence[str]) -> None:
        """Keep what these layers of both networks return."""
        for network, kept in ((self.student, self.own), (self.teachers[0], self.theirs)):
            for path in paths:

                def keep(_: Any, __: Any, out: Tensor, kept: Any = kept, path: str = path) -> None:
                    kept[path] = out

                network.get_submodule(path).register_forward_hook(keep)

    def teach(self, x: Tensor) -> Tensor:
        """Return the mean of the teachers' logits."""
        with torch.no_grad():
            return torch.stack([teacher(x) for teacher in self.teachers]).mean(0)


def task_loss(hand: Hand) -> StepLosses:
    """Return the cross-entropy."""
    return lambda x, y: [F.cross_entropy(hand.student(x), y)]


def of_outputs(hand: Hand, distance: Callable[[Tensor, Tensor, Tensor], Tensor]) -> StepLosses:
    """Return half the cross-entropy and half a distance of logits."""

    def losses(x: Tensor, y: Tensor) -> list[Tensor]:
        z, z_t = hand.student(x), hand.teach(x)
        return [0.5 * F.cross_entropy(z, y) + 0.5 * distance(z, z_t, y)]

    return losses


def soft(z: Tensor, z_t: Tensor, y: Tensor, t: float = 4.0) -> Tensor:
    """Return the divergence of softened logits."""
    log_q, p = F.log_softmax(z / t, 1), F.softmax(z_t / t, 1)
    return F.kl_div(log_q, p, reduction="batchmean") * t * t


def decoupled(z: Tensor, z_t: Tensor, y: Tensor) -> Tensor:
    """Return the divergence of the right class and that of the others, at T = 4."""
    right = F.one_hot(y, z.shape[1]).bool()
    q, p = F.softmax(z / 4, 1)[right], F.softmax(z_t / 4, 1)[right]
    log_q2, p2 = torch.stack([q, 1 - q], 1).log(), torch.stack([p, 1 - p], 1)
    log_others = F.log_softmax((z / 4).masked_fill(right, -1e9), 1)
    others = F.softmax((z_t / 4).masked_fill(right, -1e9), 1)
    of_right = F.kl_div(log_q2, p2, reduction="batchmean")
    return 16 * (of_right + F.kl_div(log_others, others, reduction="batchmean"))


def correlation(z: Tensor, z_t: Tensor, y: Tensor) -> Tensor:
    """Return one minus the correlation over classes, and over samples."""
    q, p = F.softmax(z, 1), F.softmax(z_t, 1)

    def missing(a: Tensor, b: Tensor) -> Tensor:
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return 1 - F.cosine_similarity(a, b, dim=1, eps=1e-12).mean()

    return missing(q, p) + missing(q.T, p.T)


def of_layers(
    hand: Hand, paths: Sequence[str], distance: Callable[[int, Tensor, Tensor, Tensor], Tensor]
) -> StepLosses:
    """Return half the cross-entropy and half the mean distance of layers."""
    hand.watch(paths)

    def losses(x: Tensor, y: Tensor) -> list[Tensor]:
        z = hand.student(x)
        hand.teach(x)
        each = [distance(n, hand.own[p], hand.theirs[p], y) for n, p in enumerate(paths)]
        return [0.5 * F.cross_entropy(z, y) + 0.5 * torch.stack(each).mean()]

    return losses


def hints(hand: Hand) -> StepLosses:
    """Return the squared distance through a 1 x 1 convolution."""
    with seeded(derived_seed(0, "match")):
        projectors = [nn.Conv2d(width, width, 1) for width in (8, 16, 32)]
    hand.extra = list(projectors)
    return of_layers(hand, LAYERS, lambda n, a, b, _: 0.5 * F.mse_loss(projectors[n](a), b))


def attention(n: int, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """Return the squared distance of maps of activity."""
    map_a, map_b = (F.normalize(f.pow(2).sum(1).flatten(1), dim=1) for f in (a, b))
    return 0.5 * (map_a - map_b).pow(2).sum(1).mean()


def similarity(n: int, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """Return the squared distance of how alike samples are."""
    like_a, like_b = (F.normalize(f.flatten(1) @ f.flatten(1).T, dim=1) for f in (a, b))
    return (like_a - like_b).pow(2).sum(1).mean()


def relational(n: int, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """Return the differences of distances, and twice those of angles."""
    size = len(a)

    def distances(f: Tensor) -> Tensor:
        d = torch.cdist(f, f, compute_mode="donot_use_mm_for_euclid_dist")
        return d / (d.sum() / (size * (size - 1)))

    def angles(f: Tensor) -> Tensor:
        e = F.normalize(f[None] - f[:, None], dim=2)
        return torch.bmm(e, e.transpose(1, 2))

    a, b = a.flatten(1), b.flatten(1)
    gap = F.smooth_l1_loss(distances(a), distances(b), reduction="sum") / (size * (size - 1))
    turn = F.smooth_l1_loss(angles(a), angles(b), reduction="sum")
    return gap + 2 * turn / (size * (size - 1) * (size - 2))


def contrastive(hand: Hand) -> StepLosses:
    """Return the cross-entropy of finding a sample's own teacher feature."""
    with seeded(derived_seed(0, "match")):
        own, theirs = nn.Linear(32, 128), nn.Linear(32, 128)
    hand.extra = [own, theirs]

    def distance(n: int, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        u = F.normalize(own(a.mean((2, 3))), dim=1)
        v = F.normalize(theirs(b.mean((2, 3))), dim=1)
        same = (y[:, None] == y) & ~torch.eye(len(y), dtype=torch.bool)
        score, right = (u @ v.T / 0.07).masked_fill(same, -torch.inf), torch.arange(len(y))
        return 0.5 * (F.cross_entropy(score, right) + F.cross_entropy(score.T, right))

    return of_layers(hand, LAYERS[-1:], distance)


def gradient_matching(hand: Hand) -> StepLosses:
    """Return the squared distance of gradients along random directions, by PyTorch's own means."""

    def losses(x: Tensor, y: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        z, z_t = hand.student(x), hand.teachers[0](x)
        v = torch.randn_like(z)
        v = F.normalize(v - v.mean(1, keepdim=True), dim=1)
        (g,) = torch.autograd.grad(z, x, v, create_graph=True)
        (g_t,) = torch.autograd.grad(z_t, x, v)
        apart = F.normalize(g.flatten(1), dim=1) - F.normalize(g_t.flatten(1), dim=1)
        return [0.5 * F.cross_entropy(z, y) + 0.5 * apart.pow(2).sum(1).mean()]

    return losses


def mutual(hand: Hand) -> StepLosses:
    """Return the loss of a peer and that of the student, each with the other's logits."""
    with seeded(derived_seed(0, "peer", 1)):
        peer = small_student().to(memory_format=torch.channels_last)
    hand.peers = [peer]

    def losses(x: Tensor, y: Tensor) -> list[Tensor]:
        z, z_p = hand.student(x), peer(x)
        of_peer = F.cross_entropy(z_p, y) + soft(z_p, z.detach(), y, t=1.0)
        return [of_peer, F.cross_entropy(z, y) + soft(z, z_p.detach(), y, t=1.0)]

    return losses


def cases() -> dict[str, tuple[Objective, int, Callable[[Hand], StepLosses]]]:
    """Return each objective, how many teachers it has, and the same by hand."""

    def distill(match: Match, teachers: int = 1) -> oh.Distill:
        given = tuple(small_teacher(1 + number) for number in range(teachers))
        return oh.Distill(teacher=given if teachers > 1 else given[0], match=(match,))

    return {
        "task_loss": (oh.TaskLoss(), 0, task_loss),
        "soft_targets": (distill(oh.SoftTargets()), 1, partial(of_outputs, distance=soft)),
        "decoupled_targets": (
            distill(oh.DecoupledTargets()),
            1,
            partial(of_outputs, distance=decoupled),
        ),
        "correlation_targets": (
            distill(oh.CorrelationTargets()),
            1,
            partial(of_outputs, distance=correlation),
        ),
        "hints": (distill(oh.Hints(layers=ALL)), 1, hints),
        "attention_transfer": (
            distill(oh.AttentionTransfer(layers=ALL)),
            1,
            partial(of_layers, paths=LAYERS, distance=attention),
        ),
        "similarity_preserving": (
            distill(oh.SimilarityPreserving(layers=ALL)),
            1,
            partial(of_layers, paths=LAYERS, distance=similarity),
        ),
        "relational": (
            distill(oh.Relational(layers=LAST)),
            1,
            partial(of_layers, paths=LAYERS[-1:], distance=relational),
        ),
        "contrastive": (distill(oh.Contrastive(layers=LAST)), 1, contrastive),
        "gradient_matching": (distill(oh.GradientMatching()), 1, gradient_matching),
        "two_teachers": (
            distill(oh.SoftTargets(), teachers=2),
            2,
            partial(of_outputs, distance=soft),
        ),
        "mutual": (oh.Mutual(peers=(oh.Network(factory=small_student),)), 0, mutual),
    }


def by_hand(student: CifarResNet, teachers: int, make: Any, data: Splits) -> float:
    """Train by a plain loop and return the seconds."""
    train = data.train.read(torch.arange(len(data.train)))
    val = data.val.read(torch.arange(len(data.val)))
    images, labels = train.inputs[0], train.targets
    assert isinstance(labels, Tensor)
    start = clock()
    student.to(memory_format=torch.channels_last)
    hand = Hand(student, teachers)
    losses_of: StepLosses = make(hand)
    networks = [[student, *hand.extra], *([peer] for peer in hand.peers)]
    optimizers = [_sgd(network) for network in networks]
    schedule, steps = Cosine(), len(labels) // BATCH
    student.train()
    order = torch.Generator().manual_seed(derived_seed(0, "order", 1))
    with seeded(derived_seed(0, "epoch", 1, 0)):
        for step, index in enumerate(torch.randperm(len(labels), generator=order).split(BATCH)):
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = LR * schedule.factor((step + 0.5) / steps)
            x = images[index].contiguous(memory_format=torch.channels_last)
            losses = losses_of(x, labels[index])
            for loss in losses:
                loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if not losses[-1].isfinite():
                raise ArithmeticError("the loss is not finite")
    for network in (student, *hand.peers):
        network.eval()
        with torch.no_grad():
            (network(val.inputs[0]).argmax(1) == val.targets).float().mean().item()
    return clock() - start


def _sgd(networks: Sequence[nn.Module]) -> torch.optim.Optimizer:
    parameters = [each for network in networks for each in network.parameters()]
    groups = [
        {"params": [each for each in parameters if each.ndim >= 2], "weight_decay": 1e-4},
        {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=LR, momentum=0.9, nesterov=True)


def images_task(samples: int) -> tuple[oh.Task, Splits]:
    """Return random images with labels in turn."""

    def some(count: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, 3, 32, 32, generator=generator), torch.arange(count) % 10

    task = oh.Classification(train=some(samples, 0), val=some(64, 1), test=some(64, 2))
    return task, task.prepare()


def objective_cost(name: str, pairs: int) -> dict[str, Any]:
    """Time `Train` and the hand-written loop in turn, and compare the weights that they reach."""
    objective, teachers, make = cases()[name]
    task, data = images_task(SAMPLES)
    with seeded(0):
        start = small_student()
    ended: dict[str, CifarResNet] = {}
    plan = oh.Train(
        epochs=1, batch_size=BATCH, optimizer=SGD(lr=LR), objective=objective, keep="last"
    )

    def ours() -> float:
        ended["ours"] = deepcopy(start)
        return seconds_of(plan, ended["ours"], task, data, clock)

    def theirs() -> float:
        ended["by_hand"] = deepcopy(start)
        return by_hand(ended["by_hand"], teachers, make, data)

    found = compare({"ours": ours, "by_hand": theirs}, pairs)
    first, one, other = (_vector(net) for net in (start, ended["ours"], ended["by_hand"]))
    apart = float((one - other).norm() / (other - first).norm())
    if not apart < 0.01:
        raise ArithmeticError(f"{name}: the loops end in other weights, {apart:.3g} of the way")
    return {**found, "steps": SAMPLES // BATCH, "weights_apart": apart}


def _vector(network: nn.Module) -> Tensor:
    return torch.cat([each.detach().flatten().double() for each in network.parameters()])


def cache_cost(precision: Any, rounds: int) -> dict[str, Any]:
    """Time an epoch of ResNet-56 -> ResNet-20 without a cache, and with one that is full."""
    task, data = images_task(1280)
    with seeded(0):
        student, teacher = resnet20(), resnet56()
    ended: dict[str, dict[str, Tensor]] = {}
    with tempfile.TemporaryDirectory() as folder:

        def epoch(name: str, cache: oh.TeacherCache | None) -> float:
            objective = oh.Distill(teacher=teacher, cache=cache, weight=0.9)
            plan = oh.Train(
                epochs=1,
                batch_size=128,
                optimizer=SGD(lr=LR),
                objective=objective,
                augmentations=(oh.Flip(), oh.Shift()),
                precision=precision,
                keep="last",
            )
            net = deepcopy(student)
            seconds = seconds_of(plan, net, task, data, clock)
            ended[name] = model_tensors(net)
            return seconds

        cache = oh.TeacherCache(folder=folder)
        filling_s = epoch("filling", cache)
        found = compare(
            {"without": partial(epoch, "without", None), "with": partial(epoch, "with", cache)},
            rounds,
        )
    apart = max(
        float((ended["with"][name].double() - tensor.double()).abs().max())
        for name, tensor in ended["without"].items()
    )
    return {**found, "filling_s": filling_s, "largest_difference_of_weights": apart, "steps": 10}


def lookup_cost(rounds: int) -> dict[str, Any]:
    """Time how a full cache finds the outputs of 128 images."""
    task, data = images_task(128)
    student, teacher = small_student(), small_teacher()
    batch = next(data.train.in_order(128))
    times = []
    with tempfile.TemporaryDirectory() as folder:
        cached = CachedTeacher(
            oh.TeacherCache(folder=folder), teacher, _context(task, data, student, Path(folder))
        )
        for number in range(rounds + 1):
            start = clock()
            with torch.no_grad():
                cached.see(batch)
            if number > 0:  # the first fills it
                times.append(1e3 * (clock() - start))
    return {"median_ms": statistics.median(times), "rounds": rounds}


def _context(task: oh.Task, data: Splits, original: nn.Module, folder: Path) -> Context:
    return Context(
        task=task,
        data=data,
        original=original,
        checkpoints=CheckpointFolder(folder / "checkpoints"),
        artifact_folder=folder / "artifact",
        progress=oh.Progress(quiet=True),
    )


def matching_cost(student: nn.Module, teacher: nn.Module, rounds: int) -> dict[str, Any]:
    """Time steps of `GradientMatching` and its parts in turn."""
    task, data = images_task(BATCH)
    student = student.to(memory_format=torch.channels_last)
    teacher = teacher.eval().requires_grad_(False)
    batch = next(data.train.in_order(BATCH)).map_inputs(
        lambda x: x.contiguous(memory_format=torch.channels_last)
    )
    (x,), y = batch.arguments[0], batch.targets
    assert isinstance(y, Tensor)
    with tempfile.TemporaryDirectory() as folder:
        ctx = _context(task, data, teacher, Path(folder))
        matches = {"soft_targets": oh.SoftTargets(), "gradient_matching": oh.GradientMatching()}
        objectives = {
            name: oh.Distill(teacher=teacher, match=(match,)).bind(student, ctx)
            for name, match in matches.items()
        }
    student.train()

    def step(name: str) -> None:
        torch.stack(list(objectives[name](student, batch).values())).sum().backward()

    def teach(gradient: bool) -> None:
        given = x.detach().requires_grad_(gradient)
        with nullcontext() if gradient else torch.no_grad():
            z = teacher(given)
        if gradient:
            torch.autograd.grad(z, given, torch.ones_like(z))

    parts: dict[str, Callable[[], Any]] = {
        "forward": lambda: student(x),
        "task_loss": lambda: F.cross_entropy(student(x), y).backward(),
        "teacher": partial(teach, False),
        "teacher_gradient": partial(teach, True),
        **{name: partial(step, name) for name in matches},
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(rounds + 1):
        for name, part in parts.items():
            start = clock()
            part()
            if number > 0:
                times[name].append(clock() - start)
            student.zero_grad()

    def passes(t: dict[str, float]) -> float:
        teacher = t["teacher_gradient"] - t["teacher"]
        extra = t["gradient_matching"] - t["soft_targets"] - teacher
        return extra / (t["task_loss"] - t["forward"])

    each = [{name: found[number] for name, found in times.items()} for number in range(rounds)]
    ratios = [t["gradient_matching"] / t["soft_targets"] for t in each]
    return {
        "ms": {name: 1e3 * statistics.median(found) for name, found in times.items()},
        "extra_backward_passes": statistics.median(map(passes, each)),
        "extra_quartiles": statistics.quantiles(map(passes, each), n=4),
        "steps_of_soft_targets": statistics.median(ratios),
        "rounds": rounds,
    }


def small_cnn(width: int) -> nn.Module:
    """Return three convolutions with BatchNorm."""
    layers: list[nn.Module] = []
    for before, after in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)]
    return nn.Sequential(*layers, *pooled)


def measurements(pairs: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield each figure's name and how it is measured."""
    for precision in ("fp32", "bf16"):
        yield f"cache/{precision}", partial(cache_cost, precision, pairs)
    yield "cache/lookup", partial(lookup_cost, 20)
    yield (
        "gradient_matching/resnet56 -> resnet20",
        lambda: matching_cost(resnet20(), resnet56(), 2 * pairs),
    )
    yield (
        "gradient_matching/small CNN, teacher of twice its width",
        lambda: matching_cost(small_cnn(16), small_cnn(32), 4 * pairs),
    )
    for name in cases():
        yield f"objectives/{name}", partial(objective_cost, name, pairs)


def main() -> None:
    """Measure what is not in the file yet, print a line each, write JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument(
        "--only", default=("",), help="measure names that start like one of these", nargs="*"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out: Path = arguments.out
    results: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
    for name, measure in measurements(arguments.pairs):
        if name in results or not name.startswith(tuple(arguments.only)):
            continue
        results[name] = measure()
        print(name, json.dumps(results[name]), flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
