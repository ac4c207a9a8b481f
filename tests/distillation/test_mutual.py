from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overhaul.core import (
    CheckpointFolder,
    Context,
    Fact,
    ModelError,
    Network,
    SpecError,
    model_tensors,
    read_state,
)
from overhaul.distillation import Mutual, Peer
from overhaul.testing import TinyCNN, check_spec, check_step, tiny_cnn, tiny_multi_task, tiny_task
from overhaul.training import SGD, AdamW, BoundObjective, Constant, TaskLoss, Train
from overhaul.training._batching import epoch_batches
from tests.distillation.killing import KilledError, Killing

MakeContext = Callable[..., Context]
FACTORY = Network(factory="overhaul.testing:TinyCNN")
SMALL = Network(factory="overhaul.testing:TinyCNN", arguments={"width": 2})


def plain_peer() -> nn.Module:
    """Without dropout, whose draws a loop by hand would have to repeat."""
    torch.manual_seed(11)
    return without_dropout(TinyCNN(width=4))


def other_plain_peer() -> nn.Module:
    torch.manual_seed(12)
    return without_dropout(TinyCNN(width=5))


def without_dropout(network: TinyCNN) -> TinyCNN:
    """Turn dropout off, and take out the bias before BatchNorm: its gradient is rounding alone."""
    network.dropout.p = 0.0
    network.conv.bias = None
    return network


def peers_of(bound: BoundObjective) -> list[nn.Module]:
    return [companion.network for companion in bound.companions]


def same(left: nn.Module, right: nn.Module) -> bool:
    one, two = model_tensors(left), model_tensors(right)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def kept_peers(monkeypatch: pytest.MonkeyPatch) -> list[BoundObjective]:
    """Return a list that gets every bound objective."""
    found: list[BoundObjective] = []
    bind = Mutual.bind

    def keep(self: Mutual, model: nn.Module, ctx: Context) -> BoundObjective:
        found.append(bind(self, model, ctx))
        return found[-1]

    monkeypatch.setattr(Mutual, "bind", keep)
    return found


def test_the_losses_are_those_of_the_paper(make_context: MakeContext) -> None:
    model, ctx = without_dropout(tiny_cnn()), make_context(tiny_cnn())
    plan = Mutual(peers=[plain_peer, other_plain_peer], temperature=2.0, weight=0.5)
    bound = plan.bind(model, ctx)
    batch = next(ctx.data.train.in_order(16))
    losses = bound(model, batch)
    assert isinstance(batch.targets, Tensor)
    logits = [network(*batch.inputs).detach() for network in (model, *peers_of(bound))]

    def divergence(other: Tensor, own: Tensor) -> Tensor:
        p, q = (each.div(2).softmax(1) for each in (other, own))
        return 4 * (p * (p / q).log()).sum(1).mean()

    for name, own in (("task", 0), ("peer 1", 1), ("peer 2", 2)):
        others = [divergence(logits[k], logits[own]) for k in range(3) if k != own]
        task, mutual = F.cross_entropy(logits[own], batch.targets), 0.5 * sum(others) / 2
        if own == 0:
            torch.testing.assert_close(losses["task"], task)
            torch.testing.assert_close(losses["task_mutual"], mutual)
        else:
            torch.testing.assert_close(losses[name], task + mutual)


def test_no_gradient_reaches_another_network(make_context: MakeContext) -> None:
    model = tiny_cnn()
    bound = Mutual(peers=[FACTORY, SMALL]).bind(model, make_context(tiny_cnn()))
    networks = [model, *peers_of(bound)]
    batch = next(make_context(tiny_cnn()).data.train.in_order(16))
    for own, names in enumerate((("task", "task_mutual"), ("peer 1",), ("peer 2",))):
        for name in names:
            for network in networks:
                network.zero_grad()
            bound(model, batch)[name].backward()
            touched = [
                any(p.grad is not None for p in network.parameters()) for network in networks
            ]
            assert touched == [number == own for number in range(3)], name


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_the_gradient_does_not_vanish_with_the_temperature(
    make_context: MakeContext, temperature: float
) -> None:
    norms = []
    for t in (1.0, temperature):
        model = tiny_cnn().eval()
        ctx = make_context(tiny_cnn())
        bound = Mutual(peers=[plain_peer], temperature=t).bind(model, ctx).eval()
        bound(model, next(ctx.data.train.in_order(16)))["task_mutual"].backward()
        norms.append(sum(float(p.grad.norm()) for p in model.parameters() if p.grad is not None))
    assert 0.25 < norms[1] / norms[0] < 4


