import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overhaul.core import Context, ModelError, NonFiniteLossError, SpecError, model_tensors
from overhaul.testing import TinyCNN, tiny_cnn, tiny_task
from overhaul.training import (
    SGD,
    AdamW,
    BoundConstraint,
    BoundObserver,
    Constant,
    Constraint,
    EarlyStop,
    EpochReport,
    Flip,
    Observer,
    Shift,
    Sum,
    Train,
)
from overhaul.training._batching import epoch_batches

MakeContext = Callable[..., Context]


def test_training_learns_the_task(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(deepcopy(model))
    Train(epochs=8, batch_size=8, optimizer=AdamW(lr=1e-2)).apply(model, ctx)
    losses = [fact.value for fact in ctx.facts if fact.name == "train_loss"]
    accuracies = [fact.value for fact in ctx.facts if fact.name == "val_accuracy"]
    assert len(losses) == 8
    assert float(losses[-1] or 0) < 0.3 * float(losses[0] or 0)
    assert max(float(a or 0) for a in accuracies) == 1.0


def test_equals_a_hand_written_loop(make_context: MakeContext) -> None:
    plan = Train(
        epochs=2, batch_size=8, optimizer=SGD(lr=0.05), schedule=Constant(), keep="last",
        channels_last=False,
    )  # fmt: skip
    ours, theirs = tiny_cnn(), tiny_cnn()
    for net in (ours, theirs):
        net.dropout.p = 0.0
    ctx = make_context(deepcopy(ours))
    plan.apply(ours, ctx)

    decayed = [p for p in theirs.parameters() if p.ndim >= 2]
    plain = [p for p in theirs.parameters() if p.ndim < 2]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 1e-4}, {"params": plain, "weight_decay": 0.0}],
        lr=0.05, momentum=0.9, nesterov=True,
    )  # fmt: skip
    theirs.train()
    for epoch in (1, 2):
        for indices in epoch_batches(48, 8, ctx.generator("order", epoch)):
            batch = ctx.data.train.read(indices)
            optimizer.zero_grad()
            assert isinstance(batch.targets, Tensor)
            F.cross_entropy(theirs(*batch.inputs), batch.targets).backward()
            optimizer.step()
    for name, tensor in model_tensors(theirs).items():
        torch.testing.assert_close(model_tensors(ours)[name], tensor, msg=name)


@pytest.mark.parametrize("accumulate", [2, 3, 5])
def test_accumulation_makes_the_same_step(make_context: MakeContext, accumulate: int) -> None:
    whole, parts = MLP(), MLP()
    plan = Train(epochs=2, batch_size=7, optimizer=SGD(lr=0.1), keep="last")
    plan.apply(whole, make_context(deepcopy(whole)))
    ctx = make_context(deepcopy(parts))
    ctx.checkpoints._path = ctx.checkpoints._path / "other"
    plan.model_copy(update={"accumulate": accumulate}).apply(parts, ctx)
    for name, tensor in model_tensors(whole).items():
        torch.testing.assert_close(model_tensors(parts)[name], tensor, rtol=1e-4, atol=1e-5)


