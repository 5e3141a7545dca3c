"""A retrieval task from source code that every machine has: a docstring asks, its function answers.

In domain is Python's own standard library, out of domain an installed numpy. Each becomes a BEIR folder:

    corpus.jsonl, queries.jsonl    passages and queries with their ids
    qrels/<split>.tsv              which passage answers which query
    run.bm25.<split>.trec          BM25 candidates of dev and test
    run.negatives.train.trec       for each training query some BM25 candidates and some random passages, none relevant

A query is the first paragraph of a docstring; a passage is signature and body of a function without its docstring, cut
short. Whole modules go to train, dev or test, and the queries of a split search the passages of that split alone: what
is held out is never seen in training, neither as an answer nor as a negative.

    python examples/stdlib_search.py --output_dir tasks
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
from tqdm.auto import tqdm

from rerank_trainer.data.first_stage import bm25_run
from rerank_trainer.data.runs import write_run

# Tests, other packages, and two tools that only some Python versions still have.
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "distutils", "turtledemo", "site-packages", "dist-packages"}
# Where each domain's source stands, and which shares of its modules go to which split.
SOURCES = {
    "stdlib": (Path(sysconfig.get_paths()["stdlib"]), {"train": 0.65, "dev": 0.10, "test": 0.25}),
    "numpy": (Path(numpy.__file__).parent, {"dev": 0.30, "test": 0.70}),
}
MIN_QUERY_WORDS, MAX_QUERY_WORDS = 4, 40
MAX_PASSAGE_CHARACTERS = 160
DEPTH = 20
BM25_NEGATIVES, RANDOM_NEGATIVES = 4, 3


@dataclass(frozen=True)
class Function:
    """A documented function: ``name`` with its module, the ``split`` of its module, docstring and code as texts."""

    name: str
    split: str
    query: str
    passage: str


def build_tasks(folder: Path, *, max_functions: int | None = None) -> dict[str, Path]:
    """Write both tasks; returns their folders by domain.

    Args:
        folder: Where the two folders are made.
        max_functions: Read each source only until each split has its share of this many functions; None takes all.
    """
    for domain, (root, shares) in SOURCES.items():
        print(f"{domain}: {build_task(folder / domain, root, shares, max_functions=max_functions)}")
    return {domain: folder / domain for domain in SOURCES}


def build_task(folder: Path, root: Path, shares: Mapping[str, float], *, max_functions: int | None = None) -> str:
    """Write the task of one source folder; returns its counts in words."""
    counts: Counter[str] = Counter()
    functions = list(read_functions(root, shares, counts, max_functions=max_functions))
    corpus, passage_of = merge_near_duplicates(functions, counts)
    queries, qrels = merge_equal_queries(functions, passage_of, counts)
    if not qrels.keys() >= shares.keys():
        raise ValueError(f"{root} has {len(functions)} documented functions, too few for the splits {list(shares)}")
    write_jsonl(folder / "corpus.jsonl", ({"_id": id, "title": "", "text": text} for id, text in corpus.items()))
    write_jsonl(folder / "queries.jsonl", ({"_id": id, "text": text} for id, text in queries.items()))
    split_of = {function.name: function.split for function in functions}
    for split, judged in qrels.items():
        write_qrels(folder / "qrels" / f"{split}.tsv", judged)
        passages = {id: text for id, text in corpus.items() if split_of[id] == split}
        run = bm25_run(passages, {id: queries[id] for id in judged}, depth=DEPTH)
        if split == "train":
            write_run(folder / "run.negatives.train.trec", draw_negatives(run, judged, list(passages)), tag="negatives")
        else:
            write_run(folder / f"run.bm25.{split}.trec", run, tag="bm25")
    counts.update({f"{split} queries": len(judged) for split, judged in qrels.items()}, passages=len(corpus))
    return ", ".join(f"{number:,} {what}" for what, number in counts.items())


def read_functions(
    root: Path, shares: Mapping[str, float], counts: Counter[str], *, max_functions: int | None = None
) -> Iterator[Function]:
    """The documented functions under a source folder, in order of file and line; what is left out is counted.

    With ``max_functions``, files come in random order, and those of a split that has its share are not read.
    """
    paths = [path for path in sorted(root.rglob("*.py")) if not LEFT_OUT & set(path.relative_to(root).parts)]
    if max_functions is not None:
        random.Random(0).shuffle(paths)
    seen, found = set(), Counter[str]()
    for path in tqdm(paths, desc=f"Reading {root.name}", unit="file"):
        parts = path.relative_to(root).with_suffix("").parts
        split = split_of_module(parts[0], shares)
        if max_functions is not None and found[split] >= shares[split] * max_functions:
            continue
        for name, node in functions_of(ast.parse(path.read_bytes()), ".".join(parts)):
            query, passage = query_of(node), passage_of(node)
            if not query or not passage or name in seen:
                counts["functions left out (no docstring of some words, no body, a name seen before)"] += 1
            else:
                seen.add(name)
                found[split] += 1
                yield Function(name, split, query, passage)


def split_of_module(module: str, shares: Mapping[str, float]) -> str:
    """The split of a module's name, the same on every machine: its hash is a number from 0 to 1."""
    place = int.from_bytes(hashlib.sha256(module.encode()).digest()[:4], "big") / 2**32
    for split, share in shares.items():
        place -= share
        if place < 0:
            return split
    return split


