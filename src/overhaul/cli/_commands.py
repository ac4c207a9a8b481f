"""The commands. Each prints for people, or with `--json` one document for programs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from overhaul.cli._demo import run_demo
from overhaul.core import (
    Batch,
    Fact,
    Network,
    Progress,
    RunFolder,
    RunFolderError,
    SpecError,
    import_object,
    json_schema,
)
from overhaul.deploy import load, verify
from overhaul.evaluation import (
    cost_facts,
    forward_call,
    latency_facts,
    measure_latency,
    predict,
    quality_facts,
)
from overhaul.report import step_table, verdict_text, write_report
from overhaul.running import RecipeFile, Run

_NOT_PROVED = 8

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="The run folder.")]
FolderArgument = Annotated[Path, typer.Argument(help="A run folder.")]
RecipeArgument = Annotated[Path, typer.Argument(help="A recipe file (YAML or JSON).")]


def demo(
    out: OutOption = Path("demo-run"), as_json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """Run the main job on real digits: train, shrink, distill, prune, deploy, prove."""
    run = run_demo(out, Progress(quiet=quiet))
    _finish(run, as_json, require_proved=False)


def run(
    recipe: RecipeArgument,
    out: OutOption,
    control: Annotated[bool, typer.Option(help="Run the same-budget control.")] = True,
    cost: Annotated[bool, typer.Option(help="Measure latency and peak memory.")] = True,
    require_proved: Annotated[
        bool, typer.Option("--require-proved", help="Exit with 8 unless the goal is proved.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a recipe. The same line goes on with a run that was interrupted."""
    _import_from_here(recipe)
    finished = RecipeFile.read(recipe).run(
        out=out, control=control, cost=cost, progress=Progress(quiet=quiet)
    )
    _finish(finished, as_json, require_proved)


def show(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Show what a run has found, finished or not."""
    run_folder = _existing(folder)
    facts = run_folder.facts()
    if as_json:
        _print_json({"manifest": run_folder.manifest(), "facts": _plain(facts)})
        return
    console = Console()
    console.print(step_table(facts))
    console.print(verdict_text(facts), markup=False, highlight=False)


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Two or more run folders.")],
    as_json: JsonOption = False,
) -> None:
    """Put the results of several runs side by side."""
    rows = {str(folder): _existing(folder).facts() for folder in folders}
    if as_json:
        _print_json({folder: _plain(facts) for folder, facts in rows.items()})
        return
    console = Console()
    for folder, facts in rows.items():
        console.print(f"[bold]{folder}[/]")
        console.print(step_table(facts))
        console.print(verdict_text(facts), markup=False, highlight=False)


def evaluate(
    recipe: RecipeArgument,
    artifact: Annotated[
        Path | None, typer.Option(help="Evaluate this artifact instead of the recipe's model.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on the validation split of a recipe's task. The test split stays sealed."""
    _import_from_here(recipe)
    file = RecipeFile.read(recipe)
    data = file.task.prepare()
    predictor = load(artifact) if artifact is not None else file.build_model()
    subject = "artifact" if artifact is not None else "original"
    predictions = predict(predictor, data.val)
    facts = quality_facts(file.task, predictions, subject=subject, split="val")
    _print_facts(facts, as_json)


def profile(
    model: Annotated[str, typer.Argument(help="package.module:factory, or a recipe file.")],
    shape: Annotated[
        str | None, typer.Option(help="Shape of one input with its batch, such as 1,3,224,224.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="A .safetensors, .pt or .pth file.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads for the timing.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Measure what a model costs: parameters, MACs, bytes, memory, latency."""
    _import_from_here(Path(model))
    if model.endswith((".yaml", ".yml", ".json")):
        file = RecipeFile.read(model)
        network, batch = file.build_model(), next(file.task.prepare().val.in_order(1))
    else:
        network = Network(factory=import_object(model), weights=weights).build()
        batch = _random_batch(shape)
    facts = cost_facts(network, batch, subject="original")
    found = measure_latency({"original": forward_call(network, batch)}, threads=threads)
    _print_facts([*facts, *latency_facts(found, batch_size=len(batch))], as_json)


def verify_artifact(
    artifact: Annotated[Path, typer.Argument(help="The folder of a deployed model.")],
    as_json: JsonOption = False,
) -> None:
    """Check that a deployed model is intact and still computes what it did when it was made."""
    report = verify(artifact)
    if as_json:
        _print_json(report.model_dump(mode="json"))
    else:
        Console().print(str(report), markup=False, highlight=False)


def report(
    folder: FolderArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Default: report.html in the folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the report of a run as one HTML file."""
    run_folder = _existing(folder)
    path = write_report(run_folder, out or run_folder.path / "report.html")
    if as_json:
        _print_json({"report": str(path)})
    else:
        Console().print(f"report: {path}", markup=False, highlight=False, soft_wrap=True)


def schema(as_json: JsonOption = False) -> None:
    """Print the JSON Schema of recipe files, for editors and checks."""
    _print_json(json_schema(RecipeFile))


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "run": run,
    "show": show,
    "compare": compare,
    "evaluate": evaluate,
    "profile": profile,
    "verify": verify_artifact,
    "report": report,
    "schema": schema,
}


def _finish(run: Run, as_json: bool, require_proved: bool) -> None:
    path = run.report()
    if as_json:
        _print_json(
            {
                "status": run.verdict.status,
                "verdict": run.verdict.model_dump(mode="json"),
                "folder": str(run.folder.path),
                "artifact": None if run.artifact is None else str(run.artifact),
                "report": str(path),
                "facts": _plain(run.facts),
            }
        )
    else:
        console = Console()
        console.print(step_table(run.facts))
        console.print(str(run.verdict), markup=False, highlight=False)
        if run.artifact is not None:
            _print_path(console, "artifact", run.artifact)
        _print_path(console, "report", path)
    if require_proved and run.verdict.status != "proved":
        raise typer.Exit(_NOT_PROVED)


def _print_path(console: Console, name: str, path: Path) -> None:
    console.print(f"{name}: {path}", markup=False, highlight=False, soft_wrap=True)


def _existing(folder: Path) -> RunFolder:
    if not (folder / "manifest.json").is_file():
        raise RunFolderError(f"'{folder}' is not a run folder: there is no manifest.json in it.")
    return RunFolder(folder, writable=False)


def _import_from_here(recipe: Path) -> None:
    """Let factories of a recipe come from its own folder and from where the program was started."""
    for folder in (str(recipe.resolve().parent), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.insert(0, folder)


def _random_batch(shape: str | None) -> Batch:
    if shape is None:
        raise SpecError("--shape is needed with a factory. Write it like --shape 1,3,224,224.")
    try:
        sizes = [int(size) for size in shape.split(",")]
    except ValueError:
        raise SpecError(
            f"--shape is a list of whole numbers like 1,3,224,224, got '{shape}'."
        ) from None
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(sizes, generator=generator)
    return Batch((inputs,), torch.zeros(sizes[0]), torch.arange(sizes[0]))


def _plain(facts: list[Fact]) -> list[Any]:
    return [fact.model_dump(mode="json", exclude_defaults=True) for fact in facts]


def _print_facts(facts: list[Fact], as_json: bool) -> None:
    if as_json:
        _print_json({"facts": _plain(facts)})
        return
    table = Table("measured", "value", "unit", "n", "remark")
    for fact in facts:
        value = f"{fact.value:.4g}" if isinstance(fact.value, float) else f"{fact.value}"
        table.add_row(fact.name, value, fact.unit, str(fact.n or ""), fact.reason or "")
    Console().print(table)


def _print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
