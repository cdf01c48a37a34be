"""Laws of export: a folder gives the logits of its size in the format's own loader.

Against numpy's recomposition, transformers' and timm's own models and onnxruntime; every parameter changed by noise.

    pytest tests/conversion/exporting/test_exported_answers.py
"""

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from converting import MLP, SHAPE, changed, pixels, relative, timm_source
from converting import source as stock_source
from exports import FORMATS, FULL, LABELS, LEAST, SMALL, lingene, loaded, needed, session
from pruning_helpers import mixed_config, network, swin_config
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageClassification,
    Dinov2Config,
    Dinov2Model,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

import helpers
from helpers import files, read
from modeling_lingene import LinGeneModel
from modeling_lingene.conversion import export as module
from modeling_lingene.conversion.convert import convert
from modeling_lingene.conversion.export import _differences, export, load_code
from modeling_lingene.conversion.graphs import Outputs
from modeling_lingene.images.batches import image_processor


ONNX_FLOAT, ONNX_INT8, ONNX_HALF = 1, 3, 10  # of TensorProto.DataType


# Tracing takes seconds, whatever the size; the full one of ONNX is traced for other tests as well.
WHOLE = [pytest.param(to, FULL, marks=[pytest.mark.slow] * (to == "program"), id=f"{to}-full") for to in FORMATS]


@pytest.mark.parametrize("to, size", [*WHOLE, *(pytest.param(to, SMALL, id=f"{to}-small") for to in FORMATS)])
@torch.no_grad()
def test_every_format_gives_the_logits_of_the_size_that_was_asked_for(origin, written, to, size):
    """As numpy recomposes it and as `from_pretrained` gives it; for one image and for five, the batch is not fixed."""
    model = loaded(written(origin, to, size=size))
    reference = helpers.reference_vit(origin.model, *size.values())
    stock = AutoModelForImageClassification.from_pretrained(origin.folder, **size).eval()
    for batch in (1, 5):
        values = helpers.images(batch, seed=batch)
        found = model(values)
        assert found.dtype == torch.float32 and found.shape == (batch, 7)
        assert relative(found, reference(values).logits) < 1e-5
        assert relative(found, stock(values).logits) < 1e-5


@torch.no_grad()
def test_timm_builds_the_model_from_the_folder_alone_where_it_knows_the_epsilon(origin6, written):
    """`local-dir:` with 1e-6; any other epsilon is a function, which timm's JSON cannot hold."""
    for size in (FULL, SMALL):
        folder = written(origin6, "timm", size=size)
        expected = "import timm; model = timm.create_model('local-dir:FOLDER', pretrained=True)"
        assert read(folder / "export.json")["load"] == expected
        values = helpers.images(5)
        assert (
            relative(loaded(folder)(values), helpers.reference_vit(origin6.model, *size.values())(values).logits)
            < 1e-5
        )


# What is compared, and how, is the same for all; the formats with a folder of their own are traced for other tests.
@pytest.mark.parametrize("to", [pytest.param(to, marks=[pytest.mark.slow] * (to == "onnx")) for to in FORMATS])
def test_an_export_is_compared_on_pictures_where_they_are_given(tmp_path, capsys, to):
    """Random images are unlike any that it will see; the share that keeps its class is counted again here."""
    needed(to), pytest.importorskip("sklearn")
    config = helpers.tiny_config(num_labels=10, image_size=8, layer_norm_eps=1e-6)
    bundle = helpers.bundle(tmp_path / "bundle", config)
    image_processor(8).save_pretrained(bundle)
    code, printed, _ = lingene(capsys, "export", bundle, "--to", to, "--data", "digits", "--out", tmp_path / "out")
    report = read(tmp_path / "out" / "export.json")
    assert code == 0 and report["checked_on"] == "random images, 64 of digits (test)" and report["agreement"] == 1.0
    assert "the same class as the bundle's for 100.0 % of the pictures\n" in printed
    code, _, errors = lingene(capsys, "export", bundle, "--to", to, "--data", "./none", "--out", tmp_path / "other")
    assert code == 2 and "`--data`" in errors[-1] and not (tmp_path / "other").exists()


