"""`check_removal`: the smaller model computes what the larger one would without those units."""

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from overhaul.core import ModelError, evaluating
from overhaul.graph._capture import operation_name
from overhaul.graph._equations import Gone
from overhaul.graph._graph import Graph
from overhaul.graph._labels import Dim
from overhaul.graph._narrow_attention import attend
from overhaul.graph._relative_difference import relative_difference
from overhaul.graph._remove_units import RemoveUnits
from overhaul.graph._tensors_in import tensors_in
from overhaul.graph._trace import Mixing, Trace


def check_removal(
    model: nn.Module,
    graph: Graph,
    units: Mapping[str, Sequence[int]],
    inputs: Sequence[Any] = (),
    named_inputs: Mapping[str, Any] | None = None,
) -> float:
    r"""Prove on a copy that removing units does what it should, or refuse.

    Two copies of the model get the same random weights, in double precision. In the first, every
    position of the units is set to exactly zero wherever it is, and an operation over a whole
    dimension (a normalization, a sum, an attention score) goes over the positions that stay. From
    the second the units are removed. With :math:`f` and :math:`g` their outputs,

    .. math:: \frac{\max |f(x) - g(x)|}{\max |f(x)|} \le \text{tolerance}

    must hold: :math:`10^{-8}`, or :math:`10^{-3}` where the program itself computes in a type of
    fewer digits. A program that double precision does not fit is run in float32. Random weights,
    because a real weight can hide a mistake: a layer that starts at zero passes nothing on.

    Args:
        model: It is left as it was.
        graph: Its graph.
        units: What is to be removed, as for `Graph.remove`.
        inputs: Positional inputs of the pass.
        named_inputs: Named inputs.

    Returns:
        The largest difference, relative to the largest output.

    Raises:
        ModelError: the outputs differ, the smaller model does not run, or the model itself runs in
            neither type; the text says where.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> inputs = (torch.rand(3, 4),)
        >>> graph = Graph(model, inputs)
        >>> check_removal(model, graph, {"0": [1, 5]}, inputs) < 1e-9
        True
    """
    edit = graph.remove(units)
    proof = _Proof(model, graph.trace, graph.gone(units), list(inputs), dict(named_inputs or {}))
    try:
        expected = proof.larger()
    except Exception:  # the program converts on the way, and its own type does not fit the rest
        proof = replace(proof, dtype=torch.float32)
        try:
            expected = proof.larger()
        except Exception as error:
            raise ModelError(
                "nothing can be proved about a removal: with all weights and inputs in float64, "
                f"and in float32, the model does not run ({type(error).__name__}: {error}). Let "
                "its program take the type from a weight instead of naming one, or leave it."
            ) from error
    _refuse_silent(expected)
    try:
        actual = proof.smaller(edit)
    except Exception as error:
        raise ModelError(
            f"the smaller model would not run ({type(error).__name__}: {error}), so nothing "
            "was removed."
        ) from error
    tolerance = 1e-8 if proof.exact else 1e-3
    difference = relative_difference(expected, actual)
    if not difference <= tolerance and not (proof.exact and difference <= proof.rounding(expected)):
        if not relative_difference(expected, proof.larger()) <= tolerance:
            raise ModelError(
                "the model gives other outputs each time in evaluation mode, so that nothing can "
                "be proved about a removal. Let its dropout or noise follow `self.training`."
            )
        raise ModelError(
            f"the smaller model would compute something else: its outputs differ by "
            f"{difference:.2g} of the largest, more than {tolerance:.0e}, so nothing was removed."
        )
    return difference


def _refuse_silent(outputs: Any) -> None:
    """Refuse outputs that would be equal whatever is removed."""
    values = [tensor for tensor in tensors_in(outputs) if tensor.numel()]
    floating = [tensor for tensor in values if tensor.is_floating_point()]
    if not any(bool((t.isfinite() & (t != 0)).any()) for t in floating or values):
        raise ModelError(
            "with random weights the model's outputs are all zero or not finite, so that nothing "
            "can be proved about a removal. Give other inputs, or leave the model as it is."
        )


