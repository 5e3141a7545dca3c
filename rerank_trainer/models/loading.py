"""Loading: a checkpoint's model and tokenizer, made ready to score pairs with one logit."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import has_file

from rerank_trainer.models.adapters import base_of_adapter, num_virtual_tokens, with_saved_adapter
from rerank_trainer.models.chains import end_in_score, needs_chain, stored_modules
from rerank_trainer.models.heads import fold_two_logits
from rerank_trainer.models.peers import StoredChain, log_activation, refuse_foreign, stored_chain
from rerank_trainer.models.quantization import keep_weights_as_they_are, quantized_around_head
from rerank_trainer.models.weight_files import (
    loading_options,
    pickles_refused,
    refuse_pickled_adapter,
    refuse_pickled_head,
)

logger = logging.getLogger(__name__)

# Rows of a student with a new head are cut here unless asked otherwise; published rerankers train at 256 to 512.
DEFAULT_MAX_LENGTH = 512


def load_model(
    name: str,
    *,
    is_language_model: bool = False,
    keep_layers: int | list[int] | None = None,
    quantization_config: BitsAndBytesConfig | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    **model_kwargs: Any,
) -> tuple[PreTrainedModel, list[str]]:
    """A model that gives one logit a row, or those of tokens; and the names of its freshly initialised parameters.

    Args:
        name: Hub id or folder, of a model or of an adapter, which brings its base.
        is_language_model: Whether the score is a token's logit, so that the trained output layer is needed.
        keep_layers: Keep only these layers of the backbone: a count from the first, or their numbers.
        quantization_config: How the linear layers of the backbone are quantised; the head is not.
        trust_remote_code: Whether code from the checkpoint may run.
        allow_pickle: Whether pickled weights may be read; with ``weights_only=True``.
        **model_kwargs: Passed on to ``from_pretrained`` of Transformers (dtype, revision, token...).

    Raises:
        ValueError: If the checkpoint classifies into more than two labels, another library scores it otherwise, it
            holds pickled weights that are not allowed, it is an adapter that does not fit its base, or a language model
            without a trained output layer.
    """
    # what AutoConfig also needs; the rest belongs to the weights
    shared = ("revision", "token", "cache_dir", "local_files_only")
    hub: dict[str, Any] = {key: model_kwargs[key] for key in shared if key in model_kwargs}
    refuse_foreign(name, hub)
    refuse_pickled_adapter(name, allow_pickle=allow_pickle, hub=hub)
    adapter = base_of_adapter(name, hub)
    if adapter is not None:
        base, untrained = load_model(
            str(adapter.base_model_name_or_path),
            is_language_model=is_language_model,
            keep_layers=keep_layers,
            quantization_config=quantization_config,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            **{**model_kwargs, "revision": adapter.revision},
        )
        return with_saved_adapter(base, name, hub=hub, fresh=untrained), []
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **hub)
    options = {**loading_options(model_kwargs, allow_pickle=allow_pickle), "trust_remote_code": trust_remote_code}
    stored = stored_chain(name, hub)
    is_chain = not is_language_model and (stored is not None or needs_chain(config))
    has_head = stored is not None or any(a.endswith("ForSequenceClassification") for a in config.architectures or ())
    if not is_language_model:
        options["num_labels"] = num_labels(name, config) if has_head and not is_chain else 1
    kind = auto_class(config, is_chain=is_chain, is_language_model=is_language_model)
    how: dict[str, Any] = {"quantization_config": quantization_config, "allow_pickle": allow_pickle, "hub": hub}
    model, missing = _load_weights(name, config, kind, **how, **options)
    if is_language_model:
        _refuse_untrained(name, stored, missing)
    is_folded = options.get("num_labels") == 2
    if is_folded:
        fold_two_logits(model)
        logger.info("%s has two logits %s: the score is the second minus the first", name, [*config.id2label.values()])
    if keep_layers is not None:
        keep_backbone_layers(model, keep_layers)
    model.changed_on_load = _changes(is_folded=is_folded, keep_layers=keep_layers, revision=hub.get("revision"))
    fresh = missing & {name for name, _ in model.named_parameters()}
    if is_chain:
        fresh |= _end_in_score(model, name, stored, hub=hub, allow_pickle=allow_pickle)
    if fresh:
        refuse_pickled_head(name, hub=hub)
        logger.info("%s has no trained score head: freshly initialised %s", name, sorted(fresh))
    if has_head or is_language_model:
        log_activation(name, config, hub)
    model.config.problem_type = None
    return model, sorted(fresh)


def _load_weights(
    name: str,
    config: PretrainedConfig,
    kind: Any,
    *,
    quantization_config: BitsAndBytesConfig | None,
    allow_pickle: bool,
    hub: dict[str, Any],
    **options: Any,
) -> tuple[PreTrainedModel, set[str]]:
    """A model of an auto class, and the names of its parameters that the checkpoint does not hold."""
    if quantization_config is not None:
        options["quantization_config"] = quantized_around_head(
            quantization_config, kind, config, trust_remote_code=options["trust_remote_code"]
        )
    with pickles_refused(name, config=config, allow_pickle=allow_pickle, hub=hub):
        model, report = kind.from_pretrained(name, output_loading_info=True, **options)
    keep_weights_as_they_are(model)
    return model, set(report["missing_keys"]) & {name for name, _ in model.named_parameters()}


def _end_in_score(
    model: PreTrainedModel, name: str, stored: StoredChain | None, *, hub: dict[str, Any], allow_pickle: bool
) -> set[str]:
    """Put the modules of a chain behind its backbone; back come the names of their fresh parameters."""
    if stored is None:
        end_in_score(model)
        return {f"chain.{name}" for name, _ in model.chain.named_parameters()}
    modules = stored_modules(name, stored, hub=hub, allow_pickle=allow_pickle)
    end_in_score(model, modules, output=stored.output, feature=stored.feature, in_float32=stored.in_float32)
    return set()


def _refuse_untrained(name: str, stored: StoredChain | None, missing: set[str]) -> None:
    """Refuse a language model whose answers mean nothing."""
    if missing:
        raise ValueError(
            f"{name} has no trained {', '.join(sorted(missing))}, so the tokens that it answers with mean nothing. "
            "Choose a language model, or head='logit' to train a fresh head."
        )
    if stored is not None:
        raise ValueError(
            f"{name} is a chain of the modules {[kind for kind, _ in stored.modules]} behind a backbone, and is scored "
            "by them. Leave the head out."
        )


def num_labels(name: str, config: PretrainedConfig) -> int:
    """How many logits a classifier has, one or two."""
    if config.num_labels > 2:
        raise ValueError(
            f"{name} classifies into {config.num_labels} labels {list(config.id2label.values())}; a reranker has one "
            "logit, or two (not relevant, relevant). Choose a reranker, or the backbone under this model."
        )
    return config.num_labels


def auto_class(config: PretrainedConfig, *, is_chain: bool, is_language_model: bool) -> Any:
    """The class of Transformers that loads the checkpoint: a language model, the backbone of a chain, a classifier."""
    if is_language_model:
        return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    if is_chain:
        # AutoModel would make up a decoder for the encoder of a T5
        is_encoder = any(a.endswith("EncoderModel") for a in config.architectures or ())
        return AutoModelForTextEncoding if is_encoder else AutoModel
    return AutoModelForSequenceClassification


def _changes(*, is_folded: bool, keep_layers: int | list[int] | None, revision: str | None) -> str:
    """In words, why a model is another than the one that its name stands for; empty where it is the same."""
    changes = {
        "its two logits became one": is_folded,
        f"keep_layers={keep_layers!r}": keep_layers is not None,
        f"revision={revision!r}, which other loaders do not take for a base": revision not in (None, "main"),
    }
    return "; ".join(change for change, happened in changes.items() if happened)


def load_tokenizer(name: str, *, trust_remote_code: bool = False, **hub: Any) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer (an adapter without one has its base's), cutting texts at the side that it says."""
    if not has_file(name, "tokenizer_config.json", **hub):
        adapter = base_of_adapter(name, hub)
        if adapter is not None:
            name, hub = str(adapter.base_model_name_or_path), {**hub, "revision": adapter.revision}
    return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **hub)


