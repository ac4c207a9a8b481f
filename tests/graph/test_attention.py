"""Heads of `nn.MultiheadAttention` go for themselves, and nothing else changes."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overhaul.graph import Graph, check_removal
from overhaul.graph._narrow_attention import attend


def streams(*, batched: bool, kdim: int = 8, vdim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch = (2,) if batched else ()
    return (
        torch.rand(5, *batch, 8, generator=generator),
        torch.rand(6, *batch, kdim, generator=generator),
        torch.rand(6, *batch, vdim, generator=generator),
    )


MASKS: dict[str, dict[str, Tensor]] = {
    "none": {},
    "boolean": {"attn_mask": torch.ones(5, 6).triu(2).bool()},
    "additive": {"attn_mask": torch.arange(30.0).reshape(5, 6)},
    "by head": {"attn_mask": torch.ones(8, 5, 6).triu(2).bool()},
    "padding": {"key_padding_mask": torch.arange(6).expand(2, 6) > 3},
}


@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("need_weights", [True, False])
def test_with_all_heads_it_is_the_function_of_torch(
    options: dict[str, bool], mask: str, need_weights: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 4, **options)
    given: dict[str, Any] = {**MASKS[mask], "need_weights": need_weights}
    expected = attention(*streams(batched=True), **given)
    monkeypatch.setattr(F, "multi_head_attention_forward", attend)
    for one, other in zip(attention(*streams(batched=True), **given), expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"bias": False},
        {"kdim": 6, "vdim": 10},
        {"add_bias_kv": True, "add_zero_attn": True},
    ],
)
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_heads_are_removed_and_removed_again(
    options: dict[str, Any], average: bool, batched: bool
) -> None:
    attention = nn.MultiheadAttention(8, 4, **options)
    inputs = streams(batched=batched, kdim=options.get("kdim", 8), vdim=options.get("vdim", 8))
    if options.get("batch_first") and batched:
        q, k, v = (each.transpose(0, 1) for each in inputs)
        inputs = (q, k, v)
    named = {"average_attn_weights": average}

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, *args: Tensor, **named: Any) -> Tensor:
            out, weights = self.attention(*args, **named)
            if not average:
                weights = weights.sum(-3)
            return torch.cat([out.flatten(), weights.flatten()])

    model: nn.Module = Weighted()
    for left in (3, 2):
        graph = Graph(model, inputs, named)
        (group,) = [group for group in graph.groups if group.kind == "heads"]
        check_removal(model, graph, {group.name: [1]}, inputs, named)
        model = graph.remove({group.name: [1]}).apply(model)
        inner: Any = model.get_submodule("attention")
        assert (inner.num_heads, inner.embed_dim, inner.head_dim) == (left, 8, 2)
        assert isinstance(inner, nn.MultiheadAttention)
        assert model.state_dict().keys() == Weighted().state_dict().keys()
    model.train()(*inputs, **named).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_an_encoder_of_torch_trains_and_evaluates_with_padding() -> None:
    layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    x = torch.rand(2, 5, 8)
    padding = torch.arange(5).expand(2, 5) > 3
    graph = Graph(encoder, (x,), {"src_key_padding_mask": padding})
    units = {group.name: [0] for group in graph.groups if group.kind == "heads"}
    assert len(units) == 2
    smaller = graph.remove(units).apply(copy.deepcopy(encoder))
    with torch.no_grad():
        fast = smaller.eval()(x, src_key_padding_mask=padding)
    slow = smaller.eval()(x, src_key_padding_mask=padding)
    assert torch.allclose(fast[~padding], slow[~padding], atol=1e-6)
