"""What `accelerate launch` starts in the test of several processes."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from overhaul.core import Network, Progress, seeded
from overhaul.distillation import (
    DecoupledTargets,
    Distill,
    DistillInto,
    Hints,
    Mutual,
    Peer,
    SoftTargets,
)
from overhaul.pruning import PruneWeights
from overhaul.running import Recipe
from overhaul.testing import tiny_task
from overhaul.training import SGD, Train
from tests.tasks.tiny_text import tiny_gpt, tiny_text


class NormFreeNet(nn.Module):
    """Without BatchNorm, whose statistics depend on which process sees which samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


_FRESH = Network(factory="tests.training.distributed_program:NormFreeNet")


def main(out: Path) -> None:
    """Prune and distill in every way, in as many processes as there are."""
    torch.set_num_threads(1)
    with seeded(0):
        net = NormFreeNet()
    recipe = Recipe(
        Train(epochs=2, batch_size=7, optimizer=SGD(lr=0.1), clip_norm=1.0),
        PruneWeights(sparsity=0.5),
        Train(epochs=2, batch_size=9, accumulate=2, objective=Distill(), optimizer=SGD(lr=0.1)),
        Train(
            epochs=2,
            batch_size=9,
            objective=Distill(match=[SoftTargets(), Hints(layers=[("layers.1", "layers.1")])]),
            optimizer=SGD(lr=0.1),
            clip_norm=1.0,
        ),
        Train(
            epochs=2,
            batch_size=7,
            accumulate=2,
            objective=Mutual(peers=[_FRESH, Peer(network=_FRESH, optimizer=SGD(lr=0.05))]),
            optimizer=SGD(lr=0.1),
            clip_norm=0.5,
        ),
        Train(
            epochs=1,
            objective=Distill(teacher=("original", _FRESH), mix="learned"),
            optimizer=SGD(lr=0.1),
        ),
        DistillInto(
            student=_FRESH,
            generations=2,
            train=Train(epochs=1, objective=Distill(weight="auto"), optimizer=SGD(lr=0.1)),
        ),
    )
    recipe.run(net, tiny_task(), out=out, cost=False, progress=Progress(quiet=True))
    # Samples of different lengths, so that processes have different numbers of tokens.
    objective = Distill(match=[SoftTargets(divergence="reverse"), DecoupledTargets()])
    text = Recipe(
        Train(epochs=1, batch_size=9, optimizer=SGD(lr=0.1)),
        Train(epochs=1, batch_size=9, accumulate=2, objective=objective, optimizer=SGD(lr=0.1)),
    )
    folder = out.with_name(f"{out.name}-text")
    text.run(tiny_gpt(), tiny_text(), out=folder, cost=False, progress=Progress(quiet=True))
    if torch.distributed.is_initialized():
        rank = torch.distributed.get_rank()
        out.with_name(f"rank{rank}.txt").write_text(str(torch.distributed.get_world_size()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
