"""`check_step`: the contract of a step, for ours and for yours."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from overhaul.core import (
    Progress,
    RunFolder,
    Step,
    StepState,
    Task,
    Trait,
    check_model_fits,
    model_fingerprint,
    model_tensors,
)
from overhaul.running import Setting, initial_traits, rebuilt, run_steps
from overhaul.testing._check_spec import check_spec
from overhaul.testing._tiny import tiny_cnn, tiny_task


def check_step(step: Step, *, model: nn.Module | None = None, task: Task | None = None) -> None:
    """Check that a step keeps the contract that every step keeps.

    Besides what `check_spec` checks: the user's model is untouched, bit for bit, its hooks and
    flags included; the same seed gives the same result; every change of structure is recorded, so
    that the result is rebuilt from the original; types and devices stay; what the step promises of
    the model (`check`) is true of it; and a second run in the same folder uses the first's result.

    Args:
        step: The step, with its fields set.
        model: What to apply it to; default is a tiny convolutional network.
        task: Default is a tiny classification of three classes that fits this network.

    Raises:
        AssertionError: something of this does not hold.

    Example:
        >>> from overhaul.pruning import PruneWeights
        >>> check_step(PruneWeights(sparsity=0.5))
    """
    check_spec(step)
    name = type(step).__name__
    model = tiny_cnn() if model is None else model
    task = tiny_task() if task is None else task
    data = task.prepare()
    batch = next(data.train.in_order(2))
    traits = initial_traits(model, fits=check_model_fits(task, model, batch) is None)
    setting = Setting(model, task, data, 0, "key", traits, Progress(quiet=True))
    before, hooks, flags = model_fingerprint(model), _hooks(model), _flags(model)

    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        states = run_steps(setting, [step], RunFolder(Path(first)))
        again = run_steps(setting, [step], RunFolder(Path(first)))
        apart = run_steps(setting, [step], RunFolder(Path(second)))
    state = states[0]

    assert model_fingerprint(model) == before, f"{name} changed the model that was passed in"
    assert (_hooks(model), _flags(model)) == (hooks, flags), f"{name} changed its hooks or flags"
    _assert_same(state, again[0], f"{name}: what is read back is not what was saved")
    _assert_same(state, apart[0], f"{name}: the same seed does not give the same result")

    result = rebuilt(model, state)
    _assert_kinds_kept(name, model_tensors(model), model_tensors(result))
    after = step.check(traits)
    if Trait.FITS_TASK in after:
        problem = check_model_fits(task, result, batch)
        assert problem is None, f"{name} promises a model that fits the task: {problem}"
    if Trait.TRAINABLE in step.gives:
        assert any(p.requires_grad for p in result.parameters()), f"{name}: nothing to train"
    for fact in state.facts:
        assert type(fact).model_validate_json(fact.to_json()) == fact, f"{name}: {fact}"
    for item in state.carried:
        check_spec(item)
    for edit in state.edits:
        check_spec(edit)
    left = step.control()
    assert left is None or left.check(traits) is not None


def _hooks(model: nn.Module) -> list[int]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [len(getattr(module, kind)) for module in model.modules() for kind in kinds]


def _flags(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def _assert_same(left: StepState, right: StepState, message: str) -> None:
    assert left.tensors.keys() == right.tensors.keys(), message
    for name, tensor in left.tensors.items():
        assert torch.equal(tensor, right.tensors[name]), f"{message} ({name})"
    for field in ("trainable", "edits", "carried"):
        assert getattr(left, field) == getattr(right, field), f"{message} ({field})"
    facts = [[f for f in state.facts if f.reproducible] for state in (left, right)]
    assert facts[0] == facts[1], f"{message} (facts)"


def _assert_kinds_kept(name: str, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    types = {tensor.dtype for tensor in before.values()}
    devices = {tensor.device for tensor in before.values()}
    for key, tensor in after.items():
        # Integers and halves may take the place of a weight, under a name of their own.
        smaller = key not in before and tensor.element_size() < 4
        assert tensor.dtype in types or smaller, f"{name}: {key} became {tensor.dtype}"
        assert tensor.device in devices, f"{name}: {key} went to {tensor.device}"
