"""The model card: valid metadata, tables by hand, nothing local or secret, and a person's words stay."""

from __future__ import annotations

import math
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig

from rerank_trainer.data.origins import Origin
from rerank_trainer.losses import infonce, kl
from rerank_trainer.model_card import Evaluation, Training, reranker_card, save_card
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.objectives.objective import LabelObjective, TeacherObjective
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks


@pytest.fixture(scope="module")
def reranker():
    return Reranker(*tiny_model("bert"), max_length=64)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a tiny reranker, under a path that must not be told."""
    folder = tmp_path_factory.mktemp("hidden") / "mybase"
    Reranker(*tiny_model("bert"), max_length=64).save_pretrained(folder)
    return folder


DISTILLED = Training(
    "distillation",
    TeacherObjective(kl, teacher_temperature=2.0),
    data=[Origin("some/words", "some/words"), Origin("notes.jsonl", is_local=True), Origin("web")],
    teacher=Origin("Qwen/Qwen3-Reranker-4B", "Qwen/Qwen3-Reranker-4B"),
    facts={"seed": "7", "with | pipe": "two\nlines"},
)
DEV = Evaluation(
    "dev",
    {"ndcg@10": 0.7123456789, "map": 0.5},
    first_stage={"ndcg@10": 0.5, "map": 0.25},
    teacher={"ndcg@10": 0.75, "map": math.nan},
    step=100,
    num_queries=1200,
)


def table(card, title):
    """The rows of the table beneath a heading, each a list of cells, without the line below the head."""
    text = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", card.text, re.MULTILINE | re.DOTALL)[1]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(row) for row in rows}) == 1, "a row has another number of cells"
    return [rows[0], *rows[2:]]


def test_the_metadata_is_what_the_hub_reads(reranker):
    card = reranker_card(
        reranker,
        name="mine",
        base=Origin("some/base", "some/base"),
        training=DISTILLED,
        evaluations=[DEV],
        language="en",
        license="mit",
        tags=["code"],
    )
    metadata = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", str(card), re.DOTALL)[1])

    results = metadata.pop("model-index")
    assert metadata == {
        "base_model": "some/base",
        "base_model_relation": "finetune",
        "datasets": ["some/words"],
        "language": "en",
        "library_name": "sentence-transformers",
        "license": "mit",
        "metrics": ["ndcg@10", "map"],
        "pipeline_tag": "text-ranking",
        "tags": [
            "sentence-transformers",
            "cross-encoder",
            "reranker",
            "rerank_trainer",
            "generated_from_trainer",
            "distillation",
            "code",
        ],
    }
    assert results == [
        {
            "name": "mine",
            "results": [
                {
                    "task": {"type": "text-ranking", "name": "Text Ranking"},
                    "dataset": {"name": "dev", "type": "dev"},
                    "metrics": [
                        {
                            "type": "ndcg@10",
                            "value": 0.7123456789,
                            "name": "ndcg@10 (first stage 0.5000, teacher 0.7500)",
                        },
                        {"type": "map", "value": 0.5, "name": "map (first stage 0.2500)"},
                    ],
                }
            ],
        }
    ]


def test_the_figures_stand_in_a_table_against_the_first_stage_and_the_teacher(reranker):
    card = reranker_card(reranker, name="mine", evaluations=[DEV])

    assert table(card, "dev") == [
        ["", "ndcg@10", "map"],
        ["**this model**", "0.7123", "0.5000"],
        ["first stage", "0.5000", "0.2500"],
        ["teacher", "0.7500", "–"],
    ]
    assert "1,200 queries, measured at step 100." in card.text


def test_sets_of_one_data_set_stay_apart_on_the_hub(reranker):
    origin = Origin("some/words", "some/words", "default", "test")
    sets = [Evaluation(name, {"map": value}, origin=origin) for name, value in (("a", 0.1), ("b", 0.2), ("c", 0.3))]
    card = ModelCard(str(reranker_card(reranker, name="mine", evaluations=sets)))

    results = card.data.eval_results
    assert [(each.dataset_name, each.metric_value) for each in results] == [("a", 0.1), ("b", 0.2), ("c", 0.3)]
    assert (results[0].dataset_type, results[0].dataset_config, results[0].dataset_split) == (
        "some/words",
        "default",
        "test",
    )


def test_figures_that_are_not_finite_are_not_sent_to_the_hub(reranker):
    card = reranker_card(reranker, name="mine", evaluations=[Evaluation("dev", {"map": math.nan, "mrr@10": 0.5})])

    assert [each.metric_type for each in card.data.eval_results] == ["mrr@10"]
    assert table(card, "dev")[1] == ["**this model**", "–", "0.5000"]


def test_what_it_was_trained_on_is_told_and_stays_within_its_cells(reranker):
    card = reranker_card(reranker, name="mine", base=Origin("mybase", is_local=True), training=DISTILLED)

    assert table(card, "Training")[1:] == [["seed", "7"], ["with \\| pipe", "two lines"]]
    assert table(card, "Objective")[1:] == [["kl", "kl", "teacher", "1", "teacher temperature 2"]]
    assert (
        "It was trained from `mybase` (local) by distillation from "
        "[Qwen/Qwen3-Reranker-4B](https://huggingface.co/Qwen/Qwen3-Reranker-4B) on "
        "[some/words](https://huggingface.co/datasets/some/words), `notes.jsonl` (local), `web`, with rerank_trainer"
    ) in card.text
    assert card.data.base_model is None and card.data.datasets == ["some/words"]


def test_the_seed_paper_and_the_papers_of_the_losses_are_cited(reranker):
    card = reranker_card(reranker, name="mine", training=Training("contrastive", LabelObjective(infonce)))

    assert re.findall(r"^@\w+\{(\w+),", card.text, re.MULTILINE) == ["xu2025distillation", "oord2018representation"]
    assert "2507.08336" in card.text


def test_no_path_of_a_base_is_told(base):
    adapter = Reranker.from_pretrained(base).with_adapter(LoraConfig(r=2))
    card = reranker_card(adapter, name="mine", training=Training("contrastive", LabelObjective(infonce)))

    assert str(base.parent) not in str(card) and "`mybase` (local)" in card.text
    assert "peft" in card.data.tags and "lora" in card.data.tags
    assert card.data.base_model is None and "base_model_relation" not in card.data.to_dict()
    merged = reranker_card(adapter, name="mine", is_merged=True)
    assert "peft" not in merged.data.tags and "lora" in merged.data.tags


def test_an_adapter_is_one_on_the_hub(base):
    adapter = Reranker.from_pretrained(base).with_adapter(LoraConfig(r=2))
    card = reranker_card(adapter, name="mine", base=Origin("some/base", "some/base"))

    assert (card.data.base_model, card.data.base_model_relation) == ("some/base", "adapter")
    assert "`base_model_name_or_path`" not in card.text


def test_a_saved_adapter_keeps_no_card_of_peft_and_the_card_that_is_there(base, tmp_path):
    adapter = Reranker.from_pretrained(base).with_adapter(LoraConfig(r=2))
    adapter.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new" / "README.md").exists()

    (tmp_path / "new" / "README.md").write_text("my words")
    adapter.save_pretrained(tmp_path / "new")
    assert (tmp_path / "new" / "README.md").read_text() == "my words"


def test_how_it_is_served_stands_where_it_is_given(reranker):
    assert "### Servers" not in str(reranker_card(reranker, name="mine"))
    assert "### Servers\n\nvllm serve it\n" in str(reranker_card(reranker, name="mine", serving="vllm serve it"))


def test_examples_stand_in_the_card_when_they_are_given_whatever_they_hold(reranker):
    group = {"query": "```\n# not a heading", "passages": ["{{ x }} | ü"], "labels": [1.0]}
    text = str(reranker_card(reranker, name="mine", examples=[group]))

    block = re.search(r"^(`{4,})json\n(.*?)^\1$", text, re.MULTILINE | re.DOTALL)[2]
    assert yaml.safe_load(block) == group


def test_text_of_a_person_stays_and_its_metadata_is_completed(reranker, tmp_path):
    mine = "---\nlicense: mit\ntags:\n- mine\nlibrary_name: other\nmodel-index:\n- name: best\n  results:\n"
    for kind, value in (("dev", 0.1), ("old", 0.3)):
        mine += f"  - task:\n      type: text-ranking\n    dataset:\n      name: {kind}\n      type: {kind}\n"
        mine += f"    metrics:\n    - type: map\n      value: {value}\n"
    (tmp_path / "README.md").write_text(f"{mine}---\n\n# My words\n")
    save_card(reranker_card(reranker, name="new", training=DISTILLED, evaluations=[DEV]), tmp_path)
    card = ModelCard.load(tmp_path / "README.md")

    assert card.text == "\n# My words\n"
    assert (card.data.license, card.data.library_name, card.data.model_name) == ("mit", "other", "best")
    assert card.data.tags[0] == "mine" and "distillation" in card.data.tags
    assert card.data.pipeline_tag == "text-ranking" and card.data.datasets == ["some/words"]
    values = {(each.dataset_type, each.metric_type): each.metric_value for each in card.data.eval_results}
    assert values == {("dev", "map"): 0.5, ("old", "map"): 0.3, ("dev", "ndcg@10"): 0.7123456789}


def test_its_own_text_is_written_anew_and_what_was_added_to_the_metadata_stays(reranker, tmp_path):
    first = reranker_card(
        reranker, name="first", base=Origin("a/b", "a/b"), training=DISTILLED, evaluations=[DEV], tags=["code"]
    )
    first.data.license = "mit"
    first.save(tmp_path / "README.md")
    save_card(reranker_card(reranker, name="second"), tmp_path)
    card = ModelCard.load(tmp_path / "README.md")

    assert "# second" in card.text and "# first" not in card.text
    assert card.data.license == "mit" and "code" in card.data.tags
    assert card.data.base_model is None and card.data.datasets is None and card.data.eval_results is None
    assert "distillation" not in card.data.tags


def test_a_card_that_cannot_be_read_stays(reranker, tmp_path, caplog):
    (tmp_path / "README.md").write_text("---\ntags: [unclosed\n---\nwords")
    save_card(reranker_card(reranker, name="mine"), tmp_path)

    assert (tmp_path / "README.md").read_text() == "---\ntags: [unclosed\n---\nwords"
    assert "metadata cannot be read" in caplog.text


def test_versions_are_those_that_are_installed(reranker):
    import torch
    import transformers

    versions = dict(table(reranker_card(reranker, name="mine"), "Environment"))
    assert (versions["torch"], versions["transformers"]) == (torch.__version__, transformers.__version__)


def test_a_card_has_no_empty_stretches(reranker):
    sets = [DEV, Evaluation("bare", {"map": 0.5}), DEV]
    parity = {"transformers": 0.0}
    card = reranker_card(reranker, name="mine", training=DISTILLED, evaluations=sets, parity=parity, serving="x")

    assert "\n\n\n" not in str(card)
    headings = re.findall(r"(.*)\n(#+ .*)\n(.*)", re.sub(r"```.*?```", "", str(card), flags=re.DOTALL))
    assert len(headings) >= 9 and all(before == after == "" for before, _, after in headings)
