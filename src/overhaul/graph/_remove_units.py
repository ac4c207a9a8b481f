"""`RemoveUnits`: the edit that takes positions out of tensors."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from overhaul.core import Edit, ModelError, evaluating, nearest
from overhaul.graph._narrow_attention import NarrowAttention


class RemoveUnits(Edit):
    """Positions are taken out of parameters and buffers, and sizes are set to what is left.

    Args:
        removed: For each tensor and dimension the positions that go.
        attributes: For each module the integers that change: `num_heads`, `normalized_shape.0`.
        renumbered: For each buffer of positions those that it no longer can name; the rest of its
            values move up.

    Raises:
        ModelError: the model is not the one that the edit was made for.

    Example:
        >>> edit = RemoveUnits(removed={"weight": {0: (1,)}, "bias": {0: (1,)}})
        >>> edit.apply(nn.Linear(3, 4))
        Linear(in_features=3, out_features=3, bias=True)
    """

    removed: dict[str, dict[int, tuple[int, ...]]]
    attributes: dict[str, dict[str, int]] = {}
    renumbered: dict[str, tuple[int, ...]] = {}

    @torch.no_grad()
    def apply(self, model: nn.Module) -> nn.Module:
        """Make the tensors anew, wherever they are shared, and set the attributes."""
        owners = _owners(model)
        own = dict(model.named_parameters(remove_duplicate=False))
        own.update(model.named_buffers(remove_duplicate=False))  # type: ignore[arg-type]
        smaller: dict[str, Tensor] = {}
        for name in dict.fromkeys((*self.removed, *self.renumbered)):
            if name not in own:
                raise ModelError(f"there is no '{name}' to remove from. {nearest(name, own)}")
            tensor: Tensor = own[name]
            if name in self.renumbered:
                tensor = _moved_up(tensor, self.renumbered[name])
            if name in self.removed:
                tensor = _without(name, tensor, self.removed[name])
            smaller[name] = tensor
        touched: set[nn.Module] = set()
        for name, tensor in smaller.items():
            old = own[name]
            new = nn.Parameter(tensor, old.requires_grad) if _parameter(old) else tensor
            for module, attribute in owners[id(old)]:
                setattr(module, attribute, new)
                touched.add(module)
        for path, values in self.attributes.items():
            for name, value in values.items():
                _set(model.get_submodule(path), name, value)
        # In training, a parametrization may change its buffers whenever the weight is looked at.
        with evaluating(model):
            for module in model.modules():
                if module in touched or (
                    is_parametrized(module) and not touched.isdisjoint(module.modules())
                ):
                    _describe_(module)
        _forget_(model)
        for module in model.modules():
            if isinstance(module, nn.TransformerEncoder) and any(
                isinstance(inner, NarrowAttention) for inner in module.modules()
            ):
                module.use_nested_tensor = False
        return model


def _forget_(model: nn.Module) -> None:
    """Let a model forget what it has worked out from its weights, as it does before training."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    for module, mode in modes:
        module.training = mode


def _parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


def _owners(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None:
                    found.setdefault(id(tensor), []).append((module, name))
    return found


def _without(name: str, tensor: Tensor, removed: dict[int, tuple[int, ...]]) -> Tensor:
    for dim, places in removed.items():
        if dim >= tensor.ndim or max(places) >= tensor.shape[dim]:
            raise ModelError(
                f"'{name}' has the shape {tuple(tensor.shape)}, and position {max(places)} of its "
                f"dimension {dim} was to be removed. The edit was made for another model."
            )
        keep = torch.ones(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
        keep[list(places)] = False
        tensor = tensor.detach().index_select(dim, keep.nonzero().flatten())
    return tensor


def _moved_up(tensor: Tensor, gone: tuple[int, ...]) -> Tensor:
    places = torch.tensor(gone, device=tensor.device)
    return tensor - (tensor.unsqueeze(-1) > places).sum(-1).to(tensor.dtype)


def _set(module: nn.Module, name: str, value: int) -> None:
    base, _, place = name.partition(".")
    if place:
        values: Any = list(getattr(module, base))
        values[int(place)] = value
        setattr(module, base, type(getattr(module, base))(values))
    else:
        setattr(module, base, value)


def _describe_(module: nn.Module) -> None:
    """Let a layer of torch say of itself the sizes that it now has."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.conv._ConvTransposeNd):
        module.in_channels = module.weight.shape[0]
        module.out_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.conv._ConvNd):
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        for held in (module._parameters["weight"], module._buffers["running_mean"]):
            if held is not None:
                module.num_features = len(held)
    elif isinstance(module, nn.GroupNorm) and module.affine:
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
    elif isinstance(module, nn.MultiheadAttention):
        _describe_attention_(module)


def _describe_attention_(module: nn.MultiheadAttention) -> None:
    inner = module.out_proj.weight.shape[1]
    packed = cast("Tensor | None", module.in_proj_weight)
    weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    widths = [w.shape[1] for w in (weights if packed is None else (packed, packed, packed))]
    module.embed_dim, module.kdim, module.vdim = widths
    module.head_dim = inner // module.num_heads
    if inner != module.embed_dim and not isinstance(module, NarrowAttention):
        module.__class__ = NarrowAttention
        # It is what the layers of torch ask before they hand the weights to a fused kernel.
        module._qkv_same_embed_dim = False