def test_what_differs_on_pictures_alone_is_found(origin):
    """A format that is right on noise and wrong on pictures; half of them lose their class."""
    model = AutoModelForImageClassification.from_pretrained(origin.folder).eval()
    pictures = [helpers.images(4, seed=seed) + 3 for seed in (1, 2)]

    def loaded(values):
        logits = Outputs(model)(values)
        return logits if values.mean() < 1 or torch.equal(values, pictures[0]) else logits.roll(1, -1)

    found = _differences(model, loaded, 1e-4, False, pictures)
    assert found["relative_difference"] > 0.01 and found["agreement"] == 0.5
    assert _differences(model, loaded, 1e-4, False)["relative_difference"] == 0


def test_the_report_says_what_was_written_and_how_far_it_is(origin, written):
    """Differences measured on a folder that is there: within the tolerance, and of this size."""
    for to in FORMATS:
        report = read(written(origin, to, size=SMALL) / "export.json")
        assert report["bundle"] == origin.folder.name and report["size"] == SMALL
        assert (report["format"], report["weights"], report["tolerance"]) == (to, "float32", 1e-4)
        assert 0 <= report["relative_difference"] < 1e-5 and 0 <= report["largest_difference"] < 1e-5


def test_a_folder_needs_nothing_of_this_package(origin, written):
    """All formats in a new process that cannot import it: what is deployed has the format's library, and no more."""
    needed("timm"), needed("onnx")
    folders = {to: str(written(origin, to, size=SMALL)) for to in FORMATS}
    reports = {to: read(Path(folder) / "export.json") for to, folder in folders.items()}
    loads = {to: load_code(reports[to], folders[to]) for to in FORMATS}
    values = "torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)"
    code = f"""
import json, sys
sys.modules["modeling_lingene"] = None
models = {{}}
for to, code in {loads!r}.items():  # each by itself, as it is pasted
    names = {{}}
    exec(code, names)
    models[to] = names["model"]
import torch
torch.set_num_threads(1)
values = {values}
with torch.no_grad():
    found = {{
        "transformers": models["transformers"].eval()(values).logits,
        "timm": models["timm"].eval()(values),
        "onnx": torch.from_numpy(models["onnx"].run(None, {{"pixel_values": values.numpy()}})[0]),
        "program": models["program"](values),
    }}
print(json.dumps({{to: logits.tolist() for to, logits in found.items()}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = helpers.reference_vit(origin.model, *SMALL.values())(eval(values)).logits
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == set(FORMATS)
    for to, logits in found.items():
        assert relative(torch.tensor(logits), expected) < 1e-5, to


def test_pruned_models_load_by_the_line_that_is_told_without_this_package(tmp_path):
    """Their class is in files beside them, which transformers reads only where it is told to trust them."""
    loads = {}
    for kind, config in (
        ("vit", mixed_config()),
        ("swin", swin_config(mixers=["conv3", "attention", "none", "conv1"])),
    ):
        network(config).save_pretrained(tmp_path / kind)
        loads[kind] = load_code(export(tmp_path / kind, tmp_path / f"{kind} out"), tmp_path / f"{kind} out")
    code = f"""
import json, sys
sys.modules["modeling_lingene"] = None
for code in {list(loads.values())!r}:
    names = {{}}
    exec(code, names)
    print(type(names["model"]).__name__)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    kinds = ["LinGeneViTForImageClassification", "LinGenePrunedSwinForImageClassification"]
    assert done.stdout.split() == kinds


def tokens(model: LinGeneModel, values: torch.Tensor, size: dict) -> torch.Tensor:
    """Normed tokens (b, t, d) of one size, by the constrained model's own blocks."""
    return model(values, **size).last_hidden_state


@pytest.mark.parametrize("to", FORMATS)
@torch.no_grad()
def test_without_a_classifier_every_format_gives_the_normed_tokens(headless, written, to):
    """What detection and retrieval take; all tokens, not the class token alone."""
    folder = written(headless, to, size=SMALL)
    model = loaded(folder, head=False)
    assert read(folder / "export.json")["compared"] == "tokens"
    for batch in (1, 5):
        values = helpers.images(batch)
        found, expected = model(values), tokens(headless.model, values, SMALL)
        assert found.shape == (batch, 17, 24) and relative(found, expected) < 1e-5
    if to == "onnx":
        assert session(folder)[2].name == read(folder / "export.json")["output"] == "last_hidden_state"
    if to == "timm":
        assert read(folder / "export.json")["arguments"]["num_classes"] == 0


