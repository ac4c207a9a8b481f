"""Run oneDNN's kernels for AVX2, which saturate, and print where the simulation differs.

A process of its own: `ONEDNN_MAX_CPU_ISA` has to be set before torch is loaded.
"""

import json
from typing import Any

import torch
from torch import Tensor

from overhaul.quantization._saturation import conv_excess, linear_excess

LINEAR = [(1, 4), (7, 5), (3, 33), (16, 64)]
"""Rows and inputs."""
CONVOLUTIONS = [(2, 1, 1), (3, 3, 1), (5, 3, 1), (16, 3, 1), (16, 3, 4), (16, 3, 16)]
"""Channels, kernel and groups."""


def linear(x: Tensor, weight: Tensor) -> Tensor:
    outputs = len(weight)
    packed = torch.ops.onednn.qlinear_prepack(weight, list(x.shape))
    scales, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int32)
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        x, 1.0, 0, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return out.long()


def convolution(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    outputs = len(weight)
    scales, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int32)
    sizes = ([1, 1], [0, 0], [1, 1])
    packed = torch.ops.onednn.qconv_prepack(weight, scales, 1.0, 0, *sizes, groups, list(x.shape))
    rest: tuple[Any, ...] = (groups, 1.0, 0, torch.float32, "none", [], "")
    out: Tensor = torch.ops.onednn.qconv_pointwise(
        x, 1.0, 0, packed, scales, zeros, None, *sizes, *rest
    )
    return out.long()


def main() -> None:
    torch.manual_seed(0)
    found: dict[str, dict[str, bool]] = {}
    for rows, inputs in LINEAR:
        x = torch.randint(150, 256, (rows, inputs)).byte()
        w = torch.randint(-127, 128, (24, inputs)).char()
        exact, kernel = x.long() @ w.long().mT, linear(x, w)
        simulated = exact - linear_excess(x, w)
        found[f"linear {rows} {inputs}"] = {
            "simulated": torch.equal(kernel, simulated),
            "exact": torch.equal(kernel, exact),
        }
    for channels, size, groups in CONVOLUTIONS:
        x = torch.randint(150, 256, (2, channels, 9, 9)).byte()
        w = torch.randint(-127, 128, (16, channels // groups, size, size)).char()
        exact = torch.nn.functional.conv2d(x.double(), w.double(), groups=groups).long()
        excess = conv_excess(x, w, stride=(1, 1), dilation=(1, 1), groups=groups)
        kernel = convolution(x, w, groups)
        found[f"conv {channels} {size} {groups}"] = {
            "simulated": torch.equal(kernel, exact - excess),
            "exact": torch.equal(kernel, exact),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
