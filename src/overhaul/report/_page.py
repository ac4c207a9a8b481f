"""`write_report`: a run as one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from overhaul.core import Fact, RunFolder, RunFolderError, write_text
from overhaul.report._cells import MISSING, Cell, compared, spoken, steps_table
from overhaul.report._conclusion import (
    UNFINISHED,
    Conclusion,
    how_to_resume,
    read_conclusion,
    read_differences,
)
from overhaul.report._cost_plot import cost_plot
from overhaul.report._findings import (
    all_lines,
    compact,
    data_lines,
    other_lines,
    quality_on_test,
    skipped_lines,
    timings,
)
from overhaul.report._numbers import change
from overhaul.report._plot import ON_DARK, Plot
from overhaul.report._quality_plot import quality_plot
from overhaul.report._row import Row
from overhaul.report._rows import read_control_rows, read_rows, read_trial_rows, selection_metric
from overhaul.report._training_plot import training_plot

_ASKED = ("goal", "model", "task")
_OPENINGS = ("test_opened", "test_openings")
_HEADLINES = ("test", "val", "size_bytes", "latency_ms", "macs")


@dataclass(frozen=True)
class Headline:
    """One figure of the top of the page: what it was, what it became."""

    title: str
    before: str
    after: str
    change: str
    subject: str


def write_report(folder: RunFolder, path: Path) -> Path:
    """Write the report of a run: one HTML file, without scripts, fonts or anything from a network.

    An unfinished run gets a report too, which says how to go on.

    Args:
        folder: The run; its `recipe.yaml`, `manifest.json` and `facts.jsonl` are read.
        path: The HTML file, replaced as a whole.

    Returns:
        `path`.

    Raises:
        RunFolderError: the folder is missing, or there is no run in it.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as where:
        ...     run = RunFolder(Path(where) / "run")
        ...     run.update_manifest(seed=0)
        ...     write_report(run, run.path / "report.html").name
        'report.html'
    """
    _check_is_run(folder)
    from jinja2 import Environment, StrictUndefined

    template = files(__package__).joinpath("template.html.jinja").read_text("utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    write_text(path, environment.from_string(template).render(_content(folder)))
    return path


def _check_is_run(folder: RunFolder) -> None:
    where = folder.path
    if not where.is_dir():
        what = "is a file" if where.is_file() else "does not exist"
        raise RunFolderError(
            f"a report needs the folder of a run, and '{where}' {what}. Give the folder that the "
            "run was written to (`out=...`, or `-o`)."
        )
    if not any((where / name).exists() for name in ("manifest.json", "facts.jsonl")):
        raise RunFolderError(
            f"a report needs the folder of a run, and '{where}' holds neither manifest.json nor "
            "facts.jsonl. Give the folder that the run was written to (`out=...`, or `-o`)."
        )


def _content(folder: RunFolder) -> dict[str, Any]:
    facts, manifest = folder.facts(), folder.manifest()
    metric = selection_metric(facts)
    rows, control_rows = read_rows(facts), read_control_rows(facts)
    original = next((row for row in rows if row.subject == "original"), None)
    verdict = read_conclusion(facts)
    recipe = folder.path / "recipe.yaml"
    plots: list[Plot | None] = [
        quality_plot(rows, metric),
        cost_plot(rows, original),
        training_plot(facts, metric),
    ]
    test_subjects, test_rows = quality_on_test(facts)
    return {
        "name": folder.path.resolve().name,
        "asked": _asked(manifest, metric),
        "verdict": verdict,
        "resume": how_to_resume(str(folder.path)) if verdict.word == UNFINISHED else "",
        "openings": _openings(manifest, verdict),
        "headlines": _headlines(rows, original, metric),
        "steps": steps_table(rows, metric, original),
        "control_steps": steps_table(control_rows, metric, original),
        "has_control": any(row.subject == "control" for row in rows) or bool(control_rows),
        "plots": [plot for plot in plots if plot is not None],
        "differences": read_differences(facts),
        "test_subjects": test_subjects,
        "test_rows": test_rows,
        "trials": steps_table(read_trial_rows(facts), metric, original),
        "timings": timings(facts),
        "engines": [fact for fact in facts if fact.name == "engine_chosen"],
        "data": data_lines(facts),
        "others": other_lines(facts),
        "skipped": skipped_lines(facts),
        "recipe": recipe.read_text("utf-8").strip() if recipe.exists() else "",
        "environment": _environment(manifest),
        "all": all_lines(facts),
        "on_dark": ON_DARK,
    }


def _asked(manifest: Mapping[str, Any], metric: str | None) -> list[tuple[str, str]]:
    said = [(key, manifest[key]) for key in _ASKED if manifest.get(key)]
    return [(key, _goal(value, metric) if key == "goal" else compact(value)) for key, value in said]


def _goal(goal: object, metric: str | None) -> str:
    """Say in words which drop is allowed; anything else as it is written."""
    drop = goal.get("max_drop") if isinstance(goal, Mapping) else None
    if not isinstance(goal, Mapping) or not isinstance(drop, int | float) or metric is None:
        return compact(goal)
    allowed = change(drop, metric).removeprefix("+")
    text = f"{spoken(metric)} not worse than the original's by more than {allowed}"
    rest = {key: value for key, value in goal.items() if key != "max_drop"}
    return f"{text}; {compact(rest)}" if rest else text


def _openings(manifest: Mapping[str, Any], verdict: Conclusion) -> str:
    """Say how often the test split was opened, unless the verdict says so itself."""
    opened = manifest.get("test_opened")
    if not isinstance(opened, int) or opened == 0:
        return "The test split is still sealed." if verdict.word == UNFINISHED else ""
    if any("test split was opened" in sentence for sentence in verdict.sentences) and opened == 1:
        return ""
    if opened == 1:
        return "The test split was opened once."
    return (
        f"The test split was opened {opened} times. A choice made after seeing it is no longer "
        "independent of it, so every verdict after the first is weaker evidence."
    )


def _headlines(
    rows: Sequence[Row], original: Row | None, metric: str | None
) -> tuple[Headline, ...]:
    """Return the original's figures beside those of the artifact, or of what there is."""
    results = [row for row in rows if row.subject not in ("original", "control")]
    if original is None or not results:
        return ()
    table = steps_table([original, *results], metric, original)
    cells = {row.subject: dict(zip(table.keys, found, strict=True)) for row, found in table.rows}
    titles = dict(zip(table.keys, table.titles, strict=True))
    wanted = [key for key in _HEADLINES if key in titles]
    if "test" in wanted:
        wanted.remove("val") if "val" in wanted else None
    found = (
        _headline(key, titles[key], cells, [row.subject for row in reversed(results)], rows)
        for key in wanted
    )
    return tuple(headline for headline in found if headline is not None)


def _headline(
    key: str,
    title: str,
    cells: Mapping[str, Mapping[str, Cell]],
    subjects: Sequence[str],
    rows: Sequence[Row],
) -> Headline | None:
    facts: dict[str, Fact | None] = {row.subject: getattr(row, key) for row in rows}
    before = cells["original"][key].text
    for subject in subjects:
        after = cells[subject][key].text
        if MISSING not in (before, after):
            changed = compared(facts[subject], facts["original"])
            return Headline(title, before, after, changed, subject)
    return None


def _environment(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    known = {key: value for key, value in manifest.items() if key not in (*_ASKED, *_OPENINGS)}
    lines: list[tuple[str, str]] = []
    for key, value in known.items():
        if isinstance(value, Mapping) and key == "machine":
            lines += [(spoken(str(part)), compact(item)) for part, item in value.items()]
        else:
            lines.append((spoken(key), compact(value)))
    openings = manifest.get("test_openings")
    if openings:
        lines.append(("test opened by", compact(openings)))
    return [line for line in lines if line[1]]
