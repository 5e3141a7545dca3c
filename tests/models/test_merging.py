"""Merging: weights are those of the definitions, whatever the files; what is unlike is refused with what differs."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder

from rerank_trainer.data.prompts import Prompt
from rerank_trainer.models.merging import merge_checkpoints
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.token_logits import TokenLogitHead
from tests.tiny_language_models import tiny_language_model
from tests.tiny_models import PAIRS, tiny_model, tiny_recurrent_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # peft asks
]
needs_mergekit = pytest.mark.skipif(find_spec("mergekit") is None, reason="mergekit is not installed")

SHORT = PAIRS[:6]


def tensors(folder):
    """All tensors of a folder, by name."""
    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


def slerp(t: float, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The definition, https://en.wikipedia.org/wiki/Slerp, of two tensors as vectors in float64."""
    one, other = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    angle = np.arccos(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    along = (np.sin((1 - t) * angle) * one + np.sin(t * angle) * other) / np.sin(angle)
    return along.reshape(a.shape)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Three checkpoints of one architecture with one tokenizer; the second's weights lie in many files."""
    folder = tmp_path_factory.mktemp("checkpoints")
    _, tokenizer = tiny_model("bert")
    for seed in range(3):
        reranker = Reranker(tiny_model("bert", seed=seed)[0], tokenizer, max_length=96)
        reranker.save_pretrained(folder / str(seed))
    (folder / "1" / "model.safetensors").unlink()
    Reranker(tiny_model("bert", seed=1)[0], tokenizer, max_length=96).model.save_pretrained(
        folder / "1", max_shard_size="20KB"
    )
    assert len(list((folder / "1").glob("*.safetensors"))) > 2
    return [folder / str(seed) for seed in range(3)]


@needs_mergekit
@pytest.mark.parametrize("weights", [None, [1, 2, 5]])
def test_the_average_is_that_of_all_tensors_by_weight(checkpoints, tmp_path, weights):
    merged = merge_checkpoints(checkpoints, tmp_path / "merged", weights=weights, pairs=SHORT)

    ours, sources = tensors(tmp_path / "merged"), [tensors(folder) for folder in checkpoints]
    for key, tensor in ours.items():
        expected = np.average([source[key].numpy() for source in sources], axis=0, weights=weights)
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-7, err_msg=key)
    assert ours.keys() == sources[0].keys()
    other = CrossEncoder(str(tmp_path / "merged"), device="cpu").predict(SHORT, convert_to_tensor=True)
    torch.testing.assert_close(merged.predict(SHORT), other, rtol=1e-5, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]  # nothing is left beside it


@needs_mergekit
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_slerp_goes_along_the_arc_between_two_tensors(checkpoints, tmp_path, share):
    # the checkpoint in many files stands first: its files are those that are written
    pair = [checkpoints[1], checkpoints[0]]
    merge_checkpoints(pair, tmp_path / "merged", method="slerp", weights=[1 - share, share], pairs=SHORT)

    ours, (one, other) = tensors(tmp_path / "merged"), map(tensors, pair)
    key = "bert.encoder.layer.0.attention.self.query.weight"
    expected = slerp(share, one[key].numpy(), other[key].numpy())
    assert np.abs(expected - (1 - share) * one[key].numpy() - share * other[key].numpy()).max() > 0.05
    for name in (key, "classifier.weight", "bert.embeddings.word_embeddings.weight"):
        np.testing.assert_allclose(
            ours[name].numpy(), slerp(share, one[name].numpy(), other[name].numpy()), rtol=1e-5, atol=1e-6
        )


@needs_mergekit
@pytest.mark.parametrize("method", ["average", "slerp"])
def test_a_checkpoint_merged_with_itself_is_itself(checkpoints, tmp_path, method):
    merge_checkpoints([checkpoints[0], checkpoints[0]], tmp_path / "merged", method=method, pairs=SHORT)

    ours, theirs = tensors(tmp_path / "merged"), tensors(checkpoints[0])
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-6, atol=1e-7)


@needs_mergekit
def test_weights_of_16_bits_are_averaged_in_float32_and_stay_16_bits(checkpoints, tmp_path):
    for number, folder in enumerate(checkpoints[:2]):
        Reranker.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / str(number))
    merge_checkpoints([tmp_path / "0", tmp_path / "1"], tmp_path / "merged", weights=[0.3, 0.7], pairs=SHORT)

    ours, (one, other) = tensors(tmp_path / "merged"), [tensors(tmp_path / name) for name in ("0", "1")]
    for key, tensor in ours.items():
        expected = (0.3 * one[key].double() + 0.7 * other[key].double()).to(torch.bfloat16)
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor, expected, rtol=2**-7, atol=1e-7)  # a last digit, where it lies between two
        assert (tensor == expected).float().mean() > 0.95


@needs_mergekit
def test_adapters_of_unlike_ranks_become_their_base_with_the_mean_of_what_they_add(checkpoints, tmp_path):
    base = tensors(checkpoints[0])
    added = []
    for rank in (2, 5):
        torch.manual_seed(rank)
        config = LoraConfig(r=rank, target_modules=["query"], init_lora_weights=False)
        adapted = Reranker.from_pretrained(checkpoints[0]).with_adapter(config)
        adapted.model.eval()
        adapted.save_pretrained(tmp_path / str(rank))
        adapted.save_merged(tmp_path / f"whole-{rank}")
        added.append(tensors(tmp_path / f"whole-{rank}"))
    merge_checkpoints([tmp_path / "2", tmp_path / "5"], tmp_path / "merged", pairs=SHORT)

    ours = tensors(tmp_path / "merged")
    key = "bert.encoder.layer.0.attention.self.query.weight"
    assert (ours[key] - base[key]).abs().max() > 0.01
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, (added[0][key] + added[1][key]) / 2, rtol=1e-5, atol=1e-6)


