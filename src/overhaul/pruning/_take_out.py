"""`take_out`: the removal that a step decided on, with its facts and the config that follows."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from torch import nn

from overhaul.core import Batch, Context
from overhaul.evaluation import model_device
from overhaul.graph import ConfigSizes, Gone, Graph, aligned_sizes


class Cost(NamedTuple):
    """What one pass of a model takes."""

    macs: int
    parameters: int

    @classmethod
    def of(cls, graph: Graph, gone: Gone | None = None) -> Self:
        """Return the cost of a graph's model, or of what is left of it."""
        return cls(graph.macs(gone), graph.parameters(gone))

    def over(self, full: "Cost") -> tuple[float, float]:
        """Return the fractions of MACs and parameters of another cost; of nothing all is left."""
        return self.macs / full.macs if full.macs else 1.0, self.parameters / full.parameters


def take_out(
    model: nn.Module,
    graph: Graph,
    units: Mapping[str, Sequence[int]],
    error: float,
    batch: Batch,
    ctx: Context,
    full: Cost | None = None,
) -> nn.Module:
    """Remove proved units and say what went.

    Args:
        model: Belongs to the step.
        graph: Its graph.
        units: What goes, by the names of the groups.
        error: What `check_removal` returned for it.
        batch: Samples that the model was looked at with.
        ctx: Gets the facts and the edits.
        full: The cost before the step, which fractions are of; default is that of the graph.
    """
    full = full or Cost.of(graph)
    for name, own in units.items():
        detail = {"group": name, "of": graph[name].units, "kind": graph[name].kind}
        ctx.log("removed_units", len(own), detail=detail)
    kept_macs, kept_parameters = Cost.of(graph, graph.gone(units)).over(full)
    ctx.log("kept_macs", kept_macs)
    ctx.log("kept_parameters", kept_parameters)
    ctx.log("removal_error", error)
    model = ctx.edit(model, graph.remove(units))
    return align_config(model, batch, ctx)


def align_config(model: nn.Module, batch: Batch, ctx: Context) -> nn.Module:
    """Let the config of a Hugging Face model follow, where it can, so that it saves and loads."""
    sizes, wrong = aligned_sizes(model, *batch.to(model_device(model)).arguments)
    for name in wrong:
        why = "no config gives this shape: save_pretrained works, from_pretrained does not"
        ctx.log("config_not_aligned", name, reason=why)
    return ctx.edit(model, ConfigSizes(sizes=sizes)) if sizes else model
