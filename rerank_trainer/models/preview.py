"""Preview: what a checkpoint is and whether it can be opened, from everything of it but the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, has_file

from rerank_trainer.models.adapters import base_of_adapter
from rerank_trainer.models.chains import needs_chain
from rerank_trainer.models.families import family_of, prompt_of
from rerank_trainer.models.loading import auto_class, keep_backbone_layers, load_tokenizer, num_labels
from rerank_trainer.models.peers import refuse_foreign, stored_chain
from rerank_trainer.models.token_logits import TokenLogitHead
from rerank_trainer.models.weight_files import pickles_refused, refuse_pickled_adapter

_WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)


@dataclass(frozen=True)
class CheckpointPreview:
    """What is known of a checkpoint before its weights are loaded; prints as a line.

    Attributes:
        name: Hub id or folder.
        model: The class of Transformers that it opens in.
        head: What reads the score.
        num_parameters: Of the model, of an adapter's base, or of the backbone of a chain.
        base: The base of an adapter; None for a whole model.
        has_head: Whether the score head is trained.
    """

    name: str
    model: str
    head: str
    num_parameters: int
    base: str | None
    has_head: bool

    def __str__(self) -> str:
        state = "" if self.has_head else ", freshly initialised"
        adapter = "" if self.base is None else f", an adapter of {self.base}"
        size = f"{self.num_parameters / 1e6:,.3g}M parameters"
        return f"{self.name}: {self.model}, {size}{adapter}, score from {self.head}{state}"


def preview_checkpoint(
    name: str | Path,
    *,
    head: Any = "auto",
    keep_layers: int | list[int] | None = None,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> CheckpointPreview:
    """What a checkpoint is, from its configuration, its tokenizer and the names of its files.

    Args: as of :meth:`Reranker.from_pretrained`.

    Raises:
        ValueError: As :meth:`Reranker.from_pretrained`, as far as that follows from these files.
        OSError: If there is no such checkpoint, or no weights.

    >>> print(preview_checkpoint("cross-encoder/ms-marco-MiniLM-L6-v2"))  # doctest: +SKIP
    cross-encoder/ms-marco-MiniLM-L6-v2: BertForSequenceClassification, 22.7M parameters, score from LogitHead()
    """
    name = str(name)
    hub = {key: value for key, value in {"revision": revision, "token": token}.items() if value is not None}
    refuse_pickled_adapter(name, allow_pickle=allow_pickle, hub=hub)
    family, answer = family_of(name, head=head, hub=hub)
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code, **hub)
    prompt_of(family, answer, tokenizer)
    adapter = base_of_adapter(name, hub)
    base = name if adapter is None else str(adapter.base_model_name_or_path)
    of_base = hub if adapter is None else {**hub, **({"revision": adapter.revision} if adapter.revision else {})}
    refuse_foreign(base, of_base)
    config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code, **of_base)
    with pickles_refused(base, config=config, allow_pickle=allow_pickle, hub=of_base):
        if not allow_pickle and not any(has_file(base, file, **of_base) for file in _WEIGHTS):
            raise OSError(f"{base} has no weights: expected one of {_WEIGHTS}")
    is_language_model = isinstance(family.head, TokenLogitHead)
    stored = stored_chain(base, of_base)
    is_chain = not is_language_model and (stored is not None or needs_chain(config))
    is_classifier = any(each.endswith("ForSequenceClassification") for each in config.architectures or ())
    if is_classifier and not is_language_model and not is_chain:
        num_labels(base, config)  # refuses more than two
    config.num_labels = 1
    kind = auto_class(config, is_chain=is_chain, is_language_model=is_language_model)
    with torch.device("meta"):
        model = kind.from_config(config, trust_remote_code=trust_remote_code)
    if keep_layers is not None:
        keep_backbone_layers(model, keep_layers)
    return CheckpointPreview(
        name=name,
        model=type(model).__name__,
        head=str(family.head.fitted_to(model, tokenizer)),
        num_parameters=model.num_parameters(),
        base=None if adapter is None else base,
        has_head=adapter is not None or is_language_model or is_classifier or stored is not None,
    )
