"""Laws of Swin bundles: a network whose stages differ in width, of which components stand for some.

Against stock `SwinForImageClassification` and timm, every parameter changed.

    pytest tests/test_swin.py
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
)

import helpers
from helpers import TINY_SWIN, code_of, drawn
from helpers import tiny_swin as constrained
from modeling_lingene import (
    LinGeneConfig,
    LinGeneForImageClassification,
    LinGeneSwinConfig,
    LinGeneSwinForImageClassification,
    LinGeneSwinModel,
)
from modeling_lingene.bundle_lingene import Bundle
from modeling_lingene.conversion.convert import convert
from modeling_lingene.conversion.export import export
from modeling_lingene.folders import describe, read_config, read_processor
from modeling_lingene.images.batches import batches, image_processor
from modeling_lingene.measuring.features import class_and_patches
from modeling_lingene.measuring.metrics import count_macs, count_parameters
from modeling_lingene.measuring.sweep import sweep
from modeling_lingene.recompose_lingene import coefficients, selected_rows
from modeling_lingene.swin_lingene import relative_places, shifted_mask


pytestmark = pytest.mark.usefixtures("frozen_heap")

SHAPE = {key: value for key, value in TINY_SWIN.items() if key not in ("reference_components", "trained_width_ratios")}
WIDTHS = ["1/3", "2/3", "1"]
TABLE = "relative_position_bias_table"
IMAGES = [(16, 16), (20, 16), (17, 27)]  # native; larger, not square; no multiple of a patch or a window


def stock(**fields) -> SwinForImageClassification:
    return drawn(SwinForImageClassification(SwinConfig(**{**SHAPE, **fields})))


def pixels(size=(16, 16), batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("image", IMAGES, ids=str)
@pytest.mark.parametrize("ratio", WIDTHS)
@pytest.mark.parametrize("stages, depth", [([2], 3), ([2, 3], "3-1"), ([1, 2, 3], "2-4-2")], ids=str)
@torch.no_grad()
def test_a_size_is_the_stock_model_of_that_size(stages, depth, ratio, image):
    """Windows, shifts, masks, padding and merging are transformers' at every width and image size."""
    model = constrained(decomposed_stages=stages)
    size = {"depth": depth, "width_ratio": ratio, "num_components": 2}
    made = model.materialise(**size)  # anew for every image: stock windows shrink with an image and stay so
    assert type(made) is SwinForImageClassification
    expected = made(pixels(image), output_hidden_states=True)
    found = model(pixels(image), **size, output_hidden_states=True)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-6)
    assert len(found.hidden_states) == len(expected.hidden_states) == 4
    for ours, theirs in zip(found.hidden_states, expected.hidden_states):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_layers_are_sums_of_their_own_stages_components():
    """W_l = sum_n a(l, n) A_n in each decomposed stage, by numpy; tables of positions are summed as matrices are."""
    model = constrained(decomposed_stages=[2, 3])
    made = model.materialise(num_components=3).swin.encoder.layers
    for stage, count in ((2, 3), (3, 2)):  # two layers have two components at most
        table = coefficients(SHAPE["depths"][stage - 1], count).numpy()
        for ours, theirs in (
            ("attention.query", lambda layer: layer.attention.q_proj.weight),
            ("mlp.fc2", lambda layer: layer.mlp.fc2.weight),
            (
                "attention.position_bias",
                lambda layer: layer.attention.relative_position_bias.relative_position_bias_table,
            ),
        ):
            parts = [model.components[n].get_submodule(f"stage{stage}.{ours}").weight.numpy() for n in range(count)]
            for layer, row in zip(made[stage - 1].blocks, table):
                expected = sum(factor * part for factor, part in zip(row, parts))
                torch.testing.assert_close(theirs(layer), torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-6)
    assert not any("stage3" in name for name, _ in model.components[2].named_parameters())


@torch.no_grad()
def test_a_width_keeps_the_leading_channels_of_every_patch_that_is_merged():
    """Four patches side by side have channels each: their leading ones lie in four places, not at the front."""
    model = constrained()
    full, narrow = (model.materialise(width_ratio=ratio).swin.encoder.layers[0].downsample for ratio in (1, "1/3"))
    rows = torch.cat([torch.arange(4) + 12 * patch for patch in range(4)])
    assert torch.equal(narrow.reduction.weight, full.reduction.weight[:8][:, rows])
    assert torch.equal(narrow.norm.bias, full.norm.bias[rows])