class MLP(nn.Module):
    """Without BatchNorm, whose statistics depend on how a batch is cut."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def test_the_model_comes_back_in_the_mode_it_came_in(make_context: MakeContext) -> None:
    model = tiny_cnn().eval()
    model.dropout.train()
    Train(epochs=1).apply(model, make_context(deepcopy(model)))
    flags = {name: module.training for name, module in model.named_modules()}
    assert flags == {"": False, "conv": False, "bn": False, "dropout": True, "fc": False}


class _ModeWatch(Observer):
    seen: tuple[str, ...] = ()

    def bind(self, model: nn.Module, ctx: Context) -> BoundObserver:
        return _BoundModeWatch(model)


_MODES: list[bool] = []


class _BoundModeWatch(BoundObserver):
    def __init__(self, model: nn.Module) -> None:
        self.model = model
        _MODES.clear()

    def after_step(self, step: int, loss: float) -> None:
        _MODES.append(self.model.training and math.isfinite(loss))


def test_the_student_is_in_train_mode_in_every_epoch(make_context: MakeContext) -> None:
    model = tiny_cnn().eval()
    Train(epochs=3, batch_size=16, observers=(_ModeWatch(),)).apply(model, make_context(model))
    assert _MODES == [True] * 9


def test_best_weights_are_kept_and_not_the_last(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(deepcopy(model))
    Train(epochs=6, batch_size=8, optimizer=AdamW(lr=1e-2)).apply(model, ctx)
    best = next(fact for fact in ctx.facts if fact.name == "best_epoch")
    by_epoch = {f.detail["epoch"]: f.value for f in ctx.facts if f.name == "val_accuracy"}
    assert best.value == min(e for e, v in by_epoch.items() if v == max(by_epoch.values()))  # type: ignore[type-var]


def test_training_that_only_harms_keeps_the_weights_from_before(make_context: MakeContext) -> None:
    model = tiny_cnn()
    Train(epochs=8, batch_size=8, optimizer=AdamW(lr=1e-2)).apply(model, make_context(model))
    before = {name: tensor.clone() for name, tensor in model_tensors(model).items()}
    ctx = make_context(deepcopy(model))
    ctx.checkpoints._path = ctx.checkpoints._path / "other"
    Train(epochs=1, optimizer=SGD(lr=0.5, momentum=0.0), schedule=Constant()).apply(model, ctx)
    best = next(fact for fact in ctx.facts if fact.name == "best_epoch")
    assert best.value == 0
    assert "whose weights were kept" in (best.reason or "")
    assert all(torch.equal(before[name], t) for name, t in model_tensors(model).items())


def test_non_finite_loss_names_batch_rate_and_way_out(make_context: MakeContext) -> None:
    model = tiny_cnn()
    plan = Train(epochs=2, batch_size=8, optimizer=SGD(lr=1e30), schedule=Constant())
    with pytest.raises(NonFiniteLossError, match=r"batch \d+ of epoch 1 .*1e\+30.*clip_norm"):
        plan.apply(model, make_context(deepcopy(model)))


def test_non_finite_loss_keeps_the_best_weights(make_context: MakeContext) -> None:
    class Exploding(Constraint):
        def bind(self, model: nn.Module, ctx: Context) -> BoundConstraint:
            return _Explosion(model)

    class _Explosion(BoundConstraint):
        def __init__(self, model: nn.Module) -> None:
            self.model, self.steps = model, 0

        def project_(self) -> None:
            self.steps += 1
            if self.steps == 8:
                next(self.model.parameters()).data.fill_(math.inf)

    model = tiny_cnn()
    ctx = make_context(deepcopy(model))
    with pytest.raises(NonFiniteLossError, match=r"The best weights so far, of epoch 1, are in"):
        Train(epochs=3, batch_size=8, constraints=(Exploding(),)).apply(model, ctx)
    kept = ctx.checkpoints.latest()
    assert kept is not None
    assert kept["best"]["epoch"] == 1
    assert all(torch.isfinite(t).all() for t in kept["best"]["tensors"].values())


class Shifting(Constraint):
    """Gives the model a parameter while it trains, and keeps what becomes of it."""

    def bind(self, model: nn.Module, ctx: Context) -> BoundConstraint:
        return _Shift(model, ctx)


class _Shift(BoundConstraint):
    def __init__(self, model: nn.Module, ctx: Context) -> None:
        self.model, self.ctx = model, ctx
        self.own = nn.Parameter(torch.zeros(3))
        model.register_parameter("own", self.own)
        self.hook = model.register_forward_hook(lambda module, args, out: out + self.own)

    def release_(self) -> None:
        self.hook.remove()
        del self.model._parameters["own"]
        self.ctx.log("own", float(self.own.detach().abs().sum()))


def test_what_a_constraint_gives_the_model_is_trained_and_of_the_best_epoch(
    make_context: MakeContext,
) -> None:
    found = {}
    for keep in ("best", "last"):
        model = tiny_cnn()
        ctx = make_context(model)
        ctx.checkpoints = ctx.checkpoints.part(keep)
        # With such a rate, nothing is as good afterwards as before.
        plan = Train(
            epochs=1, constraints=(Shifting(),), optimizer=SGD(lr=1e3, momentum=0), keep=keep
        )
        plan.apply(model, ctx)
        assert set(model_tensors(model)) == set(model_tensors(tiny_cnn()))
        found[keep] = next(fact.value for fact in ctx.facts if fact.name == "own")
    assert found["best"] == 0
    assert found["last"] != 0


def test_nothing_to_train_is_refused(make_context: MakeContext) -> None:
    model = tiny_cnn().requires_grad_(False)
    with pytest.raises(SpecError, match=r"no parameter .* requires a gradient"):
        Train(epochs=1).apply(model, make_context(model))


def test_fp16_without_a_gpu_is_refused_before_work() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    task = tiny_task()
    with pytest.raises(SpecError, match=r"'fp16' needs a GPU"):
        Train(epochs=1, precision="fp16").preflight(tiny_cnn(), task, task.prepare())


def test_bf16_trains(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(deepcopy(model))
    Train(epochs=6, batch_size=8, precision="bf16", optimizer=AdamW(lr=1e-2)).apply(model, ctx)
    assert max(float(f.value or 0) for f in ctx.facts if f.name == "val_accuracy") > 0.8
    assert all(tensor.dtype != torch.bfloat16 for tensor in model_tensors(model).values())


def test_precision_may_differ_between_trainings_of_one_process(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(deepcopy(model))
    Train(epochs=1, precision="bf16").apply(model, ctx)
    ctx.checkpoints._path = ctx.checkpoints._path / "other"
    Train(epochs=1, precision="fp32").apply(model, ctx)
    assert len([fact for fact in ctx.facts if fact.name == "train_loss"]) == 2


class _ViewNet(TinyCNN):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.bn(self.conv(x))), 2)
        logits: Tensor = self.fc(x.view(x.size(0), -1))
        return logits


def test_channels_last_is_left_out_where_view_forbids_it(make_context: MakeContext) -> None:
    model = _ViewNet()
    ctx = make_context(deepcopy(model))
    Train(epochs=1).apply(model, ctx)
    assert [fact for fact in ctx.facts if fact.name == "train_loss"]


def test_channels_last_that_was_asked_for_and_cannot_be_is_refused(
    make_context: MakeContext,
) -> None:
    model = _ViewNet()
    with pytest.raises(ModelError, match=r"`channels_last` was asked for"):
        Train(epochs=1, channels_last=True).apply(model, make_context(model))


def test_clipping_bounds_the_step(make_context: MakeContext) -> None:
    model = tiny_cnn()
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    plan = Train(
        epochs=1, batch_size=48, clip_norm=1e-3, schedule=Constant(), keep="last",
        optimizer=SGD(lr=1.0, momentum=0.0, weight_decay=0.0),
    )  # fmt: skip
    plan.apply(model, make_context(deepcopy(model)))
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert float((after - before).norm()) == pytest.approx(1e-3, rel=1e-2)


def test_early_stop_ends_the_training(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(deepcopy(model))
    plan = Train(
        epochs=50, batch_size=8, optimizer=AdamW(lr=1e-2), observers=(EarlyStop(patience=2),)
    )
    plan.apply(model, ctx)
    epochs = len([fact for fact in ctx.facts if fact.name == "train_loss"])
    assert 3 <= epochs < 50


def test_early_stop_waits_and_remembers() -> None:
    def report(score: float) -> EpochReport:
        return EpochReport(epoch=1, train_loss=0.0, val_metrics={}, score=score)

    task = tiny_task()
    assert task is not None
    bound = EarlyStop(patience=2).bind(nn.Identity(), None)  # type: ignore[arg-type]
    assert [bound.after_epoch(report(s)) for s in (0.5, 0.4, 0.6, 0.6)] == [False] * 4
    fresh = EarlyStop(patience=2).bind(nn.Identity(), None)  # type: ignore[arg-type]
    fresh.load_(bound.state())
    assert fresh.after_epoch(report(0.1)) is True


class _Interrupt(Exception):  # noqa: N818
    pass


class _StopAfter(Observer):
    epoch: int

    def bind(self, model: nn.Module, ctx: Context) -> BoundObserver:
        return _BoundStop(self.epoch)


class _BoundStop(BoundObserver):
    def __init__(self, epoch: int) -> None:
        self.epoch, self.steps = epoch, 0

    def after_step(self, step: int, loss: float) -> None:
        if step == 3 * self.epoch + 1 and not self.resumed:
            raise _Interrupt

    resumed = False

    def load_(self, state: dict[str, Any]) -> None:
        self.resumed = True


def test_an_interrupted_training_ends_in_the_same_weights(make_context: MakeContext) -> None:
    plan = Train(
        epochs=4, batch_size=16, augmentations=(Flip(), Shift(pixels=1)), optimizer=AdamW(lr=1e-2)
    )
    straight = tiny_cnn()
    straight_ctx = make_context(deepcopy(straight))
    straight_ctx.checkpoints._path = straight_ctx.checkpoints._path / "straight"
    plan.apply(straight, straight_ctx)

    stopping = plan.model_copy(update={"observers": (_StopAfter(epoch=2),)})
    with pytest.raises(_Interrupt):
        stopping.apply(tiny_cnn(), make_context(tiny_cnn()))
    resumed, ctx = tiny_cnn(), make_context(tiny_cnn())
    stopping.apply(resumed, ctx)
    for name, tensor in model_tensors(straight).items():
        assert torch.equal(model_tensors(resumed)[name], tensor), name
    assert [f for f in ctx.facts if f.reproducible] == [
        f for f in straight_ctx.facts if f.reproducible
    ]


def test_a_weight_for_an_unknown_loss_is_refused(make_context: MakeContext) -> None:
    model = tiny_cnn()
    with pytest.raises(SpecError, match=r"names the loss 'taks'. Did you mean 'task'"):
        Train(epochs=1, combiner=Sum(weights={"taks": 2.0})).apply(model, make_context(model))


def test_control_is_the_same_training_with_the_plain_loss() -> None:
    plan = Train(epochs=3, batch_size=9, combiner=Sum(weights={"task": 2.0}))
    assert plan.control() == Train(epochs=3, batch_size=9)
