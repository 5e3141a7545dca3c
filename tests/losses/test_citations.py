"""Citations: every loss names its papers, and the entries agree with the links in the docstrings."""

from __future__ import annotations

import re

import pytest

from rerank_trainer.losses import LOSSES
from rerank_trainer.losses.citations import BIBTEX, CITED_FOR


def test_every_loss_and_no_other_name_is_cited():
    assert set(CITED_FOR) == set(LOSSES)
    assert {key for keys in CITED_FOR.values() for key in keys} == set(BIBTEX)


@pytest.mark.parametrize("key", BIBTEX)
def test_an_entry_is_well_formed(key):
    text = BIBTEX[key]

    assert re.match(rf"@(article|inproceedings|misc)\{{{key},\n", text)
    assert text.count("{") == text.count("}")
    for wanted in ("title", "author", "year"):
        assert len(re.findall(rf"^  {wanted}=\{{", text, re.MULTILINE)) == 1
    year = re.search(r"year=\{(\d{4})\}", text)[1]
    assert year in key


@pytest.mark.parametrize("name", LOSSES)
def test_the_papers_of_a_loss_are_those_of_its_docstring(name):
    """By DOI or arXiv number; an approximated metric names ApproxRank's in its own docstring too."""
    for key in CITED_FOR[name]:
        numbers = re.findall(r"(?:doi|eprint)=\{(.+?)\}", BIBTEX[key])
        if numbers:
            assert any(number in LOSSES[name].__doc__ for number in numbers), (key, numbers)