@dataclass
class _Proof:
    """Runs the larger and the smaller network on the same random weights.

    Attributes:
        model: It is left as it was.
        trace: What its forward pass showed.
        gone: For each label whether it goes.
        inputs: Positional inputs of the pass.
        named_inputs: Named inputs.
        dtype: The type of all weights and inputs: float64, or float32.
        exact: Whether the larger network computed nothing in a type of fewer digits than float64.
    """

    model: nn.Module
    trace: Trace
    gone: Gone
    inputs: list[Any]
    named_inputs: dict[str, Any]
    dtype: torch.dtype = torch.float64
    exact: bool = field(default=True, init=False)

    @torch.no_grad()
    def larger(self, noise: float = 0.0) -> Any:
        """Return the outputs with the units at zero, of weights and inputs with relative noise."""
        model = self._random_copy()
        _kill_(model, self.trace, self.gone)
        generator = torch.Generator().manual_seed(1)

        def nudged(tensor: Tensor) -> Tensor:
            if not noise or tensor.dtype != torch.float64:
                return tensor
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            return tensor * (1 + noise * drawn.to(tensor.device))

        for parameter in model.parameters():
            parameter.copy_(nudged(parameter))
        inputs, named_inputs = tree_map_only(Tensor, nudged, self._given)
        with evaluating(model), _Without(self.trace, self.gone) as watch:
            outputs = model(*inputs, **named_inputs)
        self.exact = watch.double
        return outputs

    def smaller(self, edit: RemoveUnits) -> Any:
        """Return the outputs without the units."""
        model = edit.apply(self._random_copy())
        inputs, named_inputs = self._given
        with evaluating(model):
            return model(*inputs, **named_inputs)

    def rounding(self, expected: Any) -> float:
        """Return how far outputs may differ because a deep model magnifies the last digit.

        It is measured: every input and weight of the copy is changed by a few units in the last
        place. What is magnified beyond one in ten thousand proves nothing, and is not allowed for.
        """
        measured = relative_difference(expected, self.larger(noise=1e-15))
        return min(10 * measured, 1e-4)

    @property
    def _given(self) -> tuple[list[Any], dict[str, Any]]:
        """The inputs in the type of the proof."""
        given: tuple[list[Any], dict[str, Any]] = tree_map_only(
            Tensor,
            lambda t: t.to(self.dtype) if t.is_floating_point() else t,
            (self.inputs, self.named_inputs),
        )
        return given

    @torch.no_grad()
    def _random_copy(self) -> nn.Module:
        """Return a copy with the same random weights, of a usual size, at every call."""
        generator = torch.Generator().manual_seed(0)
        memo: dict[int, Any] = {}
        for parameter in self.model.parameters():
            if parameter.is_floating_point():
                # Put into the copy's memory, so that the values that are replaced are never copied.
                memo[id(parameter)] = nn.Parameter(_random(parameter, generator))
        copied = copy.deepcopy(self.model, memo)
        copied = copied.double() if self.dtype == torch.float64 else copied.float()
        for buffer in copied.buffers():
            if not buffer.is_floating_point():
                continue
            noise = torch.rand(buffer.shape, generator=generator, dtype=self.dtype)
            noise = noise.to(buffer.device)
            if bool((buffer == 0).all()):
                buffer.copy_(0.2 * noise - 0.1)
            else:
                buffer.mul_(0.75 + 0.5 * noise)
        return copied


