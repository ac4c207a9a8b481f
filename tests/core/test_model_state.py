"""What a model is made of, and how it is rebuilt from it."""

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from overhaul.core import (
    ModelError,
    evaluating,
    load_tensors_,
    model_fingerprint,
    model_tensors,
    rebuild,
    tensor_hash,
    trainable_names,
)
from tests.core.samples import AddRandomLayer, Net, RenameLayer, TiedNet

ROOT = Path(__file__).resolve().parents[2]


def changed_net() -> Net:
    """Return a network all of whose tensors differ from a new one's."""
    net = Net()
    with torch.no_grad():
        for tensor in model_tensors(net).values():
            tensor.add_(1)
    return net


def test_tensors_are_all_parameters_and_buffers_each_once() -> None:
    assert list(model_tensors(Net())) == [
        *("first.weight", "first.bias", "norm.weight", "norm.bias", "last.weight", "last.bias"),
        *("scale", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"),
    ]
    assert list(model_tensors(TiedNet())) == ["first.weight", "first.bias", "last.bias"]


def test_a_rebuilt_model_is_the_model_bit_for_bit() -> None:
    original, changed = Net(), changed_net()
    changed.first.weight.requires_grad_(False)
    edits = (RenameLayer(old="last", new="head"),)
    net = edits[0].apply(changed)
    again = rebuild(original, edits, model_tensors(net), trainable_names(net))
    assert tensor_hash(model_tensors(again)) == tensor_hash(model_tensors(net))
    assert trainable_names(again) == trainable_names(net)
    assert "last.weight" in model_tensors(original)
    assert not torch.equal(original.scale, again.get_buffer("scale"))


def test_rebuilding_leaves_the_original_and_the_random_generator_alone() -> None:
    original = Net()
    before, state = model_fingerprint(original), torch.get_rng_state()
    edits = (AddRandomLayer(name="extra"),)
    extra = {"extra.weight": torch.zeros(2, 2), "extra.bias": torch.zeros(2)}
    rebuild(original, edits, model_tensors(original) | extra, ())
    assert model_fingerprint(original) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_keeps_results_with_gradients_is_rebuilt() -> None:
    original = nn.Linear(4, 3)
    prune.l1_unstructured(original, "weight", 0.5)
    x = torch.rand(2, 4)
    expected = original(x)
    assert not original.weight.is_leaf
    again = rebuild(original, [], model_tensors(original), trainable_names(original))
    assert torch.equal(again(x), expected)
    again(x).sum().backward()
    assert original.get_parameter("weight_orig").grad is None
    gradient = again.get_parameter("weight_orig").grad
    assert gradient is not None
    assert gradient.any()


def test_shared_weights_are_still_shared_after_rebuilding() -> None:
    original = TiedNet()
    net = deepcopy(original)
    with torch.no_grad():
        net.first.weight.fill_(0.5)
    again = rebuild(original, (), model_tensors(net), trainable_names(net))
    assert isinstance(again, TiedNet)
    assert again.last.weight is again.first.weight
    assert torch.equal(again.last.weight, net.last.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("scale"), "scale is missing"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "more is not in the model"),
        (
            lambda tensors: tensors.update(scale=torch.zeros(2)),
            r"scale is \[2\] float32 and the model's \[\] float32",
        ),
        (
            lambda tensors: tensors.update(scale=torch.tensor(2.0).half()),
            r"scale is \[\] float16 and the model's \[\] float32",
        ),
    ],
)
def test_tensors_of_another_model_are_refused_before_any_is_loaded(
    change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    net, tensors = Net(), model_tensors(changed_net())
    before = model_fingerprint(net)
    change(tensors)
    with pytest.raises(ModelError, match=rf"do not belong to this Net: {message}.* factory"):
        load_tensors_(net, tensors)
    assert model_fingerprint(net) == before


def test_of_many_differences_three_are_named() -> None:
    with pytest.raises(ModelError, match=r"is missing; .*is missing; .*is missing; \.\.\."):
        load_tensors_(Net(), {})


def test_evaluating_restores_every_flag() -> None:
    net = Net()
    net.norm.eval()
    with evaluating(net):
        assert not any(module.training for module in net.modules())
        assert not net(torch.zeros(2, 3)).requires_grad
    assert (net.training, net.norm.training, net.first.training) == (True, False, True)
    with pytest.raises(KeyError, match="no such key"):
        _fail_while_evaluating(net)
    assert (net.training, net.norm.training) == (True, False)
    assert torch.is_grad_enabled()


def _fail_while_evaluating(net: nn.Module) -> None:
    with evaluating(net):
        raise KeyError("no such key")


def test_a_hash_sees_names_types_shapes_and_bytes() -> None:
    tensors = {"a": torch.zeros(2, 2)}
    hashes = {
        tensor_hash(tensors),
        tensor_hash({"b": torch.zeros(2, 2)}),
        tensor_hash({"a": torch.zeros(4)}),
        tensor_hash({"a": torch.zeros(2, 2).int()}),
        tensor_hash({"a": -torch.zeros(2, 2)}),
        tensor_hash(tensors | {"c": torch.zeros(0)}),
    }
    assert len(hashes) == 6
    assert tensor_hash({"a": torch.zeros(2, 2).T}) == tensor_hash(tensors)
    assert tensor_hash({"a": tensors["a"], "b": tensors["a"]}) == tensor_hash(
        {"b": tensors["a"], "a": tensors["a"]}
    )


class NetTwin(Net):
    """Computes something else, from the same tensors and the same printed structure."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


NetTwin.__qualname__ = NetTwin.__name__ = "Net"


def seeded_net(cls: type[Net] = Net, *, power: int = 1) -> Net:
    """Return the same network each time."""
    torch.manual_seed(0)
    return cls(power=power)


def test_equal_models_have_equal_fingerprints() -> None:
    assert model_fingerprint(seeded_net()) == model_fingerprint(seeded_net())
    assert model_fingerprint(seeded_net().eval()) == model_fingerprint(seeded_net())


def _change_weight(net: Net) -> None:
    with torch.no_grad():
        net.first.bias[0] += 1e-3


def _change_hidden_buffer(net: Net) -> None:
    net.scale.add_(1)


def _freeze(net: Net) -> None:
    net.first.weight.requires_grad_(False)


def _change_setting(net: Net) -> None:
    net.norm.eps = 1e-3


def _change_own_setting(net: Net) -> None:
    net.power = 2


def _change_structure(net: Net) -> None:
    net.first, net.extra = nn.Linear(3, 4), nn.Identity()


@pytest.mark.parametrize(
    "change",
    [
        *(_change_weight, _change_hidden_buffer, _freeze),
        *(_change_setting, _change_own_setting, _change_structure),
    ],
)
def test_whatever_decides_the_outputs_changes_the_fingerprint(
    change: Callable[[Net], None],
) -> None:
    net = seeded_net()
    change(net)
    assert model_fingerprint(net) != model_fingerprint(seeded_net())


def test_the_source_of_a_class_changes_the_fingerprint() -> None:
    net, twin = seeded_net(), seeded_net(NetTwin)
    assert repr(net) == repr(twin)
    assert model_fingerprint(net) != model_fingerprint(twin)


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    program = (
        "from overhaul.core import model_fingerprint\n"
        "from tests.core.test_model_state import seeded_net\n"
        "print(model_fingerprint(seeded_net()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout.strip() == model_fingerprint(seeded_net())
