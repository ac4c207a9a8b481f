"""`predict`: what a model says about every sample of a split."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from overhaul.core import DataError, Deployed, ModelError, Outputs, Split, Targets, evaluating
from overhaul.evaluation._model_device import model_device


@dataclass(frozen=True)
class Predictions:
    """What a model said about every sample of a split, in order, and what is true.

    Attributes:
        outputs: `[N, ...]` on the CPU, floating-point ones in float32; one for each named task.
        targets: `[N, ...]` on the CPU; one for each named task.
    """

    outputs: Outputs
    targets: Targets

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(_parts(self.outputs)[0])

    def take(self, indices: Tensor) -> "Predictions":
        """Return the samples at these positions, `[M]`, which may repeat."""
        return Predictions(_take(self.outputs, indices), _take(self.targets, indices))


def predict(predictor: nn.Module | Deployed, split: Split, *, batch_size: int = 256) -> Predictions:
    """Run a predictor over a split in order.

    A model runs on its own device, in evaluation mode, without gradients; its flags are restored.

    Args:
        predictor: A model, or a deployed one that is called like it.
        split: The data.
        batch_size: Samples in one forward pass. Default 256.

    Raises:
        DataError: the split is empty.
        ModelError: an output is not a number, or there is not one output for each sample.
    """
    if len(split) == 0:
        raise DataError(f"the split '{split.name}' is empty. Give it at least one sample.")
    outputs: list[Outputs] = []
    targets: list[Targets] = []
    model = predictor if isinstance(predictor, nn.Module) else None
    device = torch.device("cpu") if model is None else model_device(model)
    with nullcontext() if model is None else evaluating(model):
        for batch in split.in_order(batch_size):
            found = _to_cpu(batch.to(device).forward(predictor))
            _check(found, batch.indices, split.name)
            outputs.append(found)
            targets.append(batch.targets)
    return Predictions(_concatenated(outputs), _concatenated(targets))


def _parts(value: Tensor | dict[str, Tensor]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value.values())


def _take(value: Tensor | dict[str, Tensor], indices: Tensor) -> Tensor | dict[str, Tensor]:
    if isinstance(value, Tensor):
        return value[indices]
    return {name: part[indices] for name, part in value.items()}


def _to_cpu(outputs: Outputs) -> Outputs:
    if isinstance(outputs, dict):
        return {name: _one_to_cpu(part) for name, part in outputs.items()}
    return _one_to_cpu(outputs)


def _one_to_cpu(output: Tensor) -> Tensor:
    output = output.detach().cpu()
    return output.float() if output.is_floating_point() else output


def _check(outputs: Outputs, indices: Tensor, split: str) -> None:
    for output in _parts(outputs):
        if output.dim() == 0 or len(output) != len(indices):
            raise ModelError(
                f"the model must return one output for each sample, got {list(output.shape)} for "
                f"{len(indices)} samples. Keep the batch as the first dimension."
            )
        bad = output.isnan().reshape(len(output), -1).any(dim=1).nonzero()
        if len(bad):
            raise ModelError(
                f"the output for sample {int(indices[bad[0, 0]])} of '{split}' is NaN, and what is "
                "not a number cannot be judged. Look for a weight that is not finite "
                "(`torch.isfinite`) and for a division by zero or an overflow in the forward pass."
            )


def _concatenated(parts: list[Tensor] | list[dict[str, Tensor]] | list[Outputs]) -> Outputs:
    first = parts[0]
    if isinstance(first, dict):
        dicts = [part for part in parts if isinstance(part, dict)]
        return {name: torch.cat([part[name] for part in dicts]) for name in first}
    return torch.cat([part for part in parts if isinstance(part, Tensor)])
