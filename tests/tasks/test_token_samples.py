import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from overhaul.core import Batch, DataError
from overhaul.tasks import LanguageModel

TOKENS = torch.arange(400).reshape(50, 8) % 7 + (torch.arange(50) // 7)[:, None]


def first(raw: Any, **fields: Any) -> Batch:
    """Return two samples of the training split, of which nothing was split off."""
    task = LanguageModel(train=raw, val=TOKENS + 20, test=TOKENS + 40, **fields)
    return task.prepare().train.read(torch.tensor([0, 1]))


def dict_of(**more: Tensor) -> dict[str, Tensor]:
    return {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS), **more}


FORMS: dict[str, Any] = {
    "tensor": TOKENS,
    "bytes": TOKENS.to(torch.uint8),
    "array": TOKENS.numpy().astype(np.uint16),
    "lists": TOKENS.tolist(),
    "list of tensors": list(TOKENS),
    "with labels": (TOKENS, TOKENS),
    "loader": DataLoader(list(TOKENS)),  # type: ignore[arg-type]
    "batches": iter([TOKENS[:20], TOKENS[20:]]),
}


@pytest.mark.parametrize("raw", FORMS.values(), ids=FORMS)
def test_the_target_is_the_next_token(raw: Any) -> None:
    batch = first(raw)
    assert isinstance(batch.inputs, tuple)
    (tokens,) = batch.inputs
    assert tokens.dtype == torch.long
    assert torch.equal(tokens, TOKENS[:2])
    assert isinstance(batch.targets, Tensor)
    assert torch.equal(batch.targets[:, :-1], TOKENS[:2, 1:])
    assert batch.targets[:, -1].tolist() == [-100, -100]


def named(raw: Any) -> Batch:
    data = {"val": dict_of(input_ids=TOKENS + 20), "test": dict_of(input_ids=TOKENS + 40)}
    return LanguageModel(train=raw, **data).prepare().train.read(torch.tensor([0, 1]))


def test_named_inputs_are_given_to_the_model_without_the_labels() -> None:
    labels = TOKENS.clone()
    labels[0, :4] = -100
    mask = torch.ones_like(TOKENS)
    mask[0, 6:] = mask[1, :2] = 0
    for kind in (torch.long, torch.bool, torch.uint8):
        batch = named(dict_of(attention_mask=mask.to(kind), labels=labels))
        assert isinstance(batch.inputs, dict)
        assert batch.inputs.keys() == {"input_ids", "attention_mask"}
        assert batch.inputs["attention_mask"].dtype == torch.long
        assert isinstance(batch.targets, Tensor)
        row, other = TOKENS[0].tolist(), TOKENS[1].tolist()
        assert batch.targets[0].tolist() == [*3 * [-100], *row[4:6], -100, -100, -100]
        assert batch.targets[1].tolist() == [-100, -100, *other[3:], -100]


def test_a_data_set_of_hugging_face_is_read() -> None:
    datasets = pytest.importorskip("datasets")
    columns = {"input_ids": TOKENS.tolist(), "attention_mask": torch.ones_like(TOKENS).tolist()}
    batch = named(datasets.Dataset.from_dict(columns))
    assert isinstance(batch.targets, Tensor)
    assert torch.equal(batch.targets[:, :-1], TOKENS[:2, 1:])


@given(seed=st.integers(0, 10_000))
def test_only_pairs_of_tokens_that_count_are_targets(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    mask = torch.rand(TOKENS.shape, generator=draws) < 0.8
    labels = TOKENS.where(torch.rand(TOKENS.shape, generator=draws) < 0.8, -100)
    task = LanguageModel(
        train=dict_of(attention_mask=mask.long(), labels=labels), allow_missing=True
    )
    for split in (task.prepare().train, task.prepare().val):
        batch = split.read(torch.arange(len(split)))
        assert isinstance(batch.inputs, dict)
        assert isinstance(batch.targets, Tensor)
        tokens, seen = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        counted = batch.targets != -100
        at, where = counted.nonzero().T
        assert torch.equal(batch.targets[at, where], tokens[at, where + 1])
        assert bool((seen[at, where] == 1).all())
        assert bool((seen[at, where + 1] == 1).all())


REFUSED: dict[str, tuple[Any, str]] = {
    "floats": (TOKENS.float(), "tokens of `train` must be whole numbers, got float32"),
    "one long text": (TOKENS.flatten(), "must be [N, T] with T of 2 or more"),
    "one token": (TOKENS[:, :1], "got the shape [50, 1]"),
    "negative": (TOKENS - 3, "tokens of `train` must be 0 or above, got -3 in sample 0"),
    "three tensors": ((TOKENS, TOKENS, TOKENS), "tokens, or (tokens, labels), got 3 tensors"),
    "shifted labels": (
        (TOKENS[:, :-1], TOKENS[:, 1:]),
        "labels of `train` must be the tokens themselves, or -100 where a token does not count, "
        "got 1 for token 0 at position 0 of sample 0",
    ),
    "labels of another shape": ((TOKENS, TOKENS[:, 0]), "'labels' of `train` must have the shape"),
    "no tokens": ({"inputs": TOKENS}, "`train` has no key 'input_ids' for the tokens"),
    "a mask of twos": (
        dict_of(attention_mask=2 * torch.ones_like(TOKENS)),
        "'attention_mask' of `train` must be 1 for tokens and 0 for padding; sample 0",
    ),
    "ragged lists": ([[1, 2], [3]], "pad what differs in length"),
    "lengths that change": (
        [{"input_ids": row[: 8 - at % 2]} for at, row in enumerate(TOKENS)],
        "do not fit into one batch",
    ),
}


@pytest.mark.parametrize(("raw", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_text_is_refused(raw: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        LanguageModel(train=raw).prepare()


def test_a_token_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(DataError, match=re.escape("must be in 0..8, got 9 in sample 21")):
        LanguageModel(train=TOKENS, vocabulary=9).prepare()


def test_batches_padded_to_their_own_length_are_refused() -> None:
    def padded(rows: list[Tensor]) -> dict[str, Tensor]:
        return {"input_ids": torch.stack(rows)[:, : 5 + int(rows[0][0]) % 2]}

    loader: Any = DataLoader(list(TOKENS), collate_fn=padded)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"sequences of `train` must have one length, got 5 and 6"):
        LanguageModel(train=loader).prepare()
