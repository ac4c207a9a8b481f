"""The commands. Each does its work and returns what it found, for people and for programs."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from overhaul.cli._answer import Answer, resumable
from overhaul.cli._demo import run_demo
from overhaul.cli._engines import ENGINE_SAMPLES, engines_answer
from overhaul.cli._prunable import prunable_answer
from overhaul.core import (
    Batch,
    Fact,
    ModelError,
    Network,
    Progress,
    RunFolder,
    RunFolderError,
    SpecError,
    check_model_fits,
    forward_problem,
    import_object,
    json_schema,
    seeded,
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
from overhaul.report import (
    comparison_table,
    facts_table,
    step_table,
    summarize,
    verdict_text,
    write_report,
)
from overhaul.running import RecipeFile, Run
from overhaul.tasks import as_split

_NOT_PROVED = 8

QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", metavar="FOLDER", help="The run folder; made if need be.")
]
FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="A run folder.")]
RecipeArgument = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe file (YAML or JSON).")
]


def demo(out: OutOption = Path("demo-run"), quiet: QuietOption = False) -> Answer:
    """Run the main job on real digits: train, shrink, distill, prune, deploy, prove."""
    with resumable(out):
        return _outcome(run_demo(out, Progress(quiet=quiet)))


def run(
    recipe: RecipeArgument,
    out: OutOption,
    seed: Annotated[int | None, typer.Option(help="Use this seed, not the recipe's.")] = None,
    control: Annotated[bool, typer.Option(help="Run the same-budget control.")] = True,
    cost: Annotated[bool, typer.Option(help="Measure latency and peak memory.")] = True,
    require_proved: Annotated[
        bool, typer.Option("--require-proved", help="Exit with 8 unless the goal is proved.")
    ] = False,
    quiet: QuietOption = False,
) -> Answer:
    """Run a recipe. The same line goes on with a run that was interrupted."""
    _import_from_here(recipe)
    file = RecipeFile.read(recipe)
    if seed is not None:
        file = file.model_copy(update={"seed": seed})
    with resumable(out):
        finished = file.run(out=out, control=control, cost=cost, progress=Progress(quiet=quiet))
        return _outcome(finished, require_proved=require_proved)


def show(folder: FolderArgument) -> Answer:
    """Show what a run has found, finished or not."""
    run_folder = _existing(folder)
    facts, at_work = run_folder.facts(), run_folder.at_work
    document = {
        "folder": str(folder),
        "status": summarize(facts).verdict,
        "at_work": at_work,
        "manifest": run_folder.manifest(),
        "facts": _plain(facts),
    }
    now = ["A run is at work in this folder now."] if at_work else []
    return Answer(document, [step_table(facts), verdict_text(facts, str(folder)), *now])


def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Two or more run folders.")
    ],
) -> Answer:
    """Put the results of several runs side by side."""
    runs = {str(folder): _existing(folder) for folder in folders}
    facts = {name: folder.facts() for name, folder in runs.items()}
    document = [{"folder": name, **_summary(found)} for name, found in facts.items()]
    data = {str(folder.manifest().get("data")) for folder in runs.values()}
    caution = "These runs are on different data: compare their differences, not their figures."
    return Answer({"runs": document}, [comparison_table(facts), *[caution] * (len(data) > 1)])


def evaluate(
    recipe: RecipeArgument,
    artifact: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Evaluate this artifact instead of the recipe's model."
        ),
    ] = None,
) -> Answer:
    """Measure a model on the validation split of a recipe's task. The test split stays sealed."""
    _import_from_here(recipe)
    file = RecipeFile.read(recipe)
    data = file.task.prepare()
    if artifact is None:
        model = file.build_model()
        misfit = check_model_fits(file.task, model, next(data.val.in_order(2)))
        if misfit is not None:
            raise ModelError(f"the recipe's model does not fit its task: {misfit}.")
        found, subject = predict(model, data.val), "original"
    else:
        found, subject = predict(load(artifact), data.val), "artifact"
    facts = quality_facts(file.task, found, subject=subject, split="val")
    what = artifact if artifact is not None else f"the model of {recipe}"
    return Answer(
        {"facts": _plain(facts)},
        [f"{what} on the {len(data.val)} samples of val:", facts_table(facts)],
    )


