"""What a `.pt2` archive could make torch execute, and that it is refused before torch reads it."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from overhaul.core import ArtifactError, Context
from overhaul.deploy import Deploy, Torch, load
from overhaul.deploy._manifest import write_manifest
from overhaul.deploy._pt2_rules import check_pt2
from overhaul.deploy._quiet import quiet
from tests.deploy.networks import network, task_of

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
SAMPLES = "data/sample_inputs/model.pt"


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = str(witness)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.witness,))


@pytest.fixture
def pt2(tmp_path: Path) -> Path:
    """A good archive with a size expression, a string and constants in it."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            doubled = torch.cat([x, x]).reshape(2 * x.shape[0], 6)
            return torch.einsum("ab,cb->ac", doubled, self.linear.weight) + torch.tensor(
                [1.0, 2, 3]
            )

    program = torch.export.export(
        Net().eval().requires_grad_(False),
        (torch.randn(4, 6),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    program.example_inputs = None
    program._guards_code = []
    for node in program.graph.nodes:
        node.meta = {"val": node.meta["val"]} if "val" in node.meta else {}
    path = tmp_path / "model.pt2"
    torch.export.save(program, path)
    return path


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Change the records of an archive, given without the folder that all are in."""
    with zipfile.ZipFile(path) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(f"model/{name}", content)


def in_json(record: str, change: Callable[[Any], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(records: dict[str, bytes]) -> None:
        data = json.loads(records[record])
        change(data)
        records[record] = json.dumps(data).encode()

    return apply


def graph(data: Any) -> Any:
    return data["graph_module"]["graph"]


def set_expression(text: str) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for meta in graph(data)["tensor_values"].values():
            for size in meta["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = text

    return change


def rename_input(data: Any) -> None:
    """Give the input a name that is a parameter list."""
    text = json.dumps(data).replace('"x"', '"x=print(1)"')
    data.update(json.loads(text))


def set_target(target: str) -> Callable[[Any], None]:
    return lambda data: graph(data)["nodes"][0].update(target=target)


def set_tree(data: Any) -> None:
    tree = data["graph_module"]["module_call_graph"][0]["signature"]
    tree["in_spec"] = tree["in_spec"].replace('"null"', '"{\\"__enum__\\": true}"', 1)


def set_pickled(config: Any) -> None:
    next(iter(config["config"].values()))["use_pickle"] = True


def add(record: str) -> Callable[[dict[str, bytes]], None]:
    return lambda records: records.update({record: b"x"})


def test_a_good_archive_passes_and_survives_rewriting(pt2: Path) -> None:
    check_pt2(pt2)
    rewrite(pt2, lambda records: None)
    check_pt2(pt2)
    assert torch.export.load(pt2).module()(torch.zeros(3, 6)).shape == (6, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add("data/constants/custom_obj_0"), "may unpickle or execute: .*custom_obj_0"),
        (add("data/constants/opaque_obj_0"), "may unpickle or execute: .*opaque_obj_0"),
        (add("data/aotinductor/model/a.so"), r"may unpickle or execute: .*a\.so"),
        (add("models/other.json"), r"may unpickle or execute: .*other\.json"),
        (add(SAMPLES), "may unpickle or execute: .*sample_inputs"),
        (in_json(WEIGHTS, set_pickled), "holds a pickled object"),
        (in_json(MODEL, set_target("torch.hub.load")), r"not one of torch's own: 'torch\.hub"),
        (in_json(MODEL, set_target("torch.ops.aten.from_file.default")), "not one of torch's own"),
        (in_json(MODEL, set_target("torch.ops.aten.relu.overloads")), "not one of torch's own"),
        (in_json(MODEL, set_target("torch.ops.theirs.op.default")), "not one of torch's own"),
        (in_json(MODEL, set_target("_operator.methodcaller")), "not one of torch's own"),
        (in_json(MODEL, set_expression("__import__('os').getcwd()")), "holds code: '__import__"),
        (in_json(MODEL, set_expression("Symbol('s1').func")), "holds code: 'Symbol"),
        (in_json(MODEL, set_expression("open(s1)")), "holds code: 'open"),
        (in_json(MODEL, set_expression("[s1 for s1 in s2]")), "holds code"),
        (in_json(MODEL, set_expression("(")), "holds code"),
        (in_json(MODEL, rename_input), "holds code: 'x=print"),
        (in_json(MODEL, lambda d: d.update(guards_code=["print(1)"])), "holds code: 'print"),
        (in_json(MODEL, set_tree), "holds code"),
        (in_json(MODEL, lambda d: graph(d).update({'"': 1})), "a name that is none"),
        (lambda records: records.pop(MODEL), "is not an archive that torch.export wrote"),
        (lambda records: records.update({MODEL: b"{"}), "is not an archive that torch.export"),
    ],
    ids=[
        *("custom object", "opaque object", "library", "second model", "sample inputs"),
        *("pickled tensor", "torch.hub", "file", "attribute", "custom operation", "operator"),
        *("import", "attribute in a size", "open", "comprehension", "syntax", "input name"),
        *("guard", "tree", "key", "no model", "no json"),
    ],
)
def test_what_torch_would_execute_is_refused(
    change: Callable[[dict[str, bytes]], None], message: str, pt2: Path
) -> None:
    rewrite(pt2, change)
    with pytest.raises(ArtifactError, match=message):
        check_pt2(pt2)


def test_size_expressions_may_compute(pt2: Path) -> None:
    text = "Max(1, FloorDiv(Mul(Integer(2), Symbol('s7', integer=True)) + 2*s7, 4)) - True"
    rewrite(pt2, in_json(MODEL, set_expression(text)))
    check_pt2(pt2)


def test_an_artifact_with_a_pickle_in_it_is_refused_where_torch_runs_it(
    make_context: Callable[..., Context], tmp_path: Path
) -> None:
    model = network("features")
    ctx = make_context(model, task=task_of("features"))
    Deploy(engines=(Torch(),), timing_s=0.01, cost=False).apply(model, ctx)
    path = ctx.artifact_folder / "model.pt2"
    witness, buffer = tmp_path / "executed", io.BytesIO()
    torch.save(Payload(witness), buffer)
    rewrite(path, lambda records: records.update({SAMPLES: buffer.getvalue()}))
    (ctx.artifact_folder / "manifest.json").unlink()
    write_manifest(ctx.artifact_folder, {})

    with pytest.raises(ArtifactError, match="a record that torch may unpickle or execute"):
        load(ctx.artifact_folder)
    assert not witness.exists()
    with quiet(), pytest.raises(AssertionError, match="expected tuple or dict"):
        torch.export.load(path)
    assert witness.exists(), "this attack no longer works on torch itself: choose another"


def test_a_pickle_that_calls_itself_a_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    with pytest.raises(ArtifactError, match=r"'model\.pt2' is not an archive"):
        check_pt2(path)
    assert not (tmp_path / "executed").exists()
