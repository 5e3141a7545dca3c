"""Refusals: each is made, with its reason, and the page of features says the same of every argument."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import Trainer, TrainingArguments

from rerank_trainer.trainers.contrastive import ContrastiveRerankTrainer
from rerank_trainer.trainers.refusals import REFUSALS, refuse_unsupported
from tests.trainers.conftest import small_reranker, word_groups

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "trainer_features.md").read_text(encoding="utf-8")
MARKS = {"tested", "passes", "set", "refused", "in part"}

# What is refused: argument, value, and a word of the reason. FSDP needs processes and DeepSpeed its package: below.
REFUSED: list[tuple[str, Any, str]] = [
    ("accelerator_config", {"dispatch_batches": True}, r"\{'dispatch_batches': True\} is not supported: one process"),
    ("accelerator_config", {"even_batches": False}, r"\{'even_batches': False\} is not supported: processes"),
    ("auto_find_batch_size", True, "max_tokens_per_micro_batch"),
    ("average_tokens_across_devices", False, "each process would count for itself"),
    ("bf16_full_eval", True, "casts the weights themselves"),
    ("fp16", True, "in float32 without a word"),
    ("fp16_full_eval", True, "casts the weights themselves"),
    ("dataloader_in_order", False, "in which workers finish"),
    ("eval_use_gather_object", True, "padded tensors"),
    ("include_for_metrics", ["loss", "inputs"], "rows laid end to end"),
    ("label_smoothing_factor", 0.1, "smooths classes"),
    ("optim", "lomo", "inside the backward pass"),
    ("optim", "adalomo", "inside the backward pass"),
    ("optim", "galore_adamw_layerwise", "inside the backward pass"),
    ("torch_compile", True, "a new shape each"),
    ("torch_compile_backend", "eager", "a new shape each"),
    ("torch_compile_mode", "default", "a new shape each"),
    ("train_sampling_strategy", "group_by_length", "ordered by length inside each batch"),
    ("train_sampling_strategy", "batch_rebalance", "ordered by length inside each batch"),
    ("use_cache", True, "nothing is generated"),
    ("use_liger_kernel", True, "replaces forwards"),
]
REFUSED_BY_STAND_IN: list[tuple[str, dict[str, Any], str]] = [
    (
        "deepspeed",
        {"deepspeed": {}, "deepspeed_plugin": SimpleNamespace(zero_stage=3)},
        r"deepspeed=\{'zero_optimization': \{'stage': 3\}\} is not supported: ZeRO stage 3",
    ),
    (
        "fsdp_config",
        {"fsdp": True, "fsdp_config": {"version": 1}},
        r"fsdp_config=\{'version': 1\} .*FSDP 1 has not",
    ),
    ("fsdp_config", {"fsdp": True, "fsdp_config": {"xla": True}}, r"fsdp_config=\{'xla': True\} .*only FSDP 2"),
    (
        "fsdp_config",
        {"fsdp": True, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}},
        r"fsdp_config=\{'state_dict_type': 'SHARDED_STATE_DICT'\} .*no weights that from_pretrained opens",
    ),
    ("parallelism_config", {"parallelism_config": object()}, "cut rows of tokens apart"),
]


@pytest.mark.parametrize(("name", "value", "reason"), REFUSED, ids=lambda value: str(value)[:40])
def test_an_argument_that_cannot_work_is_refused_with_its_reason(make_args, name, value, reason):
    named = "torch_compile" if name.startswith("torch_compile") else name
    args = make_args(**{name: value})

    with pytest.raises(ValueError, match=f"^{named}=.* is not supported: |{named}=") as refused:
        ContrastiveRerankTrainer(small_reranker(), args, train_dataset=word_groups(4))
    assert re.search(reason, str(refused.value))


@pytest.mark.parametrize(("name", "values", "message"), REFUSED_BY_STAND_IN, ids=lambda value: str(value)[:40])
def test_what_needs_other_machines_is_refused_by_its_value(make_args, name, values, message):
    plugin = {"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT", **(values.get("fsdp_config") or {})}
    plugin["fsdp_version"] = plugin.pop("version", plugin["fsdp_version"])
    args = make_args()
    for key, value in {"fsdp_plugin_args": plugin, **values}.items():
        setattr(args, key, value)

    with pytest.raises(ValueError, match=message):
        refuse_unsupported(args)


def test_no_refusal_is_left_untested():
    tested = {name for name, *_ in REFUSED + REFUSED_BY_STAND_IN} - {"torch_compile_backend", "torch_compile_mode"}

    assert tested == {refusal.name for refusal in REFUSALS}
    assert len(REFUSED + REFUSED_BY_STAND_IN) >= len(REFUSALS)


def test_the_defaults_are_not_refused(make_args):
    refuse_unsupported(make_args())


def test_several_gpus_in_one_process_are_refused(make_args):
    args = make_args()
    args._n_gpu = 2

    with pytest.raises(ValueError, match="2 GPUs in one process .*torchrun"):
        refuse_unsupported(args)


def test_a_search_for_settings_is_refused_with_the_remedy(make_args):
    trainer = ContrastiveRerankTrainer(small_reranker(), make_args(), train_dataset=word_groups(4))

    with pytest.raises(ValueError, match="a new trainer for each setting"):
        trainer.hyperparameter_search(n_trials=1)


def rows_of_the_page() -> list[tuple[str, str, str]]:
    """(argument, mark, what is said) of each row of the page's tables of arguments."""
    lines = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| `")]
    return [(name.strip(" `"), mark.strip(), said) for name, mark, said in (line for line in lines if len(line) == 3)]


def test_the_page_names_every_argument_of_transformers_once():
    named = [name for name, *_ in rows_of_the_page()]

    assert sorted(named) == sorted(field.name for field in dataclasses.fields(TrainingArguments))
    assert {mark for _, mark, _ in rows_of_the_page()} <= MARKS


def test_the_page_says_refused_where_the_trainer_refuses_and_nowhere_else():
    marked = {name for name, mark, _ in rows_of_the_page() if mark in ("refused", "in part")}

    assert marked == {name for name, *_ in REFUSED + REFUSED_BY_STAND_IN}


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`((?:tests/)?\w+/test_\w+\.py)::(test_\w+)`", PAGE)
    missing = [
        name for path, name in named if f"def {name}(" not in (ROOT / "tests" / path).read_text(encoding="utf-8")
    ]

    assert len(named) > 20 and missing == []


def test_every_row_marked_tested_names_a_test():
    assert [name for name, mark, said in rows_of_the_page() if mark == "tested" and "::test_" not in said] == []


def test_every_argument_of_the_constructor_is_named_by_the_page():
    taken = set(inspect.signature(Trainer.__init__).parameters) - {"self"}

    assert [name for name in taken if f"`{name}`" not in PAGE] == []
