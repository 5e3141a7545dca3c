"""Passages of mining: the pool that is searched, each text once, and what is known of each query in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets

from rerank_trainer.data.columns import describe
from rerank_trainer.data.formats import to_groups
from rerank_trainer.data.layouts import recognise

Corpus = Mapping[str, str] | Sequence[str]


@dataclass
class PassagePool:
    """Passages without repetition.

    Attributes:
        passages: The texts; a passage is named by its place here.
        ids: Their ids; None where none is known.
        place_of: Text to place.
        place_of_id: Id to place; several ids may have one text, of which the first is kept.
        num_empty: Passages without text, which were left out.
        num_duplicates: Passages whose text was there already.
    """

    passages: list[str] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    place_of: dict[str, int] = field(default_factory=dict)
    place_of_id: dict[str, int] = field(default_factory=dict)
    num_empty: int = 0
    num_duplicates: int = 0

    def add(self, text: str, passage_id: str | None) -> None:
        """Add a passage, unless it is empty or there already."""
        if not text.strip():
            self.num_empty += 1
            return
        place = self.place_of.setdefault(text, len(self.passages))
        if place == len(self.passages):
            self.passages.append(text)
            self.ids.append(passage_id)
        else:
            self.num_duplicates += 1
        if passage_id is not None:
            self.place_of_id[passage_id] = place


@dataclass(frozen=True)
class Judged:
    """What is known about one query.

    Attributes:
        row: Of the group.
        query: The text.
        query_id: None where the groups have none.
        own: Place to label of the group's own positives, and of its negatives where those are kept.
        positives: Places of all positives that a query of this text has in any group.
        excluded: Places that cannot become negatives.
    """

    row: int
    query: str
    query_id: str | None
    own: Mapping[int, float]
    positives: frozenset[int] = frozenset()
    excluded: frozenset[int] = frozenset()


def labelled_groups(dataset: datasets.Dataset) -> datasets.Dataset:
    """Groups with labels from rows of any layout; of bare pairs, the rows of one query become one group.

    Raises:
        ValueError: As in :func:`rerank_trainer.data.formats.to_groups`; or the groups have no labels, or positives
            whose texts are not there (``missed_gains``).
    """
    if isinstance(dataset, datasets.Dataset):
        layout, roles = recognise(dataset.features)
        if layout.name == "bare pairs":
            # Labelled, so that no negatives are drawn and the rows of a query come together.
            columns = {name: "passage" if role == "positive" else role for name, role in roles.items()}
            pairs = dataset.select_columns(list(columns)).with_format(None)
            pairs = pairs.rename_columns({name: role for name, role in columns.items() if name != role})
            dataset = pairs.add_column("label", [1.0] * len(pairs))
    groups = to_groups(dataset)
    if "labels" not in groups.column_names:
        raise ValueError(
            f"expected groups with labels, which say what the positives are, found the columns {groups.column_names}"
        )
    if "missed_gains" in groups.column_names:
        for row, gains in enumerate(groups["missed_gains"]):
            if gains:
                raise ValueError(
                    f"group {row} has {len(gains)} relevant passages that are not among its passages (missed_gains "
                    f"{gains}): they could be mined as negatives. Load it with add_positives=True."
                )
    return groups


def gather(
    groups: datasets.Dataset, corpus: Corpus | None, *, keep_negatives: bool
) -> tuple[PassagePool, list[Judged]]:
    """The pool of passages, and what is known of each group's query in it.

    The pool is the corpus in its order, then the positives that are not in it (and the negatives that are kept), in the
    order of their texts; without a corpus, all passages of the groups, in the order of their texts. So the order of the
    groups has no influence.

    Raises:
        ValueError: The corpus is not one, or a passage of a group has the id of another text in the corpus.
    """
    pool = PassagePool()
    for text, passage_id in _entries(corpus):
        pool.add(text, passage_id)
    text_of_id: dict[str, str] = {}
    missing: dict[str, str | None] = {}
    for row in _rows(groups):
        for text, passage_id, label in zip(row["passages"], row["passage_ids"], row["labels"], strict=True):
            if passage_id is not None:
                known = _known_text(corpus, passage_id, text_of_id.setdefault(passage_id, text))
                if known != text:
                    raise _two_texts(row["query"], passage_id, text, known)
            if text not in pool.place_of and (corpus is None or label > 0 or keep_negatives):
                others = missing.get(text)
                missing[text] = passage_id if others is None else min(others, passage_id or others)
    for text in sorted(missing):
        pool.add(text, missing[text])

    judged = []
    positives: dict[str, set[int]] = defaultdict(set)  # of all groups whose queries have the same text
    for number, row in enumerate(_rows(groups)):
        own: dict[int, float] = {}
        for text, label in zip(row["passages"], row["labels"], strict=True):
            if label > 0 or keep_negatives:
                place = pool.place_of[text]
                own[place] = max(label, own.get(place, 0.0))
        positives[row["query"]].update(place for place, label in own.items() if label > 0)
        judged.append(Judged(number, row["query"], row["query_id"], own))
    return pool, [_with_shared(of_query, positives[of_query.query], pool) for of_query in judged]


def _with_shared(judged: Judged, positives: set[int], pool: PassagePool) -> Judged:
    itself = {pool.place_of[judged.query]} if judged.query in pool.place_of else set()
    own = {place: label for place, label in judged.own.items() if label > 0 or place not in positives}
    excluded = frozenset(positives | own.keys() | itself)
    return replace(judged, own=own, positives=frozenset(positives), excluded=excluded)


def _entries(corpus: Corpus | None) -> Iterator[tuple[str, str | None]]:
    if isinstance(corpus, str | datasets.Dataset):
        raise ValueError(
            f"expected a corpus {{passage_id: text}} or [text, ...], found {_what(corpus)}. Of a data set, "
            'dict(zip(dataset["_id"], dataset["text"])) is one.'
        )
    entries: Any = corpus.items() if isinstance(corpus, Mapping) else ((None, text) for text in corpus or ())
    for passage_id, text in entries:
        if not isinstance(text, str) or not isinstance(passage_id, str | None):
            raise ValueError(f"expected ids and passages as text, found {passage_id!r}: {text!r} in the corpus")
        yield text, passage_id


def _what(corpus: str | datasets.Dataset) -> str:
    if isinstance(corpus, str):
        return f"the text {corpus[:80]!r}"
    columns = ", ".join(f"{name} ({describe(feature)})" for name, feature in corpus.features.items())
    return f"a data set with the columns {columns}"


def _rows(groups: datasets.Dataset) -> Iterator[dict[str, Any]]:
    names = ["query", "query_id", "passages", "passage_ids", "labels"]
    for batch in groups.select_columns([name for name in names if name in groups.column_names]).iter(1000):
        num_rows = len(batch["query"])
        of_queries = batch.get("query_id", [None] * num_rows)
        of_passages = batch.get("passage_ids", [[None] * len(passages) for passages in batch["passages"]])
        for values in zip(batch["query"], of_queries, batch["passages"], of_passages, batch["labels"], strict=True):
            yield dict(zip(names, values, strict=True))


def _known_text(corpus: Corpus | None, passage_id: str, otherwise: str) -> str:
    """The text that an id has; a positive in another form than the negatives would be told by its form."""
    return corpus.get(passage_id, otherwise) if isinstance(corpus, Mapping) else otherwise


def _two_texts(query: str, passage_id: str, text: str, known: str) -> ValueError:
    return ValueError(
        f"query {query!r}: the passage {passage_id!r} reads {text[:80]!r} in its group but {known[:80]!r} elsewhere. "
        "Positives and negatives must come in one form, or a model learns the form: give corpus and groups the same "
        "texts (load_beir puts the title before the text)."
    )
