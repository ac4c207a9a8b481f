from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import (
    Context,
    ModelError,
    SpecError,
    check_model_fits,
    evaluating,
    model_fingerprint,
    model_tensors,
    rebuild,
    trainable_names,
)
from overhaul.multitask import AddHeads, MultiTask, NewHeads, SeparateTrunks, SharedTrunk
from overhaul.pruning import KeepZeros, PruneWeights
from overhaul.tasks import Classification
from overhaul.testing import TinyCNN, check_step, tiny_cnn, tiny_multi_task, tiny_task
from overhaul.training import AdamW, Train
from overhaul.transfer import Freeze, Frozen

MakeContext = Callable[..., Context]


@pytest.fixture
def apply(make_context: MakeContext) -> Callable[..., tuple[nn.Module, Context]]:
    """Return a function that applies `AddHeads` to a copy of a model."""

    def work(model: nn.Module, task: Any = None, **fields: Any) -> tuple[nn.Module, Context]:
        ctx = make_context(model, task=task or tiny_multi_task())
        return AddHeads(**fields).apply(deepcopy(model), ctx), ctx

    return work


Apply = Callable[..., tuple[nn.Module, Context]]


def value(ctx: Context, name: str) -> Any:
    (found,) = [fact.value for fact in ctx.facts if fact.name == name]
    return found


def images() -> Tensor:
    return torch.rand(5, 1, 8, 8)


# The place of the heads.


def test_by_default_the_heads_take_the_place_of_the_output_layer(apply: Apply) -> None:
    model = tiny_cnn()
    changed, ctx = apply(model)
    assert isinstance(changed, SharedTrunk)
    assert value(ctx, "trunk") == "fc"
    assert value(ctx, "removed_parameters") == sum(p.numel() for p in model.fc.parameters())
    x = images()
    with evaluating(model), evaluating(changed):
        features = torch.max_pool2d(torch.relu(model.bn(model.conv(x))), 2).flatten(1)
        outputs = changed(x)
        for name, head in changed.heads.items():
            assert torch.equal(outputs[name], head(features))
    assert {name: output.shape for name, output in outputs.items()} == {
        "number": (5, 3),
        "odd": (5, 2),
    }


def test_the_heads_get_the_output_of_the_trunk_bit_for_bit(apply: Apply) -> None:
    model = tiny_cnn()
    changed, _ = apply(model, trunk="bn")
    assert isinstance(changed, SharedTrunk)
    x = images()
    with evaluating(model), evaluating(changed):
        features = model.bn(model.conv(x)).flatten(2).mean(2)
        for name, output in changed(x).items():
            assert torch.equal(output, changed.heads[name](features))


def test_layers_after_the_trunk_are_gone(apply: Apply) -> None:
    changed, ctx = apply(tiny_cnn(), trunk="conv")
    assert {name for name, _ in changed.named_parameters()} == {
        *("trunk.conv.weight", "trunk.conv.bias"),
        *("heads.number.weight", "heads.number.bias", "heads.odd.weight", "heads.odd.bias"),
    }
    assert not any("bn" in name for name, _ in changed.named_buffers())
    assert value(ctx, "removed_parameters") == 2 * 6 + 3 * 96 + 3


def test_a_named_head_is_replaced_whatever_follows_it(apply: Apply) -> None:
    class WithSoftmax(TinyCNN):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).log_softmax(1)

    with pytest.raises(ModelError, match=r"Name the layer whose input the heads get with `head`"):
        apply(WithSoftmax())
    changed, ctx = apply(WithSoftmax(), head="fc")
    assert changed(images())["odd"].shape == (5, 2)
    assert value(ctx, "trunk") == "fc"


class Tutorial(nn.Module):
    """The network of a well-known tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3)
        self.fc1, self.fc2 = nn.Linear(8 * 4 * 4, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x)))).view(-1, 8 * 4 * 4)
        scores: Tensor = self.fc2(torch.relu(self.fc1(x)))
        return scores


@pytest.mark.parametrize(
    ("fields", "features"),
    [
        ({}, [12]),
        ({"trunk": "conv2"}, [8, 4, 4]),
        ({"trunk": "fc1"}, [12]),
        ({"head": "fc1"}, [128]),
    ],
)
def test_any_place_in_a_plain_network(
    apply: Apply, fields: dict[str, str], features: list[int]
) -> None:
    changed, ctx = apply(Tutorial(), **fields)
    (fact,) = [fact for fact in ctx.facts if fact.name == "trunk"]
    assert fact.detail["features"] == features
    assert changed(images())["number"].shape == (5, 3)


def test_a_rest_that_fails_is_refused_with_its_layers(apply: Apply) -> None:
    model = Tutorial()
    before = model_fingerprint(model)
    with pytest.raises(
        ModelError, match=r"ends at 'conv1': .* \(conv2, fc1, fc2\) its forward pass fails: shape"
    ):
        apply(model, trunk="conv1")
    assert model_fingerprint(model) == before


class Tied(nn.Module):
    """Its output layer has the weights of its first one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(64, 8), nn.Linear(8, 64)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(x.flatten(1) @ self.out.weight)
        scores: Tensor = self.out(self.inner(torch.cat([hidden] * 8, 1)))
        return scores


