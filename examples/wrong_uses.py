"""Wrong uses of Overhaul, each done for real, with the message that it gets.

Run `python examples/wrong_uses.py`; with `--markdown` it prints the page docs/errors.md, and
with words after it, only the uses whose title has one of them.
"""

import inspect
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import overhaul as oh
from overhaul.cli._answer import EXIT_CODES

WrongUse = Callable[[], object]
QUIET = oh.Progress(quiet=True)
USES: dict[str, list[WrongUse]] = {}


def use(part: str) -> Callable[[WrongUse], WrongUse]:
    """Add a function to the wrong uses; its docstring is the title."""

    def add(function: WrongUse) -> WrongUse:
        USES.setdefault(part, []).append(function)
        return function

    return add


def digits() -> tuple[Tensor, Tensor]:
    """Return 1,797 real images `[N, 1, 8, 8]` of handwritten digits, and their labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)


def network() -> nn.Module:
    """Return a network for them."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


class InterruptedNetwork(nn.Sequential):
    """A network at whose training somebody presses Ctrl-C in the third epoch."""

    steps = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `[B, 10]`."""
        if self.training:
            InterruptedNetwork.steps += 1
            if InterruptedNetwork.steps == 50:
                raise KeyboardInterrupt
        for module in self:
            x = module(x)
        return x


@contextmanager
def small_disk(kilobytes: int) -> Iterator[Callable[[int], None]]:
    """Make a disk of this size in the folder `disk`; what it yields changes the size.

    Where no disk can be made (that takes root), the size of each file is limited instead.
    """
    disk = Path("disk")
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0:

        def resize(size: int) -> None:
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)

        try:
            yield resize
        finally:
            subprocess.run(["umount", str(disk)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size * 1024 // 3, before[1]))

    try:
        limit(kilobytes)
        yield limit
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def without_package(name: str) -> Iterator[None]:
    """Make a package look as if it were not installed."""
    found = {key: sys.modules.pop(key) for key in list(sys.modules) if key.split(".")[0] == name}
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        sys.modules.update(found)


def change_one_byte(path: Path) -> None:
    """Change the last byte of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@use("Data")
def wrong_shape() -> object:
    """Images of another shape than the model takes."""
    images, labels = digits()
    task = oh.Classification(train=(images[:, 0], labels))
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10))
    return oh.Recipe(oh.Train(epochs=1)).run(model, task, out="runs/shape", progress=QUIET)


@use("Data")
def labels_out_of_range() -> object:
    """A label that is no class."""
    images, labels = digits()
    labels[1234] = 10
    return oh.Classification(train=(images, labels), classes=10).prepare()


@use("Data")
def nan_in_the_data() -> object:
    """NaN in the data."""
    images, labels = digits()
    images[1234, 0, 3, 3] = float("nan")
    return oh.Classification(train=(images, labels)).prepare()


@use("Data")
def val_equals_test() -> object:
    """The test data passed as validation data."""
    images, labels = digits()
    loader = DataLoader(TensorDataset(images[1400:], labels[1400:]), batch_size=64)
    return oh.Classification(
        train=(images[:1400], labels[:1400]),
        val=loader,
        test=(images[1400:], labels[1400:]),
    ).prepare()


@use("Data")
def reading_the_test_split() -> object:
    """The test split read before the end."""
    data = oh.Classification(data="digits").prepare()
    return data.test[0]  # type: ignore[index]


@use("Data")
def no_data() -> object:
    """A task without data."""
    return oh.Classification().prepare()


@use("Data")
def empty_data() -> object:
    """An empty data set."""
    images, labels = digits()
    return oh.Classification(train=(images, labels), val=(images[:0], labels[:0])).prepare()


@use("Recipes")
def unknown_step() -> object:
    """A step that does not exist."""
    return oh.Recipe.from_yaml("recipe: [prune_wieghts: {sparsity: 0.8}, deploy]")


@use("Recipes")
def unknown_field() -> object:
    """A field that does not exist."""
    return oh.PruneWeights(sparsty=0.8)  # type: ignore[call-arg]


@use("Recipes")
def wrong_value() -> object:
    """A value that is out of range."""
    return oh.PruneWeights(sparsity=80)


