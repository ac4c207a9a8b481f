"""Cost as facts."""

import torch
from torch import Tensor, nn

from overhaul.core import Batch
from overhaul.evaluation import cost_facts


def test_one_fact_for_each_cost(network: nn.Sequential, images: Batch) -> None:
    facts = {fact.name: fact for fact in cost_facts(network, images, subject="final")}
    assert list(facts) == [
        "parameters",
        "nonzero_parameters",
        "macs",
        "size_bytes",
        "compressed_bytes",
        "peak_memory_bytes",
    ]
    assert facts["parameters"].value == 40 + 8 + 290
    assert facts["nonzero_parameters"].value == 40 + 4 + 290  # the shift of the normalization is 0
    assert facts["peak_memory_bytes"].unit == "B"
    assert not facts["peak_memory_bytes"].reproducible
    assert {fact.subject for fact in facts.values()} == {"final"}
    assert all(fact.reason is None for fact in facts.values())


class _Awkward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sparse", torch.eye(3).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x.flatten(1), x.flatten(1)) if x.sum() < 1e9 else x


def test_what_cannot_be_measured_is_none_with_a_reason(images: Batch) -> None:
    facts = {fact.name: fact for fact in cost_facts(_Awkward(), images, subject="original")}
    assert facts["macs"].reason == "too low: there is no formula for aten::_cdist_forward"
    for name in ("size_bytes", "compressed_bytes", "peak_memory_bytes"):
        assert facts[name].value is None
        assert facts[name].reason


def test_memory_is_left_out_on_request(network: nn.Sequential, images: Batch) -> None:
    facts = cost_facts(network, images, subject="0 prune", peak_memory=False)
    assert "peak_memory_bytes" not in {fact.name for fact in facts}