STAGES = dict(image_size=32, patch_size=2, embed_dim=12, depths=[2, 2], num_heads=[1, 2], window_size=4)
PLAIN = {
    "vit": (ViTModel, ViTConfig(**MLP, layer_norm_eps=1e-6)),
    "swin": (SwinModel, SwinConfig(**STAGES)),
    "dinov2": (Dinov2Model, Dinov2Config(**SHAPE, mlp_ratio=2)),
}


@pytest.mark.parametrize("to", ["transformers", "timm", "program"])
@pytest.mark.parametrize("kind", PLAIN)
@torch.no_grad()
def test_a_plain_encoder_is_exported_as_an_encoder(tmp_path, kind, to):
    """Its tokens, as its own class gives them; a classifier of it would be random numbers."""
    needed(to)
    stock, folder = stock_source(tmp_path, *PLAIN[kind])
    report = export(folder, tmp_path / "out", to)
    names = {}
    exec(load_code(report, tmp_path / "out"), names)
    model = names["model"] if to == "program" else names["model"].eval()
    found = (model.forward_features if to == "timm" else model)(pixels(stock.config))
    found = found.last_hidden_state if to == "transformers" else found
    output = stock(pixels(stock.config))
    expected = output.last_hidden_state
    if (kind, to) == ("swin", "program"):  # whose tokens say nothing of the whole image: what is pooled comes first
        expected = torch.cat((output.pooler_output[:, None], expected), dim=1)
    assert relative(found.flatten(1), expected.flatten(1)) < 1e-5 and report["id2label"] == {}


def element_types(folder: Path) -> dict[int, int]:
    """How many numbers of each type an ONNX file holds as weights."""
    onnx = pytest.importorskip("onnx")
    counts: dict[int, int] = {}
    for tensor in onnx.load(folder / "model.onnx").graph.initializer:
        counts[tensor.data_type] = counts.get(tensor.data_type, 0) + math.prod(tensor.dims)
    return counts


@torch.no_grad()
def test_smaller_onnx_weights_are_smaller_files_of_nearly_the_same_answers(origin, written):
    """Most numbers are stored in the type that was asked for; who calls the file still gives and gets float32."""
    folders = {weights: written(origin, "onnx", weights) for weights in ("float32", "float16", "int8")}
    sizes = {weights: (folder / "model.onnx").stat().st_size for weights, folder in folders.items()}
    assert sizes["float32"] > sizes["float16"] > sizes["int8"]
    reference, answers = helpers.reference_vit(origin.model, *FULL.values()), {}
    for weights, kind, limit in (
        ("float32", ONNX_FLOAT, 1e-5),
        ("float16", ONNX_HALF, 5e-3),
        ("int8", ONNX_INT8, 0.1),
    ):
        held = element_types(folders[weights])
        assert held[kind] > 0.8 * sum(held.values()), (weights, held)
        _, given, got = session(folders[weights])
        assert (given.name, given.type, got.type) == ("pixel_values", "tensor(float)", "tensor(float)")
        model, report = loaded(folders[weights]), read(folders[weights] / "export.json")
        for batch in (1, 50):
            values = helpers.images(batch)
            expected, found = reference(values).logits, model(values)
            assert (found - expected).abs().max() < limit * expected.abs().max()
        assert (found.argmax(-1) == expected.argmax(-1)).double().mean() >= 0.9
        assert expected.argmax(-1).unique().numel() > 1  # or agreeing would be no feat
        answers[weights] = report["relative_difference"]
    assert answers["float32"] < answers["float16"] < answers["int8"] < 0.1 < module.TOLERANCES["int8"]


def cut_off(activations: numpy.ndarray, weights: numpy.ndarray) -> numpy.ndarray:
    """(..., k) unsigned by (k, n) signed as by AVX2: sums of two products are cut off at 16 bits, and then added."""
    products = activations.astype(int)[..., None] * weights.astype(int)
    pairs = products.reshape(*products.shape[:-2], -1, 2, products.shape[-1]).sum(-2)
    return pairs.clip(-(2**15), 2**15 - 1).sum(-2)


def reference_answers(file: Path, values: torch.Tensor, exact: bool) -> numpy.ndarray:
    """Of an ONNX file by onnx's own numpy code, integer products exact or cut off."""
    onnx = pytest.importorskip("onnx")
    from onnx.reference.op_run import OpRun

    class MatMulInteger(OpRun):
        def _run(self, activations, weights, zero_point, weights_zero_point):
            assert not weights_zero_point.any()
            shift = int(zero_point) * weights.astype(int).sum(0)
            return ((cut_off(activations, weights) - shift).astype(numpy.int32),)

    evaluator = onnx.reference.ReferenceEvaluator(str(file), new_ops=[] if exact else [MatMulInteger])
    return evaluator.run(None, {"pixel_values": values.numpy()})[0]


