import math
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from overhaul.core import Batch, Context, DataError, Progress, SpecError, check_model_fits
from overhaul.multitask import MultiTask
from overhaul.running import Recipe
from overhaul.tasks import Classification, LanguageModel
from overhaul.training import SGD, AdamW, Train
from tests.tasks.tiny_text import VOCABULARY, tiny_gpt, tiny_gpt2, tiny_text

MakeContext = Callable[..., Context]
MODELS: dict[str, Callable[[], nn.Module]] = {"torch": tiny_gpt, "transformers": tiny_gpt2}


def drawn(samples: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return logits and targets of which each sample has at least one that counts."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, length, 6, generator=generator)
    targets = torch.randint(0, 6, (samples, length), generator=generator)
    padding = torch.rand(samples, length, generator=generator) < 0.4
    padding[:, 0] = False
    return logits, targets.masked_fill(padding, -100)


def slow_losses(logits: Tensor, targets: Tensor) -> list[float]:
    """Return the loss of each sample, by loops."""
    losses = []
    for sample, wanted in zip(logits.log_softmax(-1), targets.tolist(), strict=True):
        each = [-float(sample[t, token]) for t, token in enumerate(wanted) if token != -100]
        losses.append(sum(each) / len(each))
    return losses


def test_golden_values() -> None:
    # Sample 0 is sure of 1/2 and 1/4, sample 1 of 1/8; the mean is of samples, not of tokens.
    logits = torch.tensor([[[2.0, 1, 1], [1, 2, 1]], [[1, 6, 1], [9, 0.1, 1]]]).log()
    targets = torch.tensor([[0, 0], [2, -100]])
    found = LanguageModel().metrics(logits, targets)
    loss = ((math.log(2) + math.log(4)) / 2 + math.log(8)) / 2
    assert found["loss"] == pytest.approx(loss)
    assert found["perplexity"] == pytest.approx(math.exp(loss))
    assert found["token_accuracy"] == pytest.approx((1 / 2 + 0) / 2)


@given(seed=st.integers(0, 10_000), samples=st.integers(1, 40))
def test_the_loss_is_that_of_slow_loops(seed: int, samples: int) -> None:
    logits, targets = drawn(samples, 5, seed)
    task, losses = LanguageModel(), slow_losses(logits, targets)
    mean = sum(losses) / len(losses)
    assert float(task.loss(logits, targets)) == pytest.approx(mean, rel=1e-5)
    assert task.metrics(logits, targets)["loss"] == pytest.approx(mean, rel=1e-5)
    scores = task.sample_scores(logits, targets)
    assert scores is not None
    assert scores.tolist() == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("metric", ["loss", "token_accuracy"])
def test_the_mean_of_sample_scores_is_the_metric(metric: str) -> None:
    task, (logits, targets) = LanguageModel(metric=metric), drawn(70, 7, 0)
    scores = task.sample_scores(logits, targets)
    assert scores is not None
    assert float(scores.mean()) == pytest.approx(task.metrics(logits, targets)[metric])


def test_perplexity_is_reported_and_not_chosen_by() -> None:
    with pytest.raises(SpecError, match="Choose by `loss`, which ranks models alike"):
        LanguageModel(metric="perplexity")


def test_padding_has_no_part_in_loss_or_gradient() -> None:
    logits, targets = drawn(6, 5, 1)
    spoiled = logits.clone()
    spoiled[targets == -100] = 1e4
    gradients = []
    for given_logits in (logits, spoiled):
        leaf = given_logits.clone().requires_grad_()
        loss = LanguageModel().loss(leaf, targets)
        (gradient,) = torch.autograd.grad(loss, leaf)
        gradients.append(gradient)
    assert torch.equal(gradients[0], gradients[1])
    assert not gradients[0][targets == -100].any()


def test_parts_of_a_batch_add_up_whatever_their_padding() -> None:
    logits, targets = drawn(8, 5, 2)
    task = LanguageModel()
    parts = [task.loss(logits[part], targets[part]) for part in (slice(0, 2), slice(2, 8))]
    assert float(2 / 8 * parts[0] + 6 / 8 * parts[1]) == pytest.approx(
        float(task.loss(logits, targets)), rel=1e-6
    )


def test_samples_without_tokens_are_left_out_where_allowed() -> None:
    logits, targets = drawn(4, 5, 3)
    empty = torch.full_like(targets[:1], -100)
    more = torch.cat([targets, empty]), torch.cat([logits, logits[:1]])
    task = LanguageModel(allow_missing=True)
    assert torch.equal(task.loss(more[1], more[0]), task.loss(logits, targets))
    assert task.metrics(more[1], more[0]) == task.metrics(logits, targets)
    assert float(task.loss(logits[:1], empty)) == 0
    assert math.isnan(task.metrics(logits[:1], empty)["loss"])


def test_a_sample_without_tokens_is_refused() -> None:
    tokens, mask = torch.arange(80).reshape(20, 4) % 7, torch.ones(20, 4).long()
    mask[3, 1:] = 0
    data = {"input_ids": tokens, "attention_mask": mask}
    with pytest.raises(DataError, match=r"sample 3 of `train` has no token to be predicted"):
        LanguageModel(train=data).prepare()
    mask[:, 1:] = 0
    with pytest.raises(DataError, match=r"`train` has no token to be predicted"):
        LanguageModel(train=data, allow_missing=True, vocabulary=7).prepare()


def test_facts_of_the_data() -> None:
    data = LanguageModel(train=torch.arange(200).reshape(50, 4) % 7).prepare()
    facts = {(fact.name, fact.split): fact for fact in data.facts}
    assert facts["vocabulary", None].value == 7
    assert facts["tokens", "val"].value == 3 * len(data.val)
    with pytest.raises(DataError, match=r"scan='sample' tokens cannot be counted"):
        LanguageModel(train=torch.arange(8000).reshape(2000, 4) % 7, scan="sample").prepare()


def test_a_model_that_does_not_fit_is_named() -> None:
    task = tiny_text()
    batch = task.prepare().train.read(torch.arange(2))
    assert check_model_fits(task, tiny_gpt(), batch) is None
    shape = "the model gives [2, 8] for sequences of shape [2, 10], and the task needs one logit"
    assert (task.problem_with(torch.zeros(2, 8), batch) or "").startswith(shape)
    few = "the model knows 7 tokens, and the data has 8"
    assert (task.problem_with(torch.zeros(2, 10, 7), batch) or "").startswith(few)
    assert task.problem_with(torch.zeros(2, 10, 9), batch) is None
    several = {"a": torch.zeros(2, 10, 8)}
    assert "several outputs by name (a)" in (task.problem_with(several, batch) or "")


def test_predictions_are_tokens() -> None:
    logits = torch.zeros(1, 2, 4)
    logits[0, 0, 3] = logits[0, 1, 2] = 1
    assert LanguageModel().predictions(logits).tolist() == [[3, 2]]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_recipe_learns_and_gives_a_verdict(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    train = Train(epochs=8, batch_size=16, optimizer=AdamW(lr=1e-2), accumulate=2)
    run = Recipe(train).run(
        make(), tiny_text(), out=tmp_path / "run", cost=False, progress=Progress(quiet=True)
    )
    assert run.verdict is not None
    loss = {
        fact.subject: float(fact.value or 0)
        for fact in run.facts
        if fact.name == "loss" and fact.split == "test"
    }
    assert loss["final"] < 0.6 * loss["original"]
    named = {fact.name for fact in run.facts if fact.split == "test" and fact.subject == "final"}
    assert named >= {"loss", "perplexity", "token_accuracy"}


def test_the_step_is_the_same_in_parts(make_context: MakeContext) -> None:
    weights = []
    for number, parts in enumerate((1, 3)):
        model = tiny_gpt()
        ctx = make_context(model, task=tiny_text())
        ctx.checkpoints._path = ctx.checkpoints._path / str(number)
        plan = Train(epochs=1, batch_size=12, optimizer=SGD(lr=0.1), accumulate=parts, keep="last")
        plan.apply(model, ctx)
        weights.append(model.head.weight.detach())
    assert not torch.equal(weights[0], tiny_gpt().head.weight)
    assert torch.allclose(weights[0], weights[1], atol=1e-5)


def test_padding_tokens_do_not_change_training(make_context: MakeContext) -> None:
    """Tokens under the mask are others; a causal model with padding at the end sees none of it."""
    task = tiny_text()
    batch = task.prepare().train.read(torch.arange(12))
    assert isinstance(batch.inputs, dict)
    tokens, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    other = Batch(
        {"input_ids": tokens.where(mask == 1, VOCABULARY - 1), "attention_mask": mask},
        batch.targets,
        batch.indices,
    )
    model = tiny_gpt()
    losses = [task.loss(each.forward(deepcopy(model)), each.targets) for each in (batch, other)]
    assert torch.equal(losses[0], losses[1])


def test_it_is_refused_as_a_part_of_several_tasks() -> None:
    parts: dict[str, Any] = {"a": LanguageModel(vocabulary=5), "b": Classification(classes=2)}
    with pytest.raises(SpecError, match=re.escape("task 'a' is a LanguageModel")):
        MultiTask(tasks=parts)


def test_fields_are_checked() -> None:
    with pytest.raises(SpecError, match=r"'accuracy' is not a metric"):
        LanguageModel(metric="accuracy")
    with pytest.raises(SpecError, match=r"`target_key` must be one key"):
        LanguageModel(target_key=("a", "b"))
    assert LanguageModel.from_yaml("language_model: {vocabulary: 9}") == LanguageModel(vocabulary=9)
