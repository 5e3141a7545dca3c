"""The collator: one batch written out in full."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from rerank_trainer.data.collator import RerankCollator
from rerank_trainer.data.templates import PairTemplate
from tests.tiny_models import TEXTS, byte_tokenizer

TEMPLATE = PairTemplate(byte_tokenizer(special=True), max_length=100)


def group(passages, row=0, **columns):
    return {"query": TEXTS[0], "passages": passages, "row": row, **columns}


def test_a_batch_of_ragged_groups_in_full():
    batch = RerankCollator(TEMPLATE)(
        [
            group(
                ["fire", "water", "rain"], row=4, labels=[0.0, 2.0, 1.0], teacher_scores=[-1.0, 3.5, 0.5], weight=0.5
            ),
            group(["ship"], row=7, labels=[1.0], teacher_scores=[2.0], weight=None),
        ]
    )

    assert batch["labels"].tolist() == [[0, 2, 1], [1, -100, -100]]
    assert batch["mask"].tolist() == [[True, True, True], [True, False, False]]
    assert batch["teacher_scores"].tolist() == [[-1, 3.5, 0.5], [2, 0, 0]]
    assert batch["weights"].tolist() == [0.5, 1.0]
    assert batch["row"].tolist() == [4, 7]
    assert not {"missed_gains", "passage_weights", "source"} & set(batch)
    rows = batch["student"]
    assert rows["cells"].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0]]
    ids = [TEMPLATE.tokenizer(TEXTS[0], passage)["input_ids"] for passage in ("fire", "water", "rain", "ship")]
    assert rows["input_ids"].tolist() == [token for row in ids for token in row]
    assert rows["lengths"].tolist() == [len(row) for row in ids]
    assert rows["prefix_lengths"].tolist() == [len(TEMPLATE.tokenizer(TEXTS[0])["input_ids"])] * 4


def test_passage_weights_and_teacher_scores_of_some_groups_leave_the_others_at_one_and_zero():
    batch = RerankCollator(TEMPLATE)(
        [group(["fire", "water"], teacher_scores=None), group(["rain"], passage_weights=[2.5], teacher_scores=[3.0])]
    )

    assert batch["passage_weights"].tolist() == [[1, 1], [2.5, 0]]
    assert batch["teacher_scores"].tolist() == [[0, 0], [3, 0]]


def test_groups_without_labels_or_teacher_have_zeros_and_no_teacher_scores():
    batch = RerankCollator(TEMPLATE)([group(["fire", "water"]), group(["rain"])])

    assert batch["labels"].tolist() == [[0, 0], [0, -100]]
    assert "teacher_scores" not in batch
    assert batch["weights"].tolist() == [1, 1]


def test_an_evaluation_batch_holds_missed_gains_and_groups_without_candidates():
    batch = RerankCollator(TEMPLATE)(
        [group([], labels=[], missed_gains=[2.0, 1.0]), group(["fire"], labels=[1.0], missed_gains=[])]
    )

    assert batch["missed_gains"].tolist() == [[2, 1], [-100, -100]]
    assert batch["mask"].tolist() == [[False], [True]]
    assert batch["labels"].tolist() == [[-100], [1]]
    assert batch["student"]["cells"].tolist() == [[1, 0]]


def test_labels_come_first_because_transformers_counts_the_first_tensor():
    batch = RerankCollator(TEMPLATE)([group(["fire", "water"])])

    assert next(iter(batch)) == "labels" and batch["labels"].dtype == torch.float32


@pytest.mark.parametrize("num_passages", [1, 16])
def test_a_query_is_tokenised_once_a_group_and_each_passage_once(monkeypatch, num_passages):
    tokenised: list[str] = []
    tokenizer = byte_tokenizer(special=True)
    collator = RerankCollator(PairTemplate(tokenizer, max_length=100))
    kind = type(tokenizer)
    call = kind.__call__

    def noting(self, text, text_pair=None, **options):
        assert text_pair is None
        tokenised.extend([text] if isinstance(text, str) else text)
        return call(self, text, **options)

    monkeypatch.setattr(kind, "__call__", noting)
    passages = [f"passage {i}" for i in range(2 * num_passages)]
    collator([{"query": f"query {i}", "passages": passages[i::2], "row": i} for i in range(2)])

    assert sorted(tokenised) == sorted(["query 0", "query 1", *passages])


def test_every_tensor_of_a_batch_is_pinned_and_the_batch_keeps_its_form(monkeypatch):
    whole = group(["fire", "water"], labels=[0.0, 1.0], teacher_scores=[1.0, 2.0], passage_weights=[1.0, 2.0])
    batch = RerankCollator(TEMPLATE, sources=["web"])([{**whole, "source": "web", "missed_gains": [1.0]}])
    tensors = [value for value in [*batch.values(), *batch["student"].values()] if isinstance(value, torch.Tensor)]
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *device: (seen.append(self), self.clone())[1])
    pinned = pin_memory(batch)

    assert {id(tensor) for tensor in seen} == {id(tensor) for tensor in tensors} and len(seen) == len(tensors) == 14
    assert list(pinned) == list(batch) and pinned["student"].keys() == batch["student"].keys()
    assert all(pinned["student"][name] is not batch["student"][name] for name in batch["student"])
