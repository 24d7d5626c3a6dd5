"""Sequence classifiers of transformers as networks: parts, masks, small tables, layers of another, ONNX."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer

from kdzoo.contract.stage import ModelSpec
from kdzoo.data.inputs import TokenIds, inputs_of
from kdzoo.errors import KdzooError, ModelError
from kdzoo.models.building import build_network
from kdzoo.models.folding import fold_batchnorm
from kdzoo.models.weights import start_from
from kdzoo.run.student_files import write_student
from kdzoo.storage.atomic import write_json
from kdzoo_export.onnx_file import Onnx
from kdzoo_text import checkpoints
from kdzoo_text.classifier import SIZES, TextClassifier, models
from kdzoo_text.clinc150 import Clinc150

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "data"
TOKENS: dict[str, Any] = {"vocab_size": 40, "pad": 0, "unknown": 1, "seen": [0, 2, 3, 7, 20, 39]}
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32}
KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "distilbert": {"dim": 16, "n_heads": 2, "hidden_dim": 24},
    "roberta": {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
    "electra": {"embedding_size": 8},
    "gpt2": {"n_embd": 16, "n_head": 2, "n_positions": 32, "bos_token_id": 2, "eos_token_id": 3},
}


def network(kind: str = "bert", depth: int = 3, tokens: dict[str, Any] = TOKENS, **args: Any) -> Any:
    config = {"model_type": kind, **SMALL, **KINDS[kind], "num_hidden_layers": depth}
    if "checkpoint" not in args:
        args["config"] = {**config, **args.pop("config", {})}
    spec = ModelSpec("text_classifier", args.pop("weights", "train"), args)
    numbers = {key: tokens[key] for key in ("vocab_size", "unknown")}
    inputs = TokenIds(1, (9, 1), (0.0,), (1.0,), fill=tokens["pad"], seen=tuple(tokens["seen"]), **numbers)
    return build_network(spec, inputs=inputs, num_classes=5, seed=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of six layers without a classifier, as a checkpoint of a language model is."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = transformers.BertConfig(vocab_size=40, num_hidden_layers=6, **SMALL)
        transformers.BertModel(config).save_pretrained(folder)
    return folder


def ids_of(*lengths: int) -> torch.Tensor:
    ids = torch.randint(2, 40, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(4))
    return ids * (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


def refusal(act: Any) -> str:
    with pytest.raises(ModelError) as caught:
        act()
    return str(caught.value)


# --- any of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_the_whole(kind: str) -> None:
    net = network(kind).eval()
    assert [level.name for level in net.levels] == ["layer 0", "layer 1", "layer 2"]
    ids = ids_of(9, 4)
    with torch.no_grad():
        whole = net(ids, levels=(0, 2), pre_logits=True)
        torch.testing.assert_close(whole.logits, net(ids).logits)
        classifier = net.model._classifier()
        torch.testing.assert_close(classifier(whole.pre_logits), whole.logits)
    assert whole.pre_logits.shape == (2, net.pre_logits_width)
    assert [tuple(feature.shape) for feature in whole.features] == [(2, 16, 9, 1)] * 2
    assert all(feature[1, :, 4:].abs().max() == 0 for feature in whole.features)
    assert all(feature[1, :, :4].abs().min() > 0 for feature in whole.features)


@pytest.mark.parametrize("kind", KINDS)
def test_fill_changes_no_answer(kind: str) -> None:
    net = network(kind).eval()
    ids = ids_of(5, 3)
    with torch.no_grad():
        narrow = net(ids, levels=(2,), pre_logits=True)
        wide = net(torch.nn.functional.pad(ids, (0, 6)), levels=(2,), pre_logits=True)
        alone = net(ids[1:, :3])
    for first, second in ((narrow.logits, wide.logits), (narrow.pre_logits, wide.pre_logits)):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(narrow.features[0], wide.features[0][:, :, :5], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.logits, narrow.logits[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "table"), [("bert", "training"), ("distilbert", "all")])
def test_a_file_takes_any_number_of_texts_of_any_length(kind: str, table: str, tmp_path: Path) -> None:
    net = network(kind, table=table).eval()
    path = tmp_path / "text.onnx"
    Onnx(Onnx.Options()).export(net.model, ids_of(9, 4), path, {}, [])
    run = Onnx(Onnx.Options()).load(path, 1)
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == ["batch", "length"]
    for lengths in ((9, 4), (3,), (1, 2, 5, 4, 8), (20,)):
        ids = ids_of(*lengths)
        with torch.no_grad():
            expected = net(ids).logits.numpy()
        np.testing.assert_allclose(run(ids.numpy()), expected, rtol=1e-3, atol=1e-5)


def test_folding_and_hashing_leave_it_as_it_is() -> None:
    net = network().eval()
    torch.testing.assert_close(fold_batchnorm(net)(ids_of(5, 3)).logits, net(ids_of(5, 3)).logits)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_need_no_checkpoint(name: str) -> None:
    layers, width, _ = SIZES[name]
    model = timm.create_model(name, num_classes=5, tokens=TOKENS)
    assert (len(model.feature_info), model.feature_info[0]["num_chs"]) == (layers, width)
    assert models == ("text_classifier", *SIZES)
    deeper = timm.create_model(name, num_classes=5, tokens=TOKENS, config={"num_hidden_layers": layers + 1})
    assert len(deeper.feature_info) == layers + 1


# --- the word table -------------------------------------------------------------------------------


def test_a_small_table_reads_the_tokenizers_ids() -> None:
    net = network(table="training").eval()
    table = net.model.network.get_input_embeddings().weight
    assert table.shape == (7, 16)  # the six that train has, and the unknown one
    kept, unseen = torch.tensor([[2, 7, 39, 20]]), torch.tensor([[2, 8, 38, 20]])
    with torch.no_grad():
        torch.testing.assert_close(net(unseen).logits, net(torch.tensor([[2, 1, 1, 20]])).logits)
        assert not torch.equal(net(unseen).logits, net(kept).logits)
    assert "row_of" in net.model.state_dict()


def test_a_small_table_starts_with_the_rows_of_a_large_one() -> None:
    teacher, student = network(), network(table="training")
    start_from(student, teacher)
    whole, kept = (net.model.network.get_input_embeddings().weight for net in (teacher, student))
    assert torch.equal(kept, whole[[0, 1, 2, 3, 7, 20, 39]])
    ids = torch.tensor([[2, 7, 39, 20, 0]])
    with torch.no_grad():
        torch.testing.assert_close(student.eval()(ids).logits, teacher.eval()(ids).logits)


def test_a_small_table_starts_from_another_small_one() -> None:
    fewer = network(table="training", tokens={**TOKENS, "seen": [0, 3, 20]})
    larger = network(table="training")
    start_from(fewer, larger)
    rows = larger.model.network.get_input_embeddings().weight[larger.model.row_of[[0, 1, 3, 20]]]
    assert torch.equal(fewer.model.network.get_input_embeddings().weight, rows)


@pytest.mark.parametrize("table", ["all", "training"])
def test_plain_values_make_the_same_network_again(table: str) -> None:
    net = network(table=table).eval()
    told = json.loads(json.dumps(net.create_args))
    again = timm.create_model("text_classifier", **told).eval()
    again.load_state_dict(net.model.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(again(ids_of(6, 2)), net(ids_of(6, 2)).logits)


# --- layers of another ----------------------------------------------------------------------------


LAYER = "bert.encoder.layer.{}.attention.self.query.weight"


def test_some_layers_are_taken_over() -> None:
    teacher, student = network(depth=6), network(depth=6, layers=[1, 3, 5])
    start_from(student, teacher)
    theirs, own = teacher.model.network.state_dict(), student.model.network.state_dict()
    for mine, their in ((0, 1), (1, 3), (2, 5)):
        assert torch.equal(own[LAYER.format(mine)], theirs[LAYER.format(their)])
    assert torch.equal(own["classifier.weight"], theirs["classifier.weight"])
    assert len(student.levels) == 3


#: Where each kind has the matrices with a row, and with a column, for each unit of a feed-forward; and the biases.
UNITS = {
    "bert": ("layer.2.intermediate.dense.weight", "layer.2.output.dense.weight", "layer.2.intermediate.dense.bias"),
    "distilbert": ("layer.2.ffn.lin1.weight", "layer.2.ffn.lin2.weight", "layer.2.ffn.lin1.bias"),
    "gpt2": ("h.2.mlp.c_proj.weight", "h.2.mlp.c_fc.weight", "h.2.mlp.c_fc.bias"),
}
INNER = {"bert": "intermediate_size", "distilbert": "hidden_dim", "gpt2": "n_inner"}


@pytest.mark.parametrize("kind", UNITS)
def test_a_narrower_feed_forward_takes_the_units_that_weigh_most(kind: str) -> None:
    wide = {INNER[kind]: 24}
    teacher = network(kind, config=wide).eval()
    student = network(kind, config=wide, layers=[0, 2], feed_forward=10).eval()
    start_from(student, teacher)
    theirs, own = teacher.model.network.state_dict(), student.model.network.state_dict()
    found = [next(key for key in theirs if key.endswith(name)) for name in UNITS[kind]]
    by_row, by_column, bias = (theirs[key] for key in found)
    weight = [float(by_row[unit].square().sum() * by_column[:, unit].square().sum()) for unit in range(24)]
    kept = sorted(sorted(range(24), key=weight.__getitem__)[-10:])
    taken = [own[key.replace(".2.", ".1.", 1)] for key in found]
    for mine, whole in zip(taken, (by_row[kept], by_column[:, kept], bias[kept]), strict=True):
        assert torch.equal(mine, whole)


def test_units_without_weight_are_no_loss() -> None:
    teacher, student = network().eval(), network(feed_forward=10).eval()
    with torch.no_grad():
        for layer in teacher.model.network.bert.encoder.layer:
            layer.output.dense.weight[:, 3:17] = 0
    start_from(student, teacher)
    ids = ids_of(6, 2)
    with torch.no_grad():
        torch.testing.assert_close(student(ids).logits, teacher(ids).logits)
    assert student.model.create_args["config"]["intermediate_size"] == 10


def test_a_checkpoint_gives_layers_and_pieces(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDZOO_MODELS", str(checkpoint.parent))
    whole = transformers.BertModel.from_pretrained(checkpoint).state_dict()
    net = network(checkpoint="tiny-bert", weights="pretrained", layers=[0, 5], table="training")
    own = net.model.network.bert.state_dict()
    layer = LAYER.removeprefix("bert.")
    assert torch.equal(own[layer.format(1)], whole[layer.format(5)])
    table = "embeddings.word_embeddings.weight"
    assert torch.equal(own[table], whole[table][[0, 1, 2, 3, 7, 20, 39]])
    assert net.fresh_head
    assert not torch.equal(
        own[table], network(checkpoint="tiny-bert", table="training").model.network.bert.state_dict()[table]
    )
    assert "checkpoint" not in json.dumps(net.create_args)


def test_a_checkpoint_with_a_classifier_of_these_classes_is_ready(checkpoint: Path, tmp_path: Path) -> None:
    net = network(checkpoint=str(checkpoint), weights="pretrained")
    net.model.network.save_pretrained(tmp_path)
    again = network(checkpoint=str(tmp_path), weights="pretrained")
    assert not again.fresh_head
    assert torch.equal(again.model.network.classifier.weight, net.model.network.classifier.weight)


def delivered(net: Any, root: Path) -> Path:
    """Put a student into a folder, as a run does."""
    build = SimpleNamespace(trained_network=lambda result: net, data=SimpleNamespace(classes=("a", "b", "c", "d", "e")))
    folder = SimpleNamespace(path=root.joinpath, write_json=lambda name, content: write_json(root / name, content))
    write_student(build, folder, SimpleNamespace(model=net.spec))  # type: ignore[arg-type]
    return root


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2"])
def test_transformers_loads_the_folder_of_a_run(kind: str, tmp_path: Path) -> None:
    net = network(kind)
    delivered(net, tmp_path)
    loaded, told = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values()), told
    assert loaded.config.id2label == dict(enumerate("abcde"))
    ids = torch.tensor([[3, 7, 2, 5], [9, 4, 0, 0]])
    with torch.no_grad():
        theirs = loaded.eval()(input_ids=ids, attention_mask=(ids != 0).long()).logits
        assert torch.equal(theirs, net.eval().model(ids))
    again = network(kind, weights=str(tmp_path / "student.safetensors"))
    assert all(map(torch.equal, again.model.state_dict().values(), net.model.state_dict().values()))
    assert load_file(tmp_path / "student.safetensors").keys() == loaded.state_dict().keys()


def test_the_folder_of_a_run_is_whole_for_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = Clinc150(Clinc150.Options(vocab_size=200, max_length=8)).load(FIXTURES)
    spec = ModelSpec("text_classifier", args={"config": {"model_type": "bert", **SMALL, "num_hidden_layers": 1}})
    net = build_network(spec, inputs=inputs_of(splits), num_classes=len(splits.classes), seed=0).eval()
    build = SimpleNamespace(trained_network=lambda result: net, data=SimpleNamespace(classes=splits.classes))
    folder = SimpleNamespace(
        path=tmp_path.joinpath, write_json=lambda name, content: write_json(tmp_path / name, content)
    )
    usage = write_student(build, folder, SimpleNamespace(model=spec))  # type: ignore[arg-type]
    assert usage["title"] == "With transformers alone"
    monkeypatch.chdir(tmp_path)
    text = "what is my balance, and when is the bill due"  # longer than max_length
    answered: dict[str, Any] = {}
    exec(usage["code"].replace("your text", text), answered)
    tokenizer = Tokenizer.from_file("tokenizer/tokenizer.json")
    with torch.no_grad():
        expected = net.model(torch.tensor([tokenizer.encode(text).ids]))
    assert torch.equal(answered["logits"], expected)
    assert answered["answer"] == splits.classes[int(expected.argmax())]
    classifier = transformers.pipeline("text-classification", model=".")
    assert classifier("what is my balance")[0]["label"] in splits.classes


def test_a_table_of_chosen_rows_is_not_offered_to_transformers(tmp_path: Path) -> None:
    net = network(table="training")
    delivered(net, tmp_path)
    assert not (tmp_path / "config.json").exists()
    again = network(table="training", weights=str(tmp_path / "student.safetensors"))
    assert torch.equal(again.model.row_of, net.model.row_of)


def test_a_name_that_says_nothing_is_shown_with_the_architecture() -> None:
    assert network("distilbert").model.architecture == "distilbert, 3 layers of 16"
    assert timm.create_model("text_bert_tiny", num_classes=5, tokens=TOKENS).architecture is None


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ({"table": "some"}, "args.table: 'some'; all or training would be right"),
        ({"layers": [0, 3]}, "args.layers: [0, 3]; some of 0 to 2 would be right"),
        ({"layers": []}, "args.layers: []; some of 0 to 2 would be right"),
        ({"feed_forward": 25}, "args.feed_forward: 25; 1 to 24 would be right"),
        ({"feed_forward": 0}, "args.feed_forward: 0; 1 to 24 would be right"),
        (
            {"kind": "gpt2", "feed_forward": 8},
            "args.feed_forward: this gpt2 gives none of intermediate_size, hidden_dim, n_inner; leave it out",
        ),
        ({"config": {"model_type": None}}, "args: name a checkpoint, or a config with a model_type, e.g. bert"),
        ({"weights": "pretrained"}, "weights: pretrained needs args.checkpoint, a folder or a name of the hub"),
    ],
)
def test_arguments_that_are_wrong(args: dict[str, Any], problem: str) -> None:
    assert refusal(lambda: network(**args)) == problem


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    told = refusal(lambda: network(checkpoint="nobody/nothing"))
    assert re.fullmatch(
        r"checkpoint 'nobody/nothing' cannot be read; no folder of that name, here or below \$KDZOO_MODELS: \w+: .+\n"
        r"  Give a folder in transformers' format, or a name of the hub where there is a network",
        told,
    )
    (tmp_path / "config.json").write_text("{")
    assert refusal(lambda: network(checkpoint=str(tmp_path))).startswith(
        f"checkpoint '{tmp_path}' cannot be read in {tmp_path}: "
    )


def test_a_tokenizer_of_another_checkpoint_is_refused(checkpoint: Path) -> None:
    assert refusal(lambda: network(checkpoint=str(checkpoint), tokens={**TOKENS, "vocab_size": 41})) == (
        f"checkpoint '{checkpoint}': its word table has 40 rows and fills up with 0, the data set's tokenizer 41 "
        "pieces and 0; give the data set the checkpoint's tokenizer"
    )


def test_what_cannot_be_taken_over_is_named() -> None:
    assert refusal(lambda: start_from(network(depth=2), network(depth=3))) == (
        "layers: None of a network with 3 layers; name 2 of 0 to 2"
    )
    told = refusal(lambda: start_from(network(depth=2, layers=[1]), network(config={"intermediate_size": 20})))
    assert told == (
        "cannot take over tensors that the other network lacks or has in another shape: "
        "bert.encoder.layer.0.intermediate.dense.weight (24, 16), bert.encoder.layer.0.intermediate.dense.bias (24,), "
        "bert.encoder.layer.0.output.dense.weight (16, 24); only the layers, the units of their feed-forwards "
        "and the word table may be fewer"
    )


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(KdzooError) as caught:
        checkpoints.transformers()
    assert str(caught.value) == (
        "text needs transformers and tokenizers (import of transformers halted; None in sys.modules); "
        'pip install "kdzoo[text]"'
    )


def test_other_networks_are_no_start() -> None:
    model = network().model
    assert isinstance(model, TextClassifier)
    assert refusal(lambda: model.take_over(torch.nn.Linear(2, 2))) == "a text classifier cannot start from a Linear"
