"""`differentiable_twice`: what a network needs so that its input gradients can be trained.

PyTorch differentiates the gradient of a convolution by another convolution, whose kernel has the
size of the image, and that of a BatchNorm in training by a long chain of operations. Here both are
computed by the kernels of an ordinary backward pass, which takes less time
(`benchmarks/learning_cost.py`).
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

_Gradients: TypeAlias = tuple[Tensor | None, ...]
_aten = torch.ops.aten
_inputs_only: ContextVar[bool] = ContextVar("inputs_only", default=False)


@contextmanager
def differentiable_twice() -> Iterator[None]:
    """Run networks so that their gradients can be differentiated, and that at little cost.

    Attention runs in its plain kernel, which alone can be differentiated twice. On a CPU,
    convolutions, BatchNorm in training and ReLU are replaced by forms with the same outputs and
    gradients, whose second derivatives are cheap.

    Example:
        >>> x = torch.ones(2, 1, 3, 3, requires_grad=True)
        >>> with differentiable_twice():
        ...     out = F.conv2d(x, torch.ones(1, 1, 3, 3))
        >>> out.flatten()
        tensor([9., 9.], grad_fn=<ViewBackward0>)
    """
    with sdpa_kernel(SDPBackend.MATH), _Cheap():
        yield


@contextmanager
def by_inputs_only() -> Iterator[None]:
    """Skip the gradients by parameters in a backward pass that asks for none.

    A `Function` is not told which of its gradients are asked for, and would compute them all. A
    weight that is computed, as of the inputs, has its gradient all the same.
    """
    token = _inputs_only.set(True)
    try:
        yield
    finally:
        _inputs_only.reset(token)


class _Cheap(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named, cheap = kwargs or {}, _CHEAP.get(func)
        found = None if cheap is None else cheap(*args, **named)
        return func(*args, **named) if found is None else found


def _applies(*tensors: Tensor | None) -> bool:
    given = [tensor for tensor in tensors if tensor is not None]
    return (
        torch.is_grad_enabled()
        # A checkpoint computes its part again in the backward pass, without these forms.
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
        and all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in given)
        and all(tensor.device.type == "cpu" for tensor in given)
        and all(tensor.is_floating_point() for tensor in given)
    )


def _asked(ctx: Any) -> list[bool]:
    """Return whether the gradients by input, weight and bias are asked for."""
    asked: list[bool] = list(ctx.needs_input_grad[:3])
    if _inputs_only.get():
        asked[1:] = map(operator.and_, asked[1:], ctx.computed)
    return asked


def _computed(*weights: Tensor | None) -> list[bool]:
    """Return which weights are no parameters, so that they may depend on the inputs."""
    return [weight is not None and not weight.is_leaf for weight in weights]


class _Geometry(NamedTuple):
    """How a convolution moves, in the order of PyTorch's own operation."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


def _convolution(dimensions: int) -> Callable[..., Tensor | None]:
    def sizes(value: int | Sequence[int]) -> list[int]:
        return [value] * dimensions if isinstance(value, int) else list(value)

    def convolution(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor | None:
        of_samples = input.ndim == dimensions + 2
        if isinstance(padding, str) or not of_samples or not _applies(input, weight, bias):
            return None
        how = sizes(stride), sizes(padding), sizes(dilation)
        geometry = _Geometry(*how, False, [0] * dimensions, groups)
        out: Tensor = _Convolution.apply(*map(_autocast, (input, weight, bias)), geometry)
        return out

    return convolution


def _autocast(tensor: Tensor | None) -> Tensor | None:
    """Return what autocast would hand to a convolution."""
    if tensor is None or tensor.dtype == torch.float64 or not torch.is_autocast_enabled("cpu"):
        return tensor
    return tensor.to(torch.get_autocast_dtype("cpu"))


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, geometry: _Geometry, asked: list[bool]
) -> _Gradients:
    found: _Gradients = _aten.convolution_backward(grad, x, weight, bias_sizes, *geometry, asked)
    return found


