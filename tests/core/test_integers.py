import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from overhaul.core import PLAIN, dequantize, pack4, quantize, unpack4


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20),
    st.floats(0.01, 10),
    st.integers(0, 255),
)
def test_a_number_in_range_comes_back_within_half_a_step(
    values: list[float], scale: float, zero: int
) -> None:
    x, s, z = torch.tensor(values), torch.tensor(scale), torch.tensor(zero).byte()
    low, high = -zero * scale, (255 - zero) * scale
    back = dequantize(quantize(x, s, z), s, z)
    error = (back - x.clamp(low, high)).abs()
    assert float(error.max()) <= scale / 2 * 1.001 + 1e-5


def test_halves_are_rounded_to_even_and_zero_is_exact() -> None:
    one, zero = torch.tensor(1.0), torch.tensor(3).byte()
    x = torch.tensor([0.5, 1.5, 2.5, 0.0])
    assert quantize(x, one, zero).tolist() == [3, 5, 5, 3]
    assert dequantize(quantize(x, one, zero), one, zero)[3] == 0


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_each_channel_has_its_own_scale(axis: int) -> None:
    x = torch.randn(3, 3, 3)
    scale, zero = torch.tensor([0.1, 1.0, 10.0]), torch.zeros(3, dtype=torch.int8)
    q = quantize(x, scale, zero, axis)
    for c in range(3):
        part = quantize(x.select(axis, c), scale[c], zero[c])
        assert torch.equal(q.select(axis, c), part)


def test_blocks_share_scales_and_the_last_may_be_short() -> None:
    q = torch.arange(10, dtype=torch.int8).reshape(2, 5)
    scale = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]])
    zero = torch.zeros(2, 3, dtype=torch.int8)
    expected = [[0, 1, 20, 30, 400], [10, 12, 140, 160, 1800]]
    assert dequantize(q, scale, zero, axis=1, block=2).tolist() == expected


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=9))
def test_four_bits_pack_and_unpack(values: list[int]) -> None:
    q = torch.tensor(values, dtype=torch.int8)
    packed = pack4(q)
    assert packed.numel() == (len(values) + 1) // 2
    assert unpack4(packed, len(values)).tolist() == values


def _through_all(x: Tensor) -> Tensor:
    scale, zero = torch.tensor(0.1), torch.tensor(7).byte()
    w = dequantize(
        unpack4(torch.tensor([[33], [84]]).byte(), 2),
        torch.tensor([[1.0], [2.0]]),
        torch.zeros(2, 1, dtype=torch.int8),
        1,
        2,
    )
    return dequantize(quantize(x, scale, zero), scale, zero) @ w


def test_the_operations_survive_export_and_become_plain_ones() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return _through_all(x)

    x = torch.randn(4, 2)
    batch = torch.export.Dim("batch")
    program = torch.export.export(Module(), (x,), dynamic_shapes=({0: batch},))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"overhaul.quantize.default", "overhaul.unpack4.default"} <= names
    plain = program.run_decompositions(PLAIN)
    assert not [n for n in plain.graph.nodes if "overhaul" in str(n.target)]
    more = torch.randn(6, 2)
    assert torch.allclose(plain.module()(more), _through_all(more), atol=1e-6)
