"""Prompts: the text that a language model reads for one pair, with places for instruction, query and passage."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

_PLACES = re.compile(r"\{(instruction|query|passage)\}")
# Words that no template holds or changes: they show where a chat template puts what it is given.
_MARKS = {"instruction": "Xinstructionx", "query": "Xqueryx", "passage": "Xpassagex"}
# The names by which sentence-transformers and vLLM give the three texts to a chat template.
ROLES = {"instruction": "system", "query": "query", "passage": "document"}
# Texts that a chat template must not change: white space around them would show a `trim`.
_PROBE = {"instruction": " look\n", "query": " what heats  water ", "passage": "\na kettle\n\n"}


@dataclass(frozen=True)
class Laid:
    """A filled prompt, with the places of its texts in characters: first, and one behind the last."""

    text: str
    query: tuple[int, int]
    passage: tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    r"""The text that a language model reads for one pair, with a place for each of its parts.

    It is the whole text: a tokenizer adds nothing to it, so special tokens stand in it as they are written.

    Args:
        text: The prompt with ``{query}`` and ``{passage}``, each once, and with one ``{instruction}`` where the model
            takes one. Other braces stand for themselves.
        instruction: Stands in the place ``{instruction}`` for rows without an instruction of their own.
        without_instruction: The whole text for such rows, where they are written otherwise instead.

    Raises:
        ValueError: If a place is missing or stands twice, or nothing says what rows without an instruction read.

    >>> prompt = Prompt("Query: {query} Document: {passage} Relevant:</s>")
    >>> prompt.fill("what heats water", "a kettle")
    'Query: what heats water Document: a kettle Relevant:</s>'
    >>> Prompt("{instruction}\n{query}\n{passage}", instruction="Find it.").fill("sun", "a star")
    'Find it.\nsun\na star'
    """

    text: str
    instruction: str | None = None
    without_instruction: str | None = None

    def __post_init__(self) -> None:
        _check_places(self.text)
        if not self.takes_instructions:
            given = {"instruction": self.instruction, "without_instruction": self.without_instruction}
            for name, value in given.items():
                if value is not None:
                    raise ValueError(f"{name}={value!r}, but the prompt {self.text!r} has no place {{instruction}}")
        elif bool(self.instruction) == (self.without_instruction is not None):
            raise ValueError(
                f"the prompt {self.text!r} has a place for an instruction: give instruction=..., which fills it where "
                "a row has none, or without_instruction=..., the whole text for such rows; one of them"
            )
        if self.without_instruction is not None:
            _check_places(self.without_instruction)
            if "{instruction}" in self.without_instruction:
                raise ValueError(f"without_instruction={self.without_instruction!r} has a place {{instruction}}")

    @property
    def takes_instructions(self) -> bool:
        """Whether an instruction has a place."""
        return "{instruction}" in self.text

    def with_instruction(self, instruction: str) -> Prompt:
        """The prompt with another instruction for rows that have none.

        Raises:
            ValueError: If it has no place for one.
        """
        return Prompt(self.text, instruction)

    def fill(self, query: str, passage: str, instruction: str | None = None) -> str:
        """The text of a pair. No instruction, or an empty one, takes the prompt's own."""
        return self.lay(query, passage, instruction).text

    def lay(self, query: str, passage: str, instruction: str | None = None) -> Laid:
        """The text of a pair, with the places of query and passage in it."""
        instruction = instruction or self.instruction
        pattern = self.text if instruction or self.without_instruction is None else self.without_instruction
        texts = {"instruction": instruction or "", "query": query, "passage": passage}
        parts, length = [], 0
        spans: dict[str, tuple[int, int]] = {}
        for number, piece in enumerate(_PLACES.split(pattern)):
            text = texts[piece] if number % 2 else piece  # places and what stands between them take turns
            if number % 2:
                spans[piece] = (length, length + len(text))
            parts.append(text)
            length += len(text)
        return Laid("".join(parts), spans["query"], spans["passage"])

    def chat_template(self) -> str:
        """The prompt as a chat template of messages with the roles "system", "query" and "document".

        sentence-transformers and vLLM give the instruction, the query and the passage of a pair to a reranker's chat
        template under these names; a request to vLLM may give the instruction as the template's variable instead.
        """
        find = 'messages | selectattr("role", "eq", "{role}") | map(attribute="content") | first'
        values = {name: find.replace("{role}", role) for name, role in ROLES.items()}
        values["instruction"] += " | default(instruction, true)"
        if self.instruction is not None:
            values["instruction"] += f" | default({_quoted(self.instruction)}, true)"
        body = _expressions(self.text)
        if self.without_instruction is not None:
            without = _expressions(self.without_instruction)
            body = f"{{%- if instruction -%}}{body}{{%- else -%}}{without}{{%- endif -%}}"
        return "".join([f"{{%- set {name} = {value} -%}}" for name, value in values.items()]) + body

    @classmethod
    def from_messages(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        messages: Sequence[Mapping[str, str]],
        *,
        instruction: str | None = None,
        suffix: str = "",
        **options: Any,
    ) -> Prompt:
        """A prompt in the form of a chat: messages that hold the places, written by the tokenizer's chat template.

        Args:
            tokenizer: A tokenizer with a chat template.
            messages: As for ``tokenizer.apply_chat_template``; somewhere in them stand the places.
            instruction: As in :class:`Prompt`.
            suffix: What the answer begins with, such as an empty thought.
            **options: Passed on to ``apply_chat_template``; the answer's beginning is added by default.

        Raises:
            ValueError: If the chat template drops a place or cannot be filled.

        >>> from transformers import AutoTokenizer
        >>> qwen = AutoTokenizer.from_pretrained("Qwen/Qwen3-0.6B")  # doctest: +SKIP
        >>> user = {"role": "user", "content": "Does {passage} answer {query}?"}
        >>> Prompt.from_messages(qwen, [user], suffix="<think>\\n\\n</think>\\n\\n")  # doctest: +SKIP
        """
        text = _rendered(tokenizer, messages, **{"add_generation_prompt": True, **options}) + suffix
        try:
            return cls(text, instruction)
        except ValueError as error:
            raise ValueError(f"the chat template of {type(tokenizer).__name__} made of {messages!r}: {error}") from None

    @classmethod
    def from_chat_template(cls, tokenizer: PreTrainedTokenizerBase, *, structured: bool = False) -> Prompt:
        """The prompt of a tokenizer whose chat template is a reranker's: of the roles "system", "query", "document".

        Args:
            tokenizer: A tokenizer with such a chat template.
            structured: Whether a message's content is a list of typed parts instead of a text.

        Raises:
            ValueError: If the chat template drops the query or the passage, changes texts, or cannot be filled.
        """
        marks = _render_roles(tokenizer, _MARKS, structured)
        bare = _render_roles(tokenizer, {key: _MARKS[key] for key in ("query", "passage")}, structured)
        found = {name: (marks if name == "instruction" else bare).count(mark) for name, mark in _MARKS.items()}
        for name in ("query", "passage"):
            if found[name] != 1:
                raise ValueError(
                    f"the chat template of {type(tokenizer).__name__} writes a message of the role {ROLES[name]!r} "
                    f"{found[name]} times instead of once, so it is no reranker's. Give a prompt: Prompt('...')."
                )
        prompt = _with_places(cls, marks, bare) if found["instruction"] == 1 else cls(_placed(bare))
        for names in (ROLES, ("query", "passage")):
            texts = {name: _PROBE[name] for name in names}
            if prompt.fill(**texts) != _render_roles(tokenizer, texts, structured):
                raise ValueError(
                    f"the chat template of {type(tokenizer).__name__} changes texts: {texts} become "
                    f"{_render_roles(tokenizer, texts, structured)!r}. Give a prompt instead: Prompt('...')."
                )
        return prompt