def _random(parameter: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    if parameter.ndim > 1:
        fan = max(parameter.numel() // parameter.shape[0], 1)
        noise.div_(min(fan, parameter.shape[0]) ** 0.5)
    else:
        noise.mul_(0.2).add_(1)
    return noise.to(parameter.device)


@torch.no_grad()
def _kill_(model: nn.Module, trace: Trace, gone: Gone) -> None:
    own: dict[str, Tensor] = dict(model.named_parameters())
    own.update(model.named_buffers())
    for name, flow in trace.state.items():
        if not own[name].is_floating_point() or _variance(own[name]):
            continue
        for d, dim in enumerate(flow.dims):
            if dim is not None and (places := np.flatnonzero(gone[dim])).size:
                own[name].index_fill_(d, torch.from_numpy(places).to(own[name].device), 0)


def _variance(tensor: Tensor) -> bool:
    """Return whether it is a vector of a buffer that may be divided by: 0 / 0 would be no proof.

    Nothing is left out of the proof by leaving it: a vector is never a weight that sums go over.
    """
    vector = tensor.numel() == max(tensor.shape, default=1)
    return not isinstance(tensor, nn.Parameter) and vector and bool((tensor > 0).all())


class _Without(TorchFunctionMode):
    """Runs an operation over whole dimensions on the positions that stay."""

    def __init__(self, trace: Trace, gone: Gone) -> None:
        super().__init__()
        self.trace = trace
        self.gone = gone
        self.calls = 0
        self.double = True

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.calls += 1
        mixing = self.trace.mixing.get(self.calls)
        if mixing is not None and self._touched(mixing):
            out = self._smaller(func, args, kwargs, mixing)
        else:
            out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.dtype in (torch.float32, torch.float16, torch.bfloat16):
            self.double = False
        return out

    def _touched(self, mixing: Mixing) -> bool:
        dims = itertools.chain(*mixing.inputs, *mixing.outputs)
        return any(dim is not None and self.gone[dim].any() for dim in dims)

    def _smaller(self, func: Any, args: Any, kwargs: dict[str, Any], mixing: Mixing) -> Any:
        flat, tree = tree_flatten((args, kwargs))
        labels = iter(mixing.inputs)
        flat = [self._kept(v, next(labels)) if isinstance(v, Tensor) else v for v in flat]
        args, kwargs = tree_unflatten(flat, tree)
        name = operation_name(func)
        if name in ("layer_norm", "rms_norm"):
            sizes = kwargs.pop("normalized_shape", None) or args[1]
            args = (args[0], args[0].shape[args[0].ndim - len(sizes) :], *args[2:])
        elif name == "multi_head_attention_forward":
            func = attend
            if mixing.groups is not None:  # a single head stays
                args = (*args[:4], int((~self.gone[mixing.groups]).sum()), *args[5:])
        elif name == "group_norm" and mixing.groups is not None:
            args = (args[0], int((~self.gone[mixing.groups]).sum()), *args[2:])
        elif name.startswith("conv") and mixing.groups is not None:
            stay = int((~self.gone[mixing.groups]).sum())
            if "groups" in kwargs:
                kwargs["groups"] = stay
            else:
                args = (*args[:6], stay, *args[7:])
        out = func(*args, **kwargs)
        outputs = iter(mixing.outputs)
        return tree_map_only(Tensor, lambda t: self._whole(t, next(outputs)), out)

    def _kept(self, tensor: Tensor, dims: Sequence[Dim]) -> Tensor:
        for d, dim in enumerate(dims):
            if dim is not None and self.gone[dim].any():
                keep = torch.from_numpy(np.flatnonzero(~self.gone[dim])).to(tensor.device)
                tensor = tensor.index_select(d, keep)
        return tensor

    def _whole(self, tensor: Tensor, dims: Sequence[Dim]) -> Tensor:
        for d, dim in enumerate(dims):
            if dim is not None and self.gone[dim].any():
                keep = torch.from_numpy(np.flatnonzero(~self.gone[dim])).to(tensor.device)
                shape = list(tensor.shape)
                shape[d] = len(dim)
                whole = tensor.new_zeros(shape)
                tensor = whole.index_copy(d, keep, tensor)
        return tensor
