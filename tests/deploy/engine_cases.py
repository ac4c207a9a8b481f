"""Engines that may not be installed, and a model written and opened by one of them."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import Batch
from overhaul.deploy import (
    AOTInductor,
    Engine,
    ExecuTorch,
    OnnxRuntime,
    OpenVINO,
    Runner,
    Signature,
    TensorInfo,
    Torch,
    TorchCompile,
)
from overhaul.deploy._capture import capture
from overhaul.deploy._interface import Interface

ENGINES: dict[str, Engine] = {
    "torch": Torch(),
    "onnxruntime": OnnxRuntime(),
    "openvino": OpenVINO(),
    "executorch": ExecuTorch(),
    "torch_compile": TorchCompile(),
    "aotinductor": AOTInductor(),
}
SLOW = ("torch_compile", "aotinductor")
"""They take seconds to compile a model."""
PACKAGES = ("openvino", "executorch")


def installed(name: str) -> Engine:
    """Return the engine of this name, or skip the test where its package is missing."""
    if name in PACKAGES and importlib.util.find_spec(name) is None:
        pytest.skip(f'{name} is not installed; run: pip install "overhaul[{name}]"')
    ENGINES[name].check_installed()
    return ENGINES[name]


def signature_of(engine: Engine, x: Tensor, y: Tensor) -> Signature:
    """Return the signature of a model with one input and one output."""
    inputs, outputs = (
        (TensorInfo(name=name, dtype=str(t.dtype)[6:], shape=("batch", *t.shape[1:])),)
        for name, t in (("x", x), ("output", y))
    )
    return Signature(
        engine=engine.spec_name(),
        options=engine.options(),
        file=engine.file_name,
        versions=engine.versions(),
        task="rows",
        inputs=inputs,
        outputs=outputs,
        named_outputs=False,
        tolerance=1e-3,
    )


def deployed(
    engine: Engine, model: nn.Module, x: Tensor, folder: Path, threads: int | None = 1
) -> Runner:
    """Write a model with one input and one output, and open it."""
    signature = signature_of(engine, x, model(x))
    interface = Interface(signature.inputs, signature.outputs, False, False)
    program = capture(model, Batch((x[:5],), torch.zeros(5), torch.arange(5)), interface)
    engine.write(program, signature, folder)
    return engine.open(folder / engine.file_name, signature, threads)


def relative_error(run: Runner, model: nn.Module, x: Tensor) -> float:
    """Return the largest error over the largest output, for batches of 1, 3 and 64."""
    wanted = model(x)
    errors = [(run([x[:size]])[0] - wanted[:size]).abs().max() for size in (1, 3, 64)]
    return float(torch.stack(errors).max() / wanted.abs().max())
