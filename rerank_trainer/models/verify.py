"""Verifying: a saved folder, opened again by Transformers and by sentence-transformers, gives the scores it should."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from rerank_trainer.data.prompts import ROLES
from rerank_trainer.data.templates import Row
from rerank_trainer.models.adapters import num_virtual_tokens
from rerank_trainer.models.chains import is_chain
from rerank_trainer.models.loading import dtype_of
from rerank_trainer.models.pairs import check_pairs
from rerank_trainer.models.precision import rounds_float32
from rerank_trainer.models.quantization import compute_dtype, keep_weights_as_they_are
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.token_logits import TokenLogitHead

logger = logging.getLogger(__name__)

Pairs: TypeAlias = list[tuple[str, str]]
Encode: TypeAlias = Callable[[Pairs], list[list[int]]]
Score: TypeAlias = Callable[[Pairs], Tensor]

# How far a score may be off, as a share of it or absolutely below 1: padding orders the additions of a sum otherwise.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
OTHER_DEVICE_TOLERANCE = 1e-3  # at least this where the model in memory is not on the CPU: its kernels round otherwise

_LONG_TEXT = "how long may a row be "


def verify_checkpoint(
    folder: str | Path, reranker: Reranker, pairs: Sequence[tuple[str, str]] | Sequence[Sequence[str]]
) -> dict[str, float]:
    """The largest difference between the reranker's scores and those of its folder, one number a loader.

    The folder is opened by plain Transformers and by sentence-transformers as a user would, on the CPU and in the type
    of the weights, and each scores the pairs: in one padded batch, or one by one for 16-bit weights. The token ids are
    compared too, those of a passage and of a query longer than a row among them, so that a lost length limit does not
    pass. For a moment each loader holds a second copy of the model in main memory. No text is written anywhere, and an
    error names a pair by its number alone.

    Pairs that other loaders cut otherwise are left out, and counted in the log: where there is a
    ``query_max_length``, and of a prompt those whose query does not fit, and in plain Transformers, which would cut off
    the prompt's end, all that do not fit.

    A chain of modules (a recurrent backbone) is opened by sentence-transformers alone: Transformers has no class that
    scores with it. A language model of an encoder and a decoder opens in Transformers alone. The folder of an adapter
    is opened on its base: of one trained in 4 or 8 bits on the base quantised alike, on the device of the reranker.
    Prompt tuning is opened by PEFT alone.

    Args:
        folder: A saved reranker.
        reranker: The reranker that was saved there. One that was trained in mixed precision is scored without it, as
            in :meth:`Reranker.predict`.
        pairs: Some (query, passage) pairs.

    Returns:
        The differences under "transformers", unless it is a chain, and "sentence_transformers" (of prompt tuning under
        "peft"); 0 where no pair was left to compare.

    Raises:
        ValueError: If ids differ, or a score differs by more than the tolerance: 1e-5 for float32 weights, 1e-2 for
            float16 and 5e-2 for bfloat16 (of the score, or absolutely for scores below 1), and at least 1e-3 when the
            reranker is not on the CPU, 1e-2 where that multiplies in tf32. Quantised weights count as the type that
            they multiply in.

    >>> reranker = Reranker.from_pretrained("cross-encoder/ms-marco-MiniLM-L6-v2")  # doctest: +SKIP
    >>> reranker.save_pretrained("out")  # doctest: +SKIP
    >>> verify_checkpoint("out", reranker, [("what heats water", "a kettle on fire")])  # doctest: +SKIP
    {'transformers': 0.0, 'sentence_transformers': 0.0}
    """
    check_pairs(pairs)
    texts = [(pair[0], pair[1]) for pair in pairs]
    differences = {}
    with torch.random.fork_rng(devices=[]):  # loading may draw numbers, and training goes on afterwards
        for loader, open_folder in loaders(reranker, is_adapter=_is_adapter(folder)).items():
            encode, score = open_folder(str(folder), reranker)
            where = f"{folder}, opened by {loader}"
            _check_ids(_long_pairs(reranker), reranker, encode, where)
            compared = _check_ids(texts, reranker, encode, where)
            differences[loader] = _check_scores(compared, reranker, score, where)
            del encode, score
            gc.collect()
    logger.info("%s: %d pairs score the same, largest differences %s", folder, len(texts), differences)
    return differences


def loaders(reranker: Reranker, *, is_adapter: bool) -> dict[str, Callable[[str, Reranker], tuple[Encode, Score]]]:
    """Who else can open what a reranker saves, an adapter or a whole model, and how, by name."""
    if is_adapter and num_virtual_tokens(reranker.model):
        return {"peft": _open_peft}
    if is_chain(reranker.model):
        return {"sentence_transformers": _open_other}
    if reranker.model.config.is_encoder_decoder and isinstance(reranker.head, TokenLogitHead):
        return {"transformers": _open_transformers}  # sentence-transformers has no such chain
    return {"transformers": _open_transformers, "sentence_transformers": _open_other}


def _open_transformers(folder: str, reranker: Reranker) -> tuple[Encode, Score]:
    """How plain Transformers encodes pairs and scores them, from the folder alone."""
    kind = AutoModelForSequenceClassification
    if isinstance(reranker.head, TokenLogitHead):
        kind = AutoModelForSeq2SeqLM if reranker.model.config.is_encoder_decoder else AutoModelForCausalLM
    return _open_with(kind, folder, reranker)


def _open_peft(folder: str, reranker: Reranker) -> tuple[Encode, Score]:
    """How PEFT does."""
    return _open_with(AutoPeftModelForSequenceClassification, folder, reranker)


def _open_with(model_class: Any, folder: str, reranker: Reranker) -> tuple[Encode, Score]:
    answers = reranker.head.token_ids if isinstance(reranker.head, TokenLogitHead) else []
    options = _options(folder, reranker)
    if _is_adapter(folder):
        # what the base's config.json cannot know of this reranker, and a user says too
        options |= {"num_labels": 1, "pad_token_id": reranker.tokenizer.pad_token_id}
    model = model_class.from_pretrained(
        folder, local_files_only=True, trust_remote_code=brings_code(reranker), **options
    ).eval()
    keep_weights_as_they_are(model)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=brings_code(reranker))

    def tokenised(pairs: Pairs, **options: Any) -> Any:
        if reranker.prompt is not None:
            return tokenizer(_written(pairs, tokenizer), add_special_tokens=False, **options)
        return tokenizer(*map(list, zip(*pairs, strict=True)), truncation=True, **options)

    def encode(pairs: Pairs) -> list[list[int]]:
        return tokenised(pairs)["input_ids"]

    def score(pairs: Pairs) -> Tensor:
        batch = tokenised(pairs, padding=True, return_tensors="pt", padding_side="left" if answers else "right")
        if answers and model.config.is_encoder_decoder:
            batch["decoder_input_ids"] = torch.full((len(pairs), 1), model.config.decoder_start_token_id)
        with torch.inference_mode():
            logits = model(**batch.to(model.device)).logits.float().cpu()
        if not answers:
            return logits[:, 0]
        return logits[:, -1, answers[0]] - (logits[:, -1, answers[1]] if len(answers) > 1 else 0)

    return encode, score


def _written(pairs: Pairs, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The prompts of pairs, as the tokenizer's chat template writes them."""
    roles = (ROLES["query"], ROLES["passage"])
    messages = [[{"role": role, "content": text} for role, text in zip(roles, pair, strict=True)] for pair in pairs]
    return [tokenizer.apply_chat_template(each, tokenize=False) for each in messages]


