"""The reranker: a model with its tokenizer, template and head, that scores pairs and ranks passages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from rerank_trainer.data.collator import lay_rows
from rerank_trainer.data.prompt_template import PromptTemplate
from rerank_trainer.data.prompts import Prompt, write_chat_template
from rerank_trainer.data.templates import PairTemplate, Row, Template
from rerank_trainer.data.truncation import WARNING_SHARE, Truncation
from rerank_trainer.models.adapters import (
    adapter_files,
    merged,
    name_base,
    name_magnitudes,
    require_base,
    with_adapter,
)
from rerank_trainer.models.chains import chain_files, save_adapted_modules
from rerank_trainer.models.checkpoint import keeping_card, mark_config, write_loader_files, write_logit_score
from rerank_trainer.models.families import NO_PLACE
from rerank_trainer.models.heads import Head, LogitHead, counted
from rerank_trainer.models.hub import PushToHub
from rerank_trainer.models.loading import (
    check_max_length,
    default_max_length,
    num_positions,
    set_padding,
)
from rerank_trainer.models.opening import open_parts
from rerank_trainer.models.pairs import PAIRS_PER_CHUNK, InstructedPairs, check_pairs, chunks, distinct
from rerank_trainer.models.precision import score_in_float32
from rerank_trainer.models.progress import PairProgress
from rerank_trainer.models.quantization import num_bits
from rerank_trainer.models.recompute import Recomputation
from rerank_trainer.models.scoring import RowScorer
from rerank_trainer.models.token_budget import TokenBudget
from rerank_trainer.models.token_logits import TokenLogitHead
from rerank_trainer.models.windows import Windows

logger = logging.getLogger(__name__)


class RankedPassage(TypedDict):
    """One entry of a ranking: the passage's place in the list given, its score and its text."""

    corpus_id: int
    score: float
    text: str


