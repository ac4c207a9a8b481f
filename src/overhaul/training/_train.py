"""`Train`: the one training loop."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from overhaul.core import (
    Advance,
    Batch,
    Context,
    Fact,
    NonFiniteLossError,
    SpecError,
    Splits,
    Step,
    Task,
    Trait,
    Traits,
    load_tensors_,
    model_tensors,
)
from overhaul.evaluation import predict
from overhaul.training._augmentation import Augmentation
from overhaul.training._batching import epoch_batches, parts_of
from overhaul.training._channels_last import (
    all_take_channels_last_,
    channels_last,
    use_channels_last_,
)
from overhaul.training._choose import choose_settings, epochs_of_trial, epochs_of_trials
from overhaul.training._combiner import BoundCombiner, Combiner, Sum
from overhaul.training._constraint import BoundConstraint, Constraint
from overhaul.training._hardware import Hardware, Precision
from overhaul.training._joined_optimizer import joined
from overhaul.training._objective import BoundObjective, Objective, TaskLoss
from overhaul.training._observer import BoundObserver, EpochReport, Observer
from overhaul.training._optimizers import AdamW, Optimizer
from overhaul.training._schedules import Cosine, Schedule

# On a GPU, asking for the value of a loss waits for all work before it: it is asked for seldom.
_STEPS_BETWEEN_CHECKS_ON_GPU = 16
# A training of many short epochs shall not fill the screen or a log.
_BETWEEN_EPOCH_LINES_S = 5.0


class Train(Step):
    r"""Train the model on the training split and keep the weights that do best on validation.

    For each batch the objective gives named losses :math:`L_k`, the combiner turns them into one
    gradient, the optimizer makes a step, every constraint makes itself hold again, and then every
    observer looks on. After each epoch the task's number to choose by is measured on
    `val`. The weights from before the training take part in the choice, so training never
    makes the model worse on `val`.

    Settings of the objective that are `auto` (`Distill(weight="auto")`) are chosen on `val` before
    that, by trainings of copies of the model for a tenth of the epochs each, at least one. The
    control gets all these epochs too.

    Args:
        epochs: Passes over the training split.
        batch_size: Samples of one optimizer step, over all processes. Default 64.
        optimizer: Default `AdamW()`.
        schedule: The learning rate over time. Default `Cosine()`.
        objective: What is minimized. Default `TaskLoss()`.
        combiner: How several losses become one gradient. Default `Sum()`.
        augmentations: Random changes of the inputs, in this order.
        constraints: What must hold of the weights, besides what earlier steps left.
        observers: What watches, and may end the training.
        clip_norm: Largest norm of the gradient; None does not clip.
        precision: `fp32`, `bf16` or (on a GPU) `fp16`, by autocast. Evaluation is in `fp32`.
        accumulate: Parts in which a batch is computed, to save memory; the step is the same.
        channels_last: Store images and kernels channels last. None: where it helps, which is on a
            GPU in half precision, and on a CPU for convolutions with BatchNorm
            (`benchmarks/channels_last.py`).
        keep: `best` on validation, or the `last` weights.
        workers: Processes that read data ahead.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.

    Example:
        >>> Train(epochs=3, optimizer=AdamW(lr=3e-4), clip_norm=1.0)
        Train(epochs=3, optimizer=AdamW(lr=0.0003), clip_norm=1.0)
    """

    needs: ClassVar[Traits] = frozenset({Trait.EDITABLE, Trait.TRAINABLE, Trait.FITS_TASK})

    epochs: int = Field(ge=1, description="Passes over the training split.")
    batch_size: int = Field(default=64, ge=1, description="Samples of one optimizer step.")
    optimizer: Optimizer = AdamW()
    schedule: Schedule = Cosine()
    objective: Objective = TaskLoss()
    combiner: Combiner = Sum()
    augmentations: tuple[Augmentation, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    observers: tuple[Observer, ...] = ()
    clip_norm: float | None = Field(default=None, gt=0, description="Largest norm of the gradient.")
    precision: Precision = "fp32"
    accumulate: int = Field(default=1, ge=1, description="Parts in which a batch is computed.")
    channels_last: bool | None = None
    keep: Literal["best", "last"] = "best"
    workers: int = Field(default=0, ge=0, description="Processes that read data ahead.")

    def preflight(self, original: nn.Module, task: Task, data: Splits) -> None:
        """See that the device trains in this precision and that the objective has what it needs."""
        Hardware(self.precision)
        self.objective.preflight(original, task, data)

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Train the model in place and return it."""
        objective = choose_settings(
            self.objective, self._trial, epochs_of_trial(self.epochs), model, ctx
        )
        flags = [(module, module.training) for module in model.modules()]
        device = next(model.parameters()).device
        _Loop(self.model_copy(update={"objective": objective}), model, ctx).run_()
        for module, flag in flags:
            module.training = flag
        return model.to(device)

    def control(self) -> "Train":
        """Return the same training with the plain task loss: what training alone would give."""
        epochs = self.epochs + epochs_of_trials(self.objective, self.epochs)
        plain = {"objective": TaskLoss(), "combiner": Sum(), "constraints": ()}
        return self.model_copy(update={**plain, "epochs": epochs})

    def _trial(self, objective: Objective) -> "Train":
        """Return a short training, whose last weights count: the best epoch is a lucky one."""
        short = {"epochs": epochs_of_trial(self.epochs), "observers": (), "keep": "last"}
        return self.model_copy(update={"objective": objective, **short})


