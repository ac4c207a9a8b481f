from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from overhaul.core import Context, ModelError, Network, SpecError, model_fingerprint, model_tensors
from overhaul.distillation import Distill, SoftTargets, SwapModel, soft_distance
from overhaul.pruning import KeepZeros
from overhaul.testing import TinyCNN, tiny_cnn, tiny_task
from overhaul.training import AdamW, Train

MakeContext = Callable[..., Context]
Kind = Literal["classes", "labels", "values"]
KINDS: tuple[Kind, ...] = ("classes", "labels", "values")


@pytest.mark.parametrize("kind", KINDS)
@given(temperature=st.floats(0.5, 50), seed=st.integers(0, 99))
def test_equal_outputs_have_no_distance(kind: Kind, temperature: float, seed: int) -> None:
    logits_BC = 3 * torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
    distance = soft_distance(logits_BC, logits_BC, kind=kind, temperature=temperature)
    assert float(distance) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@given(temperature=st.floats(0.5, 50), seed=st.integers(0, 99))
def test_distance_is_never_negative(kind: Kind, temperature: float, seed: int) -> None:
    student_BC, teacher_BC = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(seed))
    assert float(soft_distance(student_BC, teacher_BC, kind=kind, temperature=temperature)) >= -1e-4


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ModelError, match=r"one shape, got \[4\] and \[4, 1\]"):
        soft_distance(torch.zeros(4), torch.zeros(4, 1), kind="values", temperature=1.0)


def test_plain_values_may_have_one_dimension() -> None:
    student, teacher = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])
    assert float(soft_distance(student, teacher, kind="values", temperature=9.0)) == 1.0


def test_golden_value() -> None:
    # Teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.1308...
    teacher_BC = torch.log(torch.tensor([[0.75, 0.25]]))
    student_BC = torch.zeros(1, 2)
    distance = soft_distance(student_BC, teacher_BC, kind="classes", temperature=1.0)
    assert float(distance) == pytest.approx(0.130812, abs=1e-6)


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_gradient_does_not_vanish_with_the_temperature(weight: float) -> None:
    norms = []
    for temperature in (1.0, 4.0, 20.0):
        logits_BC = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
        teacher_BC = torch.randn(64, 10, generator=torch.Generator().manual_seed(1))
        loss = weight * soft_distance(
            logits_BC, teacher_BC, kind="classes", temperature=temperature
        )
        (gradient,) = torch.autograd.grad(loss, logits_BC)
        norms.append(float(gradient.norm()))
    assert max(norms) < 4 * min(norms)


def objective_on(model: nn.Module, ctx: Context, plan: Distill) -> dict[str, Tensor]:
    batch = next(ctx.data.train.in_order(16))
    losses: dict[str, Tensor] = plan.bind(model, ctx)(model, batch)
    return {name: loss.detach() for name, loss in losses.items()}


def test_no_weight_of_a_branch_is_lost(make_context: MakeContext) -> None:
    student, teacher = tiny_cnn(width=3).eval(), tiny_cnn()
    ctx = make_context(teacher)
    task = objective_on(student, ctx, Distill(weight=0.0))
    soft = objective_on(student, ctx, Distill(weight=1.0))
    half = objective_on(student, ctx, Distill(weight=0.25))
    assert float(task["task_soft"]) == 0.0
    assert float(soft["task"]) == 0.0
    assert float(half["task"]) == pytest.approx(0.75 * float(task["task"]))
    assert float(half["task_soft"]) == pytest.approx(0.25 * float(soft["task_soft"]))


def test_a_student_equal_to_its_teacher_has_no_soft_loss(make_context: MakeContext) -> None:
    teacher = tiny_cnn()
    losses = objective_on(deepcopy(teacher).eval(), make_context(teacher), Distill(weight=1.0))
    assert float(losses["task_soft"]) == pytest.approx(0.0, abs=1e-6)


