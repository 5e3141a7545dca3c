"""Cells: which groups a stage takes, how a budget that is not in steps is spent, and what the bar says of the rest."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from rerank_trainer.comparison import cells
from rerank_trainer.comparison import progress as module
from rerank_trainer.comparison.budgets import Seconds, Spending, Steps, Tokens
from rerank_trainer.comparison.cells import groups_taken, next_groups
from rerank_trainer.comparison.plan import Cell
from rerank_trainer.comparison.progress import ComparisonProgress

ORDER = [3, 0, 4, 1, 2]


def two_groups_a_step():
    return SimpleNamespace(train_batch_size=2, gradient_accumulation_steps=1)


def stage(budget, spent, until):
    return Spending(budget, spent=spent, until=until, warmup=0.1, on_share=lambda share: None)


def test_stages_take_the_groups_that_one_stage_would_take():
    whole = next_groups(ORDER, 0, stage(Steps(4), 0, 4), two_groups_a_step())
    first = next_groups(ORDER, 0, stage(Steps(4), 0, 1), two_groups_a_step())
    second = next_groups(ORDER, len(first), stage(Steps(4), 1, 4), two_groups_a_step())

    assert whole == [3, 0, 4, 1, 2, 3, 0, 4]
    assert first + second == whole


def test_without_a_number_of_steps_a_pass_begins_where_the_last_stage_stopped():
    assert next_groups(ORDER, 7, stage(Seconds(4), 1, 4), two_groups_a_step()) == [4, 1, 2, 3, 0]


@pytest.mark.parametrize(("steps", "taken"), [(1, 2), (2, 4), (3, 5), (4, 7), (6, 10)])
def test_the_last_step_of_a_pass_takes_what_is_left(steps, taken):
    assert groups_taken(steps, 5, two_groups_a_step()) == taken


def test_a_stage_without_a_step_is_refused():
    with pytest.raises(ValueError, match="a stage would have 0 steps"):
        _ = stage(Steps(1), 1, 1).arguments


def test_the_learning_rate_follows_the_share_of_the_tokens():
    told, rates = [], []
    spending = Spending(Tokens(200), spent=100, until=200, warmup=0.2, on_share=told.append)
    model = torch.nn.Linear(1, 1)
    model.forward = lambda rows=None: None
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.0, "initial_lr": 10.0}])
    state, control = SimpleNamespace(global_step=0, max_steps=10**9), SimpleNamespace(should_training_stop=False)
    spending.on_train_begin(None, state, control, model=model)
    while not control.should_training_stop:
        spending.on_step_begin(None, state, control, optimizer=optimizer)
        rates.append(optimizer.param_groups[0]["lr"])
        model(rows={"lengths": torch.tensor([10, 15])})
        state.global_step += 1
        spending.on_step_end(None, state, control)

    assert rates == pytest.approx([0.0, 10 * 0.75 / 0.8, 10 * 0.5 / 0.8, 10 * 0.25 / 0.8])
    assert told == pytest.approx([0.625, 0.75, 0.875, 1.0])  # of the whole recipe
    spending.on_train_end(None, state, control)
    model(rows={"lengths": torch.tensor([10, 15])})
    assert spending.num_tokens == 100


def failing(error):
    def outcome(plan, cell, on_share):
        raise RuntimeError("the model could not be saved") from error

    return outcome


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError('I/O error: Os { code: 28, kind: StorageFull, message: "No space left on device" }'),
    ],
)
def test_a_full_disk_ends_the_comparison_whoever_says_so(tmp_path, monkeypatch, error):
    monkeypatch.setattr(cells, "_outcome", failing(error))
    cell, plan = Cell("cl", "small", 0), SimpleNamespace(cell_folder=lambda cell: tmp_path / cell.key)
    with pytest.raises(OSError, match="found by small cl seed 0") as raised:
        cells.run_cell(plan, cell, lambda share: None)

    assert raised.value.errno == errno.ENOSPC
    assert not list(tmp_path.rglob("failure.json"))


def test_any_other_failure_is_kept_with_its_error(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "_outcome", failing(PermissionError(errno.EACCES, "Permission denied")))
    plan = SimpleNamespace(cell_folder=lambda cell: tmp_path)
    cells.run_cell(plan, Cell("cl", "small", 0), lambda share: None)

    assert "could not be saved" in (tmp_path / "failure.json").read_text()


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: now.seconds)
    return now


def test_the_time_left_follows_from_cells_of_the_same_student(clock):
    big, small = [Cell("cl", "big", seed) for seed in (0, 1)], [Cell("cl", "small", seed) for seed in (0, 1, 2)]
    with ComparisonProgress([*big, *small], {big[0]: 100.0, small[0]: 10.0}, show=False) as bar:
        assert bar.seconds_left() == 100 + 2 * 10
        bar.begin(small[1])
        clock.seconds = 4.0
        assert bar.seconds_left() == 100 + 2 * 10 - 4
        bar.over(small[1])
        assert bar.taken[small[1]] == 4.0
        assert bar.seconds_left() == 100 + 7


def test_the_time_left_is_not_guessed_before_anything_is_known(clock):
    all_cells = [Cell("teacher"), Cell("cl", "small", 0), Cell("cl", "small", 1)]
    with ComparisonProgress(all_cells, {}, show=False) as bar:
        assert bar.seconds_left() is None
        bar.begin(all_cells[1])
        clock.seconds = 9.0
        bar.on_share(0.5)  # 9 seconds for half of the training, which is 0.9 of a cell
        bar.taken[all_cells[0]] = 1.0
        assert bar.seconds_left() == pytest.approx(20 + 20 - 9)


def test_the_bar_says_which_cell_runs_and_what_is_left(clock, capsys):
    both = [Cell("cl", "small", seed) for seed in (0, 1)]
    with ComparisonProgress(both, {both[0]: 90.0}, show=True) as bar:
        bar.begin(both[1])

    shown = capsys.readouterr().err
    assert "small cl seed 1:  50%" in shown and "1.0/2 cells" in shown and "about 01:30 left" in shown
