"""`assign_types`: the choices with the least loss under a limit, by an integer programme."""

from collections.abc import Sequence

import numpy as np


def assign_types(
    losses: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], limit: float
) -> list[int] | None:
    r"""Return which choice each layer gets, or None if no choice stays below the limit.

    .. math:: \min_x \sum_{lc} x_{lc} L_{lc} \quad\text{with}\quad
              \sum_{lc} x_{lc} C_{lc} \le \text{limit}, \quad \sum_c x_{lc} = 1,
              \quad x_{lc} \in \{0, 1\}

    Among equal losses, smaller costs are preferred.

    Args:
        losses: `[L][C]`, what each choice loses; that they add up is an assumption.
        costs: `[L][C]`, what it costs.
        limit: Of all costs together.

    Example:
        >>> assign_types([[3.0, 0.0], [1.0, 0.0]], [[1, 4], [1, 4]], limit=5)
        [1, 0]

    Paper: Hubara et al., ICML 2021, section 3.4 (an integer programme over measured losses).
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    loss, cost = (np.concatenate([np.asarray(row, float) for row in t]) for t in (losses, costs))
    owners = np.repeat(np.arange(len(losses)), [len(row) for row in losses])
    one_each = (owners == np.arange(len(losses))[:, None]).astype(float)
    spread = float(np.abs(cost).max()) or 1.0
    found = milp(
        loss / (float(np.abs(loss).max()) or 1.0) + 1e-6 * cost / spread / len(losses),
        integrality=np.ones_like(loss),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(cost[None] / spread, -np.inf, limit / spread),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    edges = np.cumsum([len(row) for row in losses])[:-1]
    return [int(part.argmax()) for part in np.split(found.x, edges)]
