"""`count_macs`: multiply-accumulate operations of any model, counted operator by operator."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from overhaul.core import Batch, evaluating, without_fast_path
from overhaul.evaluation._mac_formulas import FORMULAS
from overhaul.evaluation._model_device import model_device


@dataclass(frozen=True)
class Macs:
    """The multiply-accumulate operations of one sample.

    Attributes:
        per_sample: Their number: of the whole batch, divided by its size, rounded.
        uncounted: Operators that ran, that do or may do many multiplications, and for which there
            is no formula; `per_sample` is too low by what they do.
    """

    per_sample: int
    uncounted: tuple[str, ...] = ()


def count_macs(model: nn.Module, batch: Batch) -> Macs:
    """Count the multiply-accumulate operations of one forward pass in evaluation mode.

    Counted are matrix products of every kind: linear layers, convolutions (grouped, depthwise,
    transposed), recurrent layers (stacked, bidirectional, with projections), attention, `einsum`,
    bilinear forms. Not counted, as is the custom: biases, activations, normalization, pooling,
    look-ups in embeddings. Zero weights count like others, masked positions of attention too.

    What a model does once for a whole batch (the product of two factors of a weight, for
    example) is spread over the batch.

    Args:
        model: On any device; its flags are restored.
        batch: Real inputs: their shapes decide.

    Example:
        >>> inputs = torch.zeros(4, 3)
        >>> count_macs(nn.Linear(3, 2), Batch((inputs,), torch.zeros(4), torch.arange(4)))
        Macs(per_sample=6, uncounted=())
    """
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    seen = _SeenOperators()
    with evaluating(model), _no_gradients_asked(model), without_fast_path(), counter, seen:
        batch.to(model_device(model)).forward(model)
    return Macs(round(counter.get_total_flops() / 2 / len(batch)), tuple(sorted(seen.uncounted)))


@contextmanager
def _no_gradients_asked(model: nn.Module) -> Iterator[None]:
    # The counter looks for the gradient function of a module's inputs. A view of a parameter that
    # is made without gradients, such as learned queries, asks for one and has none.
    # A copy of a scripted module has parameters whose flag cannot be changed: not a leaf.
    asked = [p for p in model.parameters() if p.requires_grad and p.is_leaf]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


class _SeenOperators(TorchDispatchMode):
    """Notes the operators whose multiplications nobody counts."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uncounted: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if isinstance(func, torch._ops.OpOverload):
            name = func._schema.name
            foreign = func.namespace not in ("aten", "prim", "prims", "overhaul")
            counted = func._overloadpacket in flop_registry
            if name in _HEAVY or (foreign and not counted):
                self.uncounted.add(name)
        return func(*args, **(kwargs or {}))


_HEAVY = frozenset(
    f"aten::{name}"
    for name in (
        "_cdist_forward",
        "_fft_c2c",
        "_fft_c2r",
        "_fft_r2c",
        "_grouped_mm",
        "_linalg_eigh",
        "_linalg_solve_ex",
        "_linalg_svd",
        "_sparse_mm",
        "linalg_cholesky_ex",
        "linalg_eig",
        "linalg_householder_product",
        "linalg_inv_ex",
        "linalg_lstsq",
        "linalg_lu_factor_ex",
        "linalg_matrix_exp",
        "linalg_qr",
        "linalg_solve_triangular",
    )
)
