"""`straight_through`: rounding that lets a gradient pass, to the number and to its scale."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from overhaul.quantization._integer_map import WeightForm, reduced, spread


def straight_through(
    x: Tensor,
    step: Tensor,
    scale: Tensor,
    form: WeightForm,
    limits: tuple[int, int],
    count: float,
    exact: Callable[[Tensor], Tensor],
) -> Tensor:
    r"""Return rounded numbers :math:`\hat x = s\,\mathrm{clip}(\mathrm{round}(x / s), l, h)`.

    Rounding has no gradient, so another is used: with :math:`r = x / s`,

    .. math:: \frac{\partial \hat x}{\partial x} = [l \le r \le h], \qquad
              \frac{\partial \hat x}{\partial s} = \begin{cases} \mathrm{round}(r) - r
              & l \le r \le h \\ \mathrm{clip}(r, l, h) & \text{else} \end{cases}

    What is trained is the *relative* change of the scale: `step`, the :math:`t` of
    :math:`s = s_0 e^{\rho\,t}`, gets :math:`g\,s` times the gradient of the loss by :math:`s`, with
    :math:`g = 1 / \sqrt{n q}` for :math:`n` numbers that share it and
    :math:`q = \max(h, -l - 1)`. So a step of Adam changes a scale by the learning rate.

    Args:
        x: `[...]`, real numbers.
        step: `[N]`, that gets the gradient of the scales.
        scale: Of `N` numbers, in the shape that `form` gives it; without a gradient.
        form: Which numbers share a scale.
        limits: :math:`l` and :math:`h`, the smallest and the largest integer less the zero point.
        count: :math:`n`, how many numbers share a scale.
        exact: Rounds `x` as the quantized model does.

    Paper: Bengio et al., arXiv 1308.3432 (straight through); Esser et al., ICLR 2020 (scales).
    Differs: a scale changes by a part of itself, so that it stays above zero. With the steps that
    the paper gives to :math:`s` itself, SGD at a rate that suits the weights diverges where few
    weights share a small scale.
    """
    out: Tensor = _StraightThrough.apply(x, step, scale, form, limits, count, exact)
    return out


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        scale: Tensor,
        form: WeightForm,
        limits: tuple[int, int],
        count: float,
        exact: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.form, ctx.limits, ctx.count = form, limits, count
        return exact(x.to(scale.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, scale = ctx.saved_tensors
        low, top = ctx.limits
        ratio = x.to(scale.dtype) / spread(scale, x, ctx.form)
        inside = (ratio >= low) & (ratio <= top)
        grad_x = torch.where(inside, grad, 0).to(x.dtype) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, *[None] * 6
        by_scale = torch.where(inside, ratio.round() - ratio, ratio.clamp(low, top))
        of_scale = reduced(grad * by_scale, ctx.form, "sum") * scale
        of_step = of_scale.flatten() / math.sqrt(ctx.count * max(top, -low - 1))
        return grad_x, of_step, *[None] * 5
