"""What goes together, in networks small enough to check by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overhaul.core import ModelError
from overhaul.graph import Graph, check_removal, relative_difference


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def test_a_hidden_unit_is_a_row_a_bias_and_a_column() -> None:
    graph = Graph(mlp(), (torch.rand(2, 4),))
    (group,) = graph.groups
    assert group.units == 8
    assert [(place.tensor, place.dim) for place in group.places] == [
        ("0.weight", 0),
        ("0.bias", 0),
        ("2.weight", 1),
    ]


def test_removing_units_slices_the_weights_and_keeps_the_rest() -> None:
    model, inputs = mlp(), (torch.rand(2, 4),)
    weight = model.get_parameter("0.weight").detach().clone()
    smaller = Graph(model, inputs).remove({"0": [1, 6]}).apply(model)
    assert torch.equal(smaller.get_parameter("0.weight"), weight[[0, 2, 3, 4, 5, 7]])
    first, last = smaller.get_submodule("0"), smaller.get_submodule("2")
    assert "out_features=6" in repr(first)
    assert "in_features=6" in repr(last)
    assert smaller(*inputs).shape == (2, 3)


def test_the_model_is_left_as_it_was() -> None:
    model, inputs = mlp().train(), (torch.rand(2, 4),)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = Graph(model, inputs)
    check_removal(model, graph, {"0": [0]}, inputs)
    assert model.training
    assert all(type(vars(model[0])[name]) is int for name in ("in_features", "out_features"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_number_in_the_program_is_refused_with_its_line() -> None:
    class Baked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.fc = nn.Linear(4 * 36, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(F.relu(self.conv(x)).view(-1, 4 * 36))
            return out

    graph = Graph(Baked(), (torch.rand(2, 1, 8, 8),))
    assert not graph.groups
    (refused,) = [each for each in graph.unprunable if each.tensor == "conv.bias"]
    assert "written as the number 144" in str(refused)
    assert "test_graph.py" in str(refused)
    assert "view(-1, 4 * 36)" in str(refused)


def test_an_unknown_operation_fixes_what_it_touches() -> None:
    class Unknown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 8)
            self.last = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(torch.sort(self.first(x), dim=-1).values)
            return out

    graph = Graph(Unknown(), (torch.rand(2, 4),))
    assert not graph.groups
    assert any("`sort` is not known" in str(each) for each in graph.unprunable)


def test_a_branch_on_the_inputs_is_refused() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if x.mean() > 0 else x

    with pytest.raises(ModelError, match="another input may take another way"):
        Graph(Branching(), (torch.rand(2, 4),))


def test_the_oracle_can_fail() -> None:
    model, inputs = mlp(), (torch.rand(2, 4),)
    graph = Graph(model, inputs)
    first, *rest = graph.trace.state["2.weight"].dims
    assert rest[0] is not None
    graph.trace.state["2.weight"].dims[1] = rest[0][::-1]
    with pytest.raises(ModelError, match="would compute something else"):
        check_removal(model, graph, {"0": [0]}, inputs)
    assert first is not None


@pytest.mark.parametrize(
    ("units", "match"),
    [
        ({"nowhere": [0]}, "there is no group 'nowhere'"),
        ({"0": [8]}, "units 0 to 7, got 8"),
        ({"0": list(range(8))}, "Keep one"),
    ],
)
def test_impossible_removals_are_refused(units: dict[str, list[int]], match: str) -> None:
    with pytest.raises(ModelError, match=match):
        Graph(mlp(), (torch.rand(2, 4),)).remove(units)


def test_outputs_that_tell_nothing_prove_nothing() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x) * 0
            return out

    model, inputs = Silent(), (torch.rand(2, 4),)
    with pytest.raises(ModelError, match="nothing can be proved"):
        check_removal(model, Graph(model, inputs), {"net.0": [0]}, inputs)


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        (torch.tensor([1.0, -4.0]), torch.tensor([2.0, -4.0]), 0.25),
        (
            {"a": torch.ones(2), "b": [torch.full((1,), 10.0)]},
            {"a": torch.zeros(2), "b": [torch.full((1,), 10.0)]},
            0.1,
        ),
        ((torch.tensor([3]), torch.ones(1)), (torch.tensor([3]), torch.ones(1)), 0),
        ((torch.tensor([3]), torch.ones(1)), (torch.tensor([4]), torch.ones(1)), float("inf")),
        (torch.tensor([True]), torch.tensor([False]), float("inf")),
        (torch.tensor([float("nan"), 1]), torch.tensor([float("nan"), 1]), 0),
        (torch.tensor([float("nan"), 1]), torch.tensor([0.0, 1]), float("inf")),
        (torch.ones(2), torch.ones(3), float("inf")),
        ((torch.ones(2), torch.ones(2)), torch.ones(2), float("inf")),
        (torch.zeros(2), torch.zeros(2), 0),
    ],
)
def test_outputs_are_apart_relative_to_the_largest(
    one: object, other: object, difference: float
) -> None:
    assert relative_difference(one, other) == difference


class Converting(nn.Module):
    """Calculates in the type that it names, whatever its weights are in."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(F.gelu(self.norm(self.first(x.to(self.dtype)))))
        return out


def test_a_model_that_names_float32_is_proved_in_it() -> None:
    model, inputs = Converting(torch.float32), (torch.rand(5, 4, dtype=torch.float64),)
    graph = Graph(model, inputs)
    (group,) = graph.groups
    assert 0 < check_removal(model, graph, {group.name: [0, 3, 6]}, inputs) < 1e-5
    graph.trace.mixing.clear()  # the normalization would go over the zeros, too
    with pytest.raises(ModelError, match=r"compute something else.* more than 1e-03"):
        check_removal(model, graph, {group.name: [0, 3, 6]}, inputs)


def test_a_model_that_runs_in_neither_type_is_refused() -> None:
    model, inputs = Converting(torch.bfloat16).bfloat16(), (torch.rand(5, 4),)
    graph = Graph(model, inputs)
    with pytest.raises(ModelError, match="in float64, and in float32, the model does not run"):
        check_removal(model, graph, {graph.groups[0].name: [0]}, inputs)


def test_a_model_that_is_random_in_evaluation_proves_nothing() -> None:
    class Noisy(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return out + torch.randn_like(out)

    model, inputs = Noisy(*mlp()), (torch.rand(2, 4),)
    with pytest.raises(ModelError, match="other outputs each time in evaluation mode"):
        check_removal(model, Graph(model, inputs), {"0": [1]}, inputs)


def test_the_training_pass_leaves_no_trace() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()
            self.register_buffer("average", torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.inner[1](self.inner[0](x))
            if self.training:
                self.get_buffer("average").mul_(0.9).add_(hidden.detach().mean(0))
            out: Tensor = self.inner[2](hidden - self.get_buffer("average"))
            return out

    model, inputs = Counting(), (torch.rand(2, 4),)
    state = torch.get_rng_state()
    (group,) = Graph(model, inputs).groups
    assert "average" in {place.tensor for place in group.places}
    assert not model.get_buffer("average").any()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
