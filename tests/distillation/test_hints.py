from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from overhaul.core import Batch, Context, ModelError, SpecError
from overhaul.distillation import Distill, Hints, SoftTargets, pair_layers
from overhaul.testing import tiny_cnn, tiny_task
from overhaul.training import AdamW, Train

MakeContext = Callable[..., Context]


def test_the_loss_is_half_the_mean_square_of_the_projected_distance(
    make_context: MakeContext,
) -> None:
    student, teacher = tiny_cnn(width=2).eval(), tiny_cnn(width=3).eval()
    ctx = make_context(teacher)
    plan = Distill(match=[Hints(layers=[("conv", "conv")])], weight=1.0)
    bound, batch = plan.bind(student, ctx), next(ctx.data.train.in_order(4))
    losses = bound(student, batch)
    (x,) = batch.inputs
    projector = bound.get_submodule("matches.0.projectors.0")
    own, theirs = student.get_submodule("conv")(x), teacher.get_submodule("conv")(x)
    weight, bias = (projector.state_dict()[name] for name in ("weight", "bias"))
    projected = torch.einsum("kc,bchw->bkhw", weight, own) + bias[None, :, None, None]
    by_hand = 0.5 * (projected - theirs).square().mean()
    assert float(losses["hints"].detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)


def test_the_projector_is_trained_and_is_no_part_of_the_student(make_context: MakeContext) -> None:
    student, teacher = tiny_cnn(width=2), tiny_cnn(width=3)
    names = set(student.state_dict())
    ctx = make_context(teacher)
    objective = Distill(match=[Hints()], weight=1.0)
    trained = Train(epochs=4, batch_size=8, optimizer=AdamW(lr=0.02), objective=objective).apply(
        student, ctx
    )
    assert set(trained.state_dict()) == names
    losses = [float(f.value or 0) for f in ctx.facts if f.name == "train_loss"]
    assert losses[-1] < 0.8 * losses[0]
    pairs = [(f.value, f.detail["teacher"]) for f in ctx.facts if f.name == "layer_pair"]
    assert pairs == [("conv", "conv"), ("bn", "bn")]


def test_larger_features_are_averaged_to_the_smaller_size(make_context: MakeContext) -> None:
    student, teacher = tiny_cnn(width=2).eval(), tiny_cnn(width=3).eval()
    ctx = make_context(teacher)
    bound = Distill(match=[Hints(layers=[("bn", "conv")])]).bind(student, ctx)
    losses = bound(student, next(ctx.data.train.in_order(4)))
    assert torch.isfinite(losses["hints"])


def test_sequences_of_two_lengths_are_refused() -> None:
    def network(stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv1d(1, 4, 2, stride), nn.AdaptiveAvgPool1d(1), nn.Flatten())

    batch = Batch((torch.randn(2, 1, 8),), torch.zeros(2).long(), torch.arange(2))
    pairs = pair_layers(network(1), network(2), batch, [("0", "0")])
    with pytest.raises(
        ModelError, match=r"hints: two layers must have one length .*got 0 \(4 channels, 7\)"
    ):
        Hints().bind_pairs(pairs, network(1), network(2), batch)


def test_a_layer_that_the_teacher_does_not_have_is_refused_before_work() -> None:
    task = tiny_task()
    with pytest.raises(SpecError, match=r"the teacher has no layer 'cnov'.*conv"):
        Distill(match=[Hints(layers=[("conv", "cnov")])]).preflight(
            tiny_cnn(), task, task.prepare()
        )


def test_no_layers_at_all_are_refused() -> None:
    with pytest.raises(SpecError, match=r"`layers` must have a pair"):
        Hints(layers=())


def test_a_match_goes_through_a_recipe_file() -> None:
    plan = Distill(match=[Hints(layers=[("a", "b")], weight=3.0)])
    assert Distill.from_yaml(plan.to_yaml()) == plan
    read = Distill.from_yaml("distill: {match: [hints, {soft_targets: {temperature: 2}}]}")
    assert read.match == (Hints(), SoftTargets(temperature=2))


@pytest.mark.parametrize("pairs", [("conv", "bn"), [("conv", "bn", "fc")], ["conv"]])
def test_what_is_no_pair_is_refused_in_one_sentence(pairs: Any) -> None:
    with pytest.raises(SpecError, match=r"must be pairs of module paths.*Write layers=\[\("):
        Hints(layers=pairs)


def test_networks_in_half_precision_have_a_projector_in_single(make_context: MakeContext) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.Linear(64, 6).bfloat16(), nn.Linear(6, 3).bfloat16()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.out(self.inner(x.flatten(1).bfloat16())).float()
            return out

    student, teacher = Half(), Half()
    hints = Distill(teacher=teacher, match=[Hints(layers=[("inner", "inner")])])
    Train(epochs=1, objective=hints, keep="last").apply(student, make_context(student))
    assert all(parameter.isfinite().all() for parameter in student.parameters())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_teacher_with_padding_is_watched_by_its_parts(make_context: MakeContext) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            padding = (torch.arange(8) >= 6).expand(len(x), -1)
            found = self.encoder(x[:, 0], src_key_padding_mask=padding)
            out: torch.Tensor = self.head(found[:, 0])
            return out

    student, teacher = Padded(), Padded()
    hints = Distill(teacher=teacher, match=[Hints()])
    ctx = make_context(student)
    Train(epochs=1, objective=hints, keep="last").apply(student, ctx)
    pairs = [fact.value for fact in ctx.facts if fact.name == "layer_pair"]
    assert pairs == ["encoder.layers.0", "encoder.layers.1"]
