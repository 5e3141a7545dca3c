"""Families: how published rerankers score, and how it is found out from a checkpoint's files."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import TaskType
from transformers import PreTrainedTokenizerBase

from rerank_trainer.data.prompts import Prompt
from rerank_trainer.models.adapters import base_of_adapter
from rerank_trainer.models.heads import Head, LogitHead
from rerank_trainer.models.peers import Answer, stored_answer, stored_architectures
from rerank_trainer.models.token_logits import TokenLogitHead

logger = logging.getLogger(__name__)

NO_PLACE = "pairs are encoded without a prompt, so it has no place. Leave it out, or give prompt=Prompt('...')."


@dataclass(frozen=True)
class Family:
    """How a kind of reranker scores.

    Attributes:
        head: What reads the score.
        prompt: The text around a pair; None encodes pairs as the tokenizer does.
        names: Repositories of it, as a pattern of the name without its owner in lower case. They are known by name
            because no file of theirs says how they score.
    """

    head: Head
    prompt: Prompt | None = None
    names: str = ""


_CHATML = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
_MXBAI_TASK = (
    "You are a search relevance expert who evaluates how well documents match search queries. For each query-document "
    "pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment "
    "(0 for not relevant, 1 for relevant).\nRelevance:"
)


def _mxbai(user: str) -> str:
    system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    return _CHATML.format(system, f"{user}query: {{query}}\ndocument: {{passage}}\n{_MXBAI_TASK}")


FAMILIES: dict[str, Family] = {
    "logit": Family(LogitHead()),
    # https://huggingface.co/Qwen/Qwen3-Reranker-0.6B
    "qwen3-reranker": Family(
        TokenLogitHead("yes", "no"),
        Prompt(
            _CHATML.format(
                "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note "
                'that the answer can only be "yes" or "no".',
                "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {passage}",
            )
            + "<think>\n\n</think>\n\n",
            instruction="Given a web search query, retrieve relevant passages that answer the query",
        ),
        names="qwen3-reranker",
    ),
    # https://huggingface.co/BAAI/bge-reranker-v2-gemma
    "bge-reranker-v2-gemma": Family(
        TokenLogitHead("Yes"),
        Prompt(
            "<bos>A: {query}\nB: {passage}\nGiven a query A and a passage B, determine whether the passage contains an "
            "answer to the query by providing a prediction of either 'Yes' or 'No'."
        ),
        names="bge-reranker-v2-gemma",
    ),
    # https://github.com/mixedbread-ai/mxbai-rerank
    "mxbai-rerank-v2": Family(
        TokenLogitHead("1", "0"),
        Prompt(_mxbai("instruction: {instruction}\n"), without_instruction=_mxbai("")),
        names="mxbai-rerank-(base|large)-v2",
    ),
    # https://arxiv.org/abs/2003.06713, https://huggingface.co/castorini/monot5-base-msmarco
    "monot5": Family(
        TokenLogitHead("▁true", "▁false"), Prompt("Query: {query} Document: {passage} Relevant:</s>"), names="monot5"
    ),
    # https://arxiv.org/abs/2210.10634
    "rankt5": Family(TokenLogitHead("<extra_id_10>"), Prompt("Query: {query} Document: {passage}</s>"), names="rankt5"),
}


def family_of(name: str, *, head: str | Head, hub: dict[str, Any]) -> tuple[Family, Answer]:
    """How a checkpoint scores, and what its files say of it.

    Args:
        name: Hub id or folder.
        head: "auto" finds it out: by the files of sentence-transformers; by the architecture; and for a language model
            by its name, where it is one of the published ``FAMILIES``; an adapter of one scores as its base does. The
            name of a family, or a head, settles it.
        hub: What finds the checkpoint's files: revision, token...

    Raises:
        ValueError: If there is no family of that name.
    """
    stored = stored_answer(name, hub)
    if not isinstance(head, str) and callable(head):
        return Family(head), stored
    if head != "auto":
        if head not in FAMILIES:
            known = ["auto", *FAMILIES]
            raise ValueError(f"head={head!r}: expected one of {known}, or a head such as TokenLogitHead('yes', 'no')")
        return FAMILIES[head], stored
    if stored.tokens:
        return Family(TokenLogitHead(*stored.tokens)), stored
    adapter = base_of_adapter(name, hub)
    if adapter is not None and adapter.task_type in (TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM):
        return family_of(str(adapter.base_model_name_or_path), head=head, hub={**hub, "revision": adapter.revision})
    architectures = stored_architectures(name, hub)
    is_language_model = any(each.endswith(("ForCausalLM", "ForConditionalGeneration")) for each in architectures)
    for key, family in FAMILIES.items():
        if is_language_model and family.names and re.search(family.names, Path(name).name.lower()):
            logger.info("%s is known by its name as a reranker of the family %r: %s", name, key, family.head)
            return family, stored
    return FAMILIES["logit"], stored


def prompt_of(family: Family, stored: Answer, tokenizer: PreTrainedTokenizerBase) -> Prompt | None:
    """The prompt of a checkpoint that scores as a family does; None where pairs are encoded as they are.

    Raises:
        ValueError: If the head reads the answer to a prompt, and no chat template of a reranker writes one.
    """
    if family.prompt is not None:
        return family.prompt
    if stored.has_messages:
        prompt = Prompt.from_chat_template(tokenizer, structured=stored.is_structured)
        return prompt if stored.instruction is None else prompt.with_instruction(stored.instruction)
    if stored.tokens or not isinstance(family.head, TokenLogitHead):
        return None
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{family.head} reads the answer to a prompt, and {type(tokenizer).__name__} has no chat template that "
            "writes one. Give it: prompt=Prompt('... {query} ... {passage} ...')."
        )
    return Prompt.from_chat_template(tokenizer)


def instructed(prompt: Prompt | None, instruction: str | None) -> Prompt | None:
    """The prompt with another instruction for pairs that bring none; None leaves it as it is.

    Raises:
        ValueError: If there is no prompt.
    """
    if instruction is None:
        return prompt
    if prompt is None:
        raise ValueError(f"instruction={instruction!r}: {NO_PLACE}")
    return prompt.with_instruction(instruction)
