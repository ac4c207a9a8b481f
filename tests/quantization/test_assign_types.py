"""The integer programme against all choices."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from overhaul.quantization._assign_types import assign_types

TABLES = st.integers(1, 4).flatmap(
    lambda layers: st.tuples(
        *(
            st.lists(st.lists(number, min_size=3, max_size=3), min_size=layers, max_size=layers)
            for number in (st.integers(0, 50), st.integers(-40, 40))
        )
    )
)


def total(table: list[list[int]], choices: tuple[int, ...]) -> int:
    return sum(row[choice] for row, choice in zip(table, choices, strict=True))


@given(TABLES, st.integers(-120, 120))
def test_no_choice_is_better(tables: tuple[list[list[int]], list[list[int]]], limit: int) -> None:
    losses, costs = tables
    allowed = [
        each for each in product(range(3), repeat=len(losses)) if total(costs, each) <= limit
    ]
    found = assign_types(losses, costs, limit)
    if not allowed:
        assert found is None
        return
    assert found is not None
    assert total(costs, tuple(found)) <= limit
    assert total(losses, tuple(found)) == min(total(losses, each) for each in allowed)


def test_of_equal_losses_the_cheaper_is_taken() -> None:
    assert assign_types([[0.0, 0.0, 0.0]], [[7, 2, 4]], 10) == [1]


def test_bytes_of_a_large_model_are_counted_exactly() -> None:
    costs = [[0, -123_456_789], [0, -123_456_788]]
    assert assign_types([[0.0, 1.0], [0.0, 1.0]], costs, -123_456_789) == [1, 0]
    assert assign_types([[0.0, 2.0], [0.0, 1.0]], costs, -123_456_788) == [0, 1]
