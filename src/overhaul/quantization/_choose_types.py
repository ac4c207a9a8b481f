"""`choose_types`: the type of each layer under a budget."""

from overhaul.core import ModelError
from overhaul.quantization._assign_types import assign_types
from overhaul.quantization._budget import Budget
from overhaul.quantization._integer_map import WeightType
from overhaul.quantization._plan import LayerType
from overhaul.quantization._trials import Trials

_STEPS = 8
"""How often the bytes between the least and the most are halved."""


def choose_types(trials: Trials, budget: Budget, before: float) -> dict[str, LayerType]:
    """Return the type of each layer, by an integer programme over measured sensitivities.

    That they add up is an assumption: the choice is measured, and a fact says both figures.

    Args:
        trials: Measures single layers and choices.
        budget: The limit.
        before: The quality of the float model.

    Raises:
        ModelError: no choice is within the budget.
    """
    return _Choice(trials, budget).made(before)


class _Choice:
    def __init__(self, trials: Trials, budget: Budget) -> None:
        self.trials, self.budget = trials, budget
        self.types: tuple[WeightType, ...] = budget.types
        total = len(trials.units) * len(self.types)
        self.rises: list[list[float]] = []
        self.bytes: list[list[float]] = []
        with trials.ctx.progress.bar(trials.ctx.label, total) as advance:
            for unit in trials.units:
                measured = []
                for each in self.types:
                    measured.append(trials.rise(unit, each))
                    advance(f"{unit[0]} {each} {measured[-1][0]:+.4f}")
                self.rises.append([0.0, *(rise for rise, _ in measured)])
                self.bytes.append([0.0, *(change for _, change in measured)])
        self.float_bytes = trials.bytes(trials.model)

    def made(self, before: float) -> dict[str, LayerType]:
        budget = self.budget
        if budget.max_drop is not None:
            chosen = self._smallest(budget.max_drop, before)
        elif budget.ms is not None:
            chosen = self._within(self._times(), budget.ms, "ms")
        else:
            assert budget.bytes is not None
            limit = (budget.bytes - 1) * self.float_bytes
            chosen = self._within(self.bytes, limit, "bytes")
        self._log(chosen)
        return self._named(chosen)

    def _within(self, costs: list[list[float]], limit: float, unit: str) -> list[int]:
        chosen = assign_types(self._losses(), costs, limit)
        if chosen is None:
            least = sum(map(min, costs))
            if unit == "bytes":
                least, limit = (1 + each / self.float_bytes for each in (least, limit))
            of = "times its bytes" if unit == "bytes" else unit
            raise ModelError(
                f"the model needs {least:.3g} {of} when each layer has its cheapest type, and "
                f"{limit:.3g} was asked for. Ask for more, or allow other `types`."
            )
        return chosen

    def _losses(self) -> list[list[float]]:
        """Return rises of the loss; a layer that seems to gain by rounding gains by chance."""
        return [[max(0.0, rise) for rise in row] for row in self.rises]

    def _smallest(self, max_drop: float, before: float) -> list[int]:
        """Return the choice with the fewest bytes whose measured drop is allowed."""
        judge, drops = self.trials.judge, {}
        low, high = sum(map(min, self.bytes)), 0.0
        best: list[int] = [0] * len(self.bytes)
        limit = low
        for _ in range(_STEPS):
            chosen = assign_types(self._losses(), self.bytes, limit)
            assert chosen is not None
            if tuple(chosen) not in drops:
                made = self.trials.build(self._named(chosen))
                drops[tuple(chosen)] = judge.drop(before, judge.quality(made))
            if drops[tuple(chosen)] <= max_drop:
                best, high = chosen, self._sum(self.bytes, chosen)
            else:
                low = limit
            if high <= low:
                break
            limit = (low + high) / 2
        return best

    def _times(self) -> list[list[float]]:
        times = []
        for unit in self.trials.units:
            row = [0.0] * (1 + len(self.types))
            for path in unit:
                known = self.budget.layer_ms.get(path, {})
                lacking = [each for each in ("float32", *self.types) if each not in known]
                if lacking:
                    raise ModelError(
                        f"`layer_ms` of the budget has no time of '{path}' as "
                        f"{' and '.join(lacking)}. Measure each layer with the engine."
                    )
                row = [a + known[b] for a, b in zip(row, ("float32", *self.types), strict=True)]
            times.append(row)
        return times

    def _named(self, chosen: list[int]) -> dict[str, LayerType]:
        names: tuple[LayerType, ...] = ("float32", *self.types)
        return {
            path: names[choice]
            for unit, choice in zip(self.trials.units, chosen, strict=True)
            for path in unit
        }

    def _sum(self, table: list[list[float]], chosen: list[int]) -> float:
        return sum(row[choice] for row, choice in zip(table, chosen, strict=True))

    def _log(self, chosen: list[int]) -> None:
        trials, ctx = self.trials, self.trials.ctx
        types = self._named(chosen)
        for path, each in types.items():
            ctx.log("layer_type", each, detail={"layer": path})
        made = trials.build(types)
        ctx.log("kept_bytes", trials.bytes(made) / self.float_bytes)
        ctx.log(
            "predicted_loss_rise",
            self._sum(self.rises, chosen),
            split="val",
            n=len(trials.judge.indices),
            reason="the rises of single layers are assumed to add up; `measured` says what they do",
            detail={"measured": trials.judge.loss(made) - trials.float_loss},
        )
