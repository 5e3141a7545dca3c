from __future__ import annotations

import json
import pickle

import pytest
from datasets import Dataset

from rerank_trainer.data.formats import load_groups

NEMO = {"question": "q", "pos_doc": [{"id": "a"}], "neg_doc": ["b", {"id": 7}]}
GROUP = {"query": "q", "passages": ["pa", "pb", "p7"], "passage_ids": ["a", "b", "7"], "labels": [1.0, 0.0, 0.0]}
CORPUS = [{"id": name, "text": f"p{name}"} for name in ("a", "b", "7")]


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def nemo(folder, corpus, rows=(NEMO,)):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.json"
    path.write_text(json.dumps({"corpus": corpus, "data": list(rows)}))
    return path


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("name", ["rows.pkl", "rows.pickle", "rows.py", "rows.pt", "rows.npy", "rows", "rows.jsonl.gz"])
@pytest.mark.parametrize("as_text", [True, False])
def test_a_file_of_another_kind_is_refused_by_name_and_not_opened(tmp_path, name, as_text):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Bomb()))

    with pytest.raises(
        ValueError, match=f"{name}: expected a file that ends in .jsonl, .* pickles and scripts could run"
    ):
        load_groups(str(path) if as_text else path)
    with pytest.raises(ValueError, match=f"{name}: expected a file that ends in"):
        load_groups(Dataset.from_list([{"query": "q", "doc_ids": ["a"]}]), corpus=str(path) if as_text else path)


def test_a_tsv_file_is_split_by_tabs(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("query\tpassage\tlabel\nq\ta, b\t1\nq\tNA\t0\n")

    assert list(load_groups(path)) == [{"query": "q", "passages": ["a, b", "NA"], "labels": [1.0, 0.0]}]


@pytest.mark.parametrize("corpus", [{"path": "wiki"}, [{"path": "wiki"}], {"path": "./data/../wiki"}])
def test_the_corpus_that_a_file_of_nemo_names_is_read_beside_it(tmp_path, corpus):
    jsonl(tmp_path / "wiki" / "part.jsonl", CORPUS)
    (tmp_path / "wiki" / "merlin_metadata.json").write_text('{"class": "TextQADataset", "corpus_id": "wiki"}')
    (tmp_path / "data").mkdir()

    assert list(load_groups(nemo(tmp_path, corpus))) == [GROUP]


def test_a_corpus_by_an_absolute_path_inside_the_folder_and_in_two_files_is_read(tmp_path):
    jsonl(tmp_path / "wiki" / "1.jsonl", CORPUS[:1])
    jsonl(tmp_path / "wiki" / "2.jsonl", CORPUS[1:])

    assert list(load_groups(nemo(tmp_path, {"path": str(tmp_path / "wiki")}))) == [GROUP]


@pytest.mark.parametrize("kind", ["above", "absolute", "link", "linked folder", "linked file", "sibling"])
def test_a_corpus_outside_the_folder_of_the_file_is_not_read(tmp_path, kind):
    inside, outside = tmp_path / "data", tmp_path / "secret"
    inside.mkdir()
    secret = jsonl(outside / "corpus.jsonl", CORPUS)
    jsonl(tmp_path / "data-2" / "corpus.jsonl", CORPUS)  # a name that begins as that of the folder does
    name = {
        "above": "../secret/corpus.jsonl",
        "absolute": str(secret),
        "link": "link.jsonl",
        "linked folder": "folder",
        "linked file": "wiki",
        "sibling": "../data-2/corpus.jsonl",
    }[kind]
    (inside / "link.jsonl").symlink_to(secret)
    (inside / "folder").symlink_to(outside)
    (inside / "wiki").mkdir()
    (inside / "wiki" / "corpus.jsonl").symlink_to(secret)
    path = nemo(inside, {"path": name})

    shown = str(inside / "wiki" / "corpus.jsonl") if kind == "linked file" else name
    with pytest.raises(ValueError, match="names the corpus .* expected a place inside .*data, the folder") as error:
        load_groups(path)
    assert repr(shown) in str(error.value)
    # Said by the caller, the same place is read.
    assert list(load_groups(path, corpus=secret)) == [GROUP]


@pytest.mark.parametrize(
    ("corpus", "rows", "message"),
    [
        ([{"path": "a"}, {"path": "b"}], [NEMO], "expected one corpus, .* found .* Split the file by corpus_id"),
        ([], [NEMO], "expected one corpus"),
        ({"name": "wiki"}, [NEMO], "expected one corpus, .* found \"{'name': 'wiki'}\""),
        ({"path": "none.jsonl"}, [NEMO], "none.jsonl, the corpus of .*train.json, is not there"),
        (
            {"path": "corpus.jsonl"},
            [NEMO, NEMO | {"neg_doc": []}],
            r"train.json, row 1 of data, 'neg_doc': .*found '\[\]'",
        ),
        ({"path": "corpus.jsonl"}, [NEMO | {"pos_doc": [{"text": "a"}]}], "row 0 of data, 'pos_doc': expected ids"),
        ({"path": "corpus.jsonl"}, [NEMO | {"pos_doc": [{"id": "z"}]}], "passage 'z' is not in corpus="),
        ({"path": "mixed"}, [NEMO], r"mixed, the corpus of .* files of one kind .* found \['a.csv', 'b.jsonl'\]"),
        ({"path": "corpus.pkl"}, [NEMO], "corpus.pkl: expected a file that ends in"),
    ],
)
def test_a_file_of_nemo_that_cannot_be_read_says_why(tmp_path, corpus, rows, message):
    jsonl(tmp_path / "corpus.jsonl", CORPUS)
    jsonl(tmp_path / "mixed" / "b.jsonl", CORPUS)
    (tmp_path / "mixed" / "a.csv").write_text("id,text\na,b\n")
    (tmp_path / "corpus.pkl").write_bytes(pickle.dumps(Bomb()))

    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_groups(nemo(tmp_path, corpus, rows))


def test_a_part_of_a_file_of_nemo_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a file with a corpus and data is read whole, found split='train\[:1\]'"):
        load_groups(nemo(tmp_path, {"path": "a"}), split="train[:1]")


def carded(folder, query):
    """A folder in the format of a data set on the Hub, with a card that names its file."""
    jsonl(folder / "rows.jsonl", [{"query": query, "positive": "a", "negative": "b"}])
    card = ["---", "configs:", "- config_name: default", "  data_files:", "  - split: train", "    path: rows.jsonl"]
    (folder / "README.md").write_text("\n".join([*card, "---"]))
    return str(folder)


def test_folders_of_one_name_and_replaced_files_have_their_own_rows(tmp_path):
    first, second = (carded(tmp_path / name / "toy", query=name) for name in ("first", "second"))

    assert [load_groups(path)["query"][:] for path in (first, second, first)] == [["first"], ["second"], ["first"]]
    carded(tmp_path / "first" / "toy", query="replaced")
    assert load_groups(first)["query"][:] == ["replaced"]
