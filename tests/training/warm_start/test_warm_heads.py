"""Laws of the head of a warm start: it is kept for the bundle's own classes, by name, and begins anew for others.

Against the rows of the head that the bundle's files hold, after runs whose learning rate does nothing.

    pytest tests/training/warm_start/test_warm_heads.py
"""

import json

import pytest
import torch
from warm import NOTHING, begun, stock, stored, trained

from modeling_lingene import LinGeneConfig, LinGeneModel
from modeling_lingene.folders import bundle_weights_id
from modeling_lingene.training import warm_start


pytest.importorskip("matplotlib")


@pytest.mark.parametrize("case", ["the same", "no names", "relabelled"])
def test_the_same_classes_keep_the_head_and_other_names_do_where_that_is_meant(tmp_path, case):
    """The head was trained; a bundle without names says nothing against the pictures' ones."""
    word = {"the same": "CLASS", "no names": "LABEL", "relabelled": "thing"}[case]
    init = begun(tmp_path / "init", word=word)
    if case == "no names":
        said = json.loads((init / "config.json").read_text())
        said |= {"id2label": {str(n): f"LABEL_{n}" for n in range(7)}}
        said["label2id"] = {name: int(n) for n, name in said["id2label"].items()}
        (init / "config.json").write_text(json.dumps(said))
    result = trained(tmp_path / "out", init, learning_rate=NOTHING, relabel=case == "relabelled")
    assert torch.allclose(stored(result)["classifier.weight"], stored(init)["classifier.weight"], rtol=0, atol=1e-8)
    for folder in (result, tmp_path / "out" / "best"):
        config = stock(folder).config
        assert config.id2label == {index: f"class {index}" for index in range(7)}
        assert config.label2id == {f"class {index}": index for index in range(7)}


def test_a_head_that_knows_the_classes_in_another_order_among_others_keeps_their_rows(tmp_path):
    """By place the row of a rose would begin as that of a tulip."""
    init = begun(tmp_path / "init", num_labels=9)
    config = LinGeneConfig.from_pretrained(init)
    names = [f"class {index}" for index in (8, 3, 0, 6, 1, 7, 2, 5, 4)]
    fields = json.loads((init / "config.json").read_text())
    fields |= {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    (init / "config.json").write_text(json.dumps(fields))
    result = trained(tmp_path / "out", init, learning_rate=NOTHING)
    rows = [names.index(f"class {index}") for index in range(7)]
    for key in ("classifier.weight", "classifier.bias"):
        assert torch.allclose(stored(result)[key], stored(init)[key][rows], rtol=0, atol=1e-8)
    assert config.num_labels == 9 and stock(result).config.id2label == {n: f"class {n}" for n in range(7)}


def test_a_head_of_another_number_of_classes_cannot_be_relabelled(tmp_path):
    """Which rows would be meant is not said."""
    with pytest.raises(ValueError, match="`relabel` keeps the head of `init` .* which are 7; it has 5"):
        trained(tmp_path / "out", begun(tmp_path / "init", num_labels=5), relabel=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_labels": 5},
        {"num_labels": 9, "word": "thing"},
        {"word": "thing"},
        {"model_class": LinGeneModel, "num_labels": 5},
        {"model_class": LinGeneModel},
    ],
    ids=["fewer", "more", "as many others", "headless of other classes", "headless"],
)
def test_other_classes_or_no_head_give_a_new_one_and_a_word_about_it(tmp_path, monkeypatch, fields):
    """Of the usual scale, with biases of nothing; all else is the bundle's."""
    said = []
    monkeypatch.setattr(warm_start.logger, "warning", said.append)
    init = begun(tmp_path / "init", **fields)
    result = trained(tmp_path / "out", init, learning_rate=NOTHING)
    before, after = stored(init), stored(result)
    head, bias = after.pop("classifier.weight"), after.pop("classifier.bias")
    assert head.shape == (7, 48) and bias.abs().max() < 1e-8
    assert head.std() == pytest.approx(0.02, rel=0.2) and head.abs().max() < 2  # trunc_normal_ of initializer_range
    if "classifier.weight" in before:
        old = before["classifier.weight"][:7]
        assert (head[: len(old)] - old).abs().mean() > 0.05  # the old one has the noise of `tiny_model`
    assert all(torch.allclose(tensor, before[key], rtol=0, atol=1e-8) for key, tensor in after.items())
    assert stock(result).config.num_labels == 7
    assert len(said) == 1 and said[0].startswith("The head is new, for the 7 classes of made (class 0, ")


def test_a_new_head_is_learned(tmp_path):
    """A head that gets no gradient would stay at chance whatever the encoder does."""
    init = begun(tmp_path / "init", num_labels=5)
    result = trained(tmp_path / "out", init)
    still = trained(tmp_path / "still", init, learning_rate=NOTHING)
    for key in ("classifier.weight", "classifier.bias"):
        assert (stored(result)[key] - stored(still)[key]).abs().max() > 1e-3


def test_the_new_head_of_a_headless_bundle_comes_from_the_seed(tmp_path):
    """Its configuration has as many classes as the pictures: what was drawn before the run must not matter."""
    init = begun(tmp_path / "init", model_class=LinGeneModel)
    ids = []
    for drawn in range(2):
        torch.manual_seed(drawn)
        ids.append(bundle_weights_id(trained(tmp_path / f"out {drawn}", init)))
    assert ids[0] == ids[1]


def test_the_new_head_of_other_classes_comes_from_the_seed(tmp_path):
    """One seed, one run."""
    init = begun(tmp_path / "init", num_labels=5)
    ids = []
    for drawn, seed in enumerate((0, 0, 1)):
        torch.manual_seed(drawn)
        ids.append(bundle_weights_id(trained(tmp_path / f"out {drawn}", init, seed=seed)))
    assert ids[0] == ids[1] != ids[2]
