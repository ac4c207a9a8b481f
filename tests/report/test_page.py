"""The page: correct HTML, nothing from a network, everything escaped, every row there."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from overhaul.core import CorruptedFileError, Fact, RunFolder, RunFolderError
from overhaul.report import read_rows, write_report
from tests.report.sample_run import RECIPE, SENTENCES, facts_with_effect, sample_facts, sample_run

_VOID = {"meta", "link", "br", "img", "hr", "input"}
_FETCHING = {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}


class _Page(HTMLParser):
    """Reads a page; collects what does not close, what would be fetched, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        self.problems += [f"<{tag}> is not closed" for tag in self.open]
        styles = re.findall(r"url\(\s*['\"]?([^)'\"]+)", html) + re.findall("@import.*", html)
        self.fetched += [target for target in styles if not target.startswith(("#", "data:"))]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        for name, value in attrs:
            if name in _FETCHING and value and not value.startswith(("#", "data:")):
                self.fetched.append(value)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> closes {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data

    def find(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [
            found for name, found in self.tags if name == tag and wanted.items() <= found.items()
        ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = sample_run(tmp_path_factory.mktemp("runs") / "first")
    return write_report(folder, folder.path / "report.html").read_text("utf-8")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.update_manifest(seed=0)
    return folder


def _written(folder: RunFolder) -> str:
    return write_report(folder, folder.path / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ("<p><b></p></b>", "</p> closes ['b']"),
        ("<p>", "<p> is not closed"),
        ("</p>", "</p> closes []"),
    ],
)
def test_broken_html_would_be_seen(html: str, problem: str) -> None:
    assert problem in _Page(html).problems


@pytest.mark.parametrize(
    "html",
    [
        '<img src="https://example.org/x.png">',
        '<link href="//example.org/x.css">',
        "<style>a { background: url('http://example.org/x') }</style>",
        "<style>@import 'x.css';</style>",
    ],
)
def test_something_to_fetch_would_be_seen(html: str) -> None:
    assert _Page(html).fetched


def test_the_page_is_well_formed_and_fetches_nothing(finished: str) -> None:
    page = _Page(finished)
    assert page.problems == []
    assert page.fetched == []
    assert page.find("script") == []
    (policy,) = page.find("meta", http_equiv="Content-Security-Policy")
    assert "default-src 'none'" in str(policy["content"])


def test_the_page_is_small(finished: str) -> None:
    assert len(finished.encode()) < 500_000


def test_the_page_of_a_long_run_is_small_too(run: RunFolder) -> None:
    layers = [
        Fact(name="skipped", value=f"block.{index}.norm", subject="0 prune", reason="too small")
        for index in range(3_000)
    ]
    epochs = [
        Fact(name=name, value=1 / (epoch + 1), subject="1 train", detail={"epoch": epoch})
        for epoch in range(1_000)
        for name in ("train_loss", "val_accuracy")
    ]
    run.write_facts([*sample_facts(), *layers, *epochs])
    assert len(_written(run).encode()) < 500_000


def test_every_row_is_there_with_its_reasons(finished: str) -> None:
    text = _Page(finished).text
    for row in read_rows(sample_facts()):
        assert row.subject in text
        assert all(reason in text for reason in row.reasons)


def test_what_was_asked_the_verdict_and_the_machine(finished: str) -> None:
    text = _Page(finished).text.replace("\u00a0", " ")
    assert "accuracy not worse than the original's by more than 1.00 points" in text
    assert all(sentence in text for sentence in SENTENCES)
    assert RECIPE.strip() in text
    assert "Generic x86-64" in text
    assert "torch: 2.14.1" in text
    assert "The test split was opened once." in text


def test_every_engine_is_there_and_why_one_was_chosen(finished: str) -> None:
    text = _Page(finished).text
    assert "Engine chosen: onnxruntime (0.058 ms is the lowest median of 2 engines)" in text
    assert "artifact/torch" in text


def test_the_verdict_is_words_and_not_colour_alone(finished: str) -> None:
    assert re.search(r'class="badge not-proved">.*?not proved</span>', finished)
    assert "<title>first: not proved - Overhaul report</title>" in finished


def test_what_is_not_measured_says_why_on_hover_and_in_text(finished: str) -> None:
    why = "the process that measures it could not be started"
    page = _Page(finished)
    assert page.find("span", class_="missing", title=f"not measured: {why}")
    assert f"peak memory not measured: {why}" in page.text


def test_pictures_are_described(finished: str) -> None:
    pictures = _Page(finished).find("div", class_="picture", role="img")
    assert len(pictures) == 3
    assert all(len(str(picture["aria-label"])) > 40 for picture in pictures)


def test_headings_go_down_one_level_at_a_time(finished: str) -> None:
    levels = [int(tag[1]) for tag, _ in _Page(finished).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))


def test_ids_are_unique_and_every_reference_has_one(finished: str) -> None:
    page = _Page(finished)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    labels = [attributes.get("aria-labelledby") for _, attributes in page.tags]
    assert len(ids) == len(set(ids))
    assert {label for label in labels if label} <= set(ids)


def test_light_and_dark_print_and_phone(finished: str) -> None:
    for query in ("prefers-color-scheme: dark", "max-width: 719px", "@media print"):
        assert query in finished
    assert "tabular-nums" in finished


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    folder = sample_run(tmp_path / "run")
    assert _written(folder) == _written(folder)


def test_more_than_one_opening_weakens_the_verdict(tmp_path: Path) -> None:
    page = _Page(_written(sample_run(tmp_path / "run", opened=3)))
    assert "opened 3 times" in page.text
    assert "weaker evidence" in page.text


def test_an_unfinished_run_says_so_and_how_to_go_on(tmp_path: Path) -> None:
    folder = sample_run(tmp_path / "run", finished=False)
    page = _Page(_written(folder))
    assert page.problems == []
    assert "2 steps are finished, the last is '1 train'" in page.text
    assert f"-o {folder.path}" in page.text
    assert "still sealed" in page.text
    assert "On the test split" not in page.text


def test_a_run_without_facts_renders(run: RunFolder) -> None:
    page = _Page(_written(run))
    assert page.problems == []
    assert "Nothing has been measured yet." in page.text
    assert "no step is finished" in page.text
    assert page.find("figure") == []


def test_a_finished_run_without_control_says_so(run: RunFolder) -> None:
    run.write_facts([fact for fact in sample_facts() if "control" not in fact.subject])
    assert "This run has no control" in _Page(_written(run)).text


@pytest.mark.parametrize("effect", ["gain shown", "no gain shown", "harm shown"])
def test_what_the_methods_gave_stands_beside_the_verdict(run: RunFolder, effect: str) -> None:
    run.write_facts(facts_with_effect(effect))
    page = _Page(_written(run))
    heading = page.text.partition("Step by step")[0]
    assert f"{effect} against the control" in heading
    assert page.problems == []
    assert page.find("span", class_=f"badge {effect.split()[0]}")


def test_everything_from_outside_is_escaped(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>'
    run = RunFolder(tmp_path / "<b>run")
    run.update_manifest(
        model={"class": evil}, goal=evil, machine={evil: evil}, versions={evil: evil}, seed=evil
    )
    step = f"0 {evil}"
    run.write_facts(
        [
            Fact(name="accuracy", value=0.5, subject="original", split="val"),
            Fact(name="accuracy", value=0.4, subject=step, split="val", reason=evil),
            Fact(name="accuracy", value=0.4, subject="final", split="test"),
            Fact(name="macs", value=None, subject=step, reason=evil),
            Fact(name="latency_ms", value=1.0, subject="original", detail={"engine": evil}),
            Fact(name="train_loss", value=0.5, subject=step, detail={"epoch": 0}),
            Fact(name="skipped", value=evil, subject=step, reason=evil),
            Fact(name="engine_chosen", value=evil, subject=step, reason=evil),
            Fact(name=evil, value=evil, unit=evil, subject="data", detail={evil: evil}),
            Fact(name="difference", value=0.1, detail={"method": evil, "reference": evil}),
            Fact(name="verdict", value=evil, detail={"sentences": [evil]}),
        ]
    )
    (run.path / "recipe.yaml").write_text(f"model: {evil}", "utf-8")
    html = _written(run)
    page = _Page(html)
    assert page.problems == []
    assert page.find("script") == []
    assert page.find("b") == []
    assert "<script" not in html
    assert page.text.count("<script>alert(1)</script>") > 12


def test_a_line_separator_in_a_name_does_not_break_the_facts(run: RunFolder) -> None:
    run.write_facts([Fact(name="macs", value=5, subject="original", reason="a\u2028b\x85c")])
    assert "a\u2028b\x85c" in _Page(_written(run)).text


@pytest.mark.parametrize("name", ["missing", "empty", "a file"])
def test_what_is_no_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").touch()
    target = tmp_path / "report.html"
    with pytest.raises(RunFolderError, match=f"needs the folder of a run, and .*{name}"):
        write_report(RunFolder(tmp_path / name), target)
    assert not target.exists()


def test_a_broken_line_of_facts_is_a_corrupted_file(run: RunFolder) -> None:
    (run.path / "facts.jsonl").write_text('{"name": "macs", "val', "utf-8")
    with pytest.raises(CorruptedFileError, match=r"facts\.jsonl' is corrupted"):
        write_report(run, run.path / "report.html")


def test_a_page_is_replaced_as_a_whole(run: RunFolder) -> None:
    target = run.path / "report.html"
    target.write_text("old", "utf-8")
    write_report(run, target)
    assert target.read_text("utf-8").startswith("<!doctype html>")
    assert list(run.path.glob(".tmp-*")) == []
