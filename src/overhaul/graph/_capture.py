"""`capture`: watch one forward pass and write down what belongs together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from overhaul.core import ModelError, evaluating
from overhaul.graph import (  # noqa: F401 - the rules register themselves
    _rules_elementwise,
    _rules_index,
    _rules_norm,
    _rules_products,
    _rules_recurrent,
    _rules_shape,
)
from overhaul.graph._call import RULES, Call, UnknownUse
from overhaul.graph._labels import Reason
from overhaul.graph._operation_kinds import ABOUT, COPIES, PICKS, READS, SHAPES
from overhaul.graph._sized_attributes import sized_attributes
from overhaul.graph._sizes import Attribute, Expression, Extent, Size, expression_of, leaves
from overhaul.graph._tensors_in import tensors_in
from overhaul.graph._trace import Equation, Flow, Trace, all_fixed, is_size
from overhaul.graph._where import chooses_a_kernel, chooses_a_mask, where_now


def capture(
    model: nn.Module, inputs: Sequence[Any] = (), named_inputs: Mapping[str, Any] | None = None
) -> Trace:
    """Return what one forward pass on these inputs shows.

    The pass runs in evaluation mode, for real: control flow, indices and the user's own lines are
    seen as they are. Then the way through training is watched as well, since the smaller model is
    to train. The model is as before when it is over.

    Raises:
        ModelError: the program branches on values that depend on its inputs, so that one pass does
            not show what another would do.
    """
    trace = Trace()
    _write_down_state(trace, model)
    tracer = _Tracer(trace)
    for value in tree_leaves((list(inputs), dict(named_inputs or {}))):
        if isinstance(value, Tensor) and value not in trace.flows:
            trace.flows[value] = Flow([None] * value.ndim, depends=True)
    with (
        _buffers_kept(model),
        evaluating(model),
        torch.no_grad(),
        sized_attributes(model, trace, tracer),
        _Unseen(tracer),
        tracer,
    ):
        _fix_outputs(trace, model(*inputs, **(named_inputs or {})))
        _watch_training(trace, model, inputs, named_inputs or {})
    for name in trace.renumbered.keys() & trace.valued.keys():
        trace.fix(trace.renumbered[name], trace.valued[name])
    for name, flow in trace.state.items():
        if name not in trace.used:
            for dim in flow.dims:
                trace.fix(dim, Reason("the forward pass does not use it"))
    return trace


OUTPUT = Reason("it is a dimension of the model's output")


def _fix_outputs(trace: Trace, outputs: Any) -> None:
    for value in tensors_in(outputs):
        flow = trace.flow(value)
        for dim in flow.dims:
            trace.fix(dim, OUTPUT)
        if flow.values is not None:
            trace.valued[flow.values] = OUTPUT


_ONLY_VALUES = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


def _watch_training(
    trace: Trace, model: nn.Module, inputs: Sequence[Any], named_inputs: Mapping[str, Any]
) -> None:
    """Watch what else the program does in training: noise, averages, heads that only a loss sees.

    Layers that do the same to the same dimensions in training stay in evaluation mode. If the
    program wants more in training than its inputs, then what it has shown until there counts.
    """
    macs = list(trace.macs)
    for module in model.modules():
        module.training = not isinstance(module, _ONLY_VALUES)
    try:
        with torch.random.fork_rng():
            _fix_outputs(trace, model(*inputs, **named_inputs))
    except Exception:
        return
    finally:
        trace.macs[:] = macs


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore what a pass writes into buffers, where nobody hears of it."""
    held = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in held:
                buffer.copy_(before)


def _write_down_state(trace: Trace, model: nn.Module) -> None:
    for named in (model.named_parameters(), model.named_buffers()):
        for name, tensor in named:
            if tensor in trace.flows:
                continue
            dims = [trace.labels.fresh(size) if size > 1 else None for size in tensor.shape]
            flow = Flow(list(dims), depends=False, state=name)
            if tensor.dtype in _WHOLE:
                flow.values = name
            if isinstance(tensor, nn.Parameter):
                trace.parameters.add(name)
            trace.flows[tensor] = flow
            trace.state[name] = flow


