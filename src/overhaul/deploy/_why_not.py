"""`integers_fact`: whether integers pay on this machine, and what is behind it if they do not."""

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from overhaul.core import Fact, StoresIntegers
from overhaul.deploy._trial import Trial
from overhaul.evaluation import Latency
from overhaul.runtime import cpu_features

_VECTOR = 16
"""Channels that kernels for 8-bit integers take at once."""
_SMALL_MS = 0.2


def integers_fact(trials: Sequence[Trial], latencies: dict[str, Latency], model: nn.Module) -> Fact:
    """Return the time of the fastest engine in integers over that of the fastest in real numbers.

    Args:
        trials: All that passed; some of them twins in real numbers.
        latencies: Of each trial's subject, timed in turns.
        model: With the integers.
    """
    fastest: dict[bool, Trial] = {}
    for twin in (False, True):
        own = [trial for trial in trials if trial.is_twin == twin]
        if own:
            fastest[twin] = min(own, key=lambda trial: latencies[trial.subject].ratio)
    if False not in fastest:
        why = "no engine runs the integers well enough"
        return Fact(name="integers_against_real", value=None, subject="artifact", reason=why)
    whole, real = fastest[False], fastest[True]
    ms = {trial.name: latencies[trial.subject].median_ms for trial in (whole, real)}
    value = latencies[whole.subject].ratio / latencies[real.subject].ratio
    sizes = {trial.name: trial.size_bytes for trial in (whole, real)}
    reason = None
    if value > 1 or sizes[whole.name] > sizes[real.name]:
        parts = [
            f"in integers {whole.engine} takes {ms[whole.name]:.3g} ms and "
            f"{sizes[whole.name]:,} bytes, in real numbers {real.engine} takes "
            f"{ms[real.name]:.3g} ms and {sizes[real.name]:,} bytes"
        ]
        reason = ". ".join([*parts, *what_may_be_behind(model, ms[whole.name])])
    return Fact(
        name="integers_against_real",
        value=value,
        subject="artifact",
        reason=reason,
        detail={"ms": ms, "bytes": sizes, "int8_instructions": int8_instructions()},
        reproducible=False,
    )


def what_may_be_behind(model: nn.Module, call_ms: float) -> list[str]:
    """Return what of the model and of this machine keeps integers from being faster.

    Args:
        model: With integers.
        call_ms: How long a call takes.
    """
    found = []
    if int8_instructions() is False:
        found.append(
            "This CPU has no instructions for sums of 8-bit products (VNNI, AMX), so they take "
            "several instructions each"
        )
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | _ConvNd)]
    real = [layer for layer in layers if not isinstance(layer, StoresIntegers)]
    if real:
        found.append(f"{len(real)} of {len(layers)} layers compute in real numbers")
    rounded = [m for m in model.modules() if isinstance(m, StoresIntegers) and m.rounds_inputs]
    if not rounded:
        found.append(
            "Only weights are integers: they are turned into real numbers before each product, "
            "which pays where reading them is what takes the time, in big layers at batch 1"
        )
    narrow = [m for m in layers if isinstance(m, _ConvNd) and m.out_channels % _VECTOR]
    if narrow:
        widths = sorted({m.out_channels for m in narrow})[:4]
        found.append(
            f"{len(narrow)} of {len(layers)} layers have a number of channels "
            f"({', '.join(map(str, widths))}, ...) that does not fill vectors of {_VECTOR}"
        )
    if call_ms < _SMALL_MS:
        found.append(
            f"A call of {call_ms:.2g} ms is mostly the overhead of the engine and of changing "
            "between real numbers and integers"
        )
    return found


def int8_instructions() -> bool | None:
    """Return whether the CPU adds products of 8-bit integers in one instruction.

    None where the system does not say what its CPU has.
    """
    features = cpu_features()
    return not _SUMS_OF_PRODUCTS.isdisjoint(features) if features else None


_SUMS_OF_PRODUCTS = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}
