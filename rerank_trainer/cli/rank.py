"""``rerank-trainer rank``: passages from a file or the standard input, ordered for a query."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from rerank_trainer.cli.objects import reranker_of
from rerank_trainer.cli.options import RankOptions
from rerank_trainer.models.preview import preview_checkpoint

_TEXT_KEYS = ("text", "passage")


def run(options: RankOptions) -> None:
    """Print the ranking."""
    passages = read_passages(options.passages)
    reranker = reranker_of(options.model, device=options.device, max_length=options.max_length)
    texts = [passage["text"] for passage in passages]
    ranking = reranker.rank(options.query, texts, options.top_k, instruction=options.instruction)
    width = shutil.get_terminal_size().columns
    for rank, found in enumerate(ranking, start=1):
        place = found["corpus_id"]
        if options.json:
            row = {"rank": rank, "score": found["score"], "place": place, **passages[place]}
            print(json.dumps(row, ensure_ascii=False))
        else:
            line = f"{rank:>4}  {found['score']:>9.4f}  {' '.join(found['text'].split())}"
            print(line if len(line) <= width else f"{line[: width - 1]}…")


def plan(options: RankOptions) -> dict[str, str]:
    """What would be ranked."""
    return {
        "model": str(preview_checkpoint(options.model)),
        "query": options.query,
        "passages": f"{len(read_passages(options.passages)):,}",
    }


def read_passages(source: str) -> list[dict[str, Any]]:
    """Passages with their ``text``, and what else their JSON says; empty lines are none.

    Raises:
        ValueError: If there is no passage, or an object without a text.
    """
    whole = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    lines = [(number, line) for number, line in enumerate(whole.splitlines(), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"passages={source}: expected one passage a line, found none")
    parsed = [_as_json(line) for _, line in lines]
    if not all(isinstance(found, dict | str) for found in parsed):
        return [{"text": line} for _, line in lines]  # plain text, of which a line may look like JSON
    passages = []
    for (number, _), found in zip(lines, parsed, strict=True):
        row = {"text": found} if isinstance(found, str) else found
        key = next((key for key in _TEXT_KEYS if isinstance(row.get(key), str)), None)
        if key is None:
            raise ValueError(f"passages={source}, line {number}: expected one of {_TEXT_KEYS}, found {list(row)}")
        passages.append({"text": row[key], **{name: value for name, value in row.items() if name != key}})
    return passages


def _as_json(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
