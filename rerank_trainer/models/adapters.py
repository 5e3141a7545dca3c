"""Adapters: small trainable parts that PEFT puts into a frozen model, completed so that a reranker keeps its head."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from peft.utils import (
    SAFETENSORS_WEIGHTS_NAME,
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    load_peft_weights,
)
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import has_file
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME, find_adapter_config_file

from rerank_trainer.models.layers import stacked_linear_layers
from rerank_trainer.models.peers import stored_settings
from rerank_trainer.models.quantization import num_bits

logger = logging.getLogger(__name__)

# What `lora=True` takes: every linear layer of the stack, at the rank and scale of most published recipes.
RANK, ALPHA = 16, 32
# Tried with groups. Of PEFT's others some want a call in every step, some a forward of their own.
SUPPORTED = (PeftType.LORA, PeftType.IA3, PeftType.PROMPT_TUNING)
TASK_TYPES = {
    "ForSequenceClassification": TaskType.SEQ_CLS,
    "ForCausalLM": TaskType.CAUSAL_LM,
    "ForConditionalGeneration": TaskType.SEQ_2_SEQ_LM,
}
# Their mixers read the weights of these layers past an adapter (of x_proj in their fused kernel): it would learn
# nothing, and merging it would change the score. PEFT refuses the first alone.
_MAMBAS = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
_READ_PAST_ADAPTERS = ("out_proj", "dt_proj", "x_proj")
_NAME = "default"  # PEFT's own for an adapter that is given none
_MAGNITUDE = ".lora_magnitude_vector.weight"
_WHOLE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_OTHER_BASE = (
    "It was trained on another model. Give the one that it was trained on, as base_model_name_or_path in its "
    f"{ADAPTER_CONFIG_NAME}."
)


def default_lora(model: PreTrainedModel) -> LoraConfig:
    """LoRA of rank 16 and alpha 32 on every linear layer of the model's stack that runs through an adapter.

    Raises:
        ValueError: If the model has no such layers.
    """
    layers = stacked_linear_layers(model)
    if model.config.model_type in _MAMBAS:
        layers = [name for name in layers if name.rpartition(".")[2] not in _READ_PAST_ADAPTERS]
    if not layers:
        raise ValueError(
            f"lora=True: {type(model).__name__} has no linear layers in a stack. Name what is to be adapted: "
            "peft_config=LoraConfig(target_modules=[...])."
        )
    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=layers)


def adapter_settings(model: nn.Module) -> str:
    """What an adapter's scores depend on beside its weights, as a text: LoRA's scales; empty for any other model."""
    scales = [(name, part.scaling) for name, part in model.named_modules() if hasattr(part, "lora_A")]
    return repr(scales) if scales else ""


def with_adapter(
    model: PreTrainedModel, peft_config: PeftConfig, *, fresh: Sequence[str] = ()
) -> tuple[PeftModel, list[str]]:
    """The model, frozen, with a new adapter; and the names under which its fresh parameters are trained there.

    Args:
        model: A model as a folder or repository holds it; changed in place.
        peft_config: LoRA (also DoRA), IA3 or prompt tuning; left unchanged. What it does not say is completed, and said
            in the log: the task type, the layers where PEFT knows none for the architecture, and every module with
            fresh parameters among those that are trained and saved as a whole.
        fresh: Names of the parameters that no checkpoint has trained.

    Raises:
        ValueError: If the model has an adapter already, no checkpoint holds it as it is, or PEFT cannot do this for it.
    """
    if isinstance(model, PeftModel):
        raise ValueError(
            "the model has an adapter already. Leave peft_config out and go on training that one, or merge it first: "
            "Reranker.save_merged(folder)."
        )
    require_base(model)
    config = completed(peft_config, model, fresh)
    digest = base_digest(model, without=fresh)
    _prepare(model)
    try:
        wrapped = get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"PEFT cannot give {type(model).__name__} {_kind(config)}: {error} Name its layers in peft_config "
            "(target_modules, of IA3 also feedforward_modules), or take lora=True."
        ) from error
    wrapped.base_digest = digest
    names = _trained_names(wrapped, fresh)
    frozen = sorted(set(fresh) - set(names))
    if frozen:
        raise ValueError(f"{_kind(config)} leaves freshly initialised parameters untrained: {frozen}. Take lora=True.")
    logger.info("%s; trained and saved as a whole: %s", describe(wrapped), sorted(wrapped.modules_to_save or ()))
    return wrapped, list(names.values())


def completed(peft_config: PeftConfig, model: PreTrainedModel, fresh: Sequence[str] = ()) -> PeftConfig:
    """A copy of the configuration that says what the model's adapter must be.

    Raises:
        ValueError: If its kind has not been tried, or its task type is not that of the model.
    """
    if peft_config.peft_type not in SUPPORTED:
        raise ValueError(
            f"{type(peft_config).__name__}: only LoRA (also with use_dora=True), IA3 and prompt tuning have been tried "
            "with groups. Take one of them."
        )
    config = copy.deepcopy(peft_config)
    config.base_model_name_or_path = None  # PEFT puts the model's own there, and warns of any other
    said = []
    ends = [end for end in TASK_TYPES if type(model).__name__.endswith(end)]
    wanted = TASK_TYPES[ends[0]] if ends else None
    if config.task_type is None and wanted is not None:
        config.task_type = wanted
        said.append(f"task_type={wanted.value!r}, so that the head is trained and saved")
    elif config.task_type != wanted:
        raise ValueError(
            f"task_type={getattr(config.task_type, 'value', config.task_type)!r}: {type(model).__name__} needs "
            f"{wanted and wanted.value!r}. Leave it out."
        )
    model_type = model.config.model_type
    if isinstance(config, LoraConfig) and config.target_modules is None:
        if model_type not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
            config.target_modules = default_lora(model).target_modules
            said.append(f"PEFT knows no target_modules for {model_type}: every linear layer of the stack")
    if config.is_prompt_learning and (wanted != TaskType.SEQ_CLS or hasattr(model, "score")):
        raise ValueError(
            f"{_kind(config)} for {type(model).__name__}: its score is read at the last token, which Transformers "
            "finds by its id, and prompt tuning passes embeddings without ids. Take LoRA or IA3."
        )
    modules = [name for name in _modules_of(fresh) if name not in (config.modules_to_save or ())]
    if modules:
        config.modules_to_save = [*(config.modules_to_save or ()), *modules]
        said.append(f"modules_to_save with the freshly initialised {modules}")
    if said:
        logger.info("peft_config is completed: %s", "; ".join(said))
    return config


def base_of_adapter(name: str, hub: dict[str, Any]) -> PeftConfig | None:
    """What ``adapter_config.json`` says, its base's name among it; None where a name is no adapter's.

    Raises:
        ValueError: If the folder holds a whole model too, or the adapter names no base or has not been tried.
    """
    if find_adapter_config_file(name, **hub) is None:
        return None
    config = PeftConfig.from_pretrained(name, **hub)
    whole = [file for file in _WHOLE_WEIGHTS if has_file(name, file, **hub)]
    if whole:
        raise ValueError(
            f"{name} holds a whole model, {whole[0]}, and an adapter, {ADAPTER_CONFIG_NAME}: which of them is meant? "
            "Keep them in folders of their own."
        )
    if not config.base_model_name_or_path:
        raise ValueError(
            f"{name} is an adapter that names no base. Write the folder or Hub id of the model that it was trained on "
            f"into its {ADAPTER_CONFIG_NAME}, as base_model_name_or_path."
        )
    if config.peft_type not in SUPPORTED:
        raise ValueError(f"{name} is an adapter of type {config.peft_type}; only LoRA, IA3 and prompt tuning load")
    return config


def with_saved_adapter(
    model: PreTrainedModel, name: str, *, hub: dict[str, Any], fresh: Sequence[str] = ()
) -> PeftModel:
    """The base with the adapter that a folder or repository holds, ready to be trained on.

    Args:
        model: The base; changed in place.
        name: The adapter's folder or Hub id; its weights are safetensors.
        hub: What finds its files on the Hub: revision, token...
        fresh: Names of the base's parameters that no checkpoint of it has trained; the adapter must bring them.

    Raises:
        ValueError: If the adapter belongs to another base, or leaves a head that nobody has trained.
    """
    config = PeftConfig.from_pretrained(name, **hub)
    base, config.base_model_name_or_path = config.base_model_name_or_path, None
    config.inference_mode = False
    digest, stored = base_digest(model, without=fresh), stored_settings(name, hub).get("base_digest")
    if stored is not None and digest is not None and digest != stored:
        raise ValueError(
            f"the adapter {name} does not fit {base}: its base had other norms and biases (digest {stored}) than this "
            f"one ({digest}), so it has been trained further or replaced. {_OTHER_BASE}"
        )
    _prepare(model)
    weights = load_peft_weights(name, device="cpu", **hub)
    weights = {key.replace(_MAGNITUDE, _MAGNITUDE.removesuffix(".weight")): value for key, value in weights.items()}
    try:
        wrapped = get_peft_model(model, config)
    except ValueError as error:
        raise ValueError(f"the adapter {name} does not fit {base}: {error} {_OTHER_BASE}") from error
    expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    wrong = {
        "lacks": sorted(expected.keys() - weights.keys()),
        "has for parts that are not there": sorted(weights.keys() - expected.keys() - wrapped.state_dict().keys()),
        "has in another shape": sorted(
            key for key in expected.keys() & weights.keys() if expected[key].shape != weights[key].shape
        ),
    }
    found = [f"{what} {len(keys)} tensors ({keys[0]}...)" for what, keys in wrong.items() if keys]
    if found:
        raise ValueError(f"the adapter {name} does not fit {base}: it {', it '.join(found)}. {_OTHER_BASE}")
    set_peft_model_state_dict(wrapped, weights)
    wrapped.base_digest = digest
    untrained = sorted(set(fresh) - set(_trained_names(wrapped, fresh)))
    if untrained:
        raise ValueError(
            f"neither the adapter {name} nor its base {base} holds {untrained}: scores would be random. It was trained "
            "without task_type='SEQ_CLS', or for another task; train a new one."
        )
    return wrapped


def merged(model: PeftModel) -> PreTrainedModel:
    """A copy of the model with its adapter merged into the weights; quantised weights are dequantised before.

    PEFT itself would merge into 4 bits and round there a second time.

    Raises:
        ValueError: If the adapter cannot be merged, as prompts cannot.
    """
    config = model.peft_config[model.active_adapter]
    if config.is_prompt_learning:
        raise ValueError(
            f"{_kind(config)} puts tokens before the texts, which cannot be merged into weights. Save the adapter "
            "(save_pretrained); LoRA and IA3 can be merged."
        )
    tuner = copy.deepcopy(model.base_model)  # without the outermost model, whose forward training may have wrapped
    if num_bits(model) is None:
        return tuner.merge_and_unload()
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    plain = tuner.unload().dequantize()
    config = copy.deepcopy(config)
    config.base_model_name_or_path = None
    again = get_peft_model(plain, config)
    set_peft_model_state_dict(again, weights)
    return again.merge_and_unload()


def name_magnitudes(folder: str | Path) -> None:
    """Let Transformers find DoRA's magnitudes in a saved adapter, which PEFT writes under a name that it does not know.

    It would take the base's instead and say so in a warning alone; PEFT reads both names.
    """
    path = Path(folder, SAFETENSORS_WEIGHTS_NAME)
    weights = load_file(path) if path.is_file() else {}
    unknown = {key for key in weights if key.endswith(_MAGNITUDE.removesuffix(".weight"))}
    if unknown:
        named = {f"{key}.weight" if key in unknown else key: value for key, value in weights.items()}
        save_file(named, path, metadata={"format": "pt"})


def adapter_files(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, query_max_length: int | None
) -> dict[str, Any]:
    """What :func:`write_loader_files` must be told of an adapter; empty for a whole model."""
    if not isinstance(model, PeftModel):
        return {}
    settings = {
        "query_max_length": query_max_length,
        "num_bits": num_bits(model),
        "base_digest": getattr(model, "base_digest", None),
    }
    return {
        "base_config": {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id},
        "settings": {key: value for key, value in settings.items() if value is not None},
    }


def require_base(model: PreTrainedModel) -> None:
    """Refuse an adapter on a model that no folder and no repository holds as it is: it could not be opened again.

    Raises:
        ValueError: Saying what to do first.
    """
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    changed = getattr(plain, "changed_on_load", None)
    if changed or not plain.name_or_path:
        why = f"{plain.name_or_path} was changed when it was loaded ({changed})" if changed else "it has no name"
        raise ValueError(
            f"an adapter is saved without its base, and no checkpoint holds this {type(plain).__name__} as it is: "
            f"{why}. Save it once, Reranker.from_pretrained(...).save_pretrained(folder), and give that folder as the "
            "model."
        )


def name_base(model: PeftModel) -> None:
    """Let the adapter say where its base is found again: a Hub id, or a folder by its absolute path."""
    name = str(model.get_base_model().name_or_path)
    for config in model.peft_config.values():
        config.base_model_name_or_path = str(Path(name).resolve()) if Path(name).is_dir() else name or None


def base_digest(model: PreTrainedModel, *, without: Sequence[str] = ()) -> str | None:
    """A digest of the model's norms and biases, by which an adapter knows its base again; None for float16 weights.

    They are not quantised, and any training of the whole model changes them. They are rounded to bfloat16, so that a
    checkpoint has one digest in float32, in bfloat16 and quantised; float16 rounds otherwise.

    Args:
        model: A model before it gets an adapter.
        without: Names of parameters that are drawn anew whenever the model is loaded.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.dim() != 1 or name in without:
            continue
        if parameter.dtype == torch.float16:
            return None
        digest.update(name.encode())
        digest.update(parameter.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def num_virtual_tokens(model: nn.Module) -> int:
    """How many tokens prompt tuning puts before every row; 0 without it."""
    configs = getattr(model, "peft_config", None) or {}
    return sum(config.num_virtual_tokens for config in configs.values() if config.is_prompt_learning)


def describe(model: PeftModel) -> str:
    """In words: the kind of adapter, and how many of the model's parameters are trained."""
    trained, total = num_parameters(model)
    return f"{adapter_kind(model)} trains {trained:,} of {total:,} parameters ({trained / total:.2%})"


def adapter_kind(model: PeftModel) -> str:
    """What an adapter is called: "LoRA", "DoRA", "IA3" or "prompt tuning"."""
    return _kind(model.peft_config[model.active_adapter])


def num_parameters(model: PreTrainedModel | PeftModel) -> tuple[int, int]:
    """How many parameters are trained, and how many there are; a weight of 4 bits counts as one."""
    if isinstance(model, PeftModel):
        return model.get_nb_trainable_parameters()
    return model.num_parameters(only_trainable=True), model.num_parameters()


def _prepare(model: PreTrainedModel) -> None:
    """Freeze a quantised model and hold what it has besides in float32.

    Without the layers' own checkpointing: the engine recomputes whole micro-batches, which needs no gradient of the
    inputs; the Trainer turns that of the layers on where its arguments ask for it.
    """
    if num_bits(model) is not None:
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _modules_of(fresh: Sequence[str]) -> list[str]:
    """The modules of these parameters, without those inside of a head that PEFT trains and saves by its name."""
    modules = dict.fromkeys(name.rpartition(".")[0] for name in fresh)
    return [name for name in modules if name.partition(".")[0] not in SEQ_CLS_HEAD_NAMES]


def _trained_names(model: PeftModel, names: Sequence[str]) -> dict[str, str]:
    """Under which name each parameter of the plain model is trained, where it is trained and saved as a whole."""
    prefix = "base_model." if model.active_peft_config.is_prompt_learning else "base_model.model."
    trained = {
        name.removeprefix(prefix).replace(f".modules_to_save.{_NAME}", ""): name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and f".modules_to_save.{_NAME}." in name
    }
    return {name: trained[name] for name in names if name in trained}


def _kind(config: PeftConfig) -> str:
    if config.peft_type == PeftType.LORA:
        return "DoRA" if getattr(config, "use_dora", False) else "LoRA"
    return config.peft_type.value.replace("_", " ").lower() if config.is_prompt_learning else config.peft_type.value