def profile(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="package.module:factory, or a recipe file.")
    ],
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]SIZES[:N]",
            help="With a factory: the shape of a batch, such as 1,3,224,224; of whole numbers "
            "below N, such as 1,16:30522. Once for each input, in order or by name: user=1:500.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="With a factory: a .safetensors, .pt or .pth file."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads for the timing.")] = 1,
    prunable: Annotated[
        bool, typer.Option("--prunable", help="Show instead what can be removed, and what not.")
    ] = False,
    engines: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Show instead what it costs in these engines, with commas between, or all.",
        ),
    ] = None,
) -> Answer:
    """Measure what a model costs: parameters, MACs, bytes, memory, latency."""
    _import_from_here(Path(model))
    file = RecipeFile.read(model) if model.endswith((".yaml", ".yml", ".json")) else None
    if file is not None:
        network, batch = file.build_model(), next(file.task.prepare().val.in_order(1))
    else:
        with seeded(0):
            network = Network(factory=import_object(model), weights=weights).build()
        batch = _random_batch(shape or [])
    problem = forward_problem(network, batch)
    if problem is not None:
        raise ModelError(
            f"{problem}. With a factory the inputs are random numbers of the shapes in --shape: "
            "floats, or whole numbers below N with SIZES:N (--shape 1,16:30522). Give --shape once "
            "for each input that the model takes, or a recipe file, whose data is used."
        )
    if prunable:
        return prunable_answer(network, batch)
    if engines is not None:
        if file is None:
            batch = _random_batch(shape or [], samples=ENGINE_SAMPLES)
        samples = as_split(batch) if file is None else file.task.prepare().val
        return engines_answer(network, samples, engines)
    facts = cost_facts(network, batch, subject="original")
    timed = measure_latency({"original": forward_call(network, batch)}, threads=threads)
    facts += latency_facts(timed, batch_size=len(batch))
    return Answer({"facts": _plain(facts)}, [facts_table(facts)])


def verify_artifact(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="The folder of a deployed model.")
    ],
) -> Answer:
    """Check that a deployed model is intact and still computes what it did when it was made."""
    found = verify(artifact)
    return Answer(asdict(found), [str(found)])


def report(
    folder: FolderArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Default: report.html in the folder."),
    ] = None,
) -> Answer:
    """Write the report of a run as one HTML file."""
    run_folder = _existing(folder)
    path = write_report(run_folder, out or run_folder.path / "report.html")
    return Answer({"report": str(path)}, [f"report: {path}"])


def schema() -> Answer:
    """Print the JSON Schema of recipe files, for editors and checks."""
    document = json_schema(RecipeFile)
    return Answer(document, [json.dumps(document, indent=2)])


COMMANDS: dict[str, Callable[..., Answer]] = {
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


def _outcome(run: Run, *, require_proved: bool = False) -> Answer:
    path, artifact = run.report(), run.artifact
    document = {
        "status": run.verdict.status,
        "verdict": run.verdict.model_dump(mode="json"),
        "folder": str(run.folder.path),
        "artifact": None if artifact is None else str(artifact),
        "report": str(path),
        "facts": _plain(run.facts),
    }
    places = (
        [f"report: {path}"] if artifact is None else [f"artifact: {artifact}", f"report: {path}"]
    )
    failed = require_proved and run.verdict.status != "proved"
    return Answer(
        document,
        [step_table(run.facts), verdict_text(run.facts), *places],
        exit_code=_NOT_PROVED if failed else 0,
    )


def _existing(folder: Path) -> RunFolder:
    if not (folder / "manifest.json").is_file():
        raise RunFolderError(
            f"'{folder}' is not a run folder: there is no manifest.json in it. Give the folder "
            "that a run was started with (-o)."
        )
    return RunFolder(folder, writable=False)


def _import_from_here(recipe: Path) -> None:
    """Let factories of a recipe come from its own folder and from where the program was started."""
    for folder in (str(recipe.resolve().parent), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.insert(0, folder)


def _random_batch(shapes: Sequence[str], samples: int | None = None) -> Batch:
    """Return a batch of random inputs, one for each `[NAME=]SIZES[:N]`.

    Args:
        shapes: As they stand on the command line.
        samples: How many instead of what the first size says.
    """
    if not shapes:
        raise SpecError("--shape is needed with a factory. Write it like --shape 1,3,224,224.")
    generator = torch.Generator().manual_seed(0)
    names = [shape.rpartition("=")[0] for shape in shapes]
    inputs = [
        _random_input(shape.rpartition("=")[2], shape, generator, samples) for shape in shapes
    ]
    if len({bool(name) for name in names}) > 1 or (names[0] and len(set(names)) < len(names)):
        raise SpecError(
            "--shape must be given with a name of its own for each input, or with none, got "
            f"{', '.join(shapes)}. Write it like --shape user=2:500 --shape item=2:900."
        )
    size = len(inputs[0])
    given = dict(zip(names, inputs, strict=True)) if names[0] else tuple(inputs)
    return Batch(given, torch.zeros(size), torch.arange(size))


def _random_input(text: str, whole: str, generator: torch.Generator, samples: int | None) -> Tensor:
    shape, colon, high = text.partition(":")
    sizes = [int(size) if size.strip().isdecimal() else 0 for size in shape.split(",")]
    below = int(high) if high.strip().isdecimal() else 0
    if min(sizes) < 1 or (colon and below < 1):
        raise SpecError(
            "--shape must be whole numbers above 0 with commas between them, and may end with "
            f":N for whole numbers below N, got '{whole}'. Write it like --shape 1,3,224,224 or "
            "--shape 1,16:30522."
        )
    sizes[0] = samples or sizes[0]
    if colon:
        return torch.randint(below, sizes, generator=generator)
    return torch.randn(sizes, generator=generator)


def _plain(facts: Sequence[Fact]) -> list[Any]:
    return [fact.model_dump(mode="json", exclude_defaults=True) for fact in facts]


def _summary(facts: Sequence[Fact]) -> dict[str, Any]:
    return {
        name: _plain([value])[0] if isinstance(value, Fact) else value
        for name, value in vars(summarize(facts)).items()
    }
