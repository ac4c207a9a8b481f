"""`scales_of`: a large weight is searched in parts, and nothing changes by that."""

import pytest
import torch

from overhaul.quantization import WeightForm, _integer_map
from overhaul.quantization._integer_map import scales_of

FORMS = {
    "channels": WeightForm(type="int8"),
    "channels of inputs": WeightForm(type="int8", axis=1),
    "one scale": WeightForm(type="int8", per_tensor=True),
    "blocks": WeightForm(type="int8", axis=1, block=8),
    "blocks of rows": WeightForm(type="int8", axis=0, block=4),
    "four bits in blocks": WeightForm(type="int4", axis=1, block=8, bits=4, shape=(10, 24)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_large_weight_has_the_scales_of_a_small_one(
    form: WeightForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(10, 24, generator=torch.Generator().manual_seed(0))
    whole = scales_of(weight, form, search=True)
    for size in (1, 50, 239):
        monkeypatch.setattr(_integer_map, "_AT_ONCE", size)
        assert torch.equal(scales_of(weight, form, search=True), whole)


def test_scales_of_blocks_are_halves_where_their_range_reaches() -> None:
    form = WeightForm(type="int4", axis=1, block=8, bits=4, shape=(10, 24))
    weight = torch.randn(10, 24, generator=torch.Generator().manual_seed(0))
    weight[0, :8], weight[1, :8] = 0.0, 1e-9
    for search in (False, True):
        scale = scales_of(weight, form, search=search)
        assert torch.equal(scale.half().float()[2:], scale[2:])
        assert float(scale[0, 0]) == torch.finfo(torch.float16).tiny
        assert float(scale[1, 0].abs()) == pytest.approx(1e-9 / 8, rel=0.5)
