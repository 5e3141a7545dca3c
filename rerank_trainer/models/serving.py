"""Serving: the commands that start vLLM and text-embeddings-inference on a checkpoint, and what becomes of its score.

Taken from the checkpoint's files and the servers' sources: vLLM 0.33 and text-embeddings-inference of commit 0d124dc.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from rerank_trainer.models.checkpoint import IDENTITY, TRANSFORMER_SETTINGS
from rerank_trainer.models.families import family_of
from rerank_trainer.models.loading import load_tokenizer
from rerank_trainer.models.peers import Answer, old_activation, stored_chain, stored_json, stored_max_length
from rerank_trainer.models.token_logits import TokenLogitHead

VLLM, TEI = "vLLM", "text-embeddings-inference"
# Model types that text-embeddings-inference has a classifier for (backends/candle/src/models).
TEI_CLASSIFIERS = ("bert", "camembert", "deberta-v2", "distilbert", "modernbert", "roberta", "xlm-roberta")
_TEI_BATCH_TOKENS = 16384  # its default of --max-batch-tokens; a longer row would be cut to it
_BENDS_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # what vLLM's conversion leaves out
_CHAT_TEMPLATE = "chat_template.jinja"
_QUERY, _TEXTS = "what heats water", ["a kettle on fire", "a library"]


@dataclass(frozen=True)
class Serving:
    """How a server is started on a checkpoint.

    Attributes:
        server: Its name.
        score: What it answers with; or why it cannot give the checkpoint's score.
        command: What starts it, for a shell; None if it cannot.
        request: What asks it for scores, for a shell; None likewise.
        notes: What to know besides.
    """

    server: str
    score: str
    command: str | None = None
    request: str | None = None
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The same as text for a model card or a terminal."""
        if self.command is None:
            return f"**{self.server}** does not serve it: {self.score}."
        lines = [
            f"**{self.server}** answers with {self.score}:",
            "",
            "```bash",
            self.command,
            self.request or "",
            "```",
        ]
        return "\n".join([*lines, *([""] if self.notes else []), *(f"- {note}" for note in self.notes)])


@dataclass(frozen=True)
class _Files:
    """What a checkpoint's files say to a server."""

    name: str
    config: dict[str, Any]
    is_adapter: bool
    is_chain: bool
    head: TokenLogitHead | None
    answer: Answer
    has_prompt: bool
    adds_special_tokens: bool
    max_length: int | None
    has_transformer_settings: bool

    @property
    def architecture(self) -> str:
        return (self.config.get("architectures") or [""])[0]

    @property
    def is_classifier(self) -> bool:
        return self.architecture.endswith("ForSequenceClassification")

    @property
    def num_labels(self) -> int:
        return len(self.config.get("id2label") or "01")  # two, where config.json does not say it

    @property
    def other_than_a_classifier(self) -> str | None:
        """Why neither server can serve it."""
        if self.is_adapter:
            return "it is an adapter. export_classifier(name, folder) merges it into a whole model"
        if self.is_chain:
            return "its score is made by modules behind a backbone, which only sentence-transformers runs"
        if self.head is not None and self.config.get("is_encoder_decoder"):
            return "it answers with the first token of a decoder behind an encoder"
        if self.head is None and not self.is_classifier:
            return f"{self.architecture or 'it'} has no score head"
        if self.head is None and self.num_labels != 1:
            return f"it has {self.num_labels} labels, not one logit. Of two export_classifier(name, folder) makes one"
        return None


def serving_commands(
    name: str | Path, *, called: str | None = None, revision: str | None = None, token: str | None = None
) -> list[Serving]:
    """How vLLM and text-embeddings-inference serve a checkpoint: one record each, also where they cannot.

    Args:
        name: A folder, or a Hub id.
        called: The name that commands use instead, such as the id that a folder is to have on the Hub.
        revision: Branch, tag or commit.
        token: Hub token; it stands in no command.

    >>> for serving in serving_commands("cross-encoder/ms-marco-MiniLM-L6-v2"):  # doctest: +SKIP
    ...     print(serving.markdown())
    """
    files = _read(str(name), {key: value for key, value in {"revision": revision, "token": token}.items() if value})
    files = replace(files, name=called or files.name)
    return [_vllm(files, revision), _tei(files, revision)]


def _read(name: str, hub: dict[str, Any]) -> _Files:
    family, answer = family_of(name, head="auto", hub=hub)
    is_adapter = stored_json(name, ADAPTER_CONFIG_NAME, hub) is not None
    head, adds_special_tokens = None, False
    has_prompt = family.prompt is not None or answer.has_messages
    if not is_adapter and (has_prompt or isinstance(family.head, TokenLogitHead)):
        tokenizer = load_tokenizer(name, **hub)
        adds_special_tokens = tokenizer("0")["input_ids"] != tokenizer("0", add_special_tokens=False)["input_ids"]
        if isinstance(family.head, TokenLogitHead):
            ids = family.head.with_ids(tokenizer).token_ids
            head = TokenLogitHead(*tokenizer.convert_ids_to_tokens(ids))  # vLLM wants entries of the vocabulary
    return _Files(
        name,
        config=stored_json(name, "config.json", hub) or {},
        is_adapter=is_adapter,
        is_chain=stored_chain(name, hub) is not None,
        head=head,
        answer=answer,
        has_prompt=has_prompt,
        adds_special_tokens=adds_special_tokens,
        max_length=stored_max_length(name, hub),
        has_transformer_settings=stored_json(name, TRANSFORMER_SETTINGS, hub) is not None,
    )


