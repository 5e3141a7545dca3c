"""Token logits: the head of a language model that answers with a token, "yes" or "no" or one alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rerank_trainer.models.layers import computing_by
from rerank_trainer.models.placement import put
from rerank_trainer.models.prefix import module_of


@dataclass(frozen=True)
class TokenLogitHead:
    """The logit of a token at the end of a prompt, or of one token minus that of another.

    The difference is what the log-softmax over the two tokens differs by, and its sigmoid is the probability of the
    first among them. Of the output layer only the rows of these tokens are computed, at one position; what the model
    does to its logits afterwards (soft-capping, a scale) it does to them. Under autocast they are computed in float32.

    A model with an encoder and a decoder reads the prompt in its encoder, and answers with the decoder's first token.

    Args:
        yes: The token that says "relevant": a text that is one token, an entry of the vocabulary, or an id.
        no: The token whose logit is subtracted; None takes the first one's alone.

    >>> TokenLogitHead("yes", "no")  # Qwen3-Reranker
    TokenLogitHead(yes='yes', no='no')
    """

    yes: str | int
    no: str | int | None = None

    def fitted_to(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TokenLogitHead:
        """The head with token ids in place of texts.

        Raises:
            ValueError: If a text is not one token, both are the same, or the model cannot answer with them.
        """
        fitted = self.with_ids(tokenizer)
        output = model.get_output_embeddings()
        if output is None:
            raise ValueError(
                f"{type(model).__name__} has no output layer, so it gives no logits of tokens. Load it as a causal "
                "or a sequence-to-sequence language model, or leave the head out."
            )
        if model.config.is_encoder_decoder and model.config.decoder_start_token_id is None:
            raise ValueError(
                f"the configuration of {type(model).__name__} does not say with which token its decoder begins: set "
                "model.config.decoder_start_token_id (of T5 it is the pad token)"
            )
        vocab_size = model.config.get_text_config().vocab_size
        if not all(0 <= token < vocab_size for token in fitted.token_ids):
            raise ValueError(f"{fitted}: ids of {type(model).__name__} are from 0 to {vocab_size - 1}")
        return fitted

    def with_ids(self, tokenizer: PreTrainedTokenizerBase) -> TokenLogitHead:
        """The head with token ids in place of texts, whatever the model.

        Raises:
            ValueError: If a text is not one token, or both are the same.
        """
        yes = token_id(tokenizer, self.yes)
        no = None if self.no is None else token_id(tokenizer, self.no)
        if yes == no:
            raise ValueError(f"yes={self.yes!r} and no={self.no!r} are the same token {yes}; give two, or one alone")
        return replace(self, yes=yes, no=no)

    @property
    def token_ids(self) -> list[int]:
        """The ids of the tokens, in their order."""
        assert isinstance(self.yes, int)  # after fitted_to
        return [self.yes] if self.no is None else [self.yes, int(self.no)]

    def __call__(self, forward: Callable[..., Any], inputs: Mapping[str, Tensor]) -> Tensor:
        model = module_of(forward)
        assert model is not None
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        last = last_places(mask[:, mask.shape[1] - ids.shape[1] :])  # the mask of a shared prefix stands before it
        if model.config.is_encoder_decoder:
            start = ids.new_full((len(ids), 1), model.config.decoder_start_token_id)
            inputs, last = {**inputs, "decoder_input_ids": start}, torch.zeros_like(last)
        with _answering(model.get_output_embeddings(), last, put(self.token_ids, ids.device)):
            logits = forward(**inputs).logits[:, 0].float()
        return logits[:, 0] if self.no is None else logits[:, 0] - logits[:, 1]


def token_id(tokenizer: PreTrainedTokenizerBase, token: str | int) -> int:
    """The id of a text that is one token, or of an entry of the vocabulary.

    Raises:
        ValueError: If it is neither, with the tokens that the text becomes.
    """
    if isinstance(token, int):
        return token
    unknown = tokenizer.unk_token_id
    ids: list[int] = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) == 1 and ids[0] != unknown:
        return ids[0]
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ValueError(
            f"{token!r} is not one token of {type(tokenizer).__name__}: it becomes "
            f"{tokenizer.convert_ids_to_tokens(ids)}. Give a text that is one token, an entry of the vocabulary, or an "
            "id."
        )
    return found


def last_places(mask: Tensor) -> Tensor:
    """The place of each row's last token that is not padding, ``(num_rows,)``, whatever side is padded.

    >>> last_places(torch.tensor([[1, 1, 0], [0, 1, 1]]))
    tensor([1, 2])
    """
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(dim=1)


@contextmanager
def _answering(layer: nn.Module, places: Tensor, tokens: Tensor) -> Iterator[None]:
    """Let the output layer compute the logits of some tokens at one place of each row: ``(num_rows, 1, num_tokens)``.

    A plain layer multiplies by the rows of these tokens alone. Any other (with an adapter, quantised) is called as it
    is, at these places, and the other tokens are left out afterwards.
    """
    whole = layer.forward
    is_plain = type(layer) is nn.Linear and "forward" not in vars(layer)

    def answer(hidden: Tensor) -> Tensor:
        hidden = hidden[torch.arange(len(hidden), device=hidden.device), places][:, None]
        device = hidden.device.type
        in_float32 = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False):
            if not is_plain:
                weight = layer.weight  # of 8 or 4 bits it takes any input
                return whole(hidden.to(weight.dtype) if weight.is_floating_point() else hidden)[..., tokens]
            weight, bias = layer.weight[tokens], None if layer.bias is None else layer.bias[tokens]
            if in_float32:
                hidden, weight, bias = hidden.float(), weight.float(), None if bias is None else bias.float()
            return functional.linear(hidden, weight, bias)

    with computing_by(layer, answer):
        yield