_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class _Tracer(TorchFunctionMode):
    """Hears of every operation before it is done."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        self.calls = 0
        self.inside = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.calls += 1
        name = operation_name(func)
        outer, self.inside = self.inside, True
        try:
            if name in SHAPES:
                return self._shape(func, args, kwargs)
            if name == "numel":
                return self._elements(args[0])
            if name == "__len__":
                self._shape(Tensor.size, args, {"dim": 0})._number()
            if name in ABOUT:
                return func(*args, **kwargs)
            if name in READS:
                self._read(name, args)
                return func(*args, **kwargs)
            return self._call(func, name, args, kwargs)
        finally:
            self.inside = outer

    def _call(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        wrapped = [whole for tensor in tensors for whole in _beneath(tensor)]
        flows = [self.trace.flow(tensor) for tensor in (*tensors, *wrapped)]
        depends = any(flow.depends for flow in flows)
        call = Call(self.trace, self.calls, name, None, where_now(), tensors)
        before = [tensor.shape for tensor in tensors] if name.endswith("_") else []
        call.out = func(*args, **kwargs)
        outs = [v for v in tree_leaves(call.out) if isinstance(v, Tensor)]
        live = any(not all_fixed(flow.dims) for flow in flows)
        values = self._values(call, tensors)
        found = None
        if live or any(is_size(v) for v in tree_leaves((args, kwargs))):
            try:
                if wrapped:
                    call.inputs += wrapped
                    raise UnknownUse("is inside torch.vmap or another transform")
                found = self._by_rule(call, args, kwargs, outs)
                if before and [tensor.shape for tensor in tensors] != before:
                    raise UnknownUse("changes the shape in place")
            except UnknownUse as use:
                self._fix_all(call, args, kwargs, str(use))
                found = None
        for place, out in enumerate(outs):
            dims = found[place] if found is not None else [None] * out.ndim
            known = self.trace.flows.get(out)
            if known is not None and any(out is tensor for tensor in tensors):
                if out.ndim != len(known.dims):
                    known.dims = [None] * out.ndim
                for d, (dim, given) in enumerate(zip(known.dims, dims, strict=True)):
                    if found is not None and out.shape[d] > 1:
                        call.tie(dim, given)
                self._written(out, depends)
                continue
            dims = [call.several(dim, size) for dim, size in zip(dims, out.shape, strict=True)]
            self.trace.flows[out] = Flow(dims, depends, values=values)
        if name in ("__setitem__", "setitem"):
            self._written(tensors[0], depends)
        return call.out

    def _written(self, tensor: Tensor, depends: bool) -> None:
        """Note that a tensor has other values now, and so has what it is a view of."""
        for each in (tensor, tensor._base):
            if each is not None and (flow := self.trace.flows.get(each)) is not None:
                flow.depends |= depends

    def _values(self, call: Call, tensors: list[Tensor]) -> str | None:
        """Return which buffer's values are copied; note those that are computed with."""
        copied = None
        for place, tensor in enumerate(tensors):
            values = self.trace.flow(tensor).values
            if values is None:
                continue
            if place == 0 and call.name in COPIES:
                copied = values
            elif place == 0 or call.name not in PICKS:
                self.trace.valued.setdefault(values, call.reason("its values are computed with"))
        return copied

    def _by_rule(
        self, call: Call, args: Any, kwargs: dict[str, Any], outs: list[Tensor]
    ) -> list[Any] | None:
        rule = RULES.get(call.name)
        if rule is None:
            raise UnknownUse("is not known to the analysis")
        try:
            found = rule(call, *args, **kwargs)
        except (
            TypeError,
            ValueError,
            IndexError,
            KeyError,
            AttributeError,
            AssertionError,
        ) as error:
            raise UnknownUse(f"is used in a way that is not known: {error}") from error
        if found is None:
            return None
        many: list[Any] = found if found and isinstance(found[0], list) else [found]
        if isinstance(call.out, Tensor):
            many = [found]
        if [len(dims) for dims in many] != [out.ndim for out in outs] or any(
            dim is not None and len(dim) != size and size > 1
            for dims, out in zip(many, outs, strict=True)
            for dim, size in zip(dims, out.shape, strict=True)
        ):
            raise UnknownUse("has a result that its rule does not expect")
        return many

    def _fix_all(self, call: Call, args: Any, kwargs: dict[str, Any], text: str) -> None:
        reason = call.reason(f"the operation `{call.name}` {text}")
        for tensor in call.inputs:
            for dim in self.trace.flow(tensor).dims:
                self.trace.fix(dim, reason)
        for value in tree_leaves((args, kwargs)):
            if is_size(value):
                self.trace.number(expression_of(value), call.where)

    def _shape(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tensor = args[0]
        flow = self.trace.flow(tensor)
        plain = tensor.shape
        sizes = [
            Size(size, Extent(dim, size), self) for size, dim in zip(plain, flow.dims, strict=True)
        ]
        chosen = args[1] if len(args) > 1 else kwargs.get("dim")
        return torch.Size(sizes) if chosen is None else sizes[chosen]

    def _elements(self, tensor: Tensor) -> int:
        product: Any = 1
        flow = self.trace.flow(tensor)
        for size, dim in zip(tensor.shape, flow.dims, strict=True):
            product = Size(size, Extent(dim, size), self) * product
        return int(product) if not isinstance(product, int) else product

    def _read(self, name: str, args: Any) -> None:
        tensors = [v for v in tree_leaves(args) if isinstance(v, Tensor)]
        flows = [self.trace.flow(tensor) for tensor in tensors]
        where = where_now()
        if any(flow.depends for flow in flows) and not chooses_a_mask():
            raise ModelError(
                f"the program takes a value out of a tensor that depends on the inputs, with "
                f"`{name}` at {where}: another input may take another way, and one pass does not "
                "show it. Write the choice with torch.where, or prune the parts around it."
            )
        reason = Reason(f"its values are read by the program with `{name}`", where)
        for flow in flows:
            for dim in flow.dims:
                self.trace.fix(dim, reason)
            if flow.values is not None:
                self.trace.valued[flow.values] = reason

    def equal(self, left: Expression, right: Expression) -> None:
        """Two sizes were compared and are equal."""
        if self.inside or chooses_a_kernel():
            return
        sizes = [*leaves(left), *leaves(right)]
        if any(
            isinstance(s, Attribute) or (isinstance(s, Extent) and s.dim is not None) for s in sizes
        ):
            self.trace.equations.append(Equation(left, right, where_now()))

    def compared(self, comparison: Expression, result: bool) -> None:
        """The program's way depends on how sizes compare, which must stay as it is."""
        if self.inside or chooses_a_kernel():
            return
        if any(
            isinstance(s, Attribute) or (isinstance(s, Extent) and s.dim is not None)
            for s in leaves(comparison)
        ):
            text = "it decides which way the program takes"
            self.trace.equations.append(Equation(comparison, int(result), where_now(), text))

    def number(self, size: Expression) -> None:
        """A size was used as a number."""
        if not self.inside:
            self.trace.number(size, where_now())


class _Unseen(TorchDispatchMode):
    """Hears of what happens outside any operation that the tracer sees: in compiled code."""

    supports_higher_order_operators = True  # such as torch.cond, whose branches are compiled

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracer = tracer

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.tracer.inside:
            return func(*args, **kwargs)
        trace = self.tracer.trace
        reason = Reason("it is used in compiled code that cannot be seen into", where_now())
        depends = False
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                flow = trace.flow(value)
                depends |= flow.depends
                for dim in flow.dims:
                    trace.fix(dim, reason)
                if flow.values is not None:
                    trace.valued[flow.values] = reason
        out = func(*args, **kwargs)
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and value not in trace.flows:
                trace.flows[value] = Flow([None] * value.ndim, depends)
        return out


def _beneath(tensor: Tensor) -> Iterator[Tensor]:
    """Yield what a tensor stands for that a transform such as torch.vmap made."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
        yield tensor


def operation_name(func: Callable[..., Any]) -> str:
    """Return what an operation is called, whichever way it was called."""
    name: str = getattr(func, "__name__", "") or type(func).__name__
    if name == "__get__":
        return str(getattr(getattr(func, "__self__", None), "__name__", name))
    if name == "__set__":
        return "__set__"
    return name