def eight_bits(file: Path, out: Path) -> Path:
    """onnxruntime's plain quantisation of a float32 file: weights from -127 to 127."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    whole = pytest.importorskip("onnx").load(file)
    del whole.graph.value_info[:]
    quantization.quantize_dynamic(
        whole, out, weight_type=quantization.QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul"]
    )
    return out


def test_an_int8_file_gives_the_same_answers_on_every_processor(origin, written, tmp_path):
    """AVX2 without VNNI cuts sums of two products off at 16 bits, and this processor may be another one.

    The whole file by numpy with and without that, and the worst activations there can be for every column; plain
    8-bit weights fail at both, so that neither is passed by chance.
    """
    onnx, values = pytest.importorskip("onnx"), helpers.images(10)
    plain = eight_bits(written(origin, "onnx", "float32", SMALL) / "model.onnx", tmp_path / "plain.onnx")
    expected = reference_answers(plain, values, exact=True)
    assert numpy.abs(reference_answers(plain, values, exact=False) - expected).max() > 0.1 * numpy.abs(expected).max()

    def lost(file: Path) -> list[bool]:
        """By integer product, whether the worst activations lose anything."""
        graph, found = onnx.load(file).graph, []
        weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type.endswith("Integer"):
                matrix = weights[node.input[1]].astype(int)
                worst = numpy.concatenate((matrix > 0, matrix < 0), axis=1).T * 255
                found.append(bool((cut_off(worst, matrix) != worst @ matrix).any()))
        return found

    file = written(origin, "onnx", "int8", SMALL) / "model.onnx"
    expected = reference_answers(file, values, exact=True)
    numpy.testing.assert_array_equal(reference_answers(file, values, exact=False), expected)
    assert lost(file) == [False] * 13 and any(lost(plain))  # six linear maps of two blocks, and the classifier


@torch.no_grad()
def test_large_models_leave_no_float32_weights_beside_smaller_ones(origin, tmp_path, monkeypatch):
    """Above the limit of one file they are in a second, of 2 GB and more, that nobody reads any longer."""
    needed("onnx")
    monkeypatch.setattr(module, "ONNX_LIMIT", 0)
    export(origin.folder, tmp_path / "out", "onnx", weights="int8", **LEAST)
    assert files(tmp_path / "out").keys() == {"model.onnx", "export.json", "preprocessor_config.json"}
    expected = helpers.reference_vit(origin.model, 1, "1", 1)(helpers.images()).logits
    assert relative(loaded(tmp_path / "out")(helpers.images()), expected) < 0.1


@pytest.mark.parametrize("signed", [True, False])
def test_integer_weights_that_not_every_processor_multiplies_alike_are_refused(origin, tmp_path, monkeypatch, signed):
    """As of a quantiser that takes all 8 bits: that the answers are right here proves nothing."""
    needed("onnx")
    quantization = pytest.importorskip("onnxruntime.quantization")
    kind = quantization.QuantType.QInt8 if signed else quantization.QuantType.QUInt8
    whole_range = functools.partial(quantization.quantize_dynamic, weight_type=kind, per_channel=True)
    monkeypatch.setattr(quantization, "quantize_dynamic", lambda given, path, **asked: whole_range(given, path))
    with pytest.raises(RuntimeError, match="depend on the processor; nothing was written"):
        export(origin.folder, tmp_path / "out", "onnx", weights="int8", **SMALL)
    assert list(tmp_path.iterdir()) == []


KINDS = {
    "plain": {},
    "without biases": {"qkv_bias": False},
    "rectangles": {"image_size": [16, 24], "patch_size": [4, 8]},
    "one channel": {"num_channels": 1},
    "relu": {"hidden_act": "relu"},
    "quick gelu": {"hidden_act": "quick_gelu"},
    "tanh gelu": {"hidden_act": "gelu_pytorch_tanh"},
    "silu": {"hidden_act": "silu"},
}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_stock_model_comes_back_from_a_bundle(tmp_path, kind):
    """ViT -> bundle -> ViT: the same file but for rounding, tensor by tensor; the same function in timm's class."""
    config = ViTConfig(**{**MLP, **KINDS[kind], "num_hidden_layers": 3, "layer_norm_eps": 1e-6}, id2label=LABELS)
    model, folder = stock_source(tmp_path, ViTForImageClassification, config)
    convert(str(folder), tmp_path / "bundle")
    report = export(tmp_path / "bundle", tmp_path / "back", "transformers")
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    for key in before:
        assert before[key].shape == after[key].shape and relative(after[key], before[key]) < 1e-5, key
    back = read(tmp_path / "back" / "config.json")
    assert back.pop("materialised_from")["bundle"] == "bundle" and back == read(folder / "config.json")
    values = pixels(config, 5)
    expected = model(values).logits
    assert relative(loaded(tmp_path / "back")(values), expected) < 1e-5
    assert report["largest_difference"] < 1e-5
    needed("timm")
    export(tmp_path / "bundle", tmp_path / "timm", "timm")
    assert relative(loaded(tmp_path / "timm")(values), expected) < 1e-5


