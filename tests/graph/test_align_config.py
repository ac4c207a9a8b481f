"""The config of a Hugging Face model follows what was removed, where it can."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from overhaul.graph import Graph, align_config_, check_removal

transformers = pytest.importorskip("transformers")


def bert() -> Any:
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        vocab_size=50,
        max_position_embeddings=32,
    )
    return transformers.BertForSequenceClassification(config)


def llama() -> Any:
    config = transformers.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=50,
        use_cache=False,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


def named() -> dict[str, Any]:
    ids = torch.randint(3, 50, (2, 8), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def half(graph: Graph, part: str) -> dict[str, list[int]]:
    """Half of the units of every group with this in its name."""
    return {
        group.name: list(range(group.units // 2)) for group in graph.groups if part in group.name
    }


@pytest.mark.parametrize(
    ("make", "part", "entries"),
    [
        (bert, "intermediate", {"intermediate_size": 16}),
        (llama, "mlp", {"intermediate_size": 32}),
        (
            llama,
            "",
            {
                "intermediate_size": 32,
                "hidden_size": 16,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 8,
            },
        ),
    ],
)
def test_a_pruned_model_saves_and_loads(
    make: Any, part: str, entries: dict[str, int], tmp_path: Path
) -> None:
    model, inputs = make().eval(), named()
    graph = Graph(model, (), inputs)
    units = half(graph, part)
    check_removal(model, graph, units, (), inputs)
    smaller: Any = graph.remove(units).apply(model)
    assert align_config_(smaller, (), inputs) == ()
    assert {name: getattr(smaller.config, name) for name in entries} == entries
    smaller.save_pretrained(tmp_path)
    again = type(smaller).from_pretrained(tmp_path).eval()
    for thread in threading.enumerate():
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(10)  # the loader lets its threads end when they like
    with torch.no_grad():
        assert torch.allclose(again(**inputs).logits, smaller(**inputs).logits, atol=1e-6)


def test_layers_of_different_width_are_named_and_the_config_stays() -> None:
    model, inputs = bert().eval(), named()
    graph = Graph(model, (), inputs)
    name = next(group.name for group in graph.groups if "intermediate" in group.name)
    smaller: Any = graph.remove({name: [0, 1]}).apply(model)
    wrong = align_config_(smaller, (), inputs)
    assert any("intermediate.dense.weight" in each for each in wrong)
    assert smaller.config.intermediate_size == 32


def test_a_model_without_a_config_is_left_alone() -> None:
    assert align_config_(nn.Linear(2, 2)) == ()
