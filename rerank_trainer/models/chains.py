"""Chains: a backbone of Transformers behind which modules of sentence-transformers make the score (pooling, dense).

Transformers has no class that scores with recurrent backbones (Mamba, Mamba-2, RecurrentGemma), and
sentence-transformers saves cross-encoders of this shape. In memory such a chain is its backbone, of a class whose
forward goes on to the score. The backbone's parameters keep the names that they have in its weight file, so whatever
Transformers, the Trainer and PEFT do with a backbone, they do with a chain; the modules have folders of their own, as
sentence-transformers has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_file
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from rerank_trainer.models.peers import StoredChain
from rerank_trainer.models.precision import Float32Linear
from rerank_trainer.models.weight_files import refuse_pickled_module

_CHAIN = "chain"  # the name of the modules among a model's children
_WEIGHTS = "model.safetensors"
_NEW_LAYER = "2.linear"


class ChainedBackbone:
    """Mixed into a backbone's class: its forward runs the modules too, and its folder is that of a chain.

    Attributes:
        chain: The modules, which hand a dictionary of features on; the last one adds "scores", ``(num_rows, 1)``.
        output_name: What they take from the backbone's output.
        feature_name: The name under which they take it.
        float32_layers: Layers that compute in float32, by their names in sentence-transformers.
    """

    chain: nn.Sequential
    output_name: str
    feature_name: str
    float32_layers: tuple[str, ...]

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Any
    ) -> SequenceClassifierOutput:
        """The scores as logits, ``(num_rows, 1)``."""
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask, **inputs)  # type: ignore[misc]
        features = {self.feature_name: output[self.output_name]}
        if attention_mask is not None:
            features["attention_mask"] = attention_mask
        return SequenceClassifierOutput(logits=self.chain(features)["scores"])

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **options: Any,
    ) -> None:
        """As in Transformers; each module has a folder beside the backbone's files."""
        if is_main_process:  # first: Transformers may upload the folder, and takes weights out of the dictionary
            weights = self.state_dict() if state_dict is None else state_dict  # type: ignore[attr-defined]
            _save_modules(self, save_directory, weights)
        super().save_pretrained(  # type: ignore[misc]
            save_directory, is_main_process=is_main_process, state_dict=state_dict, **options
        )


def is_chain(model: nn.Module) -> bool:
    """Whether modules make the model's score, also where PEFT wraps it."""
    return _chain_of(model) is not None


def chain_settings(model: nn.Module) -> str:
    """All that a chain's scores depend on beside its weights, as a text; empty for any other model."""
    chain = _chain_of(model)
    return "" if chain is None else f"{chain.output_name} {chain.feature_name} {chain.chain}"


def needs_chain(config: PretrainedConfig) -> bool:
    """Whether Transformers knows the backbone as a causal language model, and no class that scores with it.

    >>> from transformers import LlamaConfig, MambaConfig
    >>> needs_chain(MambaConfig()), needs_chain(LlamaConfig())
    (True, False)
    """
    kind = type(config)
    has_classifier = kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or "AutoModelForSequenceClassification" in (
        getattr(config, "auto_map", None) or {}
    )
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and not (has_classifier or config.is_encoder_decoder)


def end_in_score(
    backbone: PreTrainedModel,
    modules: Sequence[nn.Module] | None = None,
    *,
    output: str = "last_hidden_state",
    feature: str = "token_embeddings",
    in_float32: Sequence[str] = (),
) -> None:
    """Let modules make a score of what the backbone gives, in place.

    Args:
        backbone: A model of ``AutoModel``.
        modules: Modules of sentence-transformers, the last of which gives "scores"; None reads the last token's state
            by one new linear layer, as Transformers' classes for decoders do. At the last token a causal backbone has
            seen the whole row, and nothing of the padding behind it.
        output: What they take from the backbone's output.
        feature: The name under which they take it.
        in_float32: Layers that compute in float32, by their names in sentence-transformers, where the backbone is
            number 0. A new one does: Mamba with weights of 16 bits gives states of float32.
    """
    if modules is None:
        modules, in_float32 = last_token_modules(backbone.config), (_NEW_LAYER,)
    backbone.__class__ = _chained(type(backbone))
    backbone.output_name, backbone.feature_name, backbone.float32_layers = output, feature, tuple(in_float32)
    backbone.chain = nn.Sequential(*modules).to(device=backbone.device, dtype=backbone.dtype).train(backbone.training)
    for number, module in enumerate(modules, start=1):
        for name, layer in module.named_modules(prefix=str(number)):
            if name in in_float32 and type(layer) is nn.Linear:
                layer.__class__ = Float32Linear
    backbone.config.num_labels = 1
    own = {f"{_CHAIN}.{name}" for name in backbone.chain.state_dict()}
    backbone._keys_to_ignore_on_save = own | set(backbone._keys_to_ignore_on_save or ())