def test_the_teacher_is_in_eval_mode_without_gradients_and_untouched(
    make_context: MakeContext,
) -> None:
    teacher = tiny_cnn().train()
    before = model_fingerprint(teacher)
    ctx = make_context(teacher)
    bound = Distill().bind(tiny_cnn(width=3), ctx)
    inner = next(module for module in bound.modules() if isinstance(module, TinyCNN))
    assert not any(module.training for module in inner.modules())
    assert not any(parameter.requires_grad for parameter in bound.parameters())
    student = tiny_cnn(width=3)
    Train(epochs=2, objective=Distill()).apply(student, ctx)
    assert model_fingerprint(teacher) == before
    assert teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_student_learns_from_soft_targets_alone(make_context: MakeContext) -> None:
    teacher = tiny_cnn()
    Train(epochs=10, batch_size=8, optimizer=AdamW(lr=1e-2)).apply(teacher, make_context(teacher))
    student = tiny_cnn(width=3)
    ctx = make_context(teacher)
    ctx.checkpoints._path = ctx.checkpoints._path / "student"
    plan = Train(epochs=15, batch_size=8, optimizer=AdamW(lr=1e-2), objective=Distill(weight=1.0))
    plan.apply(student, ctx)
    assert max(float(f.value or 0) for f in ctx.facts if f.name == "val_accuracy") > 0.9


