"""`integers_fact`: whether integers pay on this machine, and what is behind it if they do not."""

import time
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from overhaul.core import Fact, StoresIntegers
from overhaul.deploy._executed import Executed, executed
from overhaul.deploy._trial import Trial
from overhaul.evaluation import Latency
from overhaul.runtime import int8_instructions

_VECTOR = 16
"""Channels that kernels for 8-bit integers take at once."""
_SMALL_MS = 0.2
_PAYS = 0.8
"""Integers pay if they take no more than this part of the time of real numbers."""
_MANY_ZEROS = 0.3
"""More than rounding alone makes zero."""
_BEYOND_CACHES = 32_000_000
_MEMORY_BOUND = 0.5
_READ = 8_000_000
_SIMULATE = ("torch", "torch_compile", "aotinductor")
"""They have no layers in integers: these are computed in real numbers and rounded."""


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
    done = executed(whole.artifact)
    reason = None
    if value > _PAYS or sizes[whole.name] > sizes[real.name]:
        parts = [
            f"in integers {whole.engine} takes {ms[whole.name]:.3g} ms and "
            f"{sizes[whole.name]:,} bytes, in real numbers {real.engine} takes "
            f"{ms[real.name]:.3g} ms and {sizes[real.name]:,} bytes"
        ]
        parts += in_the_engine(whole.engine, done, model)
        reason = ". ".join([*parts, *what_may_be_behind(model, ms[whole.name])])
    return Fact(
        name="integers_against_real",
        value=value,
        subject="artifact",
        reason=reason,
        detail={
            "ms": ms,
            "bytes": sizes,
            "int8_instructions": int8_instructions(),
            **({} if done is None else {"executed": asdict(done)}),
        },
        reproducible=False,
    )


def in_the_engine(engine: str, done: Executed | None, model: nn.Module) -> list[str]:
    """Return what an engine does not compute in integers, and what it changes between both.

    Args:
        engine: Its name.
        done: What it runs, if it says.
        model: With integers.
    """
    rounded = _rounded(model)
    if engine in _SIMULATE and rounded:
        return [
            f"{engine} has no layers in integers: {len(rounded)} are computed in real numbers, and "
            "rounded on top of that"
        ]
    if done is None:
        return []
    found = []
    if done.in_real and rounded:
        found.append(f"{engine} runs {done.in_real} of {done.layers} layers in real numbers")
    if done.conversions:
        found.append(
            f"{done.conversions} operations that only change between integers and real numbers are "
            f"left in the graph of {engine}, beside {done.layers} layers"
        )
    if done.in_reference:
        found.append(
            f"{done.in_reference} of {done.layers} layers have a kernel that {engine} has not made "
            "for this CPU"
        )
    return found


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
    if not _rounded(model):
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
    if (zeros := many_zeros(model)) is not None:
        found.append(str(zeros.reason))
    if (memory := memory_bound(model, call_ms)) is not None:
        found.append(memory)
    if call_ms < _SMALL_MS:
        found.append(
            f"A call of {call_ms:.2g} ms is mostly the overhead of the engine and of changing "
            "between real numbers and integers"
        )
    return found


def many_zeros(model: nn.Module) -> Fact | None:
    """Return which part of the weights is zero, if more are than rounding makes."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | _ConvNd)]
    count = zeros = 0
    with torch.no_grad():
        for layer in layers:
            count += layer.weight.numel()
            zeros += int((layer.weight == 0).sum())
    if zeros < _MANY_ZEROS * count or not zeros:
        return None
    reason = (
        f"{zeros:,} of {count:,} weights are zero ({zeros / count:.0%}), and are stored and "
        "multiplied like all others"
    )
    return Fact(name="zeros", value=zeros / count, subject="original", reason=reason)


def memory_bound(model: nn.Module, call_ms: float) -> str | None:
    """Say which part of a call the weights take to be read, if that is most of it.

    Args:
        model: Whose weights each call reads.
        call_ms: How long a call takes, of one sample.
    """
    size = sum(parameter.nbytes for parameter in model.parameters())
    for module in model.modules():
        if isinstance(module, StoresIntegers):
            size += sum(stored.nbytes for stored, _ in module.stored_weights())
    if size < _BEYOND_CACHES:  # they may stay where reading them costs little
        return None
    speed = memory_speed()
    read_ms = size / speed * 1e3
    if read_ms < _MEMORY_BOUND * call_ms:
        return None
    return (
        f"Reading {size / 1e6:,.0f} MB of weights takes {read_ms:.3g} of the {call_ms:.3g} ms of a "
        f"call, at the {speed / 1e9:.2g} GB/s of one thread here: memory is the limit, and not how "
        "fast numbers are multiplied"
    )


def memory_speed() -> float:
    """Return how many bytes of memory one thread reads in a second, the best of three times."""
    values, before = torch.zeros(_READ, dtype=torch.int64), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            values.sum()
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return values.nbytes / min(times)


def _rounded(model: nn.Module) -> list[StoresIntegers]:
    """Return the layers whose inputs are rounded to integers."""
    return [m for m in model.modules() if isinstance(m, StoresIntegers) and m.rounds_inputs]
