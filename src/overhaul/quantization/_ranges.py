"""`observe`: the ranges of the activations of a plan, on batches of training samples."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn

from overhaul.core import Batch, ModelError, evaluating, without_fast_path
from overhaul.quantization._calibration import Calibration, Seen, Symmetric, scale_and_zero
from overhaul.quantization._plan import Plan
from overhaul.quantization._quantized_layer import input_name

Ranges: TypeAlias = dict[str, tuple[float, int]]
"""Scale and zero point of each activation by the name of its buffers: `conv1.input`."""


def observe(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Batch],
    calibration: Calibration,
    *,
    symmetric: Symmetric,
) -> Ranges:
    """Run the model on batches and choose a range for each activation that becomes integers.

    Args:
        model: Not yet quantized; it is left as it was.
        plan: Where activations become integers.
        batches: Training samples.
        calibration: How a range is chosen.
        symmetric: See `scale_and_zero`.

    Raises:
        ModelError: an activation of the plan was not seen.
    """
    seen: dict[str, Seen] = {}

    def note(name: str, value: Tensor) -> None:
        known = seen.setdefault(name, Seen(histogram=calibration.histogram_wanted()))
        known.see_(value)

    with watched_activations(model, plan, note), evaluating(model):
        for batch in batches:
            batch.forward(model)
    for name in activation_names(plan):
        if not (name in seen and seen[name].lows):
            raise ModelError(
                f"'{name.rpartition('.')[0]}' was called with the first samples of `train` and not "
                f"with those that ranges are taken from, so nothing is known of the range of "
                f"'{name}'. Which layers run must not depend on the data: leave out the layers "
                "that read it (`exclude`), or write activations=None."
            )
    return {
        name: scale_and_zero(calibration.range_of(each), symmetric=symmetric)
        for name, each in seen.items()
    }


def activation_names(plan: Plan) -> list[str]:
    """Return the names of the activations that become integers: `conv1.input`, `conv1.output`."""
    return [
        buffer_name(path, name)
        for path, form in plan.layers.items()
        for name in (*map(input_name, form.inputs), *["output"] * form.output)
    ]


@contextmanager
def watched_activations(
    model: nn.Module, plan: Plan, note: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call `note` for a block with each activation that becomes integers.

    Args:
        model: Not yet quantized; it is left as it was.
        plan: Where activations become integers.
        note: Gets the name of its buffers, `conv1.input`, and its real numbers.
    """

    def see(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            note(name, value)

    def inputs_of(path: str, positions: tuple[int, ...]) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            for position in positions:
                if position < len(args):  # a call may give it by name, and it stays as it is then
                    see(buffer_name(path, input_name(position)), args[position])

        return hook

    def output_of(path: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, out: see(buffer_name(path, "output"), out)

    hooks: list[Any] = []
    for path, form in plan.layers.items():
        module = model.get_submodule(path)
        if form.inputs:
            hooks.append(module.register_forward_pre_hook(inputs_of(path, form.inputs)))
        if form.output:
            hooks.append(module.register_forward_hook(output_of(path)))
    try:
        with without_fast_path():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def buffer_name(path: str, name: str) -> str:
    """Return the dotted name of something of a module.

    Example:
        >>> buffer_name("", "input"), buffer_name("conv", "input")
        ('input', 'conv.input')
    """
    return f"{path}.{name}" if path else name