def last_token_modules(config: PretrainedConfig) -> list[nn.Module]:
    """New modules: the state at the last token that is not padding, and one linear layer without a bias."""
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling

    size = config.get_text_config().hidden_size
    dense = Dense(size, 1, bias=False, activation_function=None, module_output_name="scores")
    return [Pooling(size, pooling_mode="lasttoken"), dense]


def stored_modules(
    name: str, stored: StoredChain, *, hub: Mapping[str, Any], allow_pickle: bool = False
) -> list[nn.Module]:
    """The modules of a checkpoint, loaded by sentence-transformers.

    Args:
        name: Hub id or folder.
        stored: What the checkpoint says of its modules.
        hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, where they are given.
        allow_pickle: Whether pickled weights may be read; with ``weights_only=True``.

    Raises:
        ValueError: If a module's weights are pickled and not allowed, or the last module does not give one score.
    """
    from sentence_transformers.sentence_transformer import modules as known

    found = {{"cache_dir": "cache_folder"}.get(key, key): value for key, value in hub.items()}
    loaded = []
    for kind, path in stored.modules:
        if not allow_pickle:
            refuse_pickled_module(name, path, hub=hub)
        loaded.append(getattr(known, kind).load(name, subfolder=path, **found))
    last = loaded[-1]
    if getattr(last, "module_output_name", None) != "scores" or getattr(last, "out_features", None) != 1:
        raise ValueError(
            f"{name} ends in {last}: expected a Dense module with out_features=1 and module_output_name='scores'. A "
            "reranker has one score."
        )
    return loaded


def load_module_weights(model: nn.Module, folder: str | Path) -> None:
    """Read the weights of a chain's modules from its saved folder, in place; nothing happens to any other model."""
    if isinstance(model, ChainedBackbone):
        for _, module, path in _modules(model):
            if module.state_dict():
                load_model(module, Path(folder, path, _WEIGHTS))


def save_adapted_modules(model: nn.Module, folder: str | Path) -> None:
    """Write the modules of a chain that PEFT wraps, which saves its adapter alone; nothing happens to other models."""
    chain = _chain_of(model)
    if chain is not None and chain is not model:
        # a layer that the adapter brings along stands in a wrapper, beside the original
        adapted = f".modules_to_save.{model.active_adapter}"
        weights = {name.replace(adapted, ""): value for name, value in chain.state_dict().items()}
        _save_modules(chain, folder, {name: weights[name] for name in weights if ".original_module." not in name})


def chain_files(model: nn.Module) -> dict[str, Any]:
    """What :func:`write_loader_files` must be told of a chain; empty for any other model."""
    chain = _chain_of(model)
    if chain is None:
        return {}
    return {
        "transformer": {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": chain.output_name}},
            "module_output_name": chain.feature_name,
        },
        "modules": [
            (path, f"{type(module).__module__}.{type(module).__name__}") for _, module, path in _modules(chain)
        ],
        "in_float32": chain.float32_layers,
    }


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__name__}"


def _chain_of(model: nn.Module) -> Any:
    """The chain that a model is, or that PEFT wraps; None for any other model."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner if isinstance(inner, ChainedBackbone) else None


def _save_modules(model: ChainedBackbone, folder: str | Path, weights: Mapping[str, Tensor]) -> None:
    """Write each module's settings and its part of the model's weights."""
    for name, module, path in _modules(model):
        Path(folder, path).mkdir(parents=True, exist_ok=True)
        module.save_config(str(Path(folder, path)))
        own = {key.removeprefix(name): value for key, value in weights.items() if key.startswith(name)}
        if own:
            save_file(own, Path(folder, path, _WEIGHTS), metadata={"format": "pt"})


def _modules(model: ChainedBackbone) -> Iterator[tuple[str, Any, str]]:
    """Each module with the beginning of its parameters' names, and its folder's name in sentence-transformers."""
    for number, module in enumerate(model.chain):
        yield f"{_CHAIN}.{number}.", module, f"{number + 1}_{type(module).__name__}"


def _chained(backbone: type[PreTrainedModel]) -> type[PreTrainedModel]:
    # under the same name, which goes into config.json: AutoModel opens the backbone's files
    return type(backbone.__name__, (ChainedBackbone, backbone), {"__module__": backbone.__module__})