@use("Recipes")
def wrong_type() -> object:
    """A word where a number belongs."""
    return oh.Recipe.from_yaml("recipe: [train: {epochs: many}]")


@use("Recipes")
def repeated_key() -> object:
    """A key written twice in a recipe file."""
    return oh.Recipe.from_yaml("recipe: [train: {epochs: 3, batch_size: 32, epochs: 30}]")


@use("Recipes")
def no_yaml() -> object:
    """A recipe file that is not YAML."""
    return oh.Recipe.from_yaml("recipe:\n- train: {epochs: 3\n- deploy")


@use("Recipes")
def wrong_order() -> object:
    """Steps in the wrong order."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    recipe = oh.Recipe(oh.Train(epochs=1), oh.ReplaceHead())
    return recipe.run(model, oh.Classification(data="digits"), out="runs/order", progress=QUIET)


@use("Recipes")
def step_given_twice() -> object:
    """A step given twice that can be done once."""
    recipe = oh.Recipe(oh.Deploy(engines=("torch",)), oh.Deploy(engines=("onnxruntime",)))
    return recipe.run(network(), oh.Classification(data="digits"), out="runs/x", progress=QUIET)


@use("Recipes")
def layers_that_do_not_exist() -> object:
    """Layers that the model does not have."""
    recipe = oh.Recipe(oh.Freeze(layers=("features.*",)), oh.Train(epochs=1))
    return recipe.run(network(), oh.Classification(data="digits"), out="runs/x", progress=QUIET)


@use("Recipes")
def lambda_in_a_field() -> object:
    """A lambda in a recipe that is saved."""
    return oh.Recipe(oh.SwapModel(factory=lambda: network())).to_yaml()


@use("Models")
def weights_of_another_network() -> object:
    """Weights of another network."""
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict(), "other.pt")
    return oh.Network(factory=network, weights="other.pt").build()


@use("Models")
def weights_of_a_whole_module() -> object:
    """A file that holds a whole pickled module."""
    torch.save(network(), "whole.pt")
    return oh.Network(factory=network, weights="whole.pt").build()


@use("Models")
def missing_extra() -> object:
    """A package that is not installed."""
    recipe = oh.Recipe(oh.Deploy(engines=("onnxruntime",)))
    with without_package("onnxruntime"):
        return recipe.run(network(), oh.Classification(data="digits"), out="runs/x", progress=QUIET)


@use("Models")
def loss_that_explodes() -> object:
    """A learning rate that is far too high."""
    recipe = oh.Recipe(oh.Train(epochs=1, optimizer=oh.SGD(lr=1e30)))
    return recipe.run(network(), oh.Classification(data="digits"), out="runs/lr", progress=QUIET)


@use("Files")
def full_disk() -> object:
    """A full disk."""
    recipe = oh.Recipe(oh.PruneWeights(sparsity=0.5), oh.Train(epochs=2))
    task = oh.Classification(data="digits")
    with small_disk(kilobytes=120):
        return recipe.run(network(), task, out="disk/run", cost=False, progress=QUIET)


@use("Files")
def two_runs_on_one_folder() -> object:
    """Two runs on one folder at once."""
    recipe = oh.Recipe(oh.PruneWeights(sparsity=0.5))
    task = oh.Classification(data="digits")
    first = recipe.run(network(), task, out="runs/first", cost=False, progress=QUIET)
    with first.folder.locked():  # as the first run does while it is at work
        return recipe.run(network(), task, out="runs/first", progress=QUIET)


@use("Files")
def folder_of_something_else() -> object:
    """A folder that holds something else."""
    Path("thesis").mkdir()
    Path("thesis/chapter1.tex").touch()
    recipe = oh.Recipe(oh.PruneWeights(sparsity=0.5))
    return recipe.run(network(), oh.Classification(data="digits"), out="thesis", progress=QUIET)


@use("Files")
def corrupted_checkpoint() -> object:
    """A corrupted checkpoint."""
    recipe = oh.Recipe(oh.Train(epochs=3))
    task = oh.Classification(data="digits")
    model = InterruptedNetwork(*network().children())
    try:
        recipe.run(model, task, out="runs/second", progress=QUIET)
    except KeyboardInterrupt:
        change_one_byte(Path("runs/second/steps/0.unfinished/2/tensors.safetensors"))
    return recipe.run(model, task, out="runs/second", progress=QUIET)


@use("Files")
def corrupted_artifact() -> object:
    """A corrupted artifact."""
    recipe = oh.Recipe(oh.Deploy(engines=("torch",)))
    task = oh.Classification(data="digits")
    recipe.run(network(), task, out="runs/third", cost=False, progress=QUIET)
    change_one_byte(Path("runs/third/artifact/model.pt2"))
    return oh.load("runs/third/artifact")


class Message(NamedTuple):
    """What a wrong use got."""

    part: str
    title: str
    code: str
    error: oh.OverhaulError
    text: str


def messages(words: list[str]) -> Iterator[Message]:
    """Do the wrong uses whose title has one of the words (none: all), each in a new folder."""
    home = Path.cwd()
    for part, uses in USES.items():
        for wrong_use in uses:
            title = (inspect.getdoc(wrong_use) or "").removesuffix(".")
            if words and not any(word.lower() in title.lower() for word in words):
                continue
            with tempfile.TemporaryDirectory() as folder:
                os.chdir(folder)
                try:
                    error = error_of(wrong_use)
                finally:
                    os.chdir(home)
            text = str(error).replace(folder, "/home/you/project")
            yield Message(part, title, code_of(wrong_use), error, text)


def error_of(wrong_use: WrongUse) -> oh.OverhaulError:
    """Return what a wrong use raises."""
    try:
        wrong_use()
    except oh.OverhaulError as error:
        return error
    raise AssertionError(f"{wrong_use.__name__} was not refused")


def code_of(wrong_use: WrongUse) -> str:
    """Return what a wrong use does, without what only keeps it quiet."""
    lines = inspect.getsource(wrong_use).splitlines()[3:]
    code = textwrap.dedent("\n".join(lines)).replace(", progress=QUIET", "")
    code = re.sub(r"  # type: ignore.*", "", code)
    return re.sub(r"^(\s*)return ", r"\1", code, flags=re.MULTILINE)


def page(found: Iterable[Message]) -> str:
    """Return docs/errors.md."""
    parts, title = [PAGE], ""
    for message in found:
        if message.part != title:
            title = message.part
            parts.append(f"## {title}\n")
        # Not `python`: the blocks of that name are run by the tests of the documents.
        parts.append(f"### {message.title}\n\n```py\n{message.code}\n```\n")
        name = type(message.error).__name__
        # The list of all steps grows with each new one.
        text = re.sub(r"Known: (\w+, ){6,}\w+\.", "Known: ... .", message.text)
        parts.append(f"`{name}`:\n\n```text\n{wrapped(text)}\n```\n")
    codes = "\n".join(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    parts.append(f"## Exit codes\n\n| `overhaul` ends with | when |\n|---|---|\n{codes}")
    return "\n".join(parts)


def wrapped(text: str) -> str:
    """Wrap each line of a text at 96 columns."""
    return "\n".join(
        textwrap.fill(line, 96, break_long_words=False, break_on_hyphens=False)
        for line in text.splitlines()
    )


def main() -> None:
    """Print every wrong use and its message."""
    found = messages([word for word in sys.argv[1:] if word != "--markdown"])
    if "--markdown" in sys.argv:
        print(page(found))
        return
    for message in found:
        text = wrapped(f"{type(message.error).__name__}: {message.text}")
        print(f"{message.title}\n{textwrap.indent(text, '    ')}\n")


PAGE = """\
# When something is wrong

Overhaul refuses what it cannot do correctly, before any work starts where that can be known, and
says three things: the rule, the value that broke it, and what to do. Every error is an
`OverhaulError`; the command line prints its message without a traceback, and its class decides
about the exit code (`overhaul --help` lists them). A traceback means a bug.

Each message on this page is what the code above it got when it was run, by
`python examples/wrong_uses.py --markdown > docs/errors.md`. In the code, `oh` is `overhaul`,
`digits()` returns images and labels, and `network()` a network for them.
"""


if __name__ == "__main__":
    main()