class Reranker(PushToHub):
    """A cross-encoder: scores (query, passage) pairs, higher is more relevant.

    Args:
        model: What its head reads: a sequence classification model with one logit, a backbone that ends in one, or a
            language model; or a PEFT model of such.
        tokenizer: Its tokenizer.
        head: What reads the score; None reads the one logit.
        prompt: The text around a pair; None encodes pairs as the tokenizer does. It becomes the tokenizer's chat
            template, by which other loaders find it.
        max_length: Tokens of a row; by default what tokenizer and model allow.
        query_max_length: Tokens that a query keeps in a pair that does not fit; by default such a pair is cut as the
            tokenizer itself does, so that its score agrees with every other loader's.
        fresh_parameters: Names of the parameters that no checkpoint has trained.

    Raises:
        ValueError: If the head does not fit the model, or the tokenizer has no pad token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        head: Head | None = None,
        prompt: Prompt | None = None,
        max_length: int | None = None,
        query_max_length: int | None = None,
        fresh_parameters: Sequence[str] = (),
    ) -> None:
        self.head: Head = (head or LogitHead()).fitted_to(model, tokenizer)
        self.prompt = prompt
        if prompt is not None:
            write_chat_template(tokenizer, prompt)
        self.model = model
        self.tokenizer = tokenizer
        self.fresh_parameters = tuple(fresh_parameters)
        set_padding(model, tokenizer)
        score_in_float32(model)
        if isinstance(model, PeftModel):
            name_base(model)
        model.config.use_cache = False  # nothing is generated
        if max_length is None:
            max_length = default_max_length(tokenizer, model, has_fresh_head=bool(fresh_parameters))
        check_max_length(model, max_length)
        tokenizer.model_max_length = max_length
        lengths: dict[str, Any] = {"max_length": max_length, "query_max_length": query_max_length}
        self.template: Template = (
            PairTemplate(tokenizer, **lengths) if prompt is None else PromptTemplate(tokenizer, prompt, **lengths)
        )
        self.query_max_length = query_max_length
        mark_config(model.config, query_max_length=query_max_length)
        self._fitted: tuple[Any, TokenBudget, Recomputation] | None = None  # what `predict` has learned of memory
        self._has_warned = False  # of truncation: ranking queries one by one must not warn at each

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        head: str | Head = "auto",
        prompt: Prompt | None = None,
        instruction: str | None = None,
        max_length: int | None = None,
        query_max_length: int | None = None,
        keep_layers: int | list[int] | None = None,
        load_in_4bit: bool = False,
        quantization_config: BitsAndBytesConfig | None = None,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        **model_kwargs: Any,
    ) -> Reranker:
        """A reranker from a Hub id or folder: a cross-encoder, a language model that answers with a token, a backbone.

        A cross-encoder of sentence-transformers may be a chain of modules (pooling, dense layers). A backbone that has
        no class for classification in Transformers, such as Mamba, becomes one: its last token's state, and a dense
        layer.

        Args:
            name: Hub id or folder; of an adapter, which brings its base and can be trained on.
            head: How it scores. "auto" finds it out; for a language model that no file and no name makes known as a
                reranker, it is a fresh head. The name of a family gives its head and prompt: "qwen3-reranker",
                "bge-reranker-v2-gemma", "mxbai-rerank-v2", "monot5", "rankt5", or "logit" for a classifier. Otherwise
                a head, such as ``TokenLogitHead("yes", "no")``.
            prompt: The text around a pair, in place of the family's or of the tokenizer's chat template.
            instruction: What the prompt says for pairs without an instruction of their own.
            max_length: Tokens of a row; by default what the checkpoint allows, 512 for a fresh head.
            query_max_length: Tokens that a query keeps in a pair that does not fit; by default what the checkpoint
                stores, and where it stores nothing, such a pair is cut as the tokenizer itself does.
            keep_layers: Keep only these layers: a count from the first, or their numbers.
            load_in_4bit: Quantise the linear layers of the backbone to nf4; see ``docs/cheap_students.md``.
            quantization_config: The same as you say: a ``BitsAndBytesConfig``.
            dtype: Type of the weights; "auto" takes the checkpoint's.
            device: Where it is put; by default on a GPU where there is one. Quantised weights and a ``device_map`` stay
                where they were loaded.
            revision: Branch, tag or commit.
            token: Hub token.
            trust_remote_code: Whether code from the checkpoint may run.
            allow_pickle: Whether weights that are no safetensors may be read, as tensors only; see docs/security.md.
            **model_kwargs: Passed on to Transformers: ``attn_implementation``, ``device_map`` and others.

        Raises:
            ValueError: If the checkpoint has three or more labels, no pad token can be found, another library scores it
                otherwise than we can, the weights are pickled and not allowed, an adapter does not fit its base, head
                or prompt do not fit, or there is an instruction and no place for it.
            ImportError: If the weights are to be quantised and bitsandbytes is missing.
        """
        hub = {key: value for key, value in {"revision": revision, "token": token}.items() if value is not None}
        how: dict[str, Any] = {"head": head, "prompt": prompt, "instruction": instruction, "hub": hub}
        how |= {"dtype": dtype, "device": device, "keep_layers": keep_layers, "load_in_4bit": load_in_4bit}
        how |= {"quantization_config": quantization_config, "allow_pickle": allow_pickle}
        how |= {"trust_remote_code": trust_remote_code}
        parts = open_parts(str(name), **how, **model_kwargs)
        if query_max_length is not None:
            parts["query_max_length"] = query_max_length
        return cls(**parts, max_length=max_length)

    def with_lengths(self, *, max_length: int | None = None, query_max_length: int | None = None) -> Reranker:
        """The same model under other length limits; None keeps the present ones."""
        lengths: dict[str, Any] = {"max_length": max_length, "query_max_length": query_max_length}
        return self._with_model(self.model, **lengths, fresh_parameters=self.fresh_parameters)

    def with_adapter(self, peft_config: PeftConfig) -> Reranker:
        """The same model, frozen, with a new adapter to train beside it; see ``docs/cheap_students.md``.

        Args:
            peft_config: ``LoraConfig`` (also with ``use_dora=True``), ``IA3Config`` or ``PromptTuningConfig``.

        Raises:
            ValueError: If the model has one already, no checkpoint holds it as it is, or PEFT cannot do this for it.
        """
        model, fresh = with_adapter(self.model, peft_config, fresh=self.fresh_parameters)
        limit = num_positions(model)  # prompt tuning takes some of them
        max_length = None if limit is None else min(self.max_length, limit)
        return self._with_model(model, max_length=max_length, fresh_parameters=fresh)

    @property
    def max_length(self) -> int:
        """Tokens of a row, special tokens included."""
        return self.template.max_length

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter of PEFT is part of the model."""
        return isinstance(self.model, PeftModel)

    def row_scorer(
        self,
        max_tokens: int | str = "auto",
        *,
        recompute: bool | None = None,
        share_prefix: bool | None = None,
        on_forward: Callable[[int], None] | None = None,
        head: Callable[..., Tensor] | None = None,
    ) -> RowScorer:
        """The engine that scores token rows with this model's padding and head, or another; see :class:`RowScorer`.

        ``on_forward`` is told after each forward how many tokens ran, padding included.
        """
        assert self.tokenizer.pad_token_id is not None
        head = self.head if head is None else head
        return RowScorer(
            head if on_forward is None else counted(head, on_forward),
            pad_token_id=self.tokenizer.pad_token_id,
            padding_side="right",
            max_tokens=max_tokens,
            recompute=recompute,
            share_prefix=share_prefix,
        )

    def predict(
        self,
        pairs: Sequence[tuple[str, str]] | Sequence[Sequence[str]],
        *,
        instruction: str | Sequence[str | None] | None = None,
        windows: Windows | None = None,
        show_progress_bar: bool | None = None,
        autocast_dtype: torch.dtype | None = None,
        max_tokens: int | str = "auto",
        pairs_per_chunk: int = PAIRS_PER_CHUNK,
    ) -> Tensor:
        """Scores of (query, passage) pairs, ``(num_pairs,)`` float32 on the CPU, unbounded, higher is more relevant.

        Pairs are tokenised and sorted by length in chunks. In a chunk a pair that stands there twice is scored once,
        and a text that several pairs hold is tokenised once.

        When pairs were cut to ``max_length``, one line of the log says how many and how much they lost: a warning the
        first time that it is more than a tenth of them.

        Args:
            pairs: Query and passage of each pair. A sequence that makes its pairs on demand is asked for slices.
            instruction: What the prompt says of all pairs, or of each; None or "" leaves it to the prompt.
            windows: Score a passage that does not fit in windows; None cuts it.
            show_progress_bar: Whether to show pairs scored, pairs a second and time left; None does from a thousand
                pairs on.
            autocast_dtype: Compute in this type, ``torch.bfloat16`` for instance; None computes in the weights' type.
            max_tokens: Tokens of a micro-batch, padding included; "auto" chooses by device and free memory.
            pairs_per_chunk: The most pairs of a chunk, which also ends where its texts reach 4 million characters.

        Raises:
            ValueError: If a pair is not two texts, ``pairs_per_chunk`` is below 1, the windows' overlap does not fit
                into a row, or there is no place for an instruction.
        """
        check_pairs(pairs)
        if instruction is not None and not self.template.takes_instructions:
            raise ValueError(f"instruction={instruction!r:.200}: {NO_PLACE}")
        asked = InstructedPairs(pairs, instruction)
        if pairs_per_chunk < 1:
            raise ValueError(f"pairs_per_chunk={pairs_per_chunk}: give the most pairs of a chunk, 1 or more")
        training, device = self.model.training, self.model.device
        self.model.eval()
        scores, cut = [], Truncation()
        try:
            with (
                torch.inference_mode(),
                torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None),
                PairProgress(len(pairs), show=show_progress_bar) as progress,
            ):
                options: dict[str, Any] = {"max_tokens": max_tokens, "on_forward": progress.ran}
                scorer = self._scorer(device, self.model.dtype, autocast_dtype, **options)
                for chunk in chunks(asked, num_pairs=pairs_per_chunk):
                    once, places = distinct(chunk)
                    rows = self._rows(once, windows)
                    cut += Truncation.of(rows[place][0] for place in places)
                    progress.begin(len(chunk), sum(len(row.input_ids) for pair_rows in rows for row in pair_rows))
                    scores.append(self._score(scorer, rows, windows)[places])
                    progress.end()
        finally:
            self.model.train(training)
        self._log_truncation(cut, remedy=" or pass windows=Windows()" if windows is None else "")
        return torch.cat(scores) if scores else torch.empty(0)

    def rank(
        self, query: str, passages: Sequence[str], top_k: int | None = None, **predict_options: Any
    ) -> list[RankedPassage]:
        """The passages from best to worst: ``corpus_id`` (place in the list given), ``score`` and ``text``.

        Args:
            query: The text asked.
            passages: The texts scored.
            top_k: How many to return; None returns all.
            **predict_options: Options of :meth:`predict`.
        """
        scores = self.predict([(query, passage) for passage in passages], **predict_options).tolist()
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        return [RankedPassage(corpus_id=i, score=scores[i], text=passages[i]) for i in order[:top_k]]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that opens with the same scores here, in Transformers and in sentence-transformers.

        Of a chain of modules Transformers opens the backbone alone. A reranker with an adapter writes the adapter
        alone, which names its base. A model card that is there stays; :func:`rerank_trainer.reranker_card` makes one.

        Raises:
            ValueError: If no checkpoint holds the adapter's base as it is.
        """
        if self.has_adapter:
            require_base(self.model)
        with keeping_card(folder):
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.write_loader_files(folder)

    def save_merged(self, folder: str | Path) -> None:
        """Write the model with its adapter merged into full weights: a folder like that of any other reranker.

        Weights in 4 or 8 bits are dequantised, which the log says: the folder holds what the adapter was trained on.
        For a moment a second copy of the model is in memory.

        Raises:
            ValueError: If the reranker has no adapter, or one that cannot be merged.
        """
        whole = self.merged()
        whole.save_pretrained(folder)
        bits = num_bits(self.model)
        said = "" if bits is None else f"; its weights of {bits} bits were dequantised to {whole.model.dtype}"
        logger.info("%s: the adapter is merged into full weights%s", folder, said)

    def merged(self) -> Reranker:
        """The same reranker with its adapter merged into full weights, dequantised; this one is left as it is.

        Raises:
            ValueError: If the reranker has no adapter, or one that cannot be merged.
        """
        if not self.has_adapter:
            raise ValueError(f"{type(self.model).__name__} has no adapter to merge. save_pretrained writes it whole.")
        return self._with_model(merged(self.model))

    def write_loader_files(self, folder: str | Path) -> None:
        """Write what other loaders read, beside the files of model and tokenizer that a folder holds already."""
        save_adapted_modules(self.model, folder)
        name_magnitudes(folder)
        if isinstance(self.head, TokenLogitHead):
            told = write_logit_score(folder, self.head.token_ids)
        else:
            told = chain_files(self.model)
        told |= adapter_files(self.model, self.tokenizer, query_max_length=self.query_max_length)
        write_loader_files(folder, max_length=self.max_length, has_prompt=self.prompt is not None, **told)

    def _with_model(
        self,
        model: PreTrainedModel | PeftModel,
        *,
        max_length: int | None = None,
        query_max_length: int | None = None,
        fresh_parameters: Sequence[str] = (),
    ) -> Reranker:
        return Reranker(
            model,
            self.tokenizer,
            head=self.head,
            prompt=self.prompt,
            max_length=self.max_length if max_length is None else max_length,
            query_max_length=self.query_max_length if query_max_length is None else query_max_length,
            fresh_parameters=fresh_parameters,
        )

    def _scorer(self, *run_with: Any, max_tokens: int | str, on_forward: Callable[[int], None]) -> RowScorer:
        """A scorer that knows from the last call what fits into memory, where that call was run alike."""
        scorer = self.row_scorer(max_tokens, on_forward=on_forward)
        if self._fitted is not None and self._fitted[0] == (max_tokens, *run_with):
            _, scorer.budget, scorer.recomputation = self._fitted
        self._fitted = ((max_tokens, *run_with), scorer.budget, scorer.recomputation)
        return scorer

    def _rows(self, pairs: Sequence[tuple[Any, ...]], windows: Windows | None) -> list[list[Row]]:
        """The rows of each pair, which comes with its instruction: its windows, or the one row that it is cut to."""
        groups = [(query, [passage]) for query, passage, _ in pairs]
        if windows is None:
            instructions = [instruction for _, _, instruction in pairs] if self.template.takes_instructions else None
            return self.template.encode(groups, instructions)
        if not isinstance(self.template, PairTemplate):
            raise ValueError(
                f"{windows}: a prompt is tokenised as one text, so a passage has no tokens of its own that windows "
                "could be cut from. Leave windows out: pairs that do not fit are cut."
            )
        return [windows.rows(self.template, query, passage) for query, (passage,) in self.template.token_ids(groups)]

    def _score(self, scorer: RowScorer, rows: Sequence[Sequence[Row]], windows: Windows | None) -> Tensor:
        """One score a pair, ``(num_pairs,)`` float32 on the CPU, from the rows of each."""
        # mixed-precision training leaves its wrapper on `forward`: behind it is the forward that other loaders have
        forward = getattr(self.model, "_original_forward", self.model)
        cells = [(pair, window) for pair, pair_rows in enumerate(rows) for window in range(len(pair_rows))]
        laid = lay_rows([row for pair_rows in rows for row in pair_rows], cells)
        placed: Any = {key: value.to(self.model.device) for key, value in laid.items()}  # type: ignore[attr-defined]
        scores = scorer(forward, placed).float().cpu()
        return scores if windows is None else windows.reduce(scores, laid["cells"][:, 0], len(rows))

    def _log_truncation(self, cut: Truncation, remedy: str) -> None:
        if cut.num_cut:
            warns = cut.share > WARNING_SHARE and not self._has_warned
            self._has_warned |= warns
            level = logging.WARNING if warns else logging.INFO
            logger.log(level, "%s; raise max_length%s", cut.describe(self.max_length), remedy)
