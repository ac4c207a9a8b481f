import torch
from torch import nn

from overhaul.training._joined_optimizer import joined


def pair() -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return nn.Linear(3, 2), nn.Linear(3, 2)


def parts_of(layers: tuple[nn.Linear, nn.Linear]) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.SGD(layers[0].parameters(), lr=0.1, momentum=0.9),
        torch.optim.AdamW(layers[1].parameters(), lr=0.01),
    ]


def steps(
    layers: tuple[nn.Linear, nn.Linear], optimizers: list[torch.optim.Optimizer], count: int
) -> None:
    for _ in range(count):
        for layer in layers:
            layer(torch.ones(1, 3)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def assert_same(one: tuple[nn.Linear, nn.Linear], two: tuple[nn.Linear, nn.Linear]) -> None:
    for left, right in zip(one, two, strict=True):
        assert torch.equal(left.weight, right.weight)
        assert torch.equal(left.bias, right.bias)


def test_its_step_is_the_step_of_each() -> None:
    apart, together = pair(), pair()
    steps(apart, parts_of(apart), 3)
    steps(together, [joined(parts_of(together))], 3)
    assert_same(apart, together)


def test_rates_that_are_set_reach_each_before_and_after_loading() -> None:
    layers = pair()
    optimizer = joined(parts_of(layers))
    for _ in range(2):
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        before = [layer.weight.clone() for layer in layers]
        steps(layers, [optimizer], 1)
        for layer, old in zip(layers, before, strict=True):
            assert torch.equal(layer.weight, old)
        optimizer.load_state_dict(optimizer.state_dict())


def test_it_goes_on_from_its_state() -> None:
    whole, parts = pair(), pair()
    steps(whole, [joined(parts_of(whole))], 4)
    first = joined(parts_of(parts))
    steps(parts, [first], 2)
    second = joined(parts_of(parts))
    second.load_state_dict(first.state_dict())
    steps(parts, [second], 2)
    assert_same(whole, parts)


def test_one_alone_is_itself() -> None:
    [one, _] = parts_of(pair())
    assert joined([one]) is one


def test_a_loss_scale_is_taken_off_and_changed_once_for_all() -> None:
    apart, together = pair(), pair()
    steps(apart, parts_of(apart), 3)
    optimizer = joined(parts_of(together))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    for number in range(3):
        assert scaler.get_scale() == 8.0 * 2**number
        for layer in together:
            scaler.scale(layer(torch.ones(1, 3)).square().sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert_same(apart, together)


def test_a_gradient_that_overflows_in_one_stops_the_step_of_all() -> None:
    layers = pair()
    optimizer = joined(parts_of(layers))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for layer, factor in zip(layers, (1.0, float("inf")), strict=True):
        scaler.scale(factor * layer(torch.ones(1, 3)).sum()).backward()
    before = [layer.weight.clone() for layer in layers]
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 4.0
    for layer, old in zip(layers, before, strict=True):
        assert torch.equal(layer.weight, old)
