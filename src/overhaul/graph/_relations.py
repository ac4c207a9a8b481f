"""`settle`: decide for each product of dimensions which of its factors can be removed."""

from typing import Any

import numpy as np

from overhaul.graph._labels import Labels, Reason
from overhaul.graph._trace import Relation, Trace

_OTHER = Reason("another factor of the same dimension is removed instead of it")
_NONE = Reason("it is a product with dimensions of which nothing can be removed")


def settle(trace: Trace) -> None:
    """Tie each product to one of its factors, and fix the other factors.

    A dimension of 12 heads of 64 can lose whole heads, or the same places of every head, but a
    tensor has to stay a block. First come the products that leave no choice; then, in the order of
    the program, those that do: the factor that attention heads run over, else the one that leaves
    most to remove. Whatever is chosen is right; the choice decides only how finely one can prune.
    """
    open_relations = list(trace.relations)
    heads = np.zeros(0, dtype=np.int64)
    while True:
        left = [relation for relation in open_relations if not _forced(trace.labels, relation)]
        if len(left) == len(open_relations):
            break
        open_relations = left
    if trace.heads:
        heads = np.concatenate([dim.ravel() for dim in trace.heads])
    for relation in open_relations:
        _choose(trace.labels, relation, heads)


def _live(labels: Labels, relation: Relation) -> list[int]:
    if not labels.free(relation.whole.ravel()).any():
        return []
    return [
        place
        for place, factor in enumerate(relation.factors)
        if factor is not None and labels.free(factor).any()
    ]


def _forced(labels: Labels, relation: Relation) -> bool:
    live = _live(labels, relation)
    if len(live) > 1:
        return False
    _take(labels, relation, live[0] if live else None)
    return True


def _choose(labels: Labels, relation: Relation, heads: np.ndarray[Any, Any]) -> None:
    live = _live(labels, relation)
    if len(live) < 2:
        _take(labels, relation, live[0] if live else None)
        return
    roots = np.unique(labels.find(heads)) if len(heads) else heads
    scores = []
    for place in live:
        factor = relation.factors[place]
        assert factor is not None
        units = _units(labels, relation, place)
        of_heads = bool(np.isin(labels.find(factor), roots).any())
        scores.append((units > 1, of_heads, units, -place))
    _take(labels, relation, live[max(range(len(live)), key=scores.__getitem__)])


def _units(labels: Labels, relation: Relation, place: int) -> int:
    """Return how many units are left to remove when this factor is taken."""
    whole = labels.find(relation.whole)
    rows = np.moveaxis(whole, place, 0).reshape(whole.shape[place], -1)
    factor = relation.factors[place]
    assert factor is not None
    free = labels.free(rows.ravel()).reshape(rows.shape).all(axis=1) & labels.free(factor)
    first = rows.min(axis=1)[free]
    single = np.unique(first)
    shared = np.unique(rows[free]).size < rows[free].size and rows.shape[1] > 1
    if shared and np.unique(rows, axis=1).shape[1] > 1:
        # Rows that have labels in common would be merged into one unit.
        return _components(rows[free])
    return int(single.size)


def _components(rows: np.ndarray[Any, Any]) -> int:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    values, index = np.unique(rows, return_inverse=True)
    count = rows.shape[0]
    edges = coo_array(
        (
            np.ones(rows.size, dtype=np.int8),
            (np.repeat(np.arange(count), rows.shape[1]), count + index.ravel()),
        ),
        shape=(count + len(values), count + len(values)),
    )
    _, component = connected_components(edges, directed=False)
    return int(np.unique(component[:count]).size)


def _take(labels: Labels, relation: Relation, chosen: int | None) -> None:
    if not labels.free(relation.whole.ravel()).any():
        reason = labels.why(int(relation.whole.flat[0]))
        for factor in relation.factors:
            if factor is not None:
                labels.fix(factor, reason)
        return
    for place, factor in enumerate(relation.factors):
        if factor is not None and place != chosen:
            labels.fix(factor, _OTHER if chosen is not None else _NONE)
    if chosen is None:
        known = [factor for factor in relation.factors if factor is not None]
        labels.fix(relation.whole.ravel(), labels.why(int(known[0][0])) if known else _NONE)
        return
    factor = relation.factors[chosen]
    assert factor is not None
    shape = [1] * relation.whole.ndim
    shape[chosen] = len(factor)
    labels.tie(relation.whole, np.broadcast_to(factor.reshape(shape), relation.whole.shape))