def functions_of(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions and methods at any depth, with their dotted names."""
    for node in ast.iter_child_nodes(tree):
        name = (
            f"{prefix}.{node.name}"
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            else prefix
        )
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, node
        yield from functions_of(node, name)


def query_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """First paragraph of the docstring on one line; empty when it has too few words to ask for anything."""
    paragraph = re.split(r"\n\s*\n", ast.get_docstring(node) or "")[0]
    words = paragraph.split()
    return " ".join(words[:MAX_QUERY_WORDS]) if len(words) >= MIN_QUERY_WORDS else ""


def passage_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Signature and body without the docstring, cut short; empty when nothing but the docstring stands there."""
    body = node.body[1:]
    if all(isinstance(statement, ast.Pass) for statement in body):
        return ""
    bare = type(node)(**{**vars(node), "body": body, "decorator_list": []})
    return ast.unparse(bare)[:MAX_PASSAGE_CHARACTERS]


def identifier_words(text: str) -> str:
    """The words that identifiers are made of: ``parse_HTMLFile2`` -> ``parse HTML File 2``.

    Functions that are made of the same words count as near-duplicates.
    """
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", text))


def merge_near_duplicates(functions: Sequence[Function], counts: Counter[str]) -> tuple[dict[str, str], dict[str, str]]:
    """One passage for functions of a split that are made of the same words; what stands elsewhere again is dropped.

    Returns:
        The corpus, from id to text; and for each function's name the id of the passage that stands for it.
    """
    first: dict[frozenset[str], Function] = {}
    corpus, passage_of = {}, {}
    for function in functions:
        words = frozenset(identifier_words(function.passage).lower().split())
        kept = first.setdefault(words, function)
        if kept is function:
            corpus[function.name] = function.passage
        if kept.split == function.split:
            passage_of[function.name] = kept.name
        counts["near-duplicates merged"] += kept is not function and kept.split == function.split
        counts["near-duplicates of another split dropped"] += kept.split != function.split
    return corpus, passage_of


def merge_equal_queries(
    functions: Sequence[Function], passage_of: Mapping[str, str], counts: Counter[str]
) -> tuple[dict[str, str], dict[str, dict[str, list[str]]]]:
    """One query for docstrings that begin alike; it has several answers.

    Returns:
        Queries, from id to text; and for each split the ids of the passages that answer each query.
    """
    first: dict[tuple[str, str], str] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, list[str]]] = {}
    for function in functions:
        if function.name in passage_of:
            id = first.setdefault((function.split, function.query.lower()), function.name)
            counts["equal queries merged"] += id != function.name
            queries.setdefault(id, function.query)
            answers = qrels.setdefault(function.split, {}).setdefault(id, [])
            if passage_of[function.name] not in answers:
                answers.append(passage_of[function.name])
    return queries, qrels


def draw_negatives(
    run: Mapping[str, Sequence[tuple[str, float]]], qrels: Mapping[str, Sequence[str]], passage_ids: Sequence[str]
) -> dict[str, list[tuple[str, float]]]:
    """For each query its best BM25 candidates, then random passages with score 0, without those that answer it."""
    negatives = {}
    for query_id, candidates in run.items():
        hard = [(id, score) for id, score in candidates if id not in qrels[query_id]][:BM25_NEGATIVES]
        taken = {*qrels[query_id], *(id for id, _ in hard)}
        others = [id for id in passage_ids if id not in taken]
        drawn = random.Random(query_id).sample(others, RANDOM_NEGATIVES)
        negatives[query_id] = [*hard, *((id, 0.0) for id in drawn)]
    return negatives


def write_jsonl(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_qrels(path: Path, qrels: Mapping[str, Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{query_id}\t{id}\t1\n" for query_id, ids in qrels.items() for id in ids]
    path.write_text("".join(["query-id\tcorpus-id\tscore\n", *lines]), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("stdlib_search"))
    parser.add_argument("--smoke", action="store_true", help="some hundred functions of each source")
    args = parser.parse_args()

    folders = build_tasks(args.output_dir, max_functions=400 if args.smoke else None)
    print("written:", *folders.values())


if __name__ == "__main__":
    main()