def set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make model and tokenizer agree on the pad token, and pad on the right.

    A decoder's score is read at the last token that is not padding: with a wrong pad token it would silently be read
    elsewhere. A tokenizer without a pad token takes its end-of-text token.

    Raises:
        ValueError: If the tokenizer has neither a pad token nor an end-of-text token.
    """
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has no pad token (pad_token=None) and no end-of-text token to take its "
                "place. Set one: tokenizer.pad_token = '...', a token of its vocabulary that no text contains."
            )
        logger.info("the tokenizer has no pad token: taking its end-of-text token %r", tokenizer.eos_token)
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    tokenizer.init_kwargs["padding_side"] = "right"  # or a class's own side (Gemma's is the left) would be saved
    model.config.pad_token_id = tokenizer.pad_token_id
    text_config = model.config.get_text_config()
    text_config.pad_token_id = tokenizer.pad_token_id


def num_positions(model: nn.Module) -> int | None:
    """How many tokens the model's table of positions holds; None for a model without one (rotary, relative).

    RoBERTa and its kin (XLM-R, MPNet) count positions from the place behind their pad token: their table is two longer
    than their rows may be. What prompt tuning puts before a row takes places too.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] == "position_embeddings":
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - unused - num_virtual_tokens(model)
    return None


def default_max_length(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, *, has_fresh_head: bool) -> int:
    """Tokens of a row: what tokenizer and model allow, and not more than 512 for a student with a fresh head."""
    limits = [tokenizer.model_max_length]
    positions = num_positions(model) or getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions:
        limits.append(positions)
    if has_fresh_head or min(limits) > 1_000_000:
        limits.append(DEFAULT_MAX_LENGTH)
    return min(limits)