def _vllm(files: _Files, revision: str | None) -> Serving:
    bends = {key: files.config[key] for key in _BENDS_LOGITS if files.config.get(key) not in (None, 1, 1.0)}
    reason = files.other_than_a_classifier
    if reason is None and files.head is not None and bends:
        reason = f"it leaves out what the model does to its logits, {bends}"
    if reason is not None:
        return Serving(VLLM, reason)
    notes = ["float32 weights run in 16 bits unless `--dtype float32` is given"]
    options: dict[str, Any] = {"--runner": "pooling", "--revision": revision, "--max-model-len": files.max_length}
    if files.head is not None:
        options["--hf-overrides"] = json.dumps(_from_token(files))
        notes.append("`export_classifier(name, folder)` writes a folder that needs no `--hf-overrides`")
    if files.has_prompt:
        options["--chat-template"], said = _chat_template(files)
        notes += [
            *said,
            "a longer text loses its prompt's end: `max_tokens_per_doc` in a request cuts the passage alone",
        ]
        if files.adds_special_tokens:
            notes.append(
                "its tokenizer puts special tokens around the prompt, so scores differ; `export_classifier` writes one "
                "that does not"
            )
    else:
        notes.append('a longer pair is refused unless a request says `"truncate_prompt_tokens": -1`')
    body: dict[str, Any] = {"model": files.name, "query": _QUERY, "documents": _TEXTS}
    score = "the logit, as it is"
    if old_activation(files.config) != IDENTITY:
        body["use_activation"] = False
        score = "the sigmoid of the logit; with `use_activation` false, as below, the logit"
    command = _shell("vllm", "serve", files.name, **options)
    return Serving(VLLM, score, command, _curl("http://localhost:8000/rerank", body), tuple(notes))


def _from_token(files: _Files) -> dict[str, Any]:
    """Settings by which vLLM makes a classifier of a language model while it loads it."""
    assert files.head is not None
    kind = {"architectures": [files.architecture.replace("ForCausalLM", "ForSequenceClassification")]}
    if files.head.no is None:
        return {**kind, "classifier_from_token": [files.head.yes], "method": "no_post_processing"}
    return {**kind, "classifier_from_token": [files.head.no, files.head.yes], "method": "from_2_way_softmax"}


def _chat_template(files: _Files) -> tuple[str, list[str]]:
    """The file with the prompt, and how one comes by it."""
    path = Path(files.name, _CHAT_TEMPLATE)
    if path.is_file():
        return str(path), []
    if files.answer.has_messages:
        return _CHAT_TEMPLATE, [
            f"`{_shell('hf', 'download', files.name, _CHAT_TEMPLATE)} --local-dir .` brings the template"
        ]
    written = "Reranker.from_pretrained(name).prompt.chat_template()"
    return _CHAT_TEMPLATE, [f"no file holds its prompt: write `{written}` into {_CHAT_TEMPLATE}"]


def _tei(files: _Files, revision: str | None) -> Serving:
    reason = files.other_than_a_classifier
    model_type = files.config.get("model_type")
    if reason is None:
        checks = {
            f"it has no classifier for {model_type}, see the models {list(TEI_CLASSIFIERS)}": (
                model_type not in TEI_CLASSIFIERS
            ),
            "it writes pairs without a prompt": files.has_prompt,
            "config.json has no id2label": "id2label" not in files.config,
            f"{TRANSFORMER_SETTINGS} has no max_seq_length, without which it stops; save_pretrained writes it": (
                files.has_transformer_settings and files.max_length is None
            ),
        }
        reason = next((text for text, holds in checks.items() if holds), None)
    if reason is not None:
        return Serving(TEI, reason)
    options: dict[str, Any] = {"--model-id": files.name, "--revision": revision, "--port": 8080}
    if (files.max_length or 0) > _TEI_BATCH_TOKENS:
        options["--max-batch-tokens"] = files.max_length
    notes = ["on a GPU it runs in float16 unless `--dtype float32` is given"]
    if model_type == "distilbert":
        notes.append("of DistilBERT it has a classifier on a CPU alone")
    body = {"query": _QUERY, "texts": _TEXTS, "raw_scores": True}
    score = "the sigmoid of the logit; with `raw_scores` true, as below, the logit"
    command = _shell("text-embeddings-router", **options)
    return Serving(TEI, score, command, _curl("http://localhost:8080/rerank", body), tuple(notes))


def _shell(*words: str, **options: Any) -> str:
    said = [str(part) for option, value in options.items() if value is not None for part in (option, value)]
    return shlex.join([*words, *said])


def _curl(address: str, body: dict[str, Any]) -> str:
    return _shell("curl", address, "-H", "Content-Type: application/json", "-d", json.dumps(body))
