"""`Mutual`: networks that are trained at once learn from each other."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from overhaul.core import (
    Batch,
    Context,
    ModelError,
    Network,
    Outputs,
    Spec,
    Splits,
    Task,
    model_tensors,
    part_of,
    tensor_hash,
)
from overhaul.distillation._auto import Temperature, as_number, open_temperature
from overhaul.distillation._given_network import built_to_fit, network_of
from overhaul.distillation._soft_targets import soft_loss
from overhaul.evaluation import predict
from overhaul.training import BoundObjective, Companion, Objective, OpenSetting, Optimizer


class Peer(Spec):
    """A network that learns with the model, by an optimizer of its own kind.

    Args:
        network: What it is and which weights it starts from.
        optimizer: How it is trained; the schedule is that of the training.

    Example:
        >>> from overhaul.training import SGD
        >>> Peer(network=Network(factory="overhaul.testing:TinyCNN"), optimizer=SGD(lr=0.05))
        Peer(network=Network(factory='overhaul.testing:TinyCNN'), optimizer=SGD(lr=0.05))
    """

    network: Network
    optimizer: Optimizer

    @field_validator("network", mode="before")
    @classmethod
    def _from_factory(cls, value: Any) -> Any:
        return network_of(value)


class Mutual(Objective):
    r"""The model and its peers are trained at once, each by the task and by what the others say.

    Network :math:`k` of :math:`K` minimizes

    .. math:: L_k = L_\text{task} + \frac{w}{K - 1} \sum_{l \ne k}
              T^2\,\mathrm{KL}\bigl(\sigma(z_l / T)\,\|\,\sigma(z_k / T)\bigr)

    and its gradient reaches network :math:`k` alone. Each network has its own optimizer, clipping
    and BatchNorm; all see the same inputs, augmentations included. Peers are measured on `val`
    after each epoch, and are gone at the end. The control is the same training of the model alone.

    Args:
        peers: The other networks, each a `Network`, a factory, or a `Peer` with an optimizer of
            another kind than the model's. Each is built with a seed of its own.
        temperature: :math:`T`, or `auto` to choose it on `val`. Default 1.
        weight: :math:`w`, of the others beside the task. Default 1.

    Shapes: outputs of all networks `[B, C]`; of language models `[B, T, V]`.

    Raises:
        ModelError: a peer does not fit the task, has nothing to train, or starts from the same
            weights as another network, so that there is nothing to learn from it.

    Example:
        >>> Mutual(peers=[Network(factory="overhaul.testing:TinyCNN")])
        Mutual(peers=(Network(factory='overhaul.testing:TinyCNN'),))

    Paper: Zhang et al., CVPR 2018 (deep mutual learning).  Differs: all networks make their step at
    once, from the outputs that they gave before it, not one after the other; a temperature other
    than 1 can be given; it is the model that is kept, not the best of all.
    """

    peers: tuple[Network | Peer, ...] = Field(
        min_length=1, description="At least one network to learn with."
    )
    temperature: Temperature = Field(default=1.0, description="It divides all networks' logits.")
    weight: float = Field(
        default=1.0, gt=0, description="It is the factor of what the others say, beside the task."
    )

    @field_validator("peers", mode="before")
    @classmethod
    def _from_factories(cls, value: Any) -> Any:
        return [_peer_of(each) for each in value] if isinstance(value, tuple | list) else value

    @property
    def open_settings(self) -> tuple[OpenSetting, ...]:
        """The temperature, if it is `auto`."""
        return (open_temperature("temperature", 1.0),) if self.temperature == "auto" else ()

    def settled(self, values: Mapping[str, float]) -> Objective:
        """Return the objective with this temperature."""
        return self.model_copy(update=values)

    def preflight(self, original: nn.Module, task: Task, data: Splits) -> None:
        """Build each peer, and see that it fits the task and has something to train."""
        for number, given in enumerate(self.peers, 1):
            peer = built_to_fit(_network(given), f"peer {number} of Mutual", task, data)
            if not any(parameter.requires_grad for parameter in peer.parameters()):
                raise ModelError(
                    f"peer {number} of Mutual has no parameter that requires a gradient. Give a "
                    "network to train; `Distill` is for one that only teaches."
                )

    def bind(self, model: nn.Module, ctx: Context) -> BoundObjective:
        """Return the objective with newly built peers."""
        peers: list[nn.Module] = []
        for number, given in enumerate(self.peers, 1):
            with ctx.seeded("peer", number):
                peers.append(_network(given).build().train())
        _see_that_all_differ([model, *peers])
        return _Mutual(self, peers, ctx)


class _Mutual(BoundObjective):
    def __init__(self, plan: Mutual, peers: Sequence[nn.Module], ctx: Context) -> None:
        super().__init__()
        self.plan, self.task, self._ctx = plan, ctx.task, ctx
        self.temperature = as_number(plan.temperature, "temperature")
        self.peers, self.networks = nn.ModuleList(peers), tuple(peers)
        self.companions = tuple(
            Companion(peer, given.optimizer if isinstance(given, Peer) else None)
            for peer, given in zip(peers, plan.peers, strict=True)
        )
        self.beside = tuple(f"peer {number}" for number in range(1, len(peers) + 1))

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        outputs = [batch.forward(network) for network in (model, *self.peers)]
        losses = [self._losses(number, outputs, batch) for number in range(len(outputs))]
        sums = [torch.stack(list(each.values())).sum() for each in losses[1:]]
        return losses[0] | dict(zip(self.beside, sums, strict=True))

    def _losses(self, number: int, outputs: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        """Return the losses of one network, with a gradient to it alone."""
        own, others = outputs[number], [*outputs[:number], *outputs[number + 1 :]]
        losses = dict(self.task.losses(own, batch.targets))
        for name, part in self.task.parts.items():
            distances = [
                soft_loss(
                    part,
                    part_of(own, name),
                    part_of(other, name).detach(),
                    part_of(batch.targets, name),
                    temperature=self.temperature,
                )
                for other in others
            ]
            losses[f"{name}_mutual"] = self.plan.weight * torch.stack(distances).mean()
        return losses

    def after_epoch(self, epoch: int) -> None:
        ctx = self._ctx
        for number, peer in enumerate(self.peers, 1):
            found = predict(peer, ctx.data.val)
            for name, value in ctx.task.metrics(found.outputs, found.targets).items():
                ctx.log(
                    f"val_{name}",
                    value,
                    subject=f"{ctx.label}, peer {number}",
                    split="val",
                    detail={"epoch": epoch},
                )


def _peer_of(value: Any) -> Any:
    if isinstance(value, Mapping) and list(value) == [Peer.spec_name()]:
        return Peer.from_data(value)
    return network_of(value)


def _network(given: Network | Peer) -> Network:
    return given.network if isinstance(given, Peer) else given


def _see_that_all_differ(networks: Sequence[nn.Module]) -> None:
    names: dict[str, str] = {}
    for number, network in enumerate(networks):
        name = f"peer {number}" if number else "the model"
        other = names.setdefault(tensor_hash(model_tensors(network)), name)
        if other is not name:
            raise ModelError(
                f"{name} of Mutual starts from the very weights of {other}, so neither can teach "
                "the other anything. Give other weights, or a factory that draws them at random."
            )
