"""`Freeze` and `Unfreeze`: choose which layers later training changes."""

from torch import nn

from overhaul.core import Context, Step, matching_names
from overhaul.transfer._frozen import Frozen


class Freeze(Step):
    """Keep layers as they are in later training: weights, BatchNorm statistics, and no dropout.

    Args:
        layers: Patterns of module paths or parameter names; a pattern takes in everything below
            it. Default: everything.
        exclude: Patterns of what stays trainable all the same, such as the new head.

    Raises:
        ModelError: a pattern matches nothing.

    Example:
        >>> Freeze(exclude=("fc",))
        Freeze(exclude=('fc',))

    Paper: Yosinski et al., NeurIPS 2014.
    """

    layers: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Turn the gradients off and leave `Frozen` for later training."""
        modules, parameters = _select(model, self.layers, self.exclude)
        before = [item for item in ctx.carried if isinstance(item, Frozen)]
        for item in before:
            modules |= set(item.modules)
            parameters |= set(item.parameters)
        _carry(ctx, model, modules, parameters)
        return model


class Unfreeze(Step):
    """Let later training change layers again.

    Args:
        layers: Patterns of module paths or parameter names; a pattern takes in everything below
            it. Default: everything.

    Raises:
        ModelError: a pattern matches nothing.

    Example:
        >>> Unfreeze(layers=("conv",))
        Unfreeze(layers=('conv',))

    Paper: Howard and Ruder, ACL 2018, section 3.3 (gradual unfreezing).
    """

    layers: tuple[str, ...] = ("*",)

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Turn the gradients on and take the layers out of what `Freeze` left."""
        modules, parameters = _select(model, self.layers, ())
        for name in parameters:
            parameter = model.get_parameter(name)
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        frozen = [item for item in ctx.carried if isinstance(item, Frozen)]
        _carry(
            ctx,
            model,
            {path for item in frozen for path in item.modules} - modules,
            {name for item in frozen for name in item.parameters} - parameters,
        )
        return model


def _select(
    model: nn.Module, layers: tuple[str, ...], exclude: tuple[str, ...]
) -> tuple[set[str], set[str]]:
    """Return the modules that are chosen as a whole, and the parameters that are chosen."""
    modules = [path for path, _ in model.named_modules() if path]
    parameters = [name for name, _ in model.named_parameters()]
    names = [*modules, *parameters]
    chosen = matching_names(names, layers, "layers")
    spared = matching_names(names, exclude, "exclude") if exclude else set()
    parents = {parent for name in spared for parent in modules if name.startswith(f"{parent}.")}
    return (
        {path for path in modules if path in chosen and path not in spared | parents},
        {name for name in parameters if name in chosen and name not in spared},
    )


def _carry(ctx: Context, model: nn.Module, modules: set[str], parameters: set[str]) -> None:
    for name in parameters:
        model.get_parameter(name).requires_grad_(False)
    ctx.carried = [item for item in ctx.carried if not isinstance(item, Frozen)]
    if modules or parameters:
        ctx.carry(Frozen(modules=tuple(sorted(modules)), parameters=tuple(sorted(parameters))))
    ctx.log("frozen_parameters", sum(model.get_parameter(name).numel() for name in parameters))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    ctx.log("trainable_parameters", trainable)