def _open_other(folder: str, reranker: Reranker) -> tuple[Encode, Score]:
    """How sentence-transformers encodes pairs and scores them, with the activation that the folder names."""
    from sentence_transformers import CrossEncoder

    cross_encoder = CrossEncoder(
        folder,
        device=None if _is_quantized(folder, reranker) else "cpu",  # quantised weights are loaded to their place
        local_files_only=True,
        trust_remote_code=brings_code(reranker),
        model_kwargs=_options(folder, reranker),
    )
    keep_weights_as_they_are(cross_encoder)

    def encode(pairs: Pairs) -> list[list[int]]:
        features = cross_encoder.preprocess(pairs)
        rows = zip(features["input_ids"], features["attention_mask"].bool(), strict=True)
        return [ids[mask].tolist() for ids, mask in rows]

    def score(pairs: Pairs) -> Tensor:
        options = {"batch_size": len(pairs), "show_progress_bar": False}
        return cross_encoder.predict(pairs, **options, convert_to_tensor=True).cpu()

    return encode, score


def _check_ids(pairs: Pairs, reranker: Reranker, encode: Encode, where: str) -> Pairs:
    """The pairs that both encode alike; those that differ for another reason than the query's budget are refused."""
    if not pairs:
        return []
    same = []
    for number, (pair, theirs) in enumerate(zip(pairs, encode(pairs), strict=True)):
        row = reranker.template.encode([(pair[0], [pair[1]])])[0][0]
        ours = row.input_ids
        if ours == theirs:
            same.append(pair)
        elif not _may_be_cut_otherwise(reranker, row, theirs):
            raise ValueError(
                f"{where}, encodes pair {number} as {len(theirs)} tokens {_ends(theirs)}, but in memory it is encoded "
                f"as {len(ours)} {_ends(ours)}. The tokenizer files of the folder, or its length limit (here "
                f"{reranker.max_length}), are not those of the model that was saved."
            )
    if len(same) < len(pairs):
        logger.info("%s: %d pairs are cut otherwise there", where, len(pairs) - len(same))
    return same


