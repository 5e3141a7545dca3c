"""The judge: a language model behind chat completions answers yes or no, and its log-probabilities are the score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rerank_trainer.data.prompts import Prompt
from rerank_trainer.teachers.endpoints.apis import check_instruction, shortened

_PROMPT = Prompt("Query: {query}\n\nPassage: {passage}\n\nDoes the passage answer the query? Answer yes or no.")
_UNLIKELY = -9999.0  # stands where a server does not say how unlikely a token is
_AROUND_WORDS = " \t\n\u2581\u0120"  # white space, and what tokenizers write for a space


@dataclass(frozen=True)
class ChatJudge:
    """A language model as judge: log p(yes) - log p(no) of the first token of its answer, one request a pair.

    Spellings of a word count together ("yes", "Yes", " YES"). A server names only the most likely tokens. Where one
    of the two words is not among them, the least likely named token stands in for it: the word is at most as likely,
    so the score is nearer to 0 than the true one. Where both are missing, the model does not answer as asked, and that
    is an error.

    The requests are those of https://platform.openai.com/docs/api-reference/chat/create, which vLLM and others share.
    Models that think before they answer begin with other words: switch that off in ``options``.

    Args:
        prompt: The message to the model; it must ask for one word.
        system: The system message; None sends none.
        yes: The answer for a relevant passage.
        no: The answer for another.
        top_logprobs: How many tokens the server is asked to name, 20 at most with most of them.
        options: What every request says besides, or otherwise: ``{"max_completion_tokens": None, "max_tokens": 1}``
            for a server that knows only the older name; None leaves a field out.

    Raises:
        ValueError: If the words are not two, or a field cannot be right.

    >>> judge = ChatJudge(Prompt("Does {passage} answer {query}? yes or no"))
    >>> judge.body("what heats water", ["a kettle"], None)["messages"]
    [{'role': 'user', 'content': 'Does a kettle answer what heats water? yes or no'}]
    >>> tokens = [{"token": "Yes", "logprob": -0.5}, {"token": "No", "logprob": -1.0}]
    >>> judge.read({"choices": [{"logprobs": {"content": [{"top_logprobs": tokens}]}}]}, 1)
    [0.5]
    """

    prompt: Prompt = _PROMPT
    system: str | None = None
    yes: str = "yes"
    no: str = "no"
    top_logprobs: int = 20
    options: Mapping[str, Any] = field(default_factory=dict)
    scale: ClassVar[str] = "logit"
    max_passages: ClassVar[int] = 1
    together: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not _word(self.yes) or not _word(self.no) or _word(self.yes) == _word(self.no):
            raise ValueError(f"yes={self.yes!r} and no={self.no!r}: expected two words that differ in more than case")
        if self.top_logprobs < 2:
            raise ValueError(f"top_logprobs must be 2 or more, found {self.top_logprobs}")
        if taken := {"messages", "model", "logprobs", "top_logprobs", "stream", "n"} & set(self.options):
            raise ValueError(f"options has {sorted(taken)}, which the request says already; leave it out")

    def body(self, query: str, passages: Sequence[str], instruction: str | None) -> dict[str, Any]:
        """The request as JSON, without the model's name, about the one passage.

        Raises:
            ValueError: If there is an instruction and no place for it.
        """
        (passage,) = passages
        check_instruction(instruction, self.prompt.takes_instructions, remedy="write {instruction} into the prompt")
        messages = [{"role": "user", "content": self.prompt.fill(query, passage, instruction)}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        fields = {
            "messages": messages,
            "max_completion_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": self.top_logprobs,
            **self.options,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def read(self, answer: Any, num_passages: int) -> list[float]:
        """The score of the one passage.

        Raises:
            ValueError: If the answer has no log-probabilities, or neither word among them.
        """
        assert num_passages == 1
        logprobs = _named_logprobs(answer)
        log_yes, log_no = _log_probability(self.yes, logprobs), _log_probability(self.no, logprobs)
        if log_yes is None and log_no is None:
            raise ValueError(
                f"neither {self.yes!r} nor {self.no!r} is among the {len(logprobs)} most likely tokens that the model "
                f"begins its answer with: {shortened(list(logprobs))}. The prompt must ask for one of these words; a "
                "model that thinks first must be told not to, in options"
            )
        floor = min(logprobs.values())
        return [(floor if log_yes is None else log_yes) - (floor if log_no is None else log_no)]


def _named_logprobs(answer: Any) -> dict[str, float]:
    """The log-probability of each token that the first place of an answer names."""
    try:
        tokens = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        logprobs = {str(token["token"]): token["logprob"] for token in tokens}
    except (KeyError, IndexError, TypeError):
        raise ValueError(
            "expected an answer with the log-probabilities of its first token, at "
            f"choices[0].logprobs.content[0].top_logprobs, found {shortened(answer)}. The server and the model must "
            "support logprobs and top_logprobs"
        ) from None
    for token, value in logprobs.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value <= 1e-3:
            raise ValueError(f"expected log-probabilities, 0 at most, found {value!r} for the token {token!r}")
    return {token: float(value) for token, value in logprobs.items() if value > _UNLIKELY}


def _word(token: str) -> str:
    return token.strip(_AROUND_WORDS).lower()


def _log_probability(word: str, logprobs: Mapping[str, float]) -> float | None:
    """Of a word in any spelling; None if no named token spells it."""
    found = [value for token, value in logprobs.items() if _word(token) == _word(word)]
    if not found:
        return None
    largest = max(found)
    return largest + math.log(sum(math.exp(value - largest) for value in found))