def test_it_equals_a_loop_by_hand(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = kept_peers(monkeypatch)
    ours, theirs = without_dropout(tiny_cnn()), without_dropout(tiny_cnn())
    ctx = make_context(deepcopy(ours))
    plan = Train(
        epochs=2, batch_size=8, optimizer=SGD(lr=0.05), schedule=Constant(), keep="last",
        channels_last=False, clip_norm=0.7,
        objective=Mutual(peers=[Peer(network=plain_peer, optimizer=AdamW(lr=0.02))]),
    )  # fmt: skip
    plan.apply(ours, ctx)

    peer = plain_peer()
    optimizers = [
        SGD(lr=0.05).build(theirs.parameters()),
        AdamW(lr=0.02).build(peer.parameters()),
    ]
    for epoch in (1, 2):
        theirs.train(), peer.train()
        for indices in epoch_batches(48, 8, ctx.generator("order", epoch)):
            batch = ctx.data.train.read(indices)
            assert isinstance(batch.targets, Tensor)
            one, two = theirs(*batch.inputs), peer(*batch.inputs)
            for own, other in ((one, two), (two, one)):
                loss = F.cross_entropy(own, batch.targets) + F.kl_div(
                    own.log_softmax(1), other.detach().softmax(1), reduction="batchmean"
                )
                loss.backward()
            for network, optimizer in zip((theirs, peer), optimizers, strict=True):
                nn.utils.clip_grad_norm_(network.parameters(), 0.7)
                optimizer.step()
                optimizer.zero_grad()
    for left, right in ((ours, theirs), (peers_of(bound[0])[0], peer)):
        for name, tensor in model_tensors(right).items():
            torch.testing.assert_close(model_tensors(left)[name], tensor, msg=name)


def test_peers_learn_in_train_mode_with_statistics_of_their_own(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = kept_peers(monkeypatch)
    modes: list[tuple[bool, bool]] = []
    forward = TinyCNN.forward

    def watched(self: TinyCNN, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            modes.append((self.training, self.bn.training and self.dropout.training))
        return forward(self, x)

    monkeypatch.setattr(TinyCNN, "forward", watched)
    model = tiny_cnn()
    Train(epochs=3, batch_size=16, objective=Mutual(peers=[FACTORY, SMALL])).apply(
        model, make_context(tiny_cnn())
    )
    assert len(modes) == 3 * 3 * 3  # networks, epochs, batches
    assert set(modes) == {(True, True)}
    first, second = peers_of(bound[0])
    assert isinstance(first, TinyCNN)
    assert isinstance(second, TinyCNN)
    assert not torch.equal(first.bn.running_mean, model.bn.running_mean)  # type: ignore[arg-type]
    assert int(first.bn.num_batches_tracked or 0) == int(second.bn.num_batches_tracked or 0) == 9


def test_weights_of_all_networks_really_move(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = kept_peers(monkeypatch)
    model = tiny_cnn()
    Train(epochs=1, batch_size=16, keep="last", objective=Mutual(peers=[plain_peer])).apply(
        model, make_context(tiny_cnn())
    )
    for before, after in ((tiny_cnn(), model), (plain_peer(), peers_of(bound[0])[0])):
        for old, new in zip(before.parameters(), after.parameters(), strict=True):
            assert not torch.equal(old, new)


def test_the_schedule_moves_the_rate_of_each_optimizer(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[list[float]] = []
    step = torch.optim.SGD.step

    def watched(self: torch.optim.SGD, closure: Any = None) -> Any:
        rates.append([group["lr"] for group in self.param_groups])
        return step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    plan = Mutual(peers=[Peer(network=FACTORY, optimizer=SGD(lr=0.01))])
    Train(epochs=1, batch_size=16, optimizer=SGD(lr=0.1), objective=plan).apply(
        tiny_cnn(), make_context(tiny_cnn())
    )
    model, peer = rates[::2], rates[1::2]
    assert len(model) == len(peer) == 3
    for one, two in zip(model, peer, strict=True):
        assert one == pytest.approx([10 * rate for rate in two])
    assert model[0] != model[1]


def test_peers_are_measured_on_val_and_are_no_part_of_the_model(make_context: MakeContext) -> None:
    model, ctx = tiny_cnn(), make_context(tiny_cnn())
    found = Train(epochs=2, objective=Mutual(peers=[FACTORY, SMALL])).apply(model, ctx)
    assert model_tensors(found).keys() == model_tensors(tiny_cnn()).keys()
    measured = [
        (fact.subject, fact.detail["epoch"]) for fact in ctx.facts if fact.name == "val_accuracy"
    ]
    assert measured == [
        *(("0 step", 1), ("0 step, peer 1", 1), ("0 step, peer 2", 1)),
        *(("0 step", 2), ("0 step, peer 1", 2), ("0 step, peer 2", 2)),
    ]


def test_the_training_loss_that_is_shown_is_the_models(make_context: MakeContext) -> None:
    ctx = make_context(tiny_cnn())
    plan = Mutual(peers=[FACTORY, SMALL, FACTORY])
    Train(epochs=1, optimizer=SGD(lr=1e-9), objective=plan).apply(tiny_cnn(), ctx)
    [loss] = [fact.value for fact in ctx.facts if fact.name == "train_loss"]
    assert float(loss or 0) < 2.5  # one network's; four would have more than 4


def test_an_interrupted_training_goes_on_bit_for_bit(
    make_context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = kept_peers(monkeypatch)
    plan = Train(
        epochs=3, batch_size=8, optimizer=AdamW(lr=1e-2), keep="last",
        objective=Mutual(peers=[FACTORY, Peer(network=SMALL, optimizer=SGD(lr=0.05))]),
    )  # fmt: skip

    def run(folder: str) -> tuple[list[nn.Module], list[Fact]]:
        ctx = make_context(tiny_cnn(), checkpoints=CheckpointFolder(tmp_path / folder))
        model = plan.apply(tiny_cnn(), ctx)
        return [model, *peers_of(bound[-1])], [fact for fact in ctx.facts if fact.reproducible]

    whole, facts = run("whole")
    killing = Killing(2)
    with killing.armed(), pytest.raises(KilledError):
        run("parts")
    resumed, again = run("parts")
    for one, two in zip(whole, resumed, strict=True):
        assert same(one, two)
    assert again == facts
    last = [read_state(tmp_path / folder / "3")["optimizer"] for folder in ("whole", "parts")]
    _assert_equal(last[0], last[1])


def _assert_equal(one: Any, two: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        one, two = list(one.values()), list(two.values())
    if isinstance(one, list):
        for left, right in zip(one, two, strict=True):
            _assert_equal(left, right)
    else:
        assert torch.equal(one, two) if isinstance(one, Tensor) else one == two


def test_a_changed_optimizer_state_is_seen() -> None:
    with pytest.raises(AssertionError):
        _assert_equal({"parts": [torch.zeros(2)]}, {"parts": [torch.tensor([0.0, 1.0])]})


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulation_makes_the_same_step(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    bound = kept_peers(monkeypatch)
    found = []
    for parts in (1, accumulate):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        ctx = make_context(deepcopy(model))
        ctx.checkpoints._path = ctx.checkpoints._path / str(parts)
        Train(
            epochs=1, batch_size=7, optimizer=SGD(lr=0.1), keep="last", accumulate=parts,
            objective=Mutual(peers=[linear_peer], weight=2.0),
        ).apply(model, ctx)  # fmt: skip
        found.append([*model.parameters(), *peers_of(bound[-1])[0].parameters()])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def linear_peer() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))


class ByView(TinyCNN):
    """It cannot run channels last."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.bn(self.conv(x))), 2)
        logits: Tensor = self.fc(x.view(x.size(0), -1))
        return logits


@pytest.mark.parametrize(("factory", "channels_last"), [(TinyCNN, True), (ByView, False)])
def test_a_peer_is_stored_channels_last_like_the_model_where_it_can_be(
    factory: type[TinyCNN], channels_last: bool, make_context: MakeContext
) -> None:
    peers: list[nn.Module] = []

    class Watched(Mutual):
        def bind(self, model: nn.Module, ctx: Context) -> BoundObjective:
            bound = super().bind(model, ctx)
            peers.extend(peers_of(bound))
            bound.register_forward_hook(
                lambda *_: formats.append(peers[0].get_parameter("conv.weight").stride())
            )
            return bound

    formats: list[tuple[int, ...]] = []
    plan = Train(epochs=1, objective=Watched(peers=[Network(factory=factory)]), channels_last=True)
    plan.apply(tiny_cnn(), make_context(tiny_cnn()))
    kernel = torch.empty_like(peers[0].get_parameter("conv.weight"))
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    assert set(formats) == {kernel.contiguous(memory_format=wanted).stride()}


def test_several_tasks_at_once(make_context: MakeContext) -> None:
    task = tiny_multi_task()
    model, ctx = two_heads(), make_context(two_heads(), task=task)
    plan = Mutual(peers=[two_heads])
    losses = plan.bind(model, ctx)(model, next(ctx.data.train.in_order(8)))
    assert set(losses) == {"number", "odd", "number_mutual", "odd_mutual", "peer 1"}


class _TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.number, self.odd = nn.Linear(64, 3), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"number": self.number(x.flatten(1)), "odd": self.odd(x.flatten(1))}


def two_heads() -> nn.Module:
    return _TwoHeads()


def test_the_control_is_the_same_training_alone() -> None:
    plan = Train(epochs=2, clip_norm=1.0, objective=Mutual(peers=[FACTORY]))
    assert plan.control() == Train(epochs=2, clip_norm=1.0, objective=TaskLoss())


def test_it_keeps_the_contract() -> None:
    check_step(Train(epochs=2, batch_size=16, objective=Mutual(peers=[FACTORY, FACTORY])))


@pytest.mark.parametrize(
    "plan",
    [
        Mutual(peers=[FACTORY, TinyCNN], temperature=3.0, weight=0.5),
        Mutual(peers=[Peer(network=TinyCNN, optimizer=SGD(lr=0.05)), SMALL]),
    ],
)
def test_it_round_trips(plan: Mutual) -> None:
    check_spec(plan)


def test_networks_that_start_equal_are_refused(make_context: MakeContext) -> None:
    ctx = make_context(tiny_cnn())
    with pytest.raises(ModelError, match=r"peer 1 of Mutual starts from the very weights of the m"):
        Mutual(peers=[tiny_cnn]).bind(tiny_cnn(), ctx)
    with pytest.raises(ModelError, match=r"peer 3 of Mutual .* of peer 1, so neither can teach"):
        Mutual(peers=[plain_peer, FACTORY, plain_peer]).bind(tiny_cnn(), ctx)
    assert len(peers_of(Mutual(peers=[FACTORY, FACTORY]).bind(tiny_cnn(), ctx))) == 2


def frozen_peer() -> nn.Module:
    return TinyCNN().requires_grad_(False)


def test_peers_that_cannot_learn_are_refused_before_work() -> None:
    task = tiny_task()
    data = task.prepare()
    wrong = Network(factory=TinyCNN, arguments={"classes": 7})
    for peers, error in (
        ([FACTORY, wrong], "peer 2 of Mutual does not fit the task"),
        ([frozen_peer], "peer 1 of Mutual has no parameter that requires a gradient"),
        ([Network(factory=TinyCNN, weights="no.pt")], "there is no weights file"),
    ):
        with pytest.raises(ModelError, match=error):
            Train(epochs=1, objective=Mutual(peers=peers)).preflight(tiny_cnn(), task, data)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("mutual: {peers: []}", "At least one network to learn with"),
        ("mutual", "mutual needs the field `peers`"),
        (
            "mutual: {peers: [{network: {factory: overhaul.testing:TinyCNN, argments: {}}}]}",
            "in `peers`: network has no field 'argments'. Did you mean 'arguments'",
        ),
        (
            "mutual: {peers: [{peer: {network: {factory: overhaul.testing:TinyCNN}, "
            "optimizer: sdg}}]}",
            "in `peers`: .*unknown optimizer 'sdg'. Did you mean 'sgd'",
        ),
        (
            "mutual: {peers: [{network: {factory: overhaul.testing:TinyCNN}}], temperature: 0}",
            "It divides all networks' logits",
        ),
    ],
)
def test_errors_are_in_words(text: str, error: str) -> None:
    with pytest.raises(SpecError, match=error):
        Mutual.from_yaml(text)


def test_a_network_in_place_of_a_factory_is_refused() -> None:
    with pytest.raises(SpecError, match=r"got one \(TinyCNN\). Give the function or class"):
        Mutual(peers=[tiny_cnn()])