def _may_be_cut_otherwise(reranker: Reranker, row: Row, theirs: list[int]) -> bool:
    """Whether it is known that a loader cuts this pair otherwise than we do."""
    if not (row.num_query_lost or row.num_passage_lost):
        return False
    if reranker.prompt is None:
        return reranker.query_max_length is not None and len(theirs) == len(row.input_ids)
    # plain Transformers is not asked to cut a prompt, and sentence-transformers cuts the passage alone
    return len(theirs) > reranker.max_length or row.num_query_lost > 0


def _check_scores(pairs: Pairs, reranker: Reranker, score: Score, where: str) -> float:
    if not pairs:
        return 0.0
    dtype = compute_dtype(reranker.model) or dtype_of(reranker.model)
    tolerance = TOLERANCES.get(dtype, TOLERANCES[torch.bfloat16])
    # padding changes the rounding of 16-bit weights more than a fault might: there each pair goes alone
    batches = [pairs] if dtype == torch.float32 else [[pair] for pair in pairs]
    ours = torch.cat([reranker.predict(batch) for batch in batches])
    theirs = torch.cat([score(batch) for batch in batches])
    if reranker.model.device.type != "cpu":
        tolerance = max(tolerance, OTHER_DEVICE_TOLERANCE)
    if rounds_float32(reranker.model.device):
        tolerance = max(tolerance, TOLERANCES[torch.float16])
    differences = (ours - theirs).abs()
    excess = differences / ours.abs().clamp(min=1.0)
    worst = int(excess.argmax())
    if not excess[worst] <= tolerance:
        raise ValueError(
            f"{where}, scores pair {worst} as {theirs[worst]:.6g}, but in memory it scores {ours[worst]:.6g}: a "
            f"difference of {differences[worst]:.2g}, where {tolerance:.2g} is rounding. The folder is not the model "
            "that was saved: look at what changed its weights or its settings (activation, labels) on the way."
        )
    return float(differences.max())


def _long_pairs(reranker: Reranker) -> Pairs:
    """A passage longer than a row, and a query."""
    text = _LONG_TEXT * (reranker.max_length // 4 + 1)
    return [(_LONG_TEXT, text), (text, _LONG_TEXT)]


def _ends(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 8 else f"[{', '.join(map(str, ids[:4]))}, ..., {', '.join(map(str, ids[-4:]))}]"


def _is_adapter(folder: str | Path) -> bool:
    return Path(folder, ADAPTER_CONFIG_NAME).is_file()


def _is_quantized(folder: str, reranker: Reranker) -> bool:
    """Whether the folder is to be opened on a quantised base; merged weights of the same reranker are whole."""
    return _is_adapter(folder) and compute_dtype(reranker.model) is not None


def _options(folder: str, reranker: Reranker) -> dict[str, Any]:
    """The options of ``from_pretrained`` that give the weights in memory back."""
    options: dict[str, Any] = {"dtype": dtype_of(reranker.model)}
    if not _is_adapter(folder):
        options["use_safetensors"] = True  # the adapter's are; its base is opened as the user has allowed it
    if _is_quantized(folder, reranker):
        options["quantization_config"] = copy.deepcopy(reranker.model.config.quantization_config)
        options["device_map"] = {"": str(reranker.model.device)}
    return options


def brings_code(reranker: Reranker) -> bool:
    """Whether the model's class comes from the checkpoint, whose code has been trusted when it was loaded."""
    model = reranker.model
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    return type(plain).__module__.startswith("transformers_modules")