def check_max_length(model: nn.Module, max_length: int) -> None:
    """Refuse rows that are longer than the model's table of positions.

    Raises:
        ValueError: With both lengths.
    """
    positions = num_positions(model)
    if positions is not None and max_length > positions:
        raise ValueError(
            f"max_length={max_length}: {type(model).__name__} has positions for {positions} tokens. Give {positions} "
            "or less."
        )


def keep_backbone_layers(model: PreTrainedModel, layers: int | list[int]) -> None:
    """Cut the backbone to some of its layers, in place; vocabulary and head stay.

    Args:
        model: A model whose layers are one ``nn.ModuleList`` of ``config.num_hidden_layers`` modules.
        layers: A count from the first layer, or the layers' numbers in ascending order, from 0.

    Raises:
        ValueError: If a layer does not exist or the model's layers are not found.
    """
    total = model.config.num_hidden_layers
    chosen = list(range(layers)) if isinstance(layers, int) else list(layers)
    if not chosen or sorted(set(chosen)) != chosen or chosen[0] < 0 or chosen[-1] >= total:
        raise ValueError(
            f"keep_layers={layers!r}: expected numbers from 0 to {total - 1} in ascending order, or a count"
        )
    stacks = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == total
    ]
    if len(stacks) != 1:
        raise ValueError(f"keep_layers={layers!r}: {type(model).__name__} has {len(stacks)} stacks of {total} layers")
    name, stack = stacks[0]
    parent, _, child = name.rpartition(".")
    kept = nn.ModuleList([stack[i] for i in chosen])
    for number, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # decoders find their place in the cache by it
                module.layer_idx = number
    setattr(model.get_submodule(parent), child, kept)
    config, types = model.config, getattr(model.config, "layer_types", None)
    config.num_hidden_layers = len(chosen)
    if types and config.layer_types != (kept_types := [types[i] for i in chosen]):
        try:
            config.layer_types = kept_types
        except AttributeError as error:  # it follows from other settings
            raise ValueError(
                f"keep_layers={layers!r} keeps the layers {kept_types}, but a {config.model_type} of {len(chosen)} "
                f"layers has {config.layer_types}. Keep layers in that order of kinds."
            ) from error


def dtype_of(model: nn.Module) -> torch.dtype:
    """The floating point type of the model's parameters."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
