import copy
import threading

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import ModelError
from overhaul.multitask import SeparateTrunks, SharedTrunk, trunk_output

HEADS = {"a": 2, "b": 5}


def heads(width: int) -> dict[str, nn.Module]:
    return {name: nn.Linear(width, size) for name, size in HEADS.items()}


class Doubling(nn.Module):
    """Writes into what its layers return."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y.mul_(2)


def test_what_follows_cannot_write_into_the_features() -> None:
    model, x = Doubling(), torch.rand(5, 3)
    assert torch.equal(trunk_output(model, "layer", (x,), {}), model.layer(x))


def test_gradients_reach_the_trunk() -> None:
    model = SharedTrunk(Doubling(), "layer", 1, heads(4))
    outputs = model(torch.rand(5, 3))
    (outputs["a"].sum() + outputs["b"].sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_no_hook_is_left_even_after_an_error() -> None:
    model = Doubling()
    trunk_output(model, "layer", (torch.rand(5, 3),), {})
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        trunk_output(model, "layer", (torch.rand(5, 7),), {})
    assert not model.layer._forward_hooks


def test_a_module_that_does_not_run_is_reported() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x) if x.sum() > 0 else x
            return y

    assert trunk_output(Gated(), "layer", (torch.ones(2, 3),), {}).shape == (2, 4)
    with pytest.raises(ModelError, match=r"did not come to 'layer' on these inputs"):
        trunk_output(Gated(), "layer", (-torch.ones(2, 3),), {})


def test_of_a_tuple_the_first_tensor_is_taken() -> None:
    model = nn.Sequential(nn.LSTM(3, 4, batch_first=True))
    x = torch.rand(2, 5, 3)
    assert torch.equal(trunk_output(model, "0", (x,), {}), model(x)[0])


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_every_other_dimension_is_averaged(channels: int) -> None:
    shape = [2, 6, 6, 6]
    shape[channels] = 4
    x = torch.rand(shape)
    others = [dimension for dimension in (1, 2, 3) if dimension != channels]
    model = SharedTrunk(nn.Sequential(nn.Identity()), "0", channels, heads(4))
    wanted = {name: head(x.mean(others)) for name, head in model.heads.items()}
    for name, output in model(x).items():
        assert torch.allclose(output, wanted[name], atol=1e-6)


def test_gradients_of_separate_trunks_do_not_mix() -> None:
    model = SeparateTrunks(Doubling(), "layer", 1, heads(4))
    model(torch.rand(5, 3))["a"].sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {n for n, _ in model.named_parameters() if ".a." in f".{n}"}


def test_separate_trunks_begin_equal_and_share_nothing() -> None:
    trunk = Doubling()
    model = SeparateTrunks(trunk, "layer", 1, heads(4))
    weights = [model.get_parameter(f"trunks.{name}.layer.weight") for name in HEADS]
    assert torch.equal(weights[0], weights[1])
    assert len({weight.data_ptr() for weight in (*weights, trunk.layer.weight)}) == 3


def test_threads_do_not_get_the_features_of_each_other() -> None:
    barrier = threading.Barrier(2, timeout=30)

    class Meeting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            barrier.wait()
            return x + 1

    model = SharedTrunk(nn.Sequential(Meeting()), "0", 1, heads(3)).eval()
    found: dict[int, dict[str, Tensor]] = {}

    def work(number: int) -> None:
        with torch.no_grad():
            found[number] = model(torch.full((1, 3), float(number)))

    threads = [threading.Thread(target=work, args=(number,)) for number in (10, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, outputs in found.items():
        for name, head in model.heads.items():
            assert torch.equal(outputs[name], head(torch.full((1, 3), number + 1.0)))
    assert set(found) == {10, 20}


def test_a_copy_computes_the_same_and_stands_alone() -> None:
    model = SharedTrunk(Doubling(), "layer", 1, heads(4))
    twin = copy.deepcopy(model)
    x = torch.rand(5, 3)
    before = model(x)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    for name, output in model(x).items():
        assert torch.equal(output, before[name])


def test_the_trunk_is_told_in_the_print() -> None:
    assert "path='layer', channels=1" in repr(SharedTrunk(Doubling(), "layer", 1, heads(4)))
    assert "path='layer', channels=1" in repr(SeparateTrunks(Doubling(), "layer", 1, heads(4)))
