"""`Mixture`: several teachers as one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from overhaul.core import Batch, ModelError, Outputs, Task, unwrap_outputs
from overhaul.distillation._seen import Seen
from overhaul.training import AdamW, Companion

MIXTURE_LOSS = "teacher_mixture"
"""The loss of the mixture, by which nothing but its weights is trained."""
# A handful of numbers that are to move by one or so in a short training.
_OPTIMIZER = AdamW(lr=0.01)


class Mixture(nn.Module):
    r"""Several teachers as one, whose outputs are :math:`\sum_i w_i z_i` of theirs.

    The weights are equal, or :math:`w = \sigma(s)` with learned scores :math:`s`, zero at first.

    Args:
        teachers: In evaluation mode, without gradients.
        learned: Whether the weights are learned.
    """

    def __init__(self, teachers: Sequence[nn.Module], *, learned: bool) -> None:
        """Take the teachers."""
        super().__init__()
        self.teachers, self.learned = nn.ModuleList(teachers), learned
        self.scores = _Scores(len(teachers)).requires_grad_(learned)

    @property
    def companions(self) -> tuple[Companion, ...]:
        """What `Train` is to train."""
        return (Companion(self.scores, _OPTIMIZER),) if self.learned else ()

    def weights(self) -> list[float]:
        """Return the weight of each teacher; they sum to one."""
        found: list[float] = self.scores().tolist()
        return found

    def forward(self, *inputs: Any, **named_inputs: Any) -> Outputs:
        """Return the mixed outputs."""
        outputs = [unwrap_outputs(teacher(*inputs, **named_inputs)) for teacher in self.teachers]
        return _mixed(outputs, self.scores().detach())

    def see(self, batch: Batch, task: Task) -> tuple[Seen, dict[str, Tensor]]:
        """Return what the student sees, which has no gradient to the weights, and their loss."""
        outputs = [batch.forward(teacher) for teacher in self.teachers]
        seen = Seen(batch, _mixed(outputs, self.scores().detach()), {})
        if not self.learned:
            return seen, {}
        with torch.enable_grad():
            losses = task.losses(
                _mixed([_detached(each) for each in outputs], self.scores()), batch.targets
            )
            return seen, {MIXTURE_LOSS: torch.stack(list(losses.values())).sum()}


class _Scores(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(count))

    def forward(self) -> Tensor:
        return self.scores.softmax(0)


def _mixed(outputs: Sequence[Outputs], weights: Tensor) -> Outputs:
    first = outputs[0]
    if isinstance(first, dict):
        parts = [each for each in outputs if isinstance(each, dict)]
        if len(parts) < len(outputs) or any(each.keys() != first.keys() for each in parts):
            raise ModelError("all teachers must return outputs of the same names.")
        return {name: _mean([each[name] for each in parts], weights) for name in first}
    return _mean([each for each in outputs if isinstance(each, Tensor)], weights)


def _mean(outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
    shapes = [list(each.shape) for each in outputs]
    if len(outputs) < len(weights) or any(shape != shapes[0] for shape in shapes):
        raise ModelError(
            "all teachers must return outputs of one shape, got "
            f"{' and '.join(map(str, shapes))}. Make all return the same."
        )
    return sum(
        (weight * each for weight, each in zip(weights[1:], outputs[1:], strict=True)),
        weights[0] * outputs[0],
    )


def _detached(outputs: Outputs) -> Outputs:
    if isinstance(outputs, dict):
        return {name: each.detach() for name, each in outputs.items()}
    return outputs.detach()