def test_gradients_are_those_of_the_recomposed_layers_with_and_without_checkpointing():
    """Against autograd through stock layers: the chain rule by hand from the gradients of the materialised model."""
    model, size = constrained(decomposed_stages=[2, 3]).double().train(), {"depth": "4-2", "num_components": 2}
    labels = torch.tensor([0, 3])

    def gradients():
        model.zero_grad()
        model(pixels().double(), labels=labels, **size).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    found = gradients()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    again = gradients()
    assert found.keys() == again.keys()
    for name in found:
        torch.testing.assert_close(again[name], found[name], rtol=1e-12, atol=1e-14)
    made = model.materialise(**size).train()
    made(pixels().double(), labels=labels).loss.backward()
    blocks = made.swin.encoder.layers[1].blocks
    table = coefficients(4, 2)
    for n in range(2):
        expected = sum(table[layer, n] * blocks[layer].mlp.fc1.weight.grad for layer in range(4))
        torch.testing.assert_close(found[f"components.{n}.stage2.mlp.fc1.weight"], expected, rtol=1e-10, atol=1e-14)
    own = made.swin.encoder.layers[0].blocks[1].attention.k_proj.weight.grad
    torch.testing.assert_close(found["stage1.layers.1.attention.key.weight"], own, rtol=1e-10, atol=1e-14)


def test_held_components_change_no_gradient_of_the_others():
    """Incremental training takes the first components as fixed, also where a stage has fewer than are trained."""
    model = constrained(decomposed_stages=[2, 3]).double().train()

    def gradients():
        model.zero_grad()
        model(pixels().double(), labels=torch.tensor([1, 2])).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    free = gradients()
    with model.holding(2):
        held = gradients()
    assert free.keys() - held.keys() == {name for name in free if name.startswith(("components.0.", "components.1."))}
    for name in held:
        torch.testing.assert_close(held[name], free[name], rtol=1e-12, atol=1e-14)


