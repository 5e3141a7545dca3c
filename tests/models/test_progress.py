"""Progress: a time left that holds although long rows run first, and a speed without what was scored before."""

from __future__ import annotations

import random

import pytest

from rerank_trainer.models import progress as progress_module
from rerank_trainer.models.progress import PairProgress
from rerank_trainer.models.reranker import Reranker
from tests.tiny_models import TEXTS, tiny_model


class Clock:
    """A clock that stands still unless it is told to go on."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


def pairs_of_many_lengths(query):
    """240 pairs, eight to a query, of passages from 2 words to 100."""
    chance = random.Random(0)
    sizes = [min(100, 2 + int(chance.lognormvariate(1.5, 1.2))) for _ in range(240)]
    return [(f"{number // 8} {query}", "a " * size + str(number)) for number, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("kind", "query", "pairs_per_chunk", "after", "within"),
    [
        ("bert", "ask", 240, 0.2, 0.1),
        ("bert", "ask", 60, 0.3, 0.2),  # chunks are not alike
        ("qwen3", TEXTS[1], 240, 0.5, 0.25),  # queries run before the passages behind them
    ],
)
def test_the_time_left_is_right_from_early_on(monkeypatch, clock, kind, query, pairs_per_chunk, after, within):
    reranker = Reranker(*tiny_model(kind), max_length=250 if kind == "qwen3" else 128)
    pairs = pairs_of_many_lengths(query)
    seen = []

    class Watched(progress_module.tqdm):
        def update(self, n=1):
            super().update(n)
            seen.append((self.n, clock.now))

    def take_time(module, args, inputs):
        clock.now += inputs["input_ids"].numel()

    monkeypatch.setattr(progress_module, "tqdm", Watched)
    reranker.model.register_forward_pre_hook(take_time, with_kwargs=True)
    begin = clock.now
    reranker.predict(pairs, show_progress_bar=True, max_tokens=300, pairs_per_chunk=pairs_per_chunk)
    whole = clock.now - begin

    assert seen[-1] == (len(pairs), clock.now)
    later = [(done, now - begin) for done, now in seen if now - begin > after * whole]
    assert len(later) > 8
    assert [spent / done * len(pairs) for done, spent in later] == pytest.approx([whole] * len(later), rel=within)


def test_what_was_scored_before_does_not_count_as_speed(clock, capsys):
    with PairProgress(100, show=True, description="Teacher scores") as progress:
        progress.skip(90)
        progress.begin(5)
        clock.now += 5
        progress.end()
        shown = capsys.readouterr().err.split("\r")[-1]

    assert shown.startswith("Teacher scores:  95%") and "95/100 [00:05<00:05,  1.00pair/s]" in shown


def test_a_bar_of_nobody_knows_how_many_shows_the_speed(clock, capsys):
    with PairProgress(None) as progress:
        progress.begin(5)
        clock.now += 5
        progress.end()
        shown = capsys.readouterr().err.split("\r")[-1]

    assert shown.startswith("Scoring: 5pair [00:05,  1.00pair/s]")


@pytest.mark.parametrize(("asked", "num_pairs", "shown"), [(None, 3, False), (None, 4, True), (True, 1, True)])
def test_the_bar_is_shown_for_many_pairs_or_on_request(monkeypatch, capsys, asked, num_pairs, shown):
    monkeypatch.setattr(progress_module, "MANY_PAIRS", 3)
    reranker = Reranker(*tiny_model("bert"))

    reranker.predict([("water", "fire")] * num_pairs, show_progress_bar=asked)
    assert ("pair/s" in capsys.readouterr().err) is shown

    reranker.predict([("water", "fire")] * num_pairs, show_progress_bar=False)
    assert capsys.readouterr().err == ""
