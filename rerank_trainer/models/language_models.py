"""Language models: loading those whose score is the logit of a token that they answer with."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from rerank_trainer.models.loading import keep_backbone_layers
from rerank_trainer.models.peers import log_activation, refuse_foreign
from rerank_trainer.models.weight_files import loading_options, pickles_refused


def load_language_model(
    name: str,
    *,
    keep_layers: int | list[int] | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    **model_kwargs: Any,
) -> PreTrainedModel:
    """A causal language model, or one of an encoder and a decoder, with its trained output layer.

    Args:
        name: Hub id or folder.
        keep_layers: Keep only these layers of the backbone: a count from the first, or their numbers.
        trust_remote_code: Whether code from the checkpoint may run.
        allow_pickle: Whether pickled weights may be read; with ``weights_only=True``.
        **model_kwargs: Passed on to Transformers' ``from_pretrained`` (dtype, revision, token...).

    Raises:
        ValueError: If the checkpoint has no trained output layer, its own library scores it otherwise, or it holds
            pickled weights that are not allowed.
    """
    shared = ("revision", "token", "cache_dir", "local_files_only")
    hub: dict[str, Any] = {key: model_kwargs[key] for key in shared if key in model_kwargs}
    refuse_foreign(name, hub)
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **hub)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    options = loading_options(model_kwargs, allow_pickle=allow_pickle)
    with pickles_refused(name, config=config, allow_pickle=allow_pickle, hub=hub):
        model, report = kind.from_pretrained(
            name, trust_remote_code=trust_remote_code, output_loading_info=True, **options
        )
    fresh = sorted(set(report["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if fresh:
        raise ValueError(
            f"{name} has no trained {', '.join(fresh)}, so the tokens that it answers with mean nothing. Choose a "
            "language model, or head='logit' to train a fresh head."
        )
    if keep_layers is not None:
        keep_backbone_layers(model, keep_layers)
    log_activation(name, config, hub)
    return model