@dataclass
class _Best:
    """The best weights so far and where they come from; epoch 0 is before the training."""

    score: float
    epoch: int
    tensors: dict[str, Tensor]


class _Loop:
    """One training: what `Train` describes, at work on one model."""

    def __init__(self, plan: Train, model: nn.Module, ctx: Context) -> None:
        self.plan, self.model, self.ctx = plan, model, ctx
        self.hardware = Hardware(plan.precision)
        model.to(self.hardware.device)
        self.channels_last = use_channels_last_(
            model, plan.channels_last, self.hardware.device, plan.precision, ctx.data
        )
        carried = [item for item in ctx.carried if isinstance(item, Constraint)]
        self.constraints: list[BoundConstraint] = [
            constraint.bind(model, ctx) for constraint in (*carried, *plan.constraints)
        ]
        self.observers: list[BoundObserver] = [
            observer.bind(model, ctx) for observer in plan.observers
        ]
        self.objective: BoundObjective = plan.objective.bind(model, ctx).to(self.hardware.device)
        self.channels_last = self.channels_last and all_take_channels_last_(
            self.objective.networks, model, plan.channels_last, self.hardware.device, ctx.data
        )
        self.combiner: BoundCombiner = plan.combiner.bind(model, ctx).to(self.hardware.device)
        self.own = {
            name: parameter
            for part in (self.objective, self.combiner)
            for name, parameter in part.named_parameters(prefix=type(part).__name__)
            if parameter.requires_grad
        }
        companions = self.objective.companions
        for companion in companions if self.channels_last else ():
            use_channels_last_(
                companion.network, None, self.hardware.device, plan.precision, ctx.data
            )
        theirs = [_trained(companion.network) for companion in companions]
        apart = {id(parameter) for parameters in theirs for parameter in parameters}
        self.own = {name: p for name, p in self.own.items() if id(p) not in apart}
        trained = _trained(model)
        if not trained:
            raise SpecError(
                "no parameter of the model requires a gradient. Put Unfreeze before Train."
            )
        self.networks = [[*trained, *self.own.values()], *theirs]
        self.called = self.hardware.wrap(model)
        self.hardware.synchronize_also([*self.own.values(), *chain.from_iterable(theirs)])
        plans = [plan.optimizer, *(each.optimizer or plan.optimizer for each in companions)]
        optimizers = [p.build(some) for p, some in zip(plans, self.networks, strict=True)]
        self.optimizer = self.hardware.prepare_optimizer(joined(optimizers))
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.best = _Best(math.nan, 0, {})
        self.latest_metric = ""
        self.steps_per_epoch = len(
            epoch_batches(len(ctx.data.train), plan.batch_size, torch.Generator())
        )

    def run_(self) -> None:
        """Train, and leave the chosen weights in the model."""
        done, stopped = self._resume_()
        epochs = range(done + 1, self.plan.epochs + 1)
        with self.ctx.progress.bar(self.ctx.label, len(epochs) * self.steps_per_epoch) as advance:
            for epoch in epochs:
                if stopped:
                    break
                stopped = self._run_epoch_(epoch, advance)
                self._save_checkpoint(epoch, stopped)
        self.hardware.unwrap_()
        if self.plan.keep == "best":
            load_tensors_(self.model, self.best.tensors)
            self.ctx.log("best_epoch", self.best.epoch, reason=self._why_not_better())
        for constraint in self.constraints:
            constraint.release_()
        if self.channels_last:
            self.model.to(memory_format=torch.contiguous_format)

    def _why_not_better(self) -> str | None:
        if self.best.epoch > 0:
            return None
        return (
            f"no epoch was better on val than the model before training ({self._metric} "
            f"{abs(self.best.score):.4f}), whose weights were kept"
        )

    @property
    def _metric(self) -> str:
        return self.ctx.task.selection_metric

    def _run_epoch_(self, epoch: int, advance: Advance) -> bool:
        with self.ctx.seeded("epoch", epoch, self.hardware.rank):
            start = time.perf_counter()
            train_loss = self._train_epoch_(epoch, advance)
            seconds = time.perf_counter() - start
        metrics = self._evaluate()
        report = EpochReport(epoch, train_loss, metrics, self._score(metrics))
        detail = {"epoch": epoch}
        self.ctx.log("train_loss", train_loss, split="train", detail=detail)
        for name, value in metrics.items():
            self.ctx.log(f"val_{name}", value, split="val", detail=detail)
        self.ctx.log("epoch_s", seconds, unit="s", detail=detail, reproducible=False)
        self.ctx.progress.say(
            f"{self.ctx.label}: epoch {epoch}/{self.plan.epochs}, train loss {train_loss:.4f}, "
            f"{self.latest_metric}, {seconds:.1f} s",
            unless_within_s=0.0 if epoch == self.plan.epochs else _BETWEEN_EPOCH_LINES_S,
        )
        self._remember_if_best(report)
        self.objective.after_epoch(epoch)
        wishes = [observer.after_epoch(report) for observer in self.observers]
        return any(wishes)

    def _train_epoch_(self, epoch: int, advance: Advance) -> float:
        ctx, plan = self.ctx, self.plan
        batches = epoch_batches(len(ctx.data.train), plan.batch_size, ctx.generator("order", epoch))
        parts, weights = parts_of(
            batches, plan.accumulate, self.hardware.rank, self.hardware.processes
        )
        draws = ctx.generator("augmentation", epoch, self.hardware.rank)
        self.model.train()
        for constraint in self.constraints:
            constraint.set_mode_()
        watch = _LossWatch(self, epoch, len(batches))
        for number, batch in enumerate(ctx.data.train.batches(parts, plan.workers)):
            step, part = divmod(number, plan.accumulate)
            step_overall = (epoch - 1) * len(batches) + step
            last_part = part == plan.accumulate - 1
            self._set_learning_rate_(step_overall)
            loss = self._accumulate_(self._ready(batch, draws), weights[number], last_part)
            watch.add(step, loss, batch.indices, weights[number])
            if last_part:
                self._step_()
                for observer in self.observers:
                    observer.after_step(step_overall, watch.value)
                now = f"epoch {epoch}/{plan.epochs} loss {watch.value:.4f}"
                advance(f"{now} {self.latest_metric}")
        return watch.mean()

    def _ready(self, batch: Batch, draws: torch.Generator) -> Batch:
        for augmentation in self.plan.augmentations:
            batch = augmentation.apply(batch, draws)
        batch = batch.to(self.hardware.device)
        return batch.map_inputs(channels_last) if self.channels_last else batch

    def _accumulate_(self, batch: Batch, weight: float, last_part: bool) -> Tensor:
        """Add the gradient of a part of a batch and return its mean loss."""
        with self.hardware.forward_pass(self.called, last_part=last_part):
            losses = self.objective(self.called, batch)
        for name in self.objective.beside:
            self.hardware.backward(losses.pop(name) * weight)
        total: Tensor = self.combiner(losses, lambda loss: self.hardware.backward(loss * weight))
        return total

    def _step_(self) -> None:
        self.hardware.finish_gradients_(self.networks, self.plan.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for constraint in self.constraints:
            constraint.project_()

    def schedule_factor(self, step: int) -> float:
        """Return the factor of the learning rate at a step, counted over the whole training."""
        total = self.plan.epochs * self.steps_per_epoch
        return self.plan.schedule.factor((step + 0.5) / total)

    def _set_learning_rate_(self, step: int) -> None:
        factor = self.schedule_factor(step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _evaluate(self) -> dict[str, float]:
        predictions = predict(self.model, self.ctx.data.val)
        metrics = self.ctx.task.metrics(predictions.outputs, predictions.targets)
        self.latest_metric = f"val {self._metric} {metrics[self._metric]:.4f}"
        return metrics

    def _score(self, metrics: dict[str, float]) -> float:
        value = metrics[self._metric]
        return value if self.ctx.task.higher_is_better else -value

    def _remember_if_best(self, report: EpochReport) -> None:
        if math.isnan(self.best.score) or report.score > self.best.score:
            self.best = _Best(report.score, report.epoch, _copied(model_tensors(self.model)))

    def _resume_(self) -> tuple[int, bool]:
        """Load the latest checkpoint; return the finished epochs and whether training had ended."""
        checkpoint = self.ctx.checkpoints.latest()
        self.hardware.wait()
        if checkpoint is None:
            metrics = self._evaluate()
            self._remember_if_best(EpochReport(0, math.nan, metrics, self._score(metrics)))
            return 0, False
        load_tensors_(self.model, checkpoint["tensors"])
        with torch.no_grad():
            for name, parameter in self.own.items():
                parameter.copy_(checkpoint["own"][name])
        for companion, saved in zip(
            self.objective.companions, checkpoint["companions"], strict=True
        ):
            load_tensors_(companion.network, saved)
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.hardware.load_(checkpoint["hardware"])
        for plug, state in zip(self._plugs(), checkpoint["plugs"], strict=True):
            plug.load_(state)
        self.best = _Best(**checkpoint["best"])
        self.ctx.facts[:] = [Fact.model_validate(fact) for fact in checkpoint["facts"]]
        self.ctx.progress.say(f"{self.ctx.label}: goes on after epoch {checkpoint['epoch']}")
        return checkpoint["epoch"], checkpoint["stopped"]

    def _save_checkpoint(self, epoch: int, stopped: bool) -> None:
        self.ctx.checkpoints.save(
            epoch,
            {
                "epoch": epoch,
                "stopped": stopped,
                "tensors": model_tensors(self.model),
                "own": dict(self.own),
                "companions": [model_tensors(each.network) for each in self.objective.companions],
                "optimizer": self.optimizer.state_dict(),
                "hardware": self.hardware.state(),
                "plugs": [plug.state() for plug in self._plugs()],
                "best": vars(self.best),
                "facts": [fact.model_dump(mode="json") for fact in self.ctx.facts],
            },
        )

    def _plugs(self) -> Iterable[BoundConstraint | BoundObserver]:
        return (*self.constraints, *self.observers)


class _LossWatch:
    """Averages the loss over an epoch and stops the training when it is not finite."""

    def __init__(self, loop: _Loop, epoch: int, batches: int) -> None:
        self.loop, self.epoch, self.batches = loop, epoch, batches
        on_gpu = loop.hardware.device.type != "cpu"
        self.every = _STEPS_BETWEEN_CHECKS_ON_GPU if on_gpu else 1
        self.pending: list[tuple[int, Tensor, Tensor]] = []
        self.sum, self.samples, self.value = 0.0, 0, math.nan

    def add(self, step: int, loss: Tensor, indices: Tensor, weight: float) -> None:
        """Take the mean loss of a part of a batch; a part of weight 0 has no samples of its own."""
        if weight > 0:
            self.pending.append((step, loss, indices))
        if len(self.pending) >= self.every:
            self._flush()

    def mean(self) -> float:
        """Return the mean over the samples of all processes."""
        self._flush()
        hardware = self.loop.hardware
        total = hardware.total(torch.tensor(self.sum, device=hardware.device))
        return total / hardware.total(torch.tensor(float(self.samples), device=hardware.device))

    def _flush(self) -> None:
        for step, loss, indices in self.pending:
            self.value = float(loss)
            if not math.isfinite(self.value):
                self._refuse(step, self.value, indices)
            self.sum += self.value * len(indices)
            self.samples += len(indices)
        self.pending.clear()

    def _refuse(self, step: int, value: float, indices: Tensor) -> None:
        loop, plan = self.loop, self.loop.plan
        step_overall = (self.epoch - 1) * self.batches + step
        rate = plan.optimizer.lr * loop.schedule_factor(step_overall)
        tries = [f"a lower learning rate (optimizer lr {plan.optimizer.lr / 10:.2g})"]
        if plan.clip_norm is None:
            tries.append("clip_norm=1.0")
        if plan.precision == "fp16":
            tries.append("precision='bf16'")
        kept = (
            f"The best weights so far, of epoch {loop.best.epoch}, are in "
            f"'{loop.ctx.checkpoints.path}'."
            if self.epoch > 1
            else "The model from before this training is unchanged."
        )
        raise NonFiniteLossError(
            f"the loss became {value} at batch {step} of epoch {self.epoch} (learning rate "
            f"{rate:.3g}; first samples of the batch: {indices[:5].tolist()}). "
            f"Try {', '.join(tries)}. {kept}"
        )


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _copied(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
