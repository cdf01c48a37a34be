"""Laws of exported files as others get them: nothing of the builder's machine in them, how to use them in them, and
what they are worth on pictures.

pytest tests/conversion/test_exported.py
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

import helpers
from modeling_lingene import LinGeneModel, cli
from modeling_lingene.conversion.export import export
from modeling_lingene.images.batches import image_processor
from modeling_lingene.measuring import evaluation, exported
from modeling_lingene.measuring.evaluation import evaluate_data
from modeling_lingene.measuring.metrics import count_macs


onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

NAMES = ["oak", "elm", "ash", "fir", "yew", "bay", "fig"]
MADE = helpers.pictures(60)
TREES = type(MADE)(MADE.images, MADE.labels, NAMES, "trees", "test")
# Of no interest to whoever gets the file, and of this machine; or the code that it was built with.
PRIVATE = [str(Path(helpers.__file__).parent.parent), str(Path(torch.__file__).parent), "site-packages", "stack_trace"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    config = helpers.tiny_config(trained_depths=[3, 6])
    config.id2label = dict(enumerate(NAMES))
    config.label2id = {name: index for index, name in enumerate(NAMES)}
    folder = helpers.bundle(tmp_path_factory.mktemp("private home") / "bundle", config)
    image_processor(16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def written(bundle, tmp_path_factory) -> Callable[..., Path]:
    """Exports once for all tests; read only."""
    done: dict[tuple, Path] = {}

    def write(to: str, weights: str = "float32") -> Path:
        if (to, weights) not in done:
            done[to, weights] = tmp_path_factory.mktemp("out") / f"{to} {weights}"
            export(bundle, done[to, weights], to, weights=weights, depth=3, width_ratio="1/2")
        return done[to, weights]

    return write


@pytest.mark.parametrize(
    "to, weights",
    [
        ("onnx", "float32"),
        pytest.param("onnx", "float16", marks=pytest.mark.slow),
        ("onnx", "int8"),
        ("program", "float32"),
    ],
)
def test_no_file_tells_where_and_by_whom_it_was_built(written, bundle, to, weights):
    """Exporters write the lines of Python that a node was traced from: folders, user names, most of a small file."""
    folder = written(to, weights)
    for file in folder.iterdir():
        content = file.read_bytes()
        found = [word for word in [*PRIVATE, str(bundle.parent), "private home"] if word.encode() in content]
        assert found == [], file.name
    assert json.loads((folder / "export.json").read_text())["bundle"] == "bundle"


@pytest.mark.parametrize("weights, bytes_each", [("float32", 4), ("int8", 1)])
def test_an_onnx_file_is_its_weights_and_its_graph(written, weights, bytes_each):
    """What was left out is in none of its parts, and what is left is small; the graph has a few bytes for a node."""
    file = written("onnx", weights) / "model.onnx"
    held = onnx.load(file)
    graph = held.graph
    parts = [*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph]
    assert not any(part.metadata_props or part.doc_string for part in parts) and not held.doc_string
    stored = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer)
    assert file.stat().st_size < stored + 300 * len(graph.node) + 4000
    onnx.checker.check_model(held)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_an_onnx_file_says_its_classes_and_its_preprocessing(written, weights):
    """Where runtimes show them: a file that is passed on alone is still of use."""
    folder = written("onnx", weights)
    session = runtime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    said = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert said["class_names"] == NAMES
    steps = said["preprocessing"]
    assert steps["input"] == {"name": "pixel_values", "shape": [None, 3, 16, 16], "dtype": "float32"}
    assert (steps["resize"]["height"], steps["mean"], steps["std"]) == (16, [0.5] * 3, [0.5] * 3)


def by_hand(folder: Path) -> list[int]:
    """The classes that a file names, by onnxruntime on pixels that numpy makes."""
    session = runtime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    pixels = numpy.stack([numpy.asarray(image, dtype=numpy.float32) for image in TREES.images]) / 127.5 - 1
    return session.run(None, {"pixel_values": pixels.transpose(0, 3, 1, 2)})[0].argmax(1).tolist()


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_what_an_onnx_folder_is_worth_is_measured_on_pictures(written, bundle, monkeypatch, capsys, tmp_path, weights):
    """Random images show that a file computes the same; what int8 costs shows on pictures alone."""
    folder, told = written("onnx", weights), by_hand(written("onnx", weights))
    labels = [label if index % 3 else right for index, (label, right) in enumerate(zip(TREES.labels, told))]
    turned = type(TREES)(TREES.images, [6 - label for label in labels], NAMES[::-1], "trees", "test")
    monkeypatch.setattr(evaluation, "open_sets", lambda *_: evaluation.Sets(("accuracy",), turned))
    out = tmp_path / "row.json"
    assert cli.main(["evaluate", str(folder), "--data", "trees", "--out", str(out), "--quiet"]) == 0
    row, right = json.loads(out.read_text()), sum(a == b for a, b in zip(told, labels)) / 60
    size = {name: row[name] for name in ("depth", "width_ratio", "num_components")}
    assert size == {"depth": 3, "width_ratio": "1/2", "num_components": 5}
    assert row["accuracy"] == round(right, 6) and (row["images"], row["weights"]) == (60, weights)
    assert row["standard_errors"]["accuracy"] == round(math.sqrt(right * (1 - right) / 60), 6)
    plain = helpers.tiny_config().stock_config(helpers.tiny_config().size(3, "1/2"))
    assert row["macs"] == count_macs(plain) and row["file_bytes"] == (folder / "model.onnx").stat().st_size
    assert row["latency_ms"] > 0 and row["device"].endswith(f", ONNX {weights}")
    assert row["timed_with"].startswith(f"onnxruntime {runtime.__version__}, {weights}, load ")
    assert f"{100 * right:.1f} ± " in capsys.readouterr().out


def test_an_onnx_encoder_is_measured_by_its_tokens(tmp_path, monkeypatch):
    """As the size it was made from: cosine with the bundle itself."""
    folder, out = tmp_path / "bundle", tmp_path / "out"
    helpers.tiny_model(model_class=LinGeneModel).save_pretrained(folder)
    image_processor(16).save_pretrained(folder)
    export(folder, out, "onnx")
    monkeypatch.setattr(evaluation, "open_sets", lambda *_: evaluation.Sets(("cosine",), TREES))
    row = evaluate_data(out, {}, "trees", "test", reference=str(folder))
    assert (row["cosine"], row["patch_cosine"]) == (pytest.approx(1, abs=1e-4), pytest.approx(1, abs=1e-4))
    assert row["metric"] == "cosine" and row["reference"] == "bundle"


@pytest.mark.parametrize(
    "asked, change, said",
    [
        ({"depth": 3}, {}, "`depth` chooses a size of a bundle, and .* is an exported one"),
        ({}, {"format": "openvino"}, "is exported to openvino; export to onnx or transformers"),
        ({}, {"params": None}, "`params` in `export.json` of .*export it again"),
        ({}, {"id2label": {"0": "a", "1": "b"}}, "`model` .* has no class oak, elm, ash, fir"),
    ],
    ids=["a size", "another format", "of before", "other classes"],
)
def test_what_cannot_be_measured_is_refused(written, tmp_path, monkeypatch, asked, change, said):
    """In words, before a picture is seen."""
    for file in written("onnx").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    told = json.loads((tmp_path / "export.json").read_text()) | change
    (tmp_path / "export.json").write_text(json.dumps(told))
    monkeypatch.setattr(evaluation, "open_sets", lambda *_: evaluation.Sets(("accuracy",), TREES))
    monkeypatch.setattr(exported, "count_right", None)
    with pytest.raises(ValueError, match=said):
        evaluate_data(tmp_path, asked, "trees", "test")


@pytest.mark.parametrize("metric", ["knn", "probe", "accuracy,knn", "cosine", "cosine,accuracy"])
def test_an_exported_classifier_has_no_tokens_to_measure(written, monkeypatch, capsys, metric):
    """Its file gives logits alone: one line and the way out, before it is run."""
    pytest.importorskip("sklearn")
    train = dataclasses.replace(TREES, split="train")
    monkeypatch.setattr(evaluation, "open_sets", lambda *_: evaluation.Sets(tuple(metric.split(",")), TREES, train))
    monkeypatch.setattr(exported, "OnnxModel", None)
    assert cli.main(["evaluate", str(written("onnx")), "--data", "trees", "--metric", metric]) == 2
    named = metric.replace("accuracy", "").strip(",")
    told = rf"lingene evaluate: `--metric` {named} compares tokens, and .* gives logits alone: use accuracy, or .*\n"
    assert re.fullmatch(told, capsys.readouterr().err)


def test_an_exported_classifier_is_compared_with_nobody(written, monkeypatch):
    """As any other."""
    monkeypatch.setattr(evaluation, "open_sets", lambda *_: evaluation.Sets(("accuracy",), TREES))
    monkeypatch.setattr(exported, "OnnxModel", None)
    with pytest.raises(ValueError, match="`reference` is whom the cosine compares with; `metric` is accuracy"):
        evaluate_data(written("onnx"), {}, "trees", "test", reference="somebody")