def test_code_that_needs_what_is_gone_is_refused_with_a_way_out(apply: Apply) -> None:
    class Shifted(TinyCNN):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.tensor([1.0, 2.0, 3.0])

    with pytest.raises(ModelError, match=r"\(fc\) its forward pass fails: .* layer of its own"):
        apply(Shifted(), head="fc")


def test_a_layer_whose_weights_the_trunk_uses_is_not_taken_out(apply: Apply) -> None:
    with pytest.raises(
        ModelError, match=r"\(out\) its forward pass fails: .* no attribute 'weight'"
    ):
        apply(Tied(), trunk="inner")


def test_weights_that_the_trunk_uses_in_training_only_are_not_taken_out(apply: Apply) -> None:
    class Training(TinyCNN):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + self.fc.weight.mean() if self.training else x)

    with pytest.raises(ModelError, match=r"its forward pass fails: .* no attribute 'weight'"):
        apply(Training(), trunk="bn")


def test_a_layer_that_is_shared_under_two_names_is_taken_out_under_both(apply: Apply) -> None:
    model = tiny_cnn()
    model.alias = model.fc
    changed, _ = apply(model)
    assert not any("fc" in name or "alias" in name for name, _ in changed.named_parameters())


class Auxiliary(TinyCNN):
    """Has a second output while it trains, with dropout of its own, and a layer for rare inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(6 * 64, 3))
        self.rare = nn.Conv2d(6, 6, 1)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        auxiliary = self.aux(y) if self.training else None
        y = torch.relu(self.bn(self.rare(y) if y.max() > 1e6 else y))
        scores = self.fc(self.dropout(torch.max_pool2d(y, 2).flatten(1))) * self.scale
        return (scores, auxiliary) if self.training else scores


def test_an_auxiliary_output_is_taken_out_and_a_rare_layer_is_not(apply: Apply) -> None:
    changed, ctx = apply(Auxiliary(), head="fc")
    names = {name for name, _ in changed.named_parameters()}
    assert not any("aux" in name for name in names)
    assert "trunk.rare.weight" in names
    (fact,) = [fact for fact in ctx.facts if fact.name == "unused_parameters"]
    assert fact.detail["parameters"] == [
        *("trunk.scale", "trunk.rare.weight", "trunk.rare.bias"),
    ]
    assert changed.train()(images())["odd"].shape == (5, 2)


def test_a_trunk_that_runs_twice_is_refused(apply: Apply) -> None:
    class Twice(TinyCNN):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + super().forward(x.flip(3))

    with pytest.raises(ModelError, match=r"'bn' must run exactly once .* it runs 2 times"):
        apply(Twice(), trunk="bn")


@pytest.mark.parametrize("field", ["trunk", "head"])
def test_a_path_that_is_not_there_is_refused(apply: Apply, field: str) -> None:
    with pytest.raises(ModelError, match=r"the model has no module 'cnov'. Did you mean 'conv'"):
        apply(tiny_cnn(), **{field: "cnov"})


def test_a_model_that_fails_on_the_data_is_refused(apply: Apply) -> None:
    with pytest.raises(ModelError, match=r"the model fails on a batch of the data: "):
        apply(nn.Sequential(nn.Linear(3, 4)), trunk="0")


# Which dimension holds the channels.


class Sequence(nn.Module):
    """Treats the rows of an image as a sequence."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.fc = layer, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.squeeze(1))
        y = y[0] if isinstance(y, tuple) else y
        scores: Tensor = self.fc(y.reshape(len(y), -1))
        return scores


@pytest.mark.parametrize(
    ("layer", "width", "channels"),
    [
        (nn.LSTM(8, 5, batch_first=True), 40, 2),
        (nn.LSTM(8, 5, batch_first=True, bidirectional=True), 80, 2),
        (nn.Linear(8, 5), 40, 2),
        (nn.Sequential(nn.Linear(8, 5), nn.LayerNorm(5), nn.ReLU()), 40, 2),
        (nn.Conv1d(8, 5, 3), 30, 1),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 64, None),
    ],
)
def test_channels_are_found_by_the_width_of_the_last_layer(
    apply: Apply, layer: nn.Module, width: int, channels: int | None
) -> None:
    model = Sequence(layer, width)
    if channels is None:
        with pytest.raises(ModelError, match=r"not clear which dimension of \[2, 8, 8\]"):
            apply(model, trunk="layer")
        channels = 2
        changed, ctx = apply(model, trunk="layer", channels=2)
    else:
        changed, ctx = apply(model, trunk="layer")
    (fact,) = [fact for fact in ctx.facts if fact.name == "trunk"]
    assert fact.detail["channels"] == channels
    assert changed(images())["number"].shape == (5, 3)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Conv2d(1, 3, 1), nn.Conv2d(1, 4, 1)])
        self.join = nn.Identity()
        self.fc = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        joined = self.join(torch.cat([branch(x) for branch in self.branches], 1))
        scores: Tensor = self.fc(joined.mean((2, 3)))
        return scores