def test_the_teacher_may_be_a_network_a_factory_or_a_file(
    make_context: MakeContext, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    original, other = tiny_cnn(), TinyCNN()
    path = tmp_path / "other.safetensors"
    save_file(other.state_dict(), path)
    student, ctx = tiny_cnn(width=3).eval(), make_context(original)
    by_module = objective_on(student, ctx, Distill(teacher=other))
    by_file = objective_on(student, ctx, Distill(teacher=str(path)))
    network = Network(factory=TinyCNN, weights=str(path))
    by_factory = objective_on(student, ctx, Distill(teacher=network))
    by_original = objective_on(student, ctx, Distill())
    assert torch.equal(by_module["task_soft"], by_file["task_soft"])
    assert torch.equal(by_module["task_soft"], by_factory["task_soft"])
    assert not torch.equal(by_module["task_soft"], by_original["task_soft"])


def test_a_network_is_refused_on_saving_with_its_field() -> None:
    with pytest.raises(SpecError, match=r"`distill.teacher` holds a network"):
        Distill(teacher=tiny_cnn()).to_yaml()


def test_a_network_teacher_round_trips() -> None:
    plan = Distill(teacher=Network(factory="overhaul.testing:tiny_cnn", arguments={"width": 4}))
    assert Distill.from_yaml(plan.to_yaml()) == plan


def test_a_teacher_that_does_not_fit_is_refused_before_work() -> None:
    task = tiny_task()
    with pytest.raises(ModelError, match=r"the teacher cannot teach this task"):
        Distill(teacher=TinyCNN(classes=7)).preflight(tiny_cnn(), task, task.prepare())


def test_a_missing_teacher_file_is_refused_before_work(tmp_path: Path) -> None:
    task = tiny_task()
    with pytest.raises(ModelError, match=r"there is no weights file"):
        Distill(teacher=str(tmp_path / "no.safetensors")).preflight(
            tiny_cnn(), task, task.prepare()
        )


def test_the_teacher_learns_from_its_student(make_context: MakeContext, tmp_path: Path) -> None:
    """Reverse: a small network that was trained before teaches a large one."""
    small = TinyCNN(width=4)
    Train(epochs=10, batch_size=8, optimizer=AdamW(lr=1e-2)).apply(small, make_context(tiny_cnn()))
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    teacher = Network(
        factory=TinyCNN, arguments={"width": 4}, weights=str(tmp_path / "small.safetensors")
    )
    large = TinyCNN(width=12)
    ctx = make_context(large)
    ctx.checkpoints._path = ctx.checkpoints._path / "large"
    plan = Train(
        epochs=15,
        batch_size=8,
        optimizer=AdamW(lr=1e-2),
        objective=Distill(teacher=teacher, weight=1.0),
    )
    assert Train.from_yaml(plan.to_yaml()) == plan
    plan.apply(large, ctx)
    assert max(float(f.value or 0) for f in ctx.facts if f.name == "val_accuracy") > 0.9
    assert plan.control() == Train(epochs=15, batch_size=8, optimizer=AdamW(lr=1e-2))


def test_swap_model_takes_the_place(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(model)
    swapped = SwapModel(factory=tiny_cnn, arguments={"width": 2}).apply(deepcopy(model), ctx)
    assert isinstance(swapped, TinyCNN)
    assert swapped.conv.out_channels == 2
    assert len(ctx.edits) == 1


def test_swap_model_loads_weights(make_context: MakeContext, tmp_path: Path) -> None:
    source = TinyCNN(width=2)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    step = SwapModel(
        factory=tiny_cnn, arguments={"width": 2}, weights=str(tmp_path / "w.safetensors")
    )
    swapped = step.apply(tiny_cnn(), make_context(tiny_cnn()))
    for name, tensor in model_tensors(source).items():
        assert torch.equal(model_tensors(swapped)[name], tensor)


def test_swap_model_drops_what_was_carried_for_the_old_model(make_context: MakeContext) -> None:
    ctx = make_context(tiny_cnn())
    ctx.carry(KeepZeros(parameters=("fc.weight",)))
    SwapModel(factory=tiny_cnn).apply(tiny_cnn(), ctx)
    assert ctx.carried == []


def test_a_student_that_does_not_fit_is_refused_before_work() -> None:
    task = tiny_task()
    step = SwapModel(factory=TinyCNN, arguments={"classes": 9})
    with pytest.raises(ModelError, match=r"the network of SwapModel does not fit the task"):
        step.preflight(tiny_cnn(), task, task.prepare())


def test_wrong_arguments_of_a_factory_are_refused() -> None:
    task = tiny_task()
    step = SwapModel(factory=TinyCNN, arguments={"widht": 9})
    with pytest.raises(SpecError, match=r"cannot be called so: got an unexpected keyword"):
        step.preflight(tiny_cnn(), task, task.prepare())


def test_two_matches_of_one_kind_keep_a_loss_each(make_context: MakeContext) -> None:
    student, ctx = tiny_cnn(width=3).eval(), make_context(tiny_cnn())
    matches = [SoftTargets(temperature=1.0), SoftTargets(temperature=9.0, weight=2.0)]
    both = objective_on(student, ctx, Distill(match=matches, weight=1.0))
    one, two = (objective_on(student, ctx, Distill(match=[m], weight=1.0)) for m in matches)
    assert list(both) == ["task", "task_soft", "task_soft_2"]
    assert torch.equal(both["task_soft"], one["task_soft"])
    assert torch.equal(both["task_soft_2"], two["task_soft"])


def test_soft_distance_is_computed_in_single_precision() -> None:
    logits_BC = torch.randn(64, 10)
    half_BC = logits_BC.bfloat16()
    exact = soft_distance(half_BC.float(), -half_BC.float(), kind="classes", temperature=4.0)
    assert torch.equal(soft_distance(half_BC, -half_BC, kind="classes", temperature=4.0), exact)


def test_a_teacher_whose_outputs_are_not_finite_is_refused_before_work() -> None:
    task, teacher = tiny_task(), tiny_cnn()
    with torch.no_grad():
        teacher.fc.bias[1] = torch.nan
    with pytest.raises(ModelError, match=r"cannot teach this task: its outputs .* not all finite"):
        Distill(teacher=teacher).preflight(tiny_cnn(), task, task.prepare())


def test_outputs_of_other_classes_are_told_from_a_dimension_too_many() -> None:
    with pytest.raises(ModelError, match="must be the same classes or tokens"):
        soft_distance(torch.zeros(2, 3), torch.zeros(2, 4), kind="classes", temperature=1.0)
