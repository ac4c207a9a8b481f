"""Attention in ONNX computes what it does in torch, without shapes worked out around its keys."""

import importlib
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overhaul.deploy import Engine, OnnxRuntime, OpenVINO
from overhaul.deploy._onnx_attention import transpose_keys_directly_
from tests.deploy.engine_cases import deployed, installed, relative_error

Mask = Literal["none", "yes_or_no", "added", "causal"]


class SelfAttention(nn.Module):
    """Four heads with one kind of mask, that follows from the inputs."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.mask, self.all = mask, nn.Linear(32, 96)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.all(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        first = x[:, None, None, :, 0]
        mask = {"yes_or_no": first > -1, "added": first}.get(self.mask)
        causal = self.mask == "causal"
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return out.transpose(1, 2).flatten(2)


MASKS: tuple[Mask, ...] = ("none", "yes_or_no", "added", "causal")


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("engine", [OnnxRuntime(), OpenVINO()])
def test_attention_computes_the_same_with_every_mask(
    engine: Engine, mask: Mask, tmp_path: Path
) -> None:
    installed(engine.spec_name())
    torch.manual_seed(0)
    model, x = SelfAttention(mask).eval().requires_grad_(False), torch.randn(64, 6, 32)
    run = deployed(engine, model, x, tmp_path)
    assert relative_error(run, model, x) < 1e-5


@pytest.mark.parametrize("mask", MASKS)
def test_keys_are_transposed_once_and_no_shape_is_worked_out(mask: Mask, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = SelfAttention(mask).eval().requires_grad_(False), torch.randn(64, 6, 32)
    deployed(OnnxRuntime(), model, x, tmp_path)
    onnx = importlib.import_module("onnx")
    names = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    # Before the heads and after them; where a causal mask is made, two sizes are asked for.
    assert names.count("Reshape") == 2
    assert names.count("Shape") == (2 if mask == "causal" else 0)


def test_other_reshapes_around_a_transposition_are_left() -> None:
    ir = importlib.import_module("onnxscript").ir

    def swapped(first: list[int], last: list[int]) -> list[str]:
        x = ir.Value(name="x", shape=ir.Shape((2, 3, 4, 5)), type=ir.TensorType(ir.DataType.FLOAT))
        shape = ir.node("Shape", [x])
        sizes = [ir.val(f"n{n}", const_value=ir.tensor([n], name=f"n{n}")) for n in range(5)]
        parts = [ir.node("Slice", [shape.outputs[0], sizes[n], sizes[n + 1]]) for n in range(4)]
        rest = ir.val("rest", const_value=ir.tensor([-1], name="rest"))
        whole = [each.outputs[0] for each in parts]
        one = ir.node("Concat", [rest, *(whole[n] for n in first)], attributes={"axis": 0})
        two = ir.node("Concat", [whole[n] for n in last], attributes={"axis": 0})
        flat = ir.node("Reshape", [x, one.outputs[0]])
        swap = ir.node("Transpose", flat.outputs, attributes={"perm": [0, 2, 1]})
        back = ir.node("Reshape", [swap.outputs[0], two.outputs[0]])
        nodes = [shape, *parts, one, two, flat, swap, back]
        graph = ir.Graph([x], back.outputs, nodes=nodes, initializers=[*sizes, rest])
        model = ir.Model(graph, ir_version=10)
        transpose_keys_directly_(model)
        return [node.op_type for node in model.graph]

    assert swapped([2, 3], [0, 1, 3, 2]) == ["Transpose"]
    assert swapped([3, 2], [0, 1, 2, 3]).count("Reshape") == 2
    assert swapped([2, 3], [0, 1, 2, 3]).count("Reshape") == 2
    assert swapped([2, 3], [1, 0, 3, 2]).count("Reshape") == 2
