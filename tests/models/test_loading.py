"""Loading: as many tokens as the model has positions, whatever its way of counting them."""

from __future__ import annotations

import pytest

from rerank_trainer.models.loading import num_positions
from rerank_trainer.models.reranker import Reranker
from tests.tiny_models import KINDS, TEXTS, tiny_model

# every tiny encoder with a table of positions has room for 128 tokens; two positions of RoBERTa's kin hold no token
ABSOLUTE = ["bert", "bert-wordpiece", "electra", "mpnet", "roberta", "xlm-roberta"]


@pytest.mark.parametrize("kind", ABSOLUTE)
def test_a_row_of_exactly_the_positions_of_the_model_is_scored_and_no_longer_one(kind):
    model, tokenizer = tiny_model(kind)
    tokenizer.model_max_length = 10**30
    reranker = Reranker(model, tokenizer)
    pair = (TEXTS[0], TEXTS[1] * 20)

    assert reranker.max_length == 128
    assert len(reranker.template.encode([(pair[0], [pair[1]])])[0][0].input_ids) == 128
    assert reranker.predict([pair]).isfinite().all()
    with pytest.raises(ValueError, match="max_length=129: .* has positions for 128 tokens"):
        Reranker(model, tokenizer, max_length=129)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(ABSOLUTE)))
def test_models_without_a_table_of_positions_have_no_such_limit(kind):
    assert num_positions(tiny_model(kind)[0]) is None
