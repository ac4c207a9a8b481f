"""`LeastSquares`: the inputs that stay take over from those that go."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from overhaul.core import Context
from overhaul.pruning._criterion import training_batches
from overhaul.pruning._reader_inputs import watch_inputs
from overhaul.pruning._repair import Reader, Repair


class LeastSquares(Repair):
    r"""Change the weights of each layer so that it computes nearly the same from what stays.

    With :math:`x` the inputs of the layer on training data, :math:`K` those that stay and :math:`R`
    those that go, :math:`G = \sum x x^T`, the solution of
    :math:`\min_{W'} \sum \lVert W x - W' x_K \rVert^2 + \lambda \lVert W' - W_K \rVert^2` is

    .. math:: W' = W_K + W_R \, G_{RK} \, (G_{KK} + \lambda I)^{-1}

    For linear layers and two-dimensional convolutions (over patches). A layer with a bias has a
    constant among its inputs, so that the bias takes part.

    Args:
        batches: How many training batches. Default 8.
        batch_size: Samples of a batch. Default 64.
        ridge: :math:`\lambda` as a fraction of the mean of the diagonal of :math:`G_{KK}`.
            Default 0.001.

    Example:
        >>> LeastSquares()
        LeastSquares()

    Paper: He et al., ICCV 2017, section 3.1.  Differs: a ridge towards the weights as they are;
    each layer by itself, on the inputs that it has before anything is removed.
    """

    batches: int = Field(default=8, ge=1, description="Training batches.")
    batch_size: int = Field(default=64, ge=1, description="Samples of a batch.")
    ridge: float = Field(default=1e-3, gt=0, description="A fraction of the mean square input.")

    @torch.no_grad()
    def apply_(self, model: nn.Module, readers: list[Reader], ctx: Context) -> None:
        """Change the weights that stay in place."""
        own = {
            reader.path: reader
            for reader in readers
            if isinstance(reader.layer, nn.Linear)
            or (isinstance(reader.layer, nn.Conv2d) and reader.layer.padding_mode == "zeros")
        }
        grams: dict[str, Tensor] = {}
        draws = ctx.generator("least squares")

        def add(path: str, module: nn.Module, values: Tensor) -> None:
            rows = _rows(module, values)
            if len(rows) > _MOST_ROWS:
                rows = rows[torch.randperm(len(rows), generator=draws)[:_MOST_ROWS].to(rows.device)]
            gram = rows.T @ rows
            grams[path] = grams[path] + gram if path in grams else gram

        watch_inputs(model, set(own), training_batches(ctx, self.batches, self.batch_size), add)
        for path, gram in grams.items():
            self._solve_(own[path], gram)

    def _solve_(self, reader: Reader, gram: Tensor) -> None:
        layer = reader.layer
        kernel = layer.weight[0, 0].numel()
        lost = reader.lost.to(gram.device).repeat_interleave(kernel)
        weight = layer.weight.detach().flatten(1).double()
        if layer.bias is not None:
            lost = torch.cat([lost, lost.new_zeros(1)])
            weight = torch.cat([weight, layer.bias.detach().double()[:, None]], dim=1)
        kept = ~lost
        of_kept = gram[kept][:, kept]
        of_kept = of_kept + self.ridge * of_kept.diagonal().mean() * torch.eye(
            len(of_kept), dtype=gram.dtype, device=gram.device
        )
        change = torch.linalg.solve(of_kept, gram[kept][:, lost] @ weight[:, lost].T).T
        weight[:, kept] += change
        if layer.bias is not None:
            layer.bias.copy_(weight[:, -1])
            weight = weight[:, :-1]
        layer.weight.copy_(weight.reshape(layer.weight.shape))


_MOST_ROWS = 4096


def _rows(module: nn.Module, values: Tensor) -> Tensor:
    """Return the inputs as rows, `[n, C * kernel]`, with a one behind where there is a bias."""
    if isinstance(module, nn.Conv2d):
        if isinstance(module.padding, str):
            pad = module._reversed_padding_repeated_twice
            values = F.pad(values, pad)
        padding = 0 if isinstance(module.padding, str) else module.padding
        columns = F.unfold(values, module.kernel_size, module.dilation, padding, module.stride)
        rows = columns.transpose(1, 2).reshape(-1, columns.shape[1])
    else:
        rows = values.reshape(-1, values.shape[-1])
    rows = rows.double()
    if module.bias is not None:
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    return rows
