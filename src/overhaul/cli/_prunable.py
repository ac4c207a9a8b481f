"""`overhaul profile --prunable`: what of a model can be removed, and why the rest cannot."""

from torch import nn

from overhaul.cli._answer import Answer
from overhaul.core import Batch
from overhaul.graph import Graph, Group


def prunable_answer(model: nn.Module, batch: Batch) -> Answer:
    """Return the groups with their sizes and MACs, and the layers without any, with the reason."""
    graph = Graph(model, *batch.arguments)
    full = graph.macs()
    groups = [_described(graph, group, full) for group in graph.groups]
    refused = [
        {"layer": each.tensor, "positions": each.count, "reason": str(each.reason)}
        for each in graph.refusals
    ]
    nothing = f"Nothing of this model can be removed. {'' if refused else graph.main_reason}"
    lines = [_table(groups)] if groups else [nothing.rstrip()]
    if refused:
        lines.append("\nNot prunable:")
        lines += [f"  {each['layer']} ({each['positions']}): {each['reason']}" for each in refused]
    return Answer({"groups": groups, "not_prunable": refused}, ["\n".join(lines)])


def _described(graph: Graph, group: Group, full: int) -> dict[str, str | int | float]:
    one = graph.macs(graph.gone({group.name: [group.units - 1]}))
    return {
        "group": group.name,
        "kind": group.kind,
        "units": group.units,
        "places": len(group.places),
        "macs_of_a_unit": (full - one) / full if full else 0.0,
    }


def _table(groups: list[dict[str, str | int | float]]) -> str:
    width = max(5, *(len(str(group["group"])) for group in groups))
    lines = [f"{'group':{width}}  {'kind':8}  {'units':>6}  {'places':>6}  MACs of one unit"]
    for group in groups:
        share = f"{100 * float(group['macs_of_a_unit']):.3f} %"
        lines.append(
            f"{group['group']:{width}}  {group['kind']:8}  {group['units']:6}  "
            f"{group['places']:6}  {share:>16}"
        )
    return "\n".join(lines)