class _Convolution(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.bias_sizes = geometry, None if bias is None else list(bias.shape)
        ctx.computed = _computed(weight, bias)
        out: Tensor = _aten.convolution(x, weight, bias, *geometry)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> _Gradients:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        by_x, *of_weights = _asked(ctx)
        if not torch.is_grad_enabled():
            asked = [by_x, *of_weights]
            found = _convolution_backward(grad, x, weight, ctx.bias_sizes, ctx.geometry, asked)
            return *found, None
        grad_x = _ConvolutionGradient.apply(grad, weight, x, ctx.geometry) if by_x else None
        if not any(of_weights):
            return grad_x, None, None, None
        asked = [False, *of_weights]
        _, *rest = _convolution_backward(grad, x, weight, ctx.bias_sizes, ctx.geometry, asked)
        return grad_x, *rest, None


class _ConvolutionGradient(Function):
    """The gradient of a convolution by its input, whose values it does not depend on."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, weight: Tensor, x: Tensor, geometry: _Geometry
    ) -> Tensor | None:
        ctx.save_for_backward(grad, weight)
        ctx.geometry = geometry
        return _convolution_backward(grad, x, weight, None, geometry, [True, False, False])[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> _Gradients:
        (upper,), (grad, weight) = grads, ctx.saved_tensors
        by_grad, by_weight = ctx.needs_input_grad[:2]
        again = _aten.convolution(upper, weight, None, *ctx.geometry) if by_grad else None
        if not by_weight:
            return again, None, None, None
        asked = [False, True, False]
        of_weight = _convolution_backward(grad, upper, weight, None, ctx.geometry, asked)[1]
        return again, of_weight, None, None


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    one_value = input.ndim < 2 or input.numel() <= input.shape[1]  # PyTorch refuses it
    if not training or one_value or not _applies(input, weight, bias, running_mean, running_var):
        return None
    out: Tensor = _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)
    return out


class _Statistics(NamedTuple):
    """What a BatchNorm computes of its batch; `scale` is one over the standard deviation."""

    mean: Tensor
    scale: Tensor
    eps: float


def _batch_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, batch: _Statistics, asked: Sequence[bool]
) -> tuple[Any, Any, Any]:
    found: tuple[Any, Any, Any] = _aten.native_batch_norm_backward(
        grad, x, weight, None, None, batch.mean, batch.scale, True, batch.eps, asked
    )
    return found


class _BatchNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any
    ) -> Tensor:
        running_mean, running_var, momentum, eps = rest
        out: Tensor
        out, *statistics = _aten.native_batch_norm(
            x, weight, bias, running_mean, running_var, True, momentum, eps
        )
        ctx.save_for_backward(x, weight, *statistics)
        ctx.eps, ctx.computed = eps, _computed(weight, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> _Gradients:
        (grad,), (x, weight, mean_C, scale_C) = grads, ctx.saved_tensors
        batch, asked, rest = _Statistics(mean_C, scale_C, ctx.eps), _asked(ctx), [None] * 4
        if not torch.is_grad_enabled():
            return *_batch_norm_backward(grad, x, weight, batch, asked), *rest
        grad_x = _BatchNormGradient.apply(grad, x, weight, batch) if asked[0] else None
        if not any(asked[1:]):
            return grad_x, None, None, *rest
        asked[0] = False
        return grad_x, *_batch_norm_backward(grad, x, weight, batch, asked)[1:], *rest


class _BatchNormGradient(Function):
    r"""The gradient of a BatchNorm in training by its input.

    With the mean :math:`\mu` and one over the standard deviation :math:`r` of the :math:`N` values
    of a channel and :math:`\hat x = r (x - \mu)`, it is :math:`\gamma r P g` of the gradient
    :math:`g` by the outputs, where

    .. math:: P g = g - \tfrac{1}{N} \textstyle\sum g - \tfrac{1}{N} \hat x \sum \hat x g

    is symmetric. Of a loss with the gradient :math:`u` by it, the derivatives are

    .. math::
        \partial_g = \gamma r P u, \qquad \partial_\gamma = r\,u^\top P g, \qquad
        \partial_x = -\tfrac{1}{N} \gamma r^2 \bigl[P g \textstyle\sum \hat x u
            + P u \sum \hat x g + \hat x\,u^\top P g\bigr].
    """

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, weight: Tensor | None, batch: _Statistics
    ) -> Tensor:
        found: Tensor
        found, *sums = _batch_norm_backward(grad, x, weight, batch, [True, True, True])
        ctx.save_for_backward(grad, x, weight, *batch[:2], found, *sums)
        ctx.eps = batch.eps
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> _Gradients:
        (upper,) = grads
        grad, x, weight, mean_C, scale_C, found, along_C, total_C = ctx.saved_tensors
        batch = _Statistics(mean_C, scale_C, ctx.eps)
        again, along_upper_C, total_upper_C = _batch_norm_backward(
            upper, x, weight, batch, [True, True, True]
        )
        count = x.numel() // x.shape[1]
        product_C = _products(upper, grad, scale_C)
        product_C = product_C - (total_C * total_upper_C + along_C * along_upper_C) / count
        of_weight_C = scale_C * product_C
        of_x_C = of_weight_C * scale_C.square() / -count
        if weight is not None:
            of_x_C = of_x_C * weight
        along_C, along_upper_C = (scale_C * each / -count for each in (along_C, along_upper_C))
        by_channel = [1, -1, *[1] * (x.ndim - 2)]
        of_x = torch.addcmul((-mean_C * of_x_C).view(by_channel), x, of_x_C.view(by_channel))
        of_x = of_x.addcmul_(found, along_upper_C.view(by_channel))
        of_x = of_x.addcmul_(again, along_C.view(by_channel))
        return again, of_x.to(x.dtype), None if weight is None else of_weight_C, None


def _products(one: Tensor, other: Tensor, like_C: Tensor) -> Tensor:
    """Return the inner product for each channel.

    A BatchNorm's gradient by its weight is one, and is computed without a feature in between.
    """
    plain = _Statistics(torch.zeros_like(like_C), torch.ones_like(like_C), 0.0)
    found: Tensor = _batch_norm_backward(one, other, None, plain, [False, True, False])[1]
    return found


def _relu(input: Tensor, inplace: bool = False) -> Tensor | None:
    if inplace or not _applies(input):
        return None
    out: Tensor = _ReLU.apply(input)
    return out


class _ReLU(Function):
    """PyTorch's own makes and adds a feature of zeros, the gradient of its gradient by itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out: Tensor = _aten.relu(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        found: Tensor = _aten.threshold_backward(*grads, out.detach(), 0)
        return found


_CHEAP: dict[Any, Callable[..., Tensor | None]] = {
    F.conv1d: _convolution(1),
    F.conv2d: _convolution(2),
    F.conv3d: _convolution(3),
    F.batch_norm: _batch_norm,
    F.relu: _relu,
    torch.relu: _relu,
}
