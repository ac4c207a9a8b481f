"""`Gptq`: each rounding is made up for by the weights that are not rounded yet."""

import torch
from pydantic import Field
from torch import Tensor

from overhaul.core import Context
from overhaul.quantization._layer_inputs import LayerInputs
from overhaul.quantization._rounding_repair import RoundingRepair


class Gptq(RoundingRepair):
    r"""Round one column of a weight after the other, and let those to come make up for it.

    With :math:`H = X^T X / n + \lambda I` and the upper Cholesky factor :math:`U` of
    :math:`H^{-1} = U^T U`, for each column :math:`j`, those with the largest inputs first,

    .. math:: e_j = \frac{w_j - s\,q_j}{U_{jj}}, \qquad w_{k} \leftarrow w_{k} - e_j\,U_{jk}
              \quad (k > j)

    For linear layers, convolutions (over patches, each group by itself) and the projections of
    attention. The layer's error and what it was before are facts.

    Args:
        rows: Rows of inputs drawn from each batch. Default 512.
        damping: :math:`\lambda` as a fraction of the mean of the diagonal. Default 0.01.
        block: How many columns are done before the others learn of it; this is for speed alone.
            Default 128.

    Example:
        >>> Gptq(damping=0.05)
        Gptq(damping=0.05)

    Paper: Frantar et al., ICLR 2023.  Differs: the inputs are those of the real model, not of one
    whose layers before are quantized; the scales are chosen before; an output channel that gets no
    better keeps its integers.
    """

    damping: float = Field(default=0.01, gt=0, description="A fraction of the mean square input.")
    block: int = Field(default=128, ge=1, description="How many columns are done at once.")

    def integers(
        self,
        weight: Tensor,
        step: Tensor,
        limits: tuple[int, int],
        inputs: LayerInputs,
        ctx: Context,
    ) -> Tensor:
        """Return them group by group."""
        grams = inputs.gram()
        return torch.stack(
            [self._group(*each, limits) for each in zip(weight, step, grams, strict=True)]
        )

    def _group(self, weight: Tensor, step: Tensor, gram: Tensor, limits: tuple[int, int]) -> Tensor:
        order = gram.diagonal().argsort(descending=True, stable=True)
        w, s, gram = weight[:, order].clone(), step[:, order], gram[order][:, order]
        damp = (self.damping * gram.diagonal().mean()).clamp(min=1e-12)
        gram.diagonal().add_(damp)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        factor = torch.linalg.cholesky(inverse, upper=True)
        q = torch.empty_like(w)
        for first in range(0, w.shape[1], self.block):
            last = min(first + self.block, w.shape[1])
            errors = torch.empty_like(w[:, first:last])
            for j in range(first, last):
                q[:, j] = (w[:, j] / s[:, j]).round().clamp(*limits)
                error = (w[:, j] - q[:, j] * s[:, j]) / factor[j, j]
                w[:, j:last] -= error[:, None] * factor[j, j:last]
                errors[:, j - first] = error
            w[:, last:] -= errors @ factor[first:last, last:]
        found = torch.empty_like(q)
        found[:, order] = q
        return found
