"""Laws of export: a folder gives the logits of its size in the format's own loader, or there is no folder.

Against numpy's recomposition, transformers' and timm's own models and onnxruntime; every parameter changed by noise.

    pytest tests/conversion/test_export.py
"""

import errno
import functools
import hashlib
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from safetensors.torch import load_file
from test_conversion import MLP, changed, pixels, relative, timm_source
from test_conversion import source as stock_source
from transformers import (
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import helpers
from modeling_lingene import LinGeneForImageClassification, LinGeneModel, cli, folders, kept, telling
from modeling_lingene.conversion import export as module
from modeling_lingene.conversion.convert import convert
from modeling_lingene.conversion.export import _differences, export, load_code
from modeling_lingene.conversion.graphs import Outputs
from modeling_lingene.images.data import image_processor
from modeling_lingene.training.options import asked_recipe
from test_hub import ROWS, example, files, read, run_examples
from test_writing import error_with_limit


pytestmark = pytest.mark.usefixtures("frozen_heap")

LABELS = {index: f"thing {index}" for index in range(7)}
MEAN, STD = [0.2, 0.4, 0.6], [0.3, 0.5, 0.7]
FULL = {"depth": 4, "width_ratio": "1", "num_components": 3}
SMALL = {"depth": 2, "width_ratio": "1/2", "num_components": 2}
SHAPE = {"depth": 4, "num_components": 3}  # of the bundles that most tests share
LEAST = {"depth": 1, "num_components": 1}  # where only the failure matters
FORMATS = ("transformers", "timm", "onnx", "program")  # those of devices have test_devices.py
PACKAGES = {"timm": ["timm"], "onnx": ["onnx", "onnxscript", "onnxruntime"]}
ONNX_FLOAT, ONNX_INT8, ONNX_HALF = 1, 3, 10  # of TensorProto.DataType


def needed(to: str) -> None:
    """Skips where a format's library is missing."""
    for package in PACKAGES.get(to, []):
        pytest.importorskip(package)


def made(folder: Path, model_class=LinGeneForImageClassification, **fields) -> SimpleNamespace:
    """A bundle with classes and preprocessing of its own, and the model in memory."""
    config = helpers.tiny_config(**fields)
    config.id2label, config.label2id = LABELS, {label: index for index, label in LABELS.items()}
    model = helpers.tiny_model(config, model_class=model_class)
    model.save_pretrained(folder)
    size = config.image_size
    processor = image_processor(size if isinstance(size, int) else tuple(size))
    processor.image_mean, processor.image_std = MEAN, STD
    processor.save_pretrained(folder)
    return SimpleNamespace(folder=folder, model=model, processor=processor)


@pytest.fixture(scope="module", autouse=True)
def one_trace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each model is traced once for all files of it: torch takes seconds, whatever is done with the graph."""
    kept, trace = tmp_path_factory.mktemp("traced"), torch.onnx.export

    def traced(model, inputs, path, **given):
        if given["external_data"]:
            return trace(model, inputs, path, **given)
        state = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
        asked = f"{model.model.config.to_json_string()} {inputs[0].shape} {given}"
        graph = kept / hashlib.sha256(state + asked.encode()).hexdigest()
        if not graph.exists():
            trace(model, inputs, path, **given)
            shutil.copy(path, graph)
        shutil.copy(graph, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", traced)
        yield


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The bundle that most tests export; read only."""
    torch.set_num_threads(1)
    return made(tmp_path_factory.mktemp("origin") / "bundle", **SHAPE)


@pytest.fixture(scope="module")
def origin6(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The same with the epsilon that timm's Vision Transformers have."""
    return made(tmp_path_factory.mktemp("origin6") / "bundle", layer_norm_eps=1e-6, **SHAPE)


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A bundle without a classifier."""
    return made(tmp_path_factory.mktemp("headless") / "bundle", LinGeneModel, **SHAPE)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Exports once for all tests: (bundle, format, weights, *size) -> folder, read only."""
    parent = tmp_path_factory.mktemp("written")

    @functools.cache
    def write(bundle: Path, to: str, weights: str, *size) -> Path:
        out = parent / str(len(list(parent.iterdir())))
        report = export(bundle, out, to, weights=weights, **dict(size))
        assert read(out / "export.json") == json.loads(json.dumps(report))
        return out

    def asked(origin: SimpleNamespace, to: str, weights: str = "float32", size: dict = FULL) -> Path:
        needed(to)
        return write(origin.folder, to, weights, *size.items())

    return asked


def session(folder: Path):
    """An ONNX folder in onnxruntime, and its one input and output."""
    runtime = pytest.importorskip("onnxruntime")
    opened = runtime.InferenceSession(str(folder / read(folder / "export.json")["file"]))
    (given,), (got,) = opened.get_inputs(), opened.get_outputs()
    return opened, given, got


def loaded(folder: Path, head: bool = True) -> Callable[[torch.Tensor], torch.Tensor]:
    """Images to logits, or to tokens, by the format's own loader, called as `export.json` says."""
    report = read(folder / "export.json")
    if report["format"] == "transformers":
        if head:
            model = AutoModelForImageClassification.from_pretrained(folder).eval()
            return lambda values: model(values).logits
        encoder = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
        return lambda values: encoder(values).last_hidden_state
    if report["format"] == "onnx":
        opened, given, got = session(folder)
        return lambda values: torch.from_numpy(opened.run([got.name], {given.name: values.numpy()})[0])
    names = {}
    exec(load_code(report, folder), names)
    if report["format"] == "program":
        return names["model"]
    timm_model = names["model"].eval()
    return timm_model if head else timm_model.forward_features


@pytest.mark.parametrize("size", [FULL, SMALL], ids=["full", "small"])
@pytest.mark.parametrize("to", FORMATS)
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


@pytest.mark.parametrize("to", FORMATS)
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
        assert report["bundle"] == str(origin.folder) and report["size"] == SMALL
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


def tokens(model: LinGeneModel, values: torch.Tensor, size: dict) -> torch.Tensor:
    """Normed tokens (b, t, d) of one size, by the constrained model's own blocks."""
    return model(values, **size).last_hidden_state


@pytest.mark.parametrize("to", FORMATS)
@torch.no_grad()
def test_without_a_classifier_every_format_gives_the_normed_tokens(headless, written, to):
    """What detection and retrieval take; all tokens, not the class token alone."""
    folder = written(headless, to, size=SMALL)
    model = loaded(folder, head=False)
    for batch in (1, 5):
        values = helpers.images(batch)
        found, expected = model(values), tokens(headless.model, values, SMALL)
        assert found.shape == (batch, 17, 24) and relative(found, expected) < 1e-5
    if to == "onnx":
        assert session(folder)[2].name == read(folder / "export.json")["output"] == "last_hidden_state"
    if to == "timm":
        assert read(folder / "export.json")["arguments"]["num_classes"] == 0


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


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224"])
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
    export(tmp_path / "bundle", tmp_path / "back", "timm")
    back = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    values = torch.randn(5, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    assert relative(back.forward_features(values), model.forward_features(values)) < 1e-5
    assert back.num_classes == classes and relative(back(values), model(values)) < 1e-5


def test_an_activation_that_timm_does_not_have_is_refused(tmp_path):
    """Another one in its place would be nearly right."""
    needed("timm")
    helpers.bundle(tmp_path / "bundle", helpers.tiny_config(hidden_act="gelu_new"))
    with pytest.raises(ValueError, match="`hidden_act` gelu_new"):
        export(tmp_path / "bundle", tmp_path / "out", "timm")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_timm_takes_mlps_of_any_width(tmp_path):
    """timm is told a ratio; int(56 * (61 / 56)) is 60."""
    needed("timm")
    fields = {"hidden_size": 56, "intermediate_size": 61, "trained_width_ratios": ["1"]}
    helpers.bundle(tmp_path / "bundle", helpers.tiny_config(**fields, layer_norm_eps=1e-6))
    export(tmp_path / "bundle", tmp_path / "out", "timm", **LEAST)
    assert load_file(tmp_path / "out" / "model.safetensors")["blocks.0.mlp.fc1.weight"].shape == (61, 56)


@pytest.mark.parametrize("weights, tolerance, there", [("float32", 1e-12, True), ("float16", 1e-7, False)])
def test_above_the_tolerance_there_is_no_folder(origin, tmp_path, weights, tolerance, there):
    """Nor a hidden one; an empty folder that somebody made stays empty."""
    needed("onnx")
    out = tmp_path / "out"
    if there:
        out.mkdir()
    with pytest.raises(RuntimeError, match=f"the tolerance is {tolerance:g}; nothing was written"):
        export(origin.folder, out, "onnx", weights=weights, tolerance=tolerance, **LEAST)
    assert list(tmp_path.rglob("*")) == ([out] if there else [])


def test_a_file_that_gives_no_numbers_is_not_written(tmp_path):
    """Activations beyond float16: the float32 model is fine, the file would answer `nan` to every image."""
    needed("onnx")
    model = helpers.tiny_model(helpers.tiny_config(depth=1, num_components=1))
    with torch.no_grad():
        for component in model.components:
            component.mlp.fc2.weight.mul_(3e6)
    model.save_pretrained(tmp_path / "bundle")
    with pytest.raises(RuntimeError, match="nothing was written"):
        export(tmp_path / "bundle", tmp_path / "out", "onnx", weights="float16")


def test_a_head_that_is_still_zero_is_exported(tmp_path):
    """Many heads begin so; nothing differs from nothing."""
    model = helpers.tiny_model()
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.zero_()
    model.save_pretrained(tmp_path / "bundle")
    assert export(tmp_path / "bundle", tmp_path / "out")["largest_difference"] == 0


SAVES = {
    "transformers": (ViTForImageClassification, "save_pretrained"),
    "timm": (module, "save_file"),
    "onnx": (torch.onnx, "export"),
    "program": (module, "_keep_processor"),  # the program itself is written by no function of a library
}


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_without_room_is_told_in_one_line_and_leaves_nothing(origin, tmp_path, to):
    """The libraries' own exceptions name no folder, and torch's writer of programs ends the whole process."""
    needed(to)
    found = error_with_limit(20_000, lambda: export(origin.folder, tmp_path / "out", to, **LEAST))
    assert (found["kind"], found["errno"]) == ("OSError", errno.EFBIG)
    assert found["text"].startswith(f"[Errno {errno.EFBIG}] {tmp_path / 'out'} cannot be written: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("last", [False, True], ids=["after the weights", "after the report"])
@pytest.mark.parametrize("to", FORMATS)
def test_an_interrupted_export_leaves_nothing(origin, tmp_path, monkeypatch, to, last):
    """Ctrl-C once files are there: what is left would look like a model."""
    needed(to)
    owner, name = (module, "write_json") if last else SAVES[to]
    save = getattr(owner, name)

    def interrupted(*inputs, **named):
        save(*inputs, **named)
        assert any(path.is_file() for path in tmp_path.rglob("*"))
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(origin.folder, tmp_path / "out", to, **LEAST)
    assert list(tmp_path.iterdir()) == []


# What is given beside the bundle B, the plain model P and the new folder O, and the name that the message must have.
WRONG = {
    "a format of another name": ("B O tflite", {}, "`to`"),
    "weights of another name": ("B O onnx", {"weights": "int4"}, "`weights`"),
    "half precision for timm": ("B O timm", {"weights": "float16"}, "`weights`"),
    "eight bits for transformers": ("B O transformers", {"weights": "int8"}, "`weights`"),
    "eight bits for a program": ("B O program", {"weights": "int8"}, "`weights`"),
    "half precision for executorch": ("B O executorch", {"weights": "float16"}, "`weights`"),
    "eight bits for openvino": ("B O openvino", {"weights": "int8"}, "`weights`"),
    "no tolerance": ("B O transformers", {"tolerance": 0}, "`tolerance`"),
    "a negative tolerance": ("B O transformers", {"tolerance": -1e-3}, "`tolerance`"),
    "a tolerance that is no number": ("B O transformers", {"tolerance": math.nan}, "`tolerance`"),
    "a folder that holds something": ("B P transformers", {}, "`out`"),
    "a file": ("B P/config.json transformers", {}, "`out`"),
    "a size of a plain model": ("P O transformers", {"depth": 1}, "`depth`"),
    "no bundle": ("/absent/bundle O transformers", {}, "`bundle`"),
    "too many layers of selected ones": ("B O timm", {"depth": 7}, "`depth`"),
    "no layers": ("B O onnx", {"depth": 0}, "`depth`"),
    "too many components": ("B O program", {"num_components": 6}, "`num_components`"),
    "half a head": ("B O transformers", {"width_ratio": "1/3"}, "`width_ratio`"),
    "a width that was never trained": ("B O transformers", {"width_ratio": "1/4"}, "`width_ratio`"),
    "a budget without measured sizes": ("B O transformers", {"max_macs": 1e9}, "`max_macs`"),
    "a size and a budget": ("B O transformers", {"max_macs": 1e9, "depth": 2}, "`max_macs`"),
}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A plain model that is no bundle."""
    helpers.tiny_model().materialise(1).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def placed(words: str, origin: SimpleNamespace, plain: Path, out: Path) -> list[str]:
    places = {"B": origin.folder, "P": plain, "O": out}
    return [re.sub(r"^[BPO](?=/|$)", lambda match: str(places[match[0]]), word) for word in words.split()]


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_named_and_nothing_is_written(origin, plain, tmp_path, capsys, case):
    """In Python a ValueError, on the command line status 2 and one line; before anything is written."""
    words, given, named = WRONG[case]
    bundle, out, to = placed(words, origin, plain, tmp_path / "out")
    before = files(tmp_path)
    with pytest.raises(ValueError, match=named):
        export(bundle, out, to, **given)
    flags = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}={value}",)]
    code, printed, errors = lingene(capsys, "export", bundle, "--out", out, "--to", to, *flags)
    assert (code, printed, len(errors)) == (2, "", 1)
    assert errors[0].startswith("lingene export: ")
    assert telling.in_flags(named, telling.flags_of(cli.options_of("export"))) in errors[0]
    assert files(tmp_path) == before and {path.name for path in tmp_path.iterdir()} == {"plain"}


def test_a_budget_chooses_the_size(tmp_path):
    """The most accurate measured one within it, as in `from_pretrained`."""
    made(tmp_path / "bundle")
    folders.write_sizes(tmp_path / "bundle", ROWS)
    report = export(tmp_path / "bundle", tmp_path / "out", max_macs=5e6)
    assert report["size"] == {"depth": 1, "width_ratio": "1", "num_components": 5}
    assert read(tmp_path / "out" / "config.json")["num_hidden_layers"] == 1


def test_a_width_that_was_never_trained_may_be_insisted_on(origin, tmp_path):
    """As an initialisation."""
    report = export(origin.folder, tmp_path / "out", width_ratio="1/4", allow_untrained=True, **LEAST)
    assert report["size"]["width_ratio"] == "1/4" and read(tmp_path / "out" / "config.json")["hidden_size"] == 12


def picture():
    """No square, and larger than what the bundle takes."""
    from PIL import Image

    return Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (20, 33, 3), dtype=numpy.uint8))


@pytest.mark.parametrize("to", FORMATS)
def test_preprocessing_comes_along_in_every_format(origin, written, to):
    """Pixels of another mean are other images; as transformers reads it from the folder."""
    own = ViTImageProcessorPil.from_pretrained(origin.folder)(picture(), return_tensors="pt")["pixel_values"]
    kept = ViTImageProcessorPil.from_pretrained(written(origin, to))(picture(), return_tensors="pt")["pixel_values"]
    assert torch.equal(kept, own) and list(origin.processor.image_mean) == MEAN
    assert AutoImageProcessor.from_pretrained(written(origin, to)).image_std == pytest.approx(STD)


@pytest.mark.parametrize("to", FORMATS)
def test_a_bundle_without_preprocessing_exports_none(origin, tmp_path, to):
    """Nothing is invented; the model is the same."""
    needed(to)
    shutil.copytree(origin.folder, tmp_path / "bundle", ignore=shutil.ignore_patterns("preprocessor_config.json"))
    export(tmp_path / "bundle", tmp_path / "out", to, **LEAST)
    assert not (tmp_path / "out" / "preprocessor_config.json").exists()


@pytest.mark.parametrize("image_size", [16, [16, 24]])
def test_timm_transforms_pictures_as_the_bundle_does(tmp_path, image_size):
    """Size without a crop, mean, standard deviation and interpolation, in timm's own words; up to a grey level."""
    timm = pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    patch = 4 if image_size == 16 else [4, 8]
    origin = made(tmp_path / "bundle", image_size=image_size, patch_size=patch, layer_norm_eps=1e-6)
    export(origin.folder, tmp_path / "out", "timm", **LEAST)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    said = timm.data.resolve_model_data_config(model)
    height, width = (16, 16) if image_size == 16 else image_size
    assert tuple(said["input_size"]) == (3, height, width) and list(said["mean"]) == MEAN
    found = timm.data.create_transform(**said, is_training=False)(picture())
    expected = ViTImageProcessorPil.from_pretrained(origin.folder)(picture(), return_tensors="pt")["pixel_values"][0]
    assert (found - expected).abs().max() < 1.01 / 255 / min(STD)


@pytest.mark.parametrize(
    "to",
    [
        "transformers",
        "timm",
        "onnx",
        "program",
    ],
)
def test_names_of_classes_come_along_in_every_format(origin, written, to):
    """A class index is no answer."""
    folder = written(origin, to, size=SMALL)
    told = read(folder / ("config.json" if to == "transformers" else "export.json")).get("id2label")
    assert told == {str(index): label for index, label in LABELS.items()}


@pytest.mark.parametrize(
    "to",
    [
        "onnx",
        "program",
    ],
)
def test_without_a_classifier_no_classes_are_named(headless, written, to):
    """Tokens have none."""
    assert not read(written(headless, to, size=SMALL) / "export.json").get("id2label")


def lingene(capsys: pytest.CaptureFixture, *arguments) -> tuple[int, str, list[str]]:
    """Status, stdout, and the lines on stderr that are no progress bar's, of one command."""
    capsys.readouterr()
    code = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    lines = [line for line in re.split(r"[\r\n]+", said.err) if line.strip() and not re.search(r"\d%\|.*\|", line)]
    return code, said.out, lines


@pytest.mark.parametrize("to", FORMATS)
@torch.no_grad()
def test_the_command_says_what_it_wrote_how_far_it_is_and_how_to_load_it(origin6, tmp_path, capsys, to):
    """The line is meant to be pasted."""
    needed(to)
    out = tmp_path / "deep" / "out"
    size = ["--depth", 1, "--width-ratio", "1/2", "--num-components", 2]
    code, printed, _ = lingene(capsys, "export", origin6.folder, "--to", to, *size, "--out", out)
    report = read(out / "export.json")
    head, differences, *rest = printed.splitlines()
    assert (code, head) == (0, f"{out}: {to}, float32, depth 1, width_ratio 1/2, num_components 2")
    assert f"{report['largest_difference']:.2g}" in differences
    assert differences.endswith("(tolerance 0.0001), on random images")
    (line,), names, values = rest, {}, helpers.images()
    exec(line.removeprefix("load it  "), names)
    model, expected = names["model"], helpers.reference_vit(origin6.model, 1, "1/2", 2)(values).logits
    if to == "onnx":
        found = torch.from_numpy(model.run(None, {"pixel_values": values.numpy()})[0])
    else:
        found = (model if to == "program" else model.eval())(values)
    assert relative(getattr(found, "logits", found), expected) < 1e-5


def test_the_command_fails_with_status_1_where_the_file_is_not_the_model(origin, tmp_path, capsys):
    """Nothing was wrong with what was asked; a script must stop all the same."""
    needed("onnx")
    asked = ["--to", "onnx", "--tolerance", "1e-12", "--depth", 1, "--num-components", 1, "--out", tmp_path / "out"]
    code, printed, errors = lingene(capsys, "export", origin.folder, *asked)
    assert (code, printed) == (1, "") and errors[-1].startswith("lingene export: The exported logits differ")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained ViT of seven classes, as transformers saves it; read only."""
    return stock_source(
        tmp_path_factory.mktemp("stock"), ViTForImageClassification, ViTConfig(**MLP, id2label=LABELS)
    )[1]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a classifier, and with a pooler that no bundle has a place for."""
    return stock_source(tmp_path_factory.mktemp("encoder"), ViTModel, ViTConfig(**MLP))[1]


def test_convert_says_what_was_kept_and_what_was_left_out(stock, encoder, tmp_path, capsys):
    """Without loss there is nothing to advise."""
    for source, left_out, what in ((stock, 0, "logit"), (encoder, 2, "class token")):
        out = tmp_path / source.parent.name
        code, printed, errors = lingene(capsys, "convert", source, "--out", out)
        report = read(out / "conversion.json")
        assert (code, errors, report["advice"]) == (0, [], None)
        assert "6 components of 6 layers; exact: as many components as layers, nothing is lost\n" in printed
        assert f"Relative error of its {what}s on random images: {report['relative_logit_error']:.2g}.\n" in printed
        assert "condition" not in printed
        assert f"bundle   {out}\nnumbers  {out / 'conversion.json'}\n" in printed
        assert ("left out: 2 tensors" in printed) is (left_out == 2) and len(report["left_out"]) == left_out
        assert "lingene decompose" not in printed


def test_a_converted_bundles_card_has_the_name_of_its_folder_whatever_that_is(stock, tmp_path):
    """It need be no repository's name; an hour of calibration must not end with that."""
    out = tmp_path / 'my bundle, 1st "try"'
    convert(str(stock), out)
    card = (out / "README.md").read_text()
    assert example(card)[1].args[0].value == out.name and f"# {out.name}\n" in card


def test_convert_advises_to_train_what_is_no_model_yet(stock, tmp_path, capsys):
    """Half of the components by least squares on the weights; the command is meant to be pasted, DATA filled in."""
    code, printed, _ = lingene(capsys, "convert", stock, "--num-components", 3, "--out", tmp_path / "bundle")
    report = read(tmp_path / "bundle" / "conversion.json")
    assert code == 0 and "3 components of 6 layers; weights: least squares on the weights\n" in printed
    assert report["relative_logit_error"] > 0.05 and report["advice"]["statement"] in printed
    (line,) = [line.strip() for line in printed.splitlines() if "lingene decompose" in line]
    assert line == report["advice"]["command"]
    arguments = cli.build_parser("decompose").parse_args(shlex.split(line)[1:])
    recipe = asked_recipe(arguments)
    assert (recipe.init, recipe.teacher, recipe.data) == (str(tmp_path / "bundle"), str(stock), "DATA")
    assert recipe.training.learning_rate == report["advice"]["learning_rate"]
    assert (recipe.decomposition.schedule, recipe.model.num_components) == ("simultaneous", 0)


@pytest.mark.parametrize(
    "line, named",
    [
        ("convert /absent/model --out O", "`SOURCE`"),
        ("convert B --out O", "is a bundle, not"),
        ("convert S --out S", "`--out`"),
        ("convert S --out O --num-components 7", "`--num-components`"),
        ("convert S --out O --num-components 3 --fit best", "`--fit`"),
        ("convert S --out O --fit kronecker", "`--fit`"),
        ("convert S --out O --depths 3", "`--depths`"),
        ("convert S --out O --weights W", "`--weights`"),
        ("convert S --out O --basis fourier", "condition number"),
        ("convert S --out O --device abacus", "`--device`"),
    ],
)
def test_wrong_input_of_convert_is_one_line_that_names_it(origin, stock, tmp_path, capsys, line, named):
    """Status 2, and no folder."""
    places = {"B": origin.folder, "S": stock, "O": tmp_path / "out"}
    before = files(stock)
    code, printed, errors = lingene(capsys, *(places.get(word, word) for word in line.split()))
    assert (code, printed, len(errors)) == (2, "", 1)
    assert errors[0].startswith("lingene convert: ") and named in errors[0]
    assert list(tmp_path.iterdir()) == [] and files(stock) == before


@pytest.mark.parametrize("headed, count", [(True, None), (True, 3), (False, None)])
def test_the_card_of_a_converted_bundle_names_its_source_and_its_error(stock, encoder, tmp_path, headed, count):
    """Whoever finds it on the Hub must know what it is; the code in it runs, and gives no random head."""
    source = stock if headed else encoder
    report = convert(str(source), tmp_path / "bundle", num_components=count)
    card = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    text = " ".join(card.split())
    assert f"Converted from `source`: {count or 6} components of 6 layers ({kept.fitted(report)})" in text
    assert f"{kept.kept(report)}" in text
    assert (report["advice"] is not None) == ("is a start for training, not a model" in text) == (count == 3)
    call = example(card)[1]
    assert call.func.value.id == ("AutoModelForImageClassification" if headed else "AutoModel")
    assert call.args[0].value == "bundle" and ("Classes: thing 0" in text) is headed
    (model,) = run_examples(card, "bundle", tmp_path / "bundle")
    assert type(model) is (ViTForImageClassification if headed else ViTModel)


def test_an_export_is_no_bundle_and_a_bundle_made_of_it_is(origin, written, tmp_path):
    """Files of transformers go round: a size of a bundle, plain, is a source of a bundle again."""
    folder = written(origin, "transformers")
    with pytest.raises(ValueError, match="`depth` chooses a size of a bundle"):
        export(folder, tmp_path / "out", depth=1)
    convert(str(folder), tmp_path / "again")
    values = helpers.images()
    with torch.no_grad():
        expected = helpers.reference_vit(origin.model, *FULL.values())(values).logits
        found = AutoModelForImageClassification.from_pretrained(tmp_path / "again").eval()(values).logits
    assert relative(found, expected) < 1e-5
