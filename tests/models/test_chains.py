"""Chains: a backbone and modules behind it score as arithmetic and sentence-transformers say, and stay so on disk."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling
from transformers import AutoConfig, AutoModel, AutoTokenizer, MambaConfig, T5Config, T5EncoderModel

from rerank_trainer.models.chains import needs_chain
from rerank_trainer.models.checkpoint import copy_loader_files
from rerank_trainer.models.reranker import Reranker
from rerank_trainer.models.verify import verify_checkpoint
from rerank_trainer.teachers.teacher import RerankerTeacher
from tests.tiny_models import PAIRS, RECURRENT, TEXTS, byte_tokenizer, tiny_model, tiny_recurrent_model

SHORT = PAIRS[:6]


def scores_of_sentence_transformers(folder, pairs=PAIRS) -> torch.Tensor:
    cross_encoder = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity(), local_files_only=True)
    return cross_encoder.predict(pairs, convert_to_tensor=True, show_progress_bar=False)


@pytest.fixture(scope="module", params=RECURRENT)
def recurrent(request, tmp_path_factory):
    """A reranker on a recurrent backbone, and its saved folder."""
    folder = tmp_path_factory.mktemp(request.param)
    model, tokenizer = tiny_recurrent_model(request.param)
    model.save_pretrained(folder / "language_model")
    tokenizer.save_pretrained(folder / "language_model")
    torch.manual_seed(1)
    reranker = Reranker.from_pretrained(folder / "language_model", max_length=64)
    reranker.save_pretrained(folder / "reranker")
    return reranker, folder / "reranker"


def test_a_recurrent_backbone_scores_by_its_last_token_alone_in_a_row(recurrent):
    reranker, folder = recurrent
    backbone = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (weight,) = load_file(folder / "2_Dense" / "model.safetensors").values()
    expected = []
    for query, passage in PAIRS:
        with torch.no_grad():
            row = tokenizer([query], [passage], truncation=True, return_tensors="pt")
            states = backbone(input_ids=row["input_ids"], use_cache=False).last_hidden_state
            expected.append(states[0, -1] @ weight[0])

    scores = reranker.predict(PAIRS)
    assert scores.std() > 0.1
    assert reranker.fresh_parameters == ("chain.1.linear.weight",)
    torch.testing.assert_close(scores, torch.stack(expected), atol=1e-5, rtol=0)


def test_padding_changes_no_score_of_a_recurrent_backbone(recurrent):
    reranker, _ = recurrent
    batch = reranker.tokenizer(*map(list, zip(*PAIRS, strict=True)), truncation=True, padding=True, return_tensors="pt")
    lengths = batch["attention_mask"].sum(dim=1)
    with torch.no_grad():
        padded = reranker.model(**batch).logits[:, 0]
    alone = torch.cat([reranker.predict([pair]) for pair in PAIRS])

    assert lengths.min() * 3 < lengths.max()
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(reranker.predict(PAIRS), alone, atol=1e-5, rtol=0)


def test_its_scores_and_their_gradient_are_float32_under_autocast(recurrent):
    reranker, _ = recurrent
    batch = reranker.tokenizer(*map(list, zip(*SHORT, strict=True)), padding=True, return_tensors="pt")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = reranker.model(**batch).logits[:, 0]
    (gradient,) = torch.autograd.grad(scores.square().sum(), [reranker.model.get_input_embeddings().weight])

    assert scores.dtype == gradient.dtype == torch.float32 and gradient.isfinite().all()
    assert not torch.equal(scores.bfloat16().float(), scores)
    torch.testing.assert_close(scores, reranker.predict(SHORT), atol=0.1, rtol=0.05)


@pytest.mark.parametrize("recurrent", ["recurrent_gemma"], indirect=True)
def test_padding_at_the_left_would_change_scores_so_the_folder_says_the_right(recurrent):
    reranker, folder = recurrent
    texts = list(map(list, zip(*SHORT, strict=True)))
    left = reranker.tokenizer(*texts, padding=True, padding_side="left", return_tensors="pt")
    with torch.no_grad():
        scores = reranker.model(**left).logits[:, 0]

    assert (scores - reranker.predict(SHORT)).abs().max() > 0.01
    assert AutoTokenizer.from_pretrained(folder).padding_side == "right"


def test_its_folder_opens_with_the_same_scores_here_and_in_sentence_transformers(recurrent):
    reranker, folder = recurrent
    scores = reranker.predict(PAIRS)
    again = Reranker.from_pretrained(folder)

    assert again.max_length == 64 and again.fresh_parameters == ()
    torch.testing.assert_close(again.predict(PAIRS), scores, atol=1e-6, rtol=0)
    torch.testing.assert_close(scores_of_sentence_transformers(folder), scores, atol=1e-5, rtol=0)
    differences = verify_checkpoint(folder, reranker, PAIRS)
    assert differences.keys() == {"sentence_transformers"} and differences["sentence_transformers"] < 1e-5


def test_its_folder_holds_the_backbone_as_transformers_names_it_and_nothing_else(recurrent, caplog):
    reranker, folder = recurrent
    config = json.loads((folder / "config.json").read_text())
    backbone, report = AutoModel.from_pretrained(folder, output_loading_info=True)

    assert config["architectures"] == [type(backbone).__name__]
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert reranker.model.state_dict().keys() - backbone.state_dict().keys() == {"chain.1.linear.weight"}


def test_a_changed_dense_layer_is_found_by_verifying(recurrent, tmp_path):
    reranker, _ = recurrent
    reranker.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "2_Dense" / "model.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, tmp_path / "2_Dense" / "model.safetensors")

    with pytest.raises(ValueError, match="opened by sentence_transformers, scores pair"):
        verify_checkpoint(tmp_path, reranker, SHORT)


def test_files_of_modules_are_copied_with_those_beside_the_weights(recurrent, tmp_path):
    reranker, folder = recurrent
    for path in folder.glob("*.*"):  # what Transformers copies for a push, and the tokenizer
        if path.name not in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
            shutil.copy(path, tmp_path / path.name)
    copy_loader_files(folder, tmp_path)

    torch.testing.assert_close(scores_of_sentence_transformers(tmp_path), reranker.predict(PAIRS), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "layers"), [("mamba", 1), ("mamba2", [1]), ("recurrent_gemma", 2)])
def test_a_student_keeps_layers_and_its_folder_opens(tmp_path, kind, layers):
    model, tokenizer = tiny_recurrent_model(kind)
    model.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    reranker = Reranker.from_pretrained(tmp_path / "whole", keep_layers=layers)
    reranker.save_pretrained(tmp_path / "student")

    again = Reranker.from_pretrained(tmp_path / "student")
    torch.testing.assert_close(again.predict(SHORT), reranker.predict(SHORT), atol=1e-6, rtol=0)


def test_layers_whose_kinds_the_configuration_cannot_say_are_refused(tmp_path):
    model, tokenizer = tiny_recurrent_model("recurrent_gemma")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    with pytest.raises(ValueError, match=r"keeps the layers \['linear_attention', 'sliding_attention'\], but a recurr"):
        Reranker.from_pretrained(tmp_path, keep_layers=[0, 2])


def test_only_a_backbone_without_a_classifier_in_transformers_needs_a_chain():
    assert needs_chain(MambaConfig())
    assert not any(needs_chain(AutoConfig.for_model(kind)) for kind in ("bert", "llama", "qwen3", "jamba", "t5"))


def backbone_folder(folder: Path, kind: str) -> str:
    """A backbone alone, as ``AutoModel`` saves it."""
    model, tokenizer = tiny_model(kind)
    model.base_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def dense(**options) -> Dense:
    return Dense(**{"in_features": 32, "out_features": 1, "module_output_name": "scores", **options})


def hidden(**options) -> Dense:
    return Dense(in_features=32, out_features=32, activation_function=torch.nn.GELU(), **options)


CHAINS = {
    "last token": lambda: [Pooling(32, "lasttoken"), dense(bias=False, activation_function=None)],
    "first token": lambda: [Pooling(32, "cls"), dense(activation_function=None)],
    "mean, by tanh": lambda: [Pooling(32, "mean"), dense()],
    "two poolings": lambda: [Pooling(32, ("max", "weightedmean")), dense(in_features=64, activation_function=None)],
    "hidden layers": lambda: [Pooling(32, "mean"), hidden(use_residual=True), LayerNorm(32), Dropout(0.5), dense()],
    "unit length": lambda: [Pooling(32, "mean_sqrt_len_tokens"), Normalize(), dense(activation_function=None)],
}


@pytest.mark.parametrize(("kind", "chain"), [("qwen2", "last token"), *(("bert", chain) for chain in CHAINS)])
def test_a_chain_of_sentence_transformers_scores_as_there(tmp_path, kind, chain, caplog):
    torch.manual_seed(2)
    transformer = Transformer(backbone_folder(tmp_path / "backbone", kind), transformer_task="feature-extraction")
    transformer.tokenizer.pad_token = transformer.tokenizer.pad_token or transformer.tokenizer.eos_token
    transformer.max_seq_length = 64
    modules = CHAINS[chain]()
    for parameter in [parameter for module in modules for parameter in module.parameters() if parameter.dim() > 1]:
        torch.nn.init.normal_(parameter, std=0.3)
    CrossEncoder(modules=[transformer, *modules], device="cpu").save_pretrained(str(tmp_path / "theirs"))
    expected = scores_of_sentence_transformers(tmp_path / "theirs")
    with caplog.at_level(logging.INFO, logger="rerank_trainer"):
        reranker = Reranker.from_pretrained(tmp_path / "theirs")

    assert expected.std() > 0.1
    assert reranker.max_length == 64 and reranker.fresh_parameters == ()
    assert "stores the activation torch.nn.modules.activation.Sigmoid, which is not applied" in caplog.text
    torch.testing.assert_close(reranker.predict(PAIRS), expected, atol=1e-5, rtol=0)
    reranker.save_pretrained(tmp_path / "ours")
    assert verify_checkpoint(tmp_path / "ours", reranker, PAIRS)["sentence_transformers"] < 1e-5


def test_a_chain_on_another_output_of_the_backbone_scores_as_there_and_is_saved_so(tmp_path):
    torch.manual_seed(2)
    pooled = {"text": {"method": "forward", "method_output_name": "pooler_output"}}
    transformer = Transformer(
        backbone_folder(tmp_path / "backbone", "bert"), modality_config=pooled, module_output_name="sentence_embedding"
    )
    CrossEncoder(modules=[transformer, dense()], device="cpu").save_pretrained(str(tmp_path / "theirs"))
    reranker = Reranker.from_pretrained(tmp_path / "theirs")
    reranker.save_pretrained(tmp_path / "ours")

    expected = scores_of_sentence_transformers(tmp_path / "theirs")
    torch.testing.assert_close(reranker.predict(PAIRS), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores_of_sentence_transformers(tmp_path / "ours"), expected, atol=1e-5, rtol=0)


def test_a_chain_on_the_encoder_of_t5_scores_as_there(tmp_path):
    torch.manual_seed(2)
    tokenizer = byte_tokenizer(special=True)
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2)
    T5EncoderModel(config).save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    transformer = Transformer(str(tmp_path / "backbone"))
    modules = [transformer, Pooling(32, "mean"), dense()]
    CrossEncoder(modules=modules, device="cpu").save_pretrained(str(tmp_path / "theirs"))

    scores = Reranker.from_pretrained(tmp_path / "theirs").predict(PAIRS)
    expected = scores_of_sentence_transformers(tmp_path / "theirs")
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("recurrent", ["mamba"], indirect=True)
def test_two_teachers_of_the_same_weights_that_pool_unlike_are_not_taken_for_one(recurrent, tmp_path):
    reranker, folder = recurrent
    reranker.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({**config, "pooling_mode": "mean"}))
    same, other = (RerankerTeacher(Reranker.from_pretrained(name)) for name in (folder, tmp_path))

    assert same.fingerprint == RerankerTeacher(Reranker.from_pretrained(folder)).fingerprint != other.fingerprint


@pytest.fixture
def chain_folder(recurrent, tmp_path):
    reranker, _ = recurrent
    reranker.save_pretrained(tmp_path)
    return tmp_path


def edit_modules(folder: Path, index: int, **entries) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[index].update(entries)
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize("recurrent", ["mamba"], indirect=True)
@pytest.mark.parametrize(
    ("index", "entries"),
    [
        (1, {"type": "sentence_transformers.sentence_transformer.modules.LSTM"}),
        (2, {"type": "somewhere.modules.Dense"}),
        (2, {"path": "../2_Dense"}),
    ],
)
def test_a_module_that_is_not_known_is_refused(chain_folder, index, entries):
    edit_modules(chain_folder, index, **entries)

    with pytest.raises(ValueError, match=r"chain of the modules .* among \['Pooling', 'Dense'"):
        Reranker.from_pretrained(chain_folder)


@pytest.mark.parametrize("recurrent", ["mamba"], indirect=True)
def test_pickled_weights_of_a_module_are_refused_unless_they_are_allowed(recurrent, chain_folder):
    weights = load_file(chain_folder / "2_Dense" / "model.safetensors")
    (chain_folder / "2_Dense" / "model.safetensors").unlink()
    torch.save(weights, chain_folder / "2_Dense" / "pytorch_model.bin")

    with pytest.raises(ValueError, match=r"pickled weights, 2_Dense/pytorch_model\.bin, .*allow_pickle=True"):
        Reranker.from_pretrained(chain_folder)
    scores = Reranker.from_pretrained(chain_folder, allow_pickle=True).predict(SHORT)
    torch.testing.assert_close(scores, recurrent[0].predict(SHORT), atol=1e-6, rtol=0)


@pytest.mark.parametrize("recurrent", ["mamba"], indirect=True)
def test_a_chain_that_gives_two_scores_is_refused(chain_folder):
    config = json.loads((chain_folder / "2_Dense" / "config.json").read_text())
    (chain_folder / "2_Dense" / "config.json").write_text(json.dumps({**config, "out_features": 2}))
    save_file({"linear.weight": torch.zeros(2, 32)}, chain_folder / "2_Dense" / "model.safetensors")

    with pytest.raises(ValueError, match=r"ends in Dense\(.*'out_features': 2.*: expected .* one score"):
        Reranker.from_pretrained(chain_folder)


def test_a_chain_of_16_bits_is_saved_and_opened_in_16_bits(recurrent, tmp_path):
    reranker = Reranker.from_pretrained(recurrent[1], dtype=torch.bfloat16)
    reranker.save_pretrained(tmp_path)

    assert {value.dtype for value in load_file(tmp_path / "2_Dense" / "model.safetensors").values()} == {torch.bfloat16}
    assert verify_checkpoint(tmp_path, reranker, [(TEXTS[0], TEXTS[1])])["sentence_transformers"] < 1e-2