def write_chat_template(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> None:
    """Let the tokenizer's chat template write a prompt, in place, so that whoever loads the tokenizer finds it."""
    try:
        if Prompt.from_chat_template(tokenizer) == prompt:
            return  # as its authors wrote it
    except ValueError:
        pass  # another one, or none
    tokenizer.chat_template = prompt.chat_template()
    assert Prompt.from_chat_template(tokenizer) == prompt


def _check_places(text: str) -> None:
    found = _PLACES.findall(text)
    for name in ("query", "passage"):
        if name not in found:
            raise ValueError(f"the prompt {text!r} has no place for the {name}: write {{{name}}} where it belongs")
    for name in set(found):
        if found.count(name) > 1:
            raise ValueError(f"the prompt {text!r} has {found.count(name)} places {{{name}}}; expected one")


def _with_places(kind: type[Prompt], marks: str, bare: str) -> Prompt:
    """The prompt of a chat template that has a place for an instruction, from what it writes with and without one."""
    before, _, after = marks.partition(_MARKS["instruction"])
    default = bare[len(before) : len(bare) - len(after)]
    if bare == before + default + after and default and not any(mark in default for mark in _MARKS.values()):
        return kind(_placed(marks), instruction=default)
    return kind(_placed(marks), without_instruction=_placed(bare))


def _placed(text: str) -> str:
    """A rendered text with places where the marks stand."""
    for name, mark in _MARKS.items():
        text = text.replace(mark, f"{{{name}}}")
    return text


def _render_roles(tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, str], structured: bool) -> str:
    messages = [
        {"role": ROLES[name], "content": [{"type": "text", "text": text}] if structured else text}
        for name, text in texts.items()
    ]
    return _rendered(tokenizer, messages)


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:  # a template may raise anything: it is a program of the checkpoint's authors
        raise ValueError(
            f"the chat template of {type(tokenizer).__name__} cannot write {messages!r}: {error}. "
            "Give a prompt instead: Prompt('...')."
        ) from error


def _expressions(text: str) -> str:
    """A prompt as Jinja expressions, which keep white space as it is."""
    pieces = _PLACES.split(text)
    return "".join(f"{{{{ {piece if place % 2 else _quoted(piece)} }}}}" for place, piece in enumerate(pieces) if piece)


def _quoted(text: str) -> str:
    """A text as a Jinja string."""
    return json.dumps(text, ensure_ascii=False)