def test_windows_are_numbered_and_masked_as_by_definition():
    """Pair by pair, without any of the index arithmetic of the code."""
    places, window = relative_places(3, torch.device("cpu")).view(9, 9), 3
    for one in range(9):
        for other in range(9):
            down, across = one // 3 - other // 3, one % 3 - other % 3
            assert places[one, other] == (down + window - 1) * (2 * window - 1) + across + window - 1
    mask = shifted_mask(4, 6, 2, 1, torch.device("cpu"))
    assert mask.shape == (6, 4, 4)

    def region(y, x):  # of the image after the shift: rows and columns that came from the opposite border are apart
        return (y >= 3, x >= 5)

    for index in range(6):
        tokens = [(index // 3 * 2 + t // 2, index % 3 * 2 + t % 2) for t in range(4)]
        for one in range(4):
            for other in range(4):
                apart = region(*tokens[one]) != region(*tokens[other])
                assert bool(mask[index, one, other]) == apart


def test_fewer_layers_keep_whole_pairs_of_unshifted_and_shifted_ones():
    """Selected layers stay of their kind, by the parity of their place."""
    assert selected_rows(6, 3, period=2) == [0, 1, 2]
    assert selected_rows(6, 4, period=2) == [0, 1, 2, 3]
    assert selected_rows(18, 6, period=2) == [0, 1, 6, 7, 12, 13]
    for reference in (2, 6, 18, 24):
        for depth in range(1, reference + 1):
            rows = selected_rows(reference, depth, period=2)
            assert len(rows) == depth and rows == sorted(set(rows)) and rows[-1] < reference
            assert [row % 2 for row in rows] == [place % 2 for place in range(depth)]
    assert LinGeneSwinConfig.layer_period == 2 and LinGeneConfig.layer_period == 1


@torch.no_grad()
def test_a_bundle_saves_loads_and_becomes_smaller_bundles(tmp_path):
    """Round trips by the Auto classes, of sizes, and of a size that is saved as a bundle of its own."""
    model = constrained(decomposed_stages=[2, 3], trained_depths=["4-2", "2-1"])
    model.save_pretrained(tmp_path / "bundle")
    code = set(code_of("modeling_swin_lingene"))
    assert {path.name for path in (tmp_path / "bundle").glob("*.py")} == code
    assert "modeling_lingene.py" not in code  # no other network's
    asked = {"depth": "2-1", "width_ratio": "1/3", "num_components": 2}
    expected = model(pixels(), **asked).logits
    for depth in ("2-1", [2, 1], [2, 2, 1]):  # the last names every stage of the network
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle", **{**asked, "depth": depth})
        torch.testing.assert_close(loaded(pixels()).logits, expected, rtol=1e-5, atol=1e-6)
        assert loaded.config.depths == [2, 2, 1] and loaded.config.embed_dim == 4
    small = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle", constrained=True, **asked)
    assert type(small) is LinGeneSwinForImageClassification
    small.save_pretrained(tmp_path / "small")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "small")
    torch.testing.assert_close(again(pixels()).logits, expected, rtol=1e-5, atol=1e-6)
    encoder = AutoModel.from_pretrained(tmp_path / "bundle", **asked)
    assert type(encoder) is SwinModel
    torch.testing.assert_close(encoder(pixels()).pooler_output, loaded.swin(pixels()).pooler_output)
    ours = AutoModel.from_pretrained(tmp_path / "bundle", constrained=True)
    assert type(ours) is LinGeneSwinModel
    torch.testing.assert_close(ours(pixels(), **asked).pooler_output, encoder(pixels()).pooler_output)
    assert isinstance(AutoConfig.from_pretrained(tmp_path / "bundle"), LinGeneSwinConfig)


def tensors_of(file) -> int:
    """Bytes of the tensors in a file."""
    return sum(tensor.nbytes for tensor in load_file(file).values())


def test_only_the_components_asked_for_are_read_and_their_parameters_are_counted(tmp_path):
    """What is downloaded for a size is what its files hold of it."""
    model = constrained(decomposed_stages=[2, 3])
    model.save_pretrained(tmp_path / "bundle")
    config = read_config(tmp_path / "bundle")
    bundle, size = Bundle(tmp_path / "bundle", config), config.size(num_components=1)
    assert {bundle.weight_map[key] for key in bundle.keys(size, True)} == {
        "shared.safetensors",
        "component-00.safetensors",
    }
    assert config.stored_params(config.size()) == count_parameters(model)
    small = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle", constrained=True, num_components=1)
    assert config.stored_params(size) == count_parameters(small)
    files = {file: tensors_of(tmp_path / "bundle" / file) for file in set(bundle.weight_map.values())}
    for count in (1, 2, 3):  # the third component has one stage only
        expected = sum(files[f"component-{n:02d}.safetensors"] for n in range(count)) + files["shared.safetensors"]
        assert bundle.download_bytes(count) == expected
    facts, rows = describe(tmp_path / "bundle")
    assert facts["depth"] == "4-2" and facts["decomposed_stages"] == [2, 3] and rows == []
    assert facts["legal_width_ratios"] == WIDTHS and "intermediate_size" not in facts


def test_the_published_network_has_its_published_parameters_and_operations():
    """Swin-T: 28.3 M parameters and 4.5 G MACs (Liu et al., Table 1); stage 3 of one component is 10.5 M smaller."""
    config = LinGeneSwinConfig()
    assert config.reference_depth == 6 and config.decomposed_stages == [3] and config.reference_components == 6
    full = config.stock_config(config.size())
    with torch.device("meta"):
        assert round(count_parameters(SwinForImageClassification(full)) / 1e6, 1) == 27.5  # with 2 classes, not 1000
    assert round(count_macs(full) / 1e9, 1) == 4.5
    one = config.stored_params(config.size(num_components=1))
    block = sum(torch.Size(shape).numel() for shape in config.block_shapes(3).values())
    assert config.stored_params(config.size()) - one == 5 * block


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swin") / "source"
    model = stock()
    model.save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize("stages", [(), (2, 3), (1, 2, 3)], ids=str)
@torch.no_grad()
def test_a_stock_swin_becomes_a_bundle_without_loss(source, stages, tmp_path):
    """As many components as layers in every decomposed stage give the source's logits, at other image sizes too."""
    folder, model = source
    report = convert(str(folder), tmp_path / "bundle", stages=stages)
    assert report["relative_logit_error"] < 1e-5
    assert read_config(tmp_path / "bundle").decomposed_stages == list(stages or (2,))
    for image in IMAGES:
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle")
        fresh = SwinForImageClassification.from_pretrained(folder)
        expected = fresh(pixels(image)).logits
        assert (loaded(pixels(image)).logits - expected).norm() / expected.norm() < 1e-5


@torch.no_grad()
def test_an_encoder_becomes_a_bundle_and_fewer_components_are_least_squares(source, tmp_path):
    """The headless twin; and with fewer components than layers each tensor is its projection, by numpy."""
    folder, model = source
    model.swin.save_pretrained(tmp_path / "encoder")
    assert convert(str(tmp_path / "encoder"), tmp_path / "lossless")["relative_logit_error"] < 1e-5
    loaded = AutoModel.from_pretrained(tmp_path / "lossless")
    expected = model.swin(pixels()).last_hidden_state
    assert (loaded(pixels()).last_hidden_state - expected).norm() / expected.norm() < 1e-5
    convert(str(folder), tmp_path / "two", num_components=2)
    two = AutoModelForImageClassification.from_pretrained(tmp_path / "two")
    table = coefficients(4, 2).numpy()
    layers = torch.stack([b.mlp.fc1.weight.flatten() for b in model.swin.encoder.layers[1].blocks]).double().numpy()
    projected = torch.from_numpy(table @ (torch.linalg.pinv(torch.from_numpy(table)).numpy() @ layers)).float()
    found = torch.stack([b.mlp.fc1.weight.flatten() for b in two.swin.encoder.layers[1].blocks])
    torch.testing.assert_close(found, projected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_features_are_what_it_pools_and_the_tokens_of_the_last_stage(source, tmp_path):
    """An encoder is measured, compared with and exported by them; the stock model says which they are."""
    encoder, values = source[1].swin, pixels()
    encoder.save_pretrained(tmp_path / "encoder")
    image_processor(SHAPE["image_size"]).save_pretrained(tmp_path / "encoder")
    report = convert(str(tmp_path / "encoder"), tmp_path / "bundle")
    assert report["compared"] == "pooled token" and report["relative_logit_error"] < 1e-5
    expected = encoder(values)
    for model in (encoder, AutoModel.from_pretrained(tmp_path / "bundle", constrained=True).eval()):
        image, patches = class_and_patches(model, values)
        torch.testing.assert_close(image, expected.pooler_output, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(patches, expected.last_hidden_state, rtol=1e-4, atol=1e-5)
    pictures = helpers.pictures(6, SHAPE["image_size"])
    asked = {"depths": (2,), "widths": ("1/3",), "components": (4,), "latency": False, "allow_untrained": True}
    (row,) = sweep(tmp_path / "bundle", pictures, **asked)
    small = AutoModel.from_pretrained(tmp_path / "bundle", depth=2, width_ratio="1/3", allow_untrained=True).eval()
    seen = torch.cat([batch["pixel_values"] for batch in batches(pictures, read_processor(tmp_path / "bundle"), 6)])
    found, whole = small(seen).pooler_output, encoder(seen).pooler_output
    cosine = (found * whole[:, : found.shape[1]]).sum(1) / found.norm(dim=1) / whole.norm(dim=1)
    assert row["cosine"] == pytest.approx(float(cosine.mean()), abs=1e-5) and abs(row["cosine"]) < 0.99
    export(tmp_path / "bundle", tmp_path / "program", "program")
    given = torch.export.load(tmp_path / "program" / "model.pt2").module()(values)
    torch.testing.assert_close(given[:, 0], expected.pooler_output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(given[:, 1:], expected.last_hidden_state, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_timm_swins_come_in_and_go_out_again(tmp_path):
    """Patches are merged elsewhere, and q, k, v are one matrix; a Swin of timm gives and takes its own logits."""
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    name = "swin_tiny_patch4_window7_224"
    model = drawn(timm.create_model(name, num_classes=5))
    state = {key: tensor for key, tensor in model.state_dict().items() if "attn_mask" not in key}
    save_file(state, tmp_path / "weights.safetensors")
    report = convert(f"timm:{name}", tmp_path / "bundle", weights=str(tmp_path / "weights.safetensors"))
    assert report["relative_logit_error"] < 1e-5
    images = pixels((224, 224), batch=1)
    expected = model(images)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle")
    assert (loaded(images).logits - expected).norm() / expected.norm() < 1e-5
    report = export(tmp_path / "bundle", tmp_path / "timm", "timm")
    assert report["relative_difference"] < 1e-4
    back = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert (back(images) - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("to", ["transformers", "program", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_size_is_exported_and_answers_alike(to, tmp_path):
    """Each format is run by its own reader when it is written, on one and on three images."""
    if to == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    constrained().save_pretrained(tmp_path / "bundle")
    report = export(tmp_path / "bundle", tmp_path / "out", to, depth=2, width_ratio="1/3", num_components=2)
    assert report["relative_difference"] < 1e-4 and report["size"]["depth"] == 2
    assert json.loads((tmp_path / "out" / "export.json").read_text())["family"] == "swin"


REFUSED = [
    ({"depth": "2-4"}, "`depth` must be the layers of each of the stages 2, as in '2-6', got '2-4'"),
    ({"depth": [2, 3, 3]}, "`depth` must leave stage 3 its 2 layers, got 3: decomposed are [2]"),
    ({"depth": 5}, "`depth` 5 is above `reference_depth` 4 of stage2., and this bundle selects layers"),
    ({"depth": 0}, "`depth` must be an integer of at least 1, got 0"),
    ({"depth": "two"}, "`depth` must be an integer of at least 1, got 'two'"),
    ({"width_ratio": "1/2"}, "`width_ratio` must leave whole heads and MLP units: 1/2 of 3 heads is 1.5"),
    ({"num_components": 4}, "`num_components` 4 is more than the 3 stored"),
]


@pytest.mark.parametrize("asked, said", REFUSED, ids=[str(asked) for asked, _ in REFUSED])
def test_a_size_that_a_swin_cannot_have_is_refused(asked, said):
    config = LinGeneSwinConfig(**SHAPE, reference_components=3)
    with pytest.raises(ValueError) as refusal:
        config.size(**asked)
    assert said in str(refusal.value)


NETWORKS = [
    ({"num_heads": [3, 6]}, "`num_heads` must be 3 numbers, one a stage as in `depths`"),
    ({"num_heads": [3, 3, 12]}, "`num_heads` [3, 3, 12] must double with the channels"),
    ({"decomposed_stages": [4]}, "`decomposed_stages` must be stages from 1 to 3, ascending"),
    ({"decomposed_stages": [3, 2]}, "`decomposed_stages` must be stages from 1 to 3, ascending"),
    ({"mlp_ratio": 2.3}, "`mlp_ratio` 2.3 of 12 channels leaves no whole MLP units"),
    ({"window_size": 3}, "leaves the last of 3 stages 2 patches on a side, fewer than a window of 3"),
    ({"reference_depth": 5}, "`reference_depth` 5 contradicts `depths` [2, 4, 2]: 4"),
    ({"depth_rows": {"2-1": [0, 1]}}, "`depth_rows` must be {depth: rows}"),
    (
        {"decomposed_stages": [2, 3], "depth_rows": {2: [0, 1]}},
        "`depth_rows` is for one stack of layers, and this bundle has 2",
    ),
]


@pytest.mark.parametrize("fields, said", NETWORKS, ids=[str(fields) for fields, _ in NETWORKS])
def test_fields_that_contradict_each_other_are_refused(fields, said):
    with pytest.raises(ValueError) as refusal:
        LinGeneSwinConfig(**{**SHAPE, **fields})
    assert said in str(refusal.value)


def test_what_a_bundle_of_stages_cannot_do_is_said(tmp_path, source):
    """Images too small, mask tokens, another class, sorting, and a checkpoint of a kind that is not expressed."""
    model = constrained()
    with pytest.raises(ValueError, match="at least one window of 2x2 patches, got a grid of 1x1: use larger images"):
        model(pixels((6, 6)))
    with pytest.raises(ValueError, match="`bool_masked_pos` needs a mask token"):
        drawn(LinGeneSwinModel(model.config))(pixels(), bool_masked_pos=torch.zeros(2, 64))
    model.save_pretrained(tmp_path / "bundle")
    with pytest.raises(ValueError, match="is a bundle of another kind of network, lingene_swin"):
        LinGeneForImageClassification.from_pretrained(tmp_path / "bundle")
    for asked, word in (
        ({"sort": True, "calibrate": "digits"}, "sort"),
        ({"calibrate": "digits"}, "calibrate"),
        ({"depths": [1]}, "depths"),
    ):
        with pytest.raises(ValueError, match=f"`{word}` is for networks whose layers are all of one width"):
            convert(str(source[0]), tmp_path / "out", **asked)
    positions = SwinForImageClassification(SwinConfig(**SHAPE, use_absolute_embeddings=True))
    positions.save_pretrained(tmp_path / "absolute")
    with pytest.raises(ValueError, match="`use_absolute_embeddings` True .* positions that are learned"):
        convert(str(tmp_path / "absolute"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
