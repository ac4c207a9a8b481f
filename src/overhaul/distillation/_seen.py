"""`Seen`: what a network shows of itself on one batch."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from overhaul.core import Batch, Outputs, without_fast_path


@dataclass(frozen=True)
class Seen:
    """What a network shows of itself on one batch.

    Attributes:
        batch: The samples, with the very inputs that the network got.
        outputs: What it returned.
        features: Outputs of some of its modules, by path.
    """

    batch: Batch
    outputs: Outputs
    features: dict[str, Tensor]

    def detached(self) -> "Seen":
        """Return the same without gradients."""
        outputs = self.outputs
        if isinstance(outputs, Tensor):
            return Seen(self.batch, outputs.detach(), _detached(self.features))
        return Seen(self.batch, _detached(outputs), _detached(self.features))


def see(
    network: nn.Module,
    batch: Batch,
    paths: Iterable[str] = (),
    call: Callable[..., Any] | None = None,
) -> Seen:
    """Run a network and keep what some of its modules return.

    Args:
        network: Its modules are watched.
        batch: What it is run on.
        paths: Paths of those modules.
        call: What is called in its place, such as its data-parallel wrapper.

    Example:
        >>> import torch
        >>> batch = Batch((torch.ones(2, 3),), torch.zeros(2), torch.arange(2))
        >>> found = see(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), batch, ["0"])
        >>> found.features["0"].shape
        torch.Size([2, 4])
    """
    with watching(network, paths) as features:
        outputs = batch.forward(call or network)
    return Seen(batch, outputs, {path: found[-1] for path, found in features.items()})


def _detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}


@contextmanager
def watching(network: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Keep the tensors that modules return, one for each call, in the order in which they end.

    What a later operation changed in place (`nn.ReLU(inplace=True)`) is not what the module
    returned any more, and is left out at the end.
    """
    found: dict[str, list[Tensor]] = {}
    versions: dict[str, list[int]] = {}

    def hook(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                found.setdefault(path, []).append(tensor)
                versions.setdefault(path, []).append(tensor._version)

        return keep

    handles = [network.get_submodule(path).register_forward_hook(hook(path)) for path in set(paths)]
    try:
        with without_fast_path() if handles else nullcontext():
            yield found
    finally:
        for handle in handles:
            handle.remove()
        for path, before in versions.items():
            if [tensor._version for tensor in found[path]] != before:
                del found[path]


def first_tensor(output: Any) -> Tensor | None:
    """Return the first tensor of what a module returned, or None."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        return next((found for each in output if (found := first_tensor(each)) is not None), None)
    return None
