"""Export: a language model that answers with a token becomes a plain classifier with one logit, of the same score."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rerank_trainer.models.chains import is_chain
from rerank_trainer.models.loading import dtype_of
from rerank_trainer.models.quantization import num_bits
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.token_logits import TokenLogitHead
from rerank_trainer.models.verify import TOLERANCES, verify_checkpoint

logger = logging.getLogger(__name__)

# Texts that an exported folder is checked with, unless others are given.
CHECK_PAIRS = (
    ("what heats water", "A kettle stands on the fire until the water boils."),
    ("what heats water", "The library closes at nine."),
    ("who wrote the first program?", "Ada Lovelace described how an engine would compute numbers."),
    ("who wrote the first program?", ""),
)
# What the output layer is made to answer with: a soft cap would bend the last of them, an offset move the first.
_PROBE = (0.0, 1.0, -1.0, 8.0, 64.0)


def export_classifier(
    reranker: Reranker | str | Path,
    folder: str | Path,
    *,
    pairs: Sequence[tuple[str, str]] = CHECK_PAIRS,
    dtype: torch.dtype | str = "auto",
    **loading: Any,
) -> Reranker:
    """The reranker that a folder now holds: a sequence classifier with one logit that scores as the given one does.

    An adapter is merged first. Of a language model that answers with tokens the score is one row, ``W[yes] - W[no]``
    of its output layer (``W[yes]`` where it has one token), times what the model does to its logits where that is a
    number; the row becomes the classifier's, and the prompt stays the tokenizer's chat template. A classifier is
    written as it is. The scores are compared, and the folder is verified, before anything comes back.

    Args:
        reranker: A reranker, or a Hub id or folder of one or of an adapter. It is left as it is.
        folder: Where to write, see ``docs/serving.md``.
        pairs: Some (query, passage) pairs to compare scores with.
        dtype: For an id or folder: the type of the weights; "auto" takes the checkpoint's.
        **loading: For an id or folder: further options of :meth:`Reranker.from_pretrained`, such as ``head``.

    Raises:
        ValueError: If Transformers has no classifier that scores so: for models with an encoder and a decoder, chains
            of modules, output layers with unlike biases, logits that the model bends (a soft cap). Also if weights are
            quantised without an adapter, or the scores differ.

    >>> export_classifier("Qwen/Qwen3-Reranker-0.6B", "classifier")  # doctest: +SKIP
    """
    if isinstance(reranker, Reranker):
        if loading:
            raise ValueError(f"{sorted(loading)} are for a Hub id or folder, and a Reranker is loaded already")
    else:
        reranker = Reranker.from_pretrained(reranker, **{"dtype": dtype, "device": "cpu", **loading})
    source = reranker.merged() if reranker.has_adapter else reranker
    if num_bits(source.model) is not None:
        raise ValueError(
            f"{type(source.model).__name__} has weights of {num_bits(source.model)} bits, which servers quantise "
            "themselves. Load it without quantization_config."
        )
    if is_chain(source.model):
        raise ValueError(
            f"{type(source.model).__name__} is scored by modules behind a backbone, and Transformers has no classifier "
            "for it. It is served by sentence-transformers: save_pretrained."
        )
    exported = _classifier(source) if isinstance(source.head, TokenLogitHead) else source
    _check_same(source, exported, pairs)
    exported.save_pretrained(folder)
    verify_checkpoint(folder, exported, pairs)
    return exported


def _classifier(source: Reranker) -> Reranker:
    """The classifier of a token's logit, on the same backbone."""
    model = _one_logit_model(source.model, source.head)
    tokenizer = copy.deepcopy(source.tokenizer)
    if source.prompt is not None:
        add_no_special_tokens(tokenizer)
    lengths: dict[str, Any] = {"max_length": source.max_length, "query_max_length": source.query_max_length}
    return Reranker(model, tokenizer, prompt=source.prompt, **lengths)


