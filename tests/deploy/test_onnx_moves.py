"""Rounding goes before a maximum only where nothing else reads the maximum."""

import importlib

import numpy as np
import pytest

from overhaul.deploy._onnx_moves import round_before_pooling_


@pytest.mark.parametrize("operation", ["MaxPool", "ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("returned", [False, True])
def test_an_extreme_that_the_model_returns_is_not_rounded(operation: str, returned: bool) -> None:
    ir = importlib.import_module("onnxscript").ir
    x = ir.Value(name="x", shape=ir.Shape((2, 3, 4)), type=ir.TensorType(ir.DataType.FLOAT))
    scale = ir.val("scale", const_value=ir.tensor(np.float32(0.1), name="scale"))
    zero = ir.val("zero", const_value=ir.tensor(np.int8(0), name="zero"))
    extreme = ir.node(operation, [x])
    rounded = ir.node("QuantizeLinear", [extreme.outputs[0], scale, zero])
    real = ir.node("DequantizeLinear", [rounded.outputs[0], scale, zero])
    outputs = [real.outputs[0], *extreme.outputs] if returned else [real.outputs[0]]
    nodes, initializers = [extreme, rounded, real], [scale, zero]
    model = ir.Model(ir.Graph([x], outputs, nodes=nodes, initializers=initializers), ir_version=10)
    round_before_pooling_(model)
    found = [node.op_type for node in model.graph]
    assert found.index(operation) == (0 if returned else 2)