@needs_mergekit
def test_modules_behind_a_backbone_are_merged_too(tmp_path):
    for seed in (0, 1):
        model, tokenizer = tiny_recurrent_model("mamba", seed=seed)
        model.save_pretrained(tmp_path / "lm")
        tokenizer.save_pretrained(tmp_path / "lm")
        Reranker.from_pretrained(tmp_path / "lm").save_pretrained(tmp_path / str(seed))
        shutil.rmtree(tmp_path / "lm")
    merge_checkpoints([tmp_path / "0", tmp_path / "1"], tmp_path / "merged", pairs=SHORT)

    heads = [load_file(tmp_path / name / "2_Dense/model.safetensors") for name in ("merged", "0", "1")]
    for key, tensor in heads[0].items():
        torch.testing.assert_close(tensor, (heads[1][key] + heads[2][key]) / 2)


@needs_mergekit
def test_language_models_keep_their_answers_and_their_prompt(tmp_path):
    prompt = Prompt("Query: {query}\nText: {passage}\nDoes it answer?")
    _, tokenizer = tiny_language_model("qwen3")
    for seed in (0, 1):
        model = tiny_language_model("qwen3", seed=seed)[0]
        how = {"head": TokenLogitHead("yes", "no"), "prompt": prompt, "max_length": 128}
        Reranker(model, tokenizer, **how).save_pretrained(tmp_path / str(seed))
    merged = merge_checkpoints([tmp_path / "0", tmp_path / "1"], tmp_path / "merged", pairs=SHORT)

    again = Reranker.from_pretrained(tmp_path / "merged")
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    assert (again.prompt, again.head) == (prompt, TokenLogitHead(yes, no))
    torch.testing.assert_close(again.predict(SHORT), merged.predict(SHORT))


def edit_json(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def in_bert(source, folder, **changes):
    """A copy of a checkpoint with other entries of its configuration."""
    shutil.copytree(source, folder)
    edit_json(folder / "config.json", **changes)
    return folder


@needs_mergekit
def test_unlike_checkpoints_are_refused_with_what_differs(checkpoints, tmp_path):
    model, tokenizer = tiny_model("bert-wordpiece")
    Reranker(model, tokenizer, max_length=96).save_pretrained(tmp_path / "wordpiece")
    Reranker(*tiny_model("roberta"), max_length=96).save_pretrained(tmp_path / "roberta")
    Reranker.from_pretrained(checkpoints[0], keep_layers=1).save_pretrained(tmp_path / "short")
    refused = {
        tmp_path / "roberta": "architectures",
        tmp_path / "wordpiece": "entries of the vocabulary",
        tmp_path / "short": "num_hidden_layers 2 and 1",
        in_bert(checkpoints[0], tmp_path / "gelu", hidden_act="relu"): "hidden_act 'gelu' and 'relu'",
    }
    for folder, said in refused.items():
        with pytest.raises(ValueError, match=said):
            merge_checkpoints([checkpoints[0], folder], tmp_path / "merged", pairs=SHORT)
    assert not (tmp_path / "merged").exists()


@needs_mergekit
def test_language_models_of_other_answers_or_prompts_are_refused(tmp_path):
    model, tokenizer = tiny_language_model("qwen3")
    prompt, other = Prompt("{query}\n{passage}\nAnswers?"), Prompt("{query}\n{passage}\nRelevant?")
    kinds = {"one": (prompt, "yes"), "answer": (prompt, "Yes"), "prompt": (other, "yes")}
    for name, (text, yes) in kinds.items():
        reranker = Reranker(model, tokenizer, head=TokenLogitHead(yes, "no"), prompt=text, max_length=128)
        reranker.save_pretrained(tmp_path / name)
    for name, said in {"answer": "; head: ", "prompt": "differ in prompt: "}.items():
        with pytest.raises(ValueError, match=said):
            merge_checkpoints([tmp_path / "one", tmp_path / name], tmp_path / "merged", pairs=SHORT)


@needs_mergekit
def test_adapters_of_unlike_bases_are_refused(checkpoints, tmp_path):
    for number in (0, 2):
        adapted = Reranker.from_pretrained(checkpoints[number]).with_adapter(LoraConfig(r=2, target_modules=["query"]))
        adapted.save_pretrained(tmp_path / str(number))
    with pytest.raises(ValueError, match="stand on unlike bases"):
        merge_checkpoints([tmp_path / "0", tmp_path / "2"], tmp_path / "merged")


@needs_mergekit
def test_pickled_weights_are_not_merged(checkpoints, tmp_path):
    shutil.copytree(checkpoints[0], tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights are not merged"):
        merge_checkpoints([checkpoints[0], tmp_path / "pickled"], tmp_path / "merged")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "mean"}, r"method='mean': expected one of \['average', 'slerp'\]"),
        ({"names": ["a"]}, "takes two or more, found 1"),
        ({"names": ["a", "b", "c"], "method": "slerp"}, "takes exactly two checkpoints"),
        ({"weights": [1.0]}, r"weights=\[1.0\]: expected one for each of 2"),
        ({"weights": [1.0, -0.5]}, "0 or more"),
        ({"weights": [0, 0]}, "not all 0"),
        ({"weights": [1.0, float("nan")]}, "expected one"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        merge_checkpoints(**{"names": ["a", "b"], "folder": tmp_path / "merged", **options})


@pytest.mark.skipif(find_spec("mergekit") is not None, reason="mergekit is installed")
def test_without_mergekit_it_says_what_to_install(tmp_path):
    with pytest.raises(ImportError, match=r"rerank_trainer\[merge\]"):
        merge_checkpoints(["a", "b"], tmp_path / "merged")