def test_concatenated_convolutions_have_channels_second(apply: Apply) -> None:
    changed, _ = apply(Branches(), trunk="join")
    assert isinstance(changed, SharedTrunk)
    assert changed.channels == 1
    assert changed(images())["number"].shape == (5, 3)


@pytest.mark.parametrize("size", [2, 8])
def test_an_output_whose_first_dimension_is_not_the_samples_is_refused(
    apply: Apply, size: int
) -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(8, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.fc(self.lstm(x[:, 0, :size].transpose(0, 1))[0][-1])
            return scores

    with pytest.raises(ModelError, match=rf"heads give {size} outputs for 3 samples"):
        apply(TimeFirst(), trunk="lstm")


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        (tiny_cnn(), {"trunk": "bn", "channels": 4}, r"`channels` is 4, .* dimensions 1 to 3"),
        (nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 64))), {"trunk": "0"}, r"got \[128\]"),
    ],
)
def test_shapes_without_channels_are_refused(
    apply: Apply, model: nn.Module, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        apply(model, **fields)


# What is kept.


def test_everything_is_rebuilt_from_the_original(apply: Apply) -> None:
    for fields in ({}, {"trunk": "bn"}, {"head": "fc", "shared": False}):
        model = tiny_cnn()
        changed, ctx = apply(model, **fields)
        again = rebuild(model, ctx.edits, model_tensors(changed), trainable_names(changed))
        x = images()
        with evaluating(changed), evaluating(again):
            for name, output in changed(x).items():
                assert torch.equal(output, again(x)[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shared", [True, False])
def test_heads_have_the_type_of_the_features(
    apply: Apply, dtype: torch.dtype, shared: bool
) -> None:
    class Typed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(64, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.fc2(self.fc1(x.flatten(1).to(self.fc1.weight.dtype)))
            return scores

    changed, _ = apply(Typed().to(dtype), shared=shared)
    assert {parameter.dtype for parameter in changed.parameters()} == {dtype}
    assert {output.dtype for output in changed(images()).values()} == {dtype}


@pytest.mark.parametrize("shared", [True, False])
def test_heads_are_on_the_device_of_the_model(shared: bool) -> None:
    edit = NewHeads(trunk="conv", outputs={"a": 2, "b": 3}, features=6, shared=shared)
    changed = edit.apply(tiny_cnn().to("meta"))
    assert {parameter.device.type for parameter in changed.parameters()} == {"meta"}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_the_mode_is_kept(apply: Apply, training: bool, shared: bool) -> None:
    changed, _ = apply(tiny_cnn().train(training), shared=shared)
    assert {module.training for module in changed.modules()} == {training}


def test_frozen_layers_stay_frozen_under_their_new_names(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(deepcopy(model), task=tiny_multi_task())
    Freeze(layers=("conv", "bn", "dropout", "fc")).apply(model, ctx)
    changed = AddHeads(head="fc").apply(model, ctx)
    (frozen,) = ctx.carried
    assert frozen == Frozen(
        modules=("trunk.bn", "trunk.conv", "trunk.dropout"),
        parameters=("trunk.bn.bias", "trunk.bn.weight", "trunk.conv.bias", "trunk.conv.weight"),
    )
    before = {name: tensor.clone() for name, tensor in model_tensors(changed).items()}
    Train(epochs=2, optimizer=AdamW(lr=1e-2), keep="last").apply(changed, ctx)
    after = model_tensors(changed)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("heads.")}


def test_zeros_stay_zero_under_their_new_names(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(deepcopy(model), task=tiny_multi_task())
    PruneWeights(sparsity=0.5, scope="layer").apply(model, ctx)
    changed = AddHeads().apply(model, ctx)
    assert ctx.carried == [KeepZeros(parameters=("trunk.conv.weight",))]
    Train(epochs=2, optimizer=AdamW(lr=1e-2), keep="last").apply(changed, ctx)
    weight = changed.get_parameter("trunk.conv.weight")
    assert int((weight == 0).sum()) == weight.numel() // 2


def test_what_is_carried_cannot_be_copied(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(model, task=tiny_multi_task())
    ctx.carry(KeepZeros(parameters=("conv.weight",)))
    with pytest.raises(SpecError, match=r"what earlier steps left \(KeepZeros\)"):
        AddHeads(shared=False).apply(model, ctx)


def test_names_after_the_edit() -> None:
    edit = NewHeads(trunk="a", outputs={"x": 2}, features=3, removed=("b", "c.1"))
    kept = ("a", "a.weight", "bb", "c", "c.10.bias")
    gone = ("b", "b.weight", "c.1", "c.1.bias")
    wanted = {"": "trunk", **{name: f"trunk.{name}" for name in kept}, **dict.fromkeys(gone)}
    assert {name: edit.rename(name) for name in wanted} == wanted


# The control: single-task models.


def test_the_control_has_a_trunk_for_each_task_and_the_same_heads(
    apply: Apply, make_context: MakeContext
) -> None:
    model = tiny_cnn()
    step = AddHeads(trunk="bn")
    control = step.control()
    assert control == AddHeads(trunk="bn", shared=False)
    assert control.control() == control
    shared, _ = apply(model, trunk="bn")
    separate, _ = apply(model, trunk="bn", shared=False)
    assert isinstance(separate, SeparateTrunks)
    x = images()
    with evaluating(shared), evaluating(separate):
        for name, output in shared(x).items():
            assert torch.equal(output, separate(x)[name])
    trunk = sum(p.numel() for n, p in shared.named_parameters() if n.startswith("trunk."))
    sizes = [sum(p.numel() for p in each.parameters()) for each in (shared, separate)]
    assert sizes[1] - sizes[0] == trunk


def test_losses_of_the_control_do_not_mix(apply: Apply) -> None:
    separate, ctx = apply(tiny_cnn(), shared=False)
    batch = next(ctx.data.train.in_order(16))
    losses = ctx.task.losses(batch.forward(separate), batch.targets)
    losses["odd"].backward()
    reached = {n for n, p in separate.named_parameters() if p.grad is not None}
    assert reached == {n for n, _ in separate.named_parameters() if ".odd." in n}


def test_the_control_is_the_single_task_training_bit_for_bit(
    apply: Apply, make_context: MakeContext
) -> None:
    model = Tutorial()
    separate, ctx = apply(model, shared=False)
    assert isinstance(separate, SeparateTrunks)
    alone = nn.Sequential(deepcopy(separate.trunks["odd"]), deepcopy(separate.heads["odd"]))
    plan = Train(epochs=2, batch_size=16, optimizer=AdamW(lr=1e-2), keep="last")
    plan.apply(separate, ctx)
    x, named = tiny_multi_task().train
    labels = named["odd"]
    single = Classification(train=(x, labels), val=(x + 1, labels), test=(x + 2, labels))
    other = make_context(model, task=single)
    other.checkpoints._path = other.checkpoints._path / "alone"
    plan.apply(alone, other)
    for name, parameter in alone.named_parameters():
        kind, _, rest = name.partition(".")
        place = f"trunks.odd.{rest}" if kind == "0" else f"heads.odd.{rest}"
        assert torch.equal(parameter, separate.get_parameter(place)), name


# The contract.


@pytest.mark.parametrize("fields", [{}, {"trunk": "conv"}, {"head": "fc"}, {"shared": False}])
def test_it_keeps_the_contract_of_steps(fields: dict[str, Any]) -> None:
    check_step(AddHeads(**fields), model=tiny_cnn(), task=tiny_multi_task())


def test_the_result_fits_the_task(apply: Apply) -> None:
    changed, ctx = apply(tiny_cnn())
    batch = next(ctx.data.val.in_order(3))
    assert check_model_fits(ctx.task, changed, batch) is None


def test_a_task_of_one_part_is_refused_before_any_work() -> None:
    task = tiny_task()
    with pytest.raises(
        SpecError, match=r"the task is classification. Use ReplaceHead, or MultiTask"
    ):
        AddHeads().preflight(tiny_cnn(), task, task.prepare())


def test_two_places_are_refused() -> None:
    with pytest.raises(SpecError, match=r"not both: got 'a' and 'b'"):
        AddHeads(trunk="a", head="b")
    with pytest.raises(SpecError, match=r"`channels` of add_heads must be greater than or equal"):
        AddHeads(channels=0)


def test_heads_may_be_added_to_a_model_that_has_some(apply: Apply) -> None:
    first, _ = apply(tiny_cnn(), trunk="bn")
    task = MultiTask(
        tasks={name: Classification(classes=3) for name in ("a", "b", "c")},
        train=(
            tiny_multi_task().train[0],
            {name: torch.arange(48) % 3 for name in ("a", "b", "c")},
        ),
    )
    second, ctx = apply(first, task=task, trunk="trunk.bn")
    assert set(second(images())) == {"a", "b", "c"}
    assert value(ctx, "removed_parameters") == 3 * 7 + 2 * 7