@pytest.mark.parametrize("to", ["onnx", "program"])
@torch.no_grad()
def test_a_graph_of_unusual_shapes_is_that_of_the_source(tmp_path, to):
    """Rectangles of one channel, no biases, another activation: what tracing could get wrong at once."""
    needed(to)
    unusual = {**KINDS["without biases"], **KINDS["rectangles"], **KINDS["one channel"], **KINDS["quick gelu"]}
    config = ViTConfig(**{**MLP, **unusual, "num_hidden_layers": 2}, num_labels=7)
    model, folder = stock_source(tmp_path, ViTForImageClassification, config)
    convert(str(folder), tmp_path / "bundle")
    export(tmp_path / "bundle", tmp_path / "out", to)
    graph = loaded(tmp_path / "out")
    for batch in (1, 5):
        values = pixels(config, batch)
        assert relative(graph(values), model(values).logits) < 1e-5


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", pytest.param("deit3_small_patch16_224", marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_a_timm_model_comes_back_from_a_bundle(tmp_path, name):
    """Tensor by tensor; of deit3 LayerScale is folded and the class token has a position, which is nothing."""
    model, path, values = timm_source(tmp_path, name, num_classes=7)
    convert(f"timm:{name}", tmp_path / "bundle", weights=str(path))
    export(tmp_path / "bundle", tmp_path / "back", "timm")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    after = load_file(tmp_path / "back" / "model.safetensors")
    if name.startswith("deit3"):
        for layer in range(len(model.blocks)):
            for part, scale in (("attn.proj", "ls1.gamma"), ("mlp.fc2", "ls2.gamma")):
                factor = before.pop(f"blocks.{layer}.{scale}")
                before[f"blocks.{layer}.{part}.weight"] *= factor[:, None]
                before[f"blocks.{layer}.{part}.bias"] *= factor
        before["pos_embed"] = torch.cat((torch.zeros(1, 1, model.embed_dim), before["pos_embed"]), dim=1)
    assert before.keys() == after.keys()
    for key in before:
        assert before[key].shape == after[key].shape, key
        assert (after[key] - before[key]).norm() <= 1e-5 * before[key].norm(), key
    assert relative(loaded(tmp_path / "back")(values), model(values)) < 1e-5


@pytest.mark.parametrize("classes", [7, 0])
@torch.no_grad()
def test_a_timm_folder_comes_back_from_a_bundle(tmp_path, classes):
    """`timm:local-dir:` in, `local-dir:` out: rectangles, no biases, LayerScale, another activation, no classifier."""
    timm = pytest.importorskip("timm")
    shape = dict(img_size=[16, 24], patch_size=[4, 8], embed_dim=48, depth=3, num_heads=4, mlp_ratio=2.0)
    shape |= dict(num_classes=classes, act_layer="quick_gelu", qkv_bias=False, init_values=0.3)
    model = changed(timm.create_model("vit_base_patch16_224", **shape))
    timm.models.save_for_hf(model, tmp_path / "timm", model_args=shape, safe_serialization=True)
    convert(f"timm:local-dir:{tmp_path / 'timm'}", tmp_path / "bundle")
    assert read(tmp_path / "bundle" / "conversion.json")["source"] == "timm:local-dir:timm"
    export(tmp_path / "bundle", tmp_path / "back", "timm")
    back = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    values = torch.randn(5, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    assert relative(back.forward_features(values), model.forward_features(values)) < 1e-5
    assert back.num_classes == classes and relative(back(values), model(values)) < 1e-5