def _one_logit_model(model: PreTrainedModel, head: Any) -> PreTrainedModel:
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    name = type(model).__name__
    if config.is_encoder_decoder:
        raise ValueError(
            f"{name} answers with its decoder's first token, and the classifiers that Transformers has for models with "
            "an encoder and a decoder read another place. Serve it as it is."
        )
    backbone = getattr(model, model.base_model_prefix)
    try:
        with torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config, dtype=dtype_of(model))
    except ValueError as error:
        raise ValueError(f"Transformers has no sequence classifier on the backbone of {name}: {error}") from error
    prefix, score = classifier.base_model_prefix, getattr(classifier, "score", None)
    if type(getattr(classifier, prefix, None)) is not type(backbone) or not isinstance(score, nn.Linear):
        raise ValueError(
            f"{type(classifier).__name__} is not the backbone of {name} with one linear layer named 'score' at the "
            "last token, so no weights give it that model's score. Serve the language model."
        )
    weight, bias = _row(model, head)
    if score.bias is None and bias:
        raise ValueError(
            f"the answers {head.token_ids} of {name} have biases that differ by {bias:.4g}, and the classifier of "
            "Transformers has none. Serve the language model, or train the classifier from it: head='logit'."
        )
    layer = nn.Linear(len(weight), 1, bias=score.bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.fill_(bias)
    classifier.score = layer
    setattr(classifier, prefix, backbone)
    unknown = [name for name, parameter in classifier.named_parameters() if parameter.is_meta]
    if unknown:
        raise ValueError(f"{type(classifier).__name__} has parameters that {name} has not: {unknown}")
    return classifier.eval()


def _row(model: PreTrainedModel, head: TokenLogitHead) -> tuple[Tensor, float]:
    """The weights and the bias whose product with the last hidden state is the score."""
    layer, (yes, *no) = model.get_output_embeddings(), head.token_ids
    before, after = _scales(model)
    rows = layer.weight.detach().float()[[yes, *no]]
    weight = rows[0] - rows[1] if no else rows[0]
    biases = torch.zeros(2) if layer.bias is None else layer.bias.detach().float()[[yes, *no]]
    bias = biases[0] - biases[1] if no else biases[0]
    return (weight * before * after).to(layer.weight.dtype), float(bias * after)


def _scales(model: PreTrainedModel) -> tuple[float, float]:
    """By what the model multiplies its last hidden state before the output layer, and its logits after it.

    The layer is made to answer with known numbers, so this is seen and not read from settings of many names.

    Raises:
        ValueError: If either is no number.
    """
    seen: dict[str, Tensor] = {}
    layer, backbone = model.get_output_embeddings(), getattr(model, model.base_model_prefix)

    def answer(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen["before"] = inputs[0][0, -1].float()
        return output.new_tensor(_PROBE).expand(*output.shape[:-1], len(_PROBE))

    def remember(module: nn.Module, inputs: Any, output: Any) -> None:
        seen["state"] = output[0][0, -1].float()

    hooks = [layer.register_forward_hook(answer), backbone.register_forward_hook(remember)]
    try:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[0, 1, 2]], device=model.device)).logits[0, -1].float().cpu()
    finally:
        for hook in hooks:
            hook.remove()
    before = float(seen["before"] @ seen["state"] / (seen["state"] @ seen["state"]))
    probe, after = torch.tensor(_PROBE), float(logits[1])
    tolerance = TOLERANCES.get(dtype_of(model), TOLERANCES[torch.bfloat16])
    is_linear = torch.allclose(logits, after * probe, rtol=tolerance, atol=0)
    if not is_linear or not torch.allclose(seen["before"], before * seen["state"], rtol=tolerance, atol=tolerance):
        raise ValueError(
            f"{type(model).__name__} changes its logits by more than a factor (a soft cap?): {probe.tolist()} become "
            f"{[round(value, 4) for value in logits.tolist()]}. No linear layer gives its score. Serve the language "
            "model, or train the classifier from it: head='logit'."
        )
    return before, after


def add_no_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the tokenizer add no tokens of its own to a text, in place: a prompt is the whole text.

    A server that tokenises a prompt like any other text would add a second beginning-of-text token to it.
    """
    if tokenizer("0")["input_ids"] != tokenizer("0", add_special_tokens=False)["input_ids"]:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A:0", pair="$A:0 $B:1")
        # by these some classes make their own when they are loaded
        tokenizer.init_kwargs |= {"add_bos_token": False, "add_eos_token": False}


def _check_same(source: Reranker, exported: Reranker, pairs: Sequence[tuple[str, str]]) -> None:
    if exported is source:
        return
    ours, theirs = source.predict(pairs), exported.predict(pairs)
    excess = (ours - theirs).abs() / ours.abs().clamp(min=1.0)
    worst = int(excess.argmax())
    tolerance = TOLERANCES.get(dtype_of(source.model), TOLERANCES[torch.bfloat16])
    if not excess[worst] <= tolerance:
        raise ValueError(
            f"as {type(exported.model).__name__} pair {worst} scores {theirs[worst]:.6g}, but as "
            f"{type(source.model).__name__} {ours[worst]:.6g}, where {tolerance:.2g} is rounding. A classifier reads "
            "its score at the last token that is not the pad token: a prompt must not end with that one."
        )
    logger.info(
        "as a classifier %d pairs score the same, largest difference %.2g", len(ours), (ours - theirs).abs().max()
    )
