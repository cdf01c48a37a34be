"""A bundle on the Hub, used where this package is not installed: its own code comes along with `trust_remote_code`.

Two processes that cannot import the package talk to a Hub on this machine: one reads, pushes, and loads what was
pushed with an empty cache; one is offline with the first one's cache. Each costs seconds of imports, so that the tests
share them.

    pytest tests/test_remote_code.py
"""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification

import helpers
from hub_server import HubServer, Repo
from modeling_lingene import LinGeneModel
from modeling_lingene.images.batches import image_processor
from test_hub_server import in_new_process


SIZES = [
    {"num_components": 2},
    {"depth": 4, "width_ratio": "1/2", "num_components": 3},
    {"depth": 1, "width_ratio": 0.5, "num_components": 1},
]
SMALL = {"depth": 4, "width_ratio": "1/2", "num_components": 3}
CODE = set(helpers.code_of())
INDEX = "model.safetensors.index.json"
PIXELS = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)


def first_use(sizes: list[dict], small: dict, work: str, moving: list[str]) -> dict[str, Any]:
    """Is refused, loads by name at several sizes and in several ways, saves and pushes a constrained model; then loads
    the pushed bundles with an empty cache, and bundles that change on the Hub while they are loaded.
    """
    import io
    import os
    import sys
    from pathlib import Path

    sys.modules["modeling_lingene"] = None  # where it is not importable anyway this changes nothing
    import torch
    from transformers import AutoBackbone, AutoModel, AutoModelForImageClassification, pipeline
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    pixels = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    load, found = AutoModelForImageClassification.from_pretrained, {"refusals": []}
    sys.stdin = io.StringIO("")  # nobody to answer the question whether to trust
    for trust in (None, False):
        try:
            load("org/bundle", trust_remote_code=trust)
        except ValueError as error:
            found["refusals"].append(str(error))
            print()  # ends the line of the question
    found["ran before trust"] = [name for name in sys.modules if name.endswith("modeling_lingene.modeling_lingene")]

    trusted = {"trust_remote_code": True}
    load("org/few", **trusted, **sizes[0])
    AutoModel.from_pretrained("org/few-headless", **trusted, depth=6, num_components=1)
    vits = [load("org/bundle", **trusted, **size).eval() for size in sizes]
    found["logits"] = [vit(pixels).logits.tolist() for vit in vits]
    found["class"] = f"{type(vits[0]).__module__}.{type(vits[0]).__name__}"
    encoder = AutoModel.from_pretrained("org/bundle", **trusted, **small).eval()
    found["states"] = encoder(pixels).last_hidden_state.tolist()
    found["budget"] = load("org/bundle", **trusted, max_params=10).config.num_hidden_layers
    found["branch"], found["commit"] = (
        load("org/bundle", revision=revision, **trusted).eval()(pixels).logits.tolist()
        for revision in ("other", os.environ["COMMIT"])
    )
    apart = load("org/several", subfolder="few", **trusted, **sizes[2]).eval()
    found["subfolder"] = apart(pixels).logits.tolist()
    load("org/cached-elsewhere", **trusted, num_components=1, cache_dir=f"{work}/cache")
    found["cached"] = sorted(path.name for path in Path(work, "cache").rglob("*.safetensors"))

    backbone = AutoBackbone.from_pretrained("org/dinov2", **trusted, depth=2, out_indices=[1, 2]).eval()
    found["backbone"] = f"{type(backbone).__module__}.{type(backbone).__name__}"
    found["maps"] = [one.tolist() for one in backbone(pixels[..., :12]).feature_maps]
    held = AutoModel.from_pretrained("org/dinov2", **trusted, constrained=True).eval()
    found["pooled"] = held(pixels[..., :12], depth=2).pooler_output.tolist()
    found["encoders"] = {}
    for name in ("org/dinov2-plain", "org/clip", "org/siglip"):
        for asked in ({}, {"constrained": True}):
            model = AutoModel.from_pretrained(name, **trusted, depth=2, width_ratio="1/2", **asked).eval()
            found["encoders"].setdefault(name, [type(model).__name__])
            found["encoders"][name].append(model(pixels).pooler_output.tolist())
    swin = {"depth": 2, "width_ratio": "1/3", **trusted}
    stages = AutoModelForImageClassification.from_pretrained("org/swin", **swin).eval()
    found["swin"] = [type(stages).__name__, stages(pixels).logits.tolist()]
    held = AutoModelForImageClassification.from_pretrained("org/swin", constrained=True, **swin).eval()
    found["swin"] += [type(held).__name__, held(pixels).logits.tolist()]
    try:
        AutoBackbone.from_pretrained("org/bundle", **trusted)
    except ValueError as error:
        found["no backbone"] = str(error)

    classify = pipeline("image-classification", model="org/bundle", model_kwargs={"depth": 4}, **trusted)
    found["scores"] = {row["label"]: row["score"] for row in classify(os.environ["PIXELS"], top_k=7)}
    found["processor"] = type(classify.image_processor).__name__

    constrained = load("org/bundle", **trusted, constrained=True, **small).eval()
    found["constrained class"] = type(constrained).__name__
    with torch.no_grad():
        constrained.layernorm.weight.mul_(1.5)
        found["small"] = constrained(pixels).logits.tolist()
        found["smaller"] = constrained(pixels, depth=2, num_components=1).logits.tolist()
    constrained.save_pretrained(f"{work}/small")
    constrained.push_to_hub("org/target", commit_message="Smaller")
    constrained.save_pretrained(f"{work}/again", push_to_hub=True, repo_id="org/fresh", private=True)
    vits[1].push_to_hub("org/stock")

    new = {"cache_dir": f"{work}/second"}
    pushed = {
        name: load(name, **trusted, **new).eval()(pixels).logits.tolist() for name in ("org/target", "org/fresh")
    }
    again = load("org/target", **trusted, **new, constrained=True).eval()
    pushed["smaller"] = again(pixels, depth=2, num_components=1).logits.tolist()
    pushed["org/stock"] = load("org/stock", **new).eval()(pixels).logits.tolist()  # no code, no trust
    direct = get_class_from_dynamic_module("modeling_lingene.LinGeneForImageClassification", moving[1])
    for name, model in zip(moving, [load(moving[0], **trusted), None]):
        model = direct.from_pretrained(name) if model is None else model
        pushed[name] = model.eval()(pixels).logits.tolist()
    return found | {"pushed": pushed}


def offline_use(sizes: list[dict], small: str) -> dict[str, Any]:
    """Loads from the first process' cache, and the folder it saved, without a Hub."""
    import sys

    sys.modules["modeling_lingene"] = None
    import torch
    from transformers import AutoModelForImageClassification

    pixels = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    load, trusted = AutoModelForImageClassification.from_pretrained, {"trust_remote_code": True}
    found = {"logits": [load("org/bundle", **trusted, **size).eval()(pixels).logits.tolist() for size in sizes]}
    found["small"] = load(small, **trusted).eval()(pixels).logits.tolist()
    again = load(small, **trusted, constrained=True).eval()
    found["smaller"] = again(pixels, depth=2, num_components=1).logits.tolist()
    try:
        load("org/few", **trusted)
        found["not cached"] = "loaded"
    except OSError as error:
        found["not cached"] = str(error)
    return found


def publish(
    hub: HubServer,
    repo_id: str,
    folder: Path,
    branch: str = "main",
    others: dict[str, str] | None = None,
    subfolder: str = "",
) -> str:
    """Puts a folder, and other files, into a repository of the server as one commit, and returns its sha; the code
    lies at the root, wherever the bundle does.
    """
    within = {path: "" if path.suffix == ".py" else subfolder for path in folder.iterdir()}
    contents = {f"{place}{path.name}": path.read_bytes() for path, place in within.items()}
    contents |= {name: text.encode() for name, text in (others or {}).items()}
    files = {}
    for name, content in contents.items():
        oid = hashlib.sha256(content).hexdigest() if name.endswith(".safetensors") else ""
        files[name] = hub.store(content, oid)
    return hub.repos.setdefault(repo_id, Repo(private=False)).commit(branch, files)


def move_after_the_index(hub: HubServer, commits: dict[str, str]):
    """From the moment a repository's index has been fetched, its head is the given commit."""
    snapshot = hub.snapshot

    def moved(repo_id: str, revision: str = "main"):
        served = [path for method, path in hub.requests[:-1] if method == "GET" and path.endswith(INDEX)]
        if repo_id in commits and any(path.startswith(f"/{repo_id}/") for path in served):
            hub.repos[repo_id].branches["main"] = commits[repo_id]
        return snapshot(repo_id, revision)

    hub.snapshot = moved


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("remote")
    bundles = {"A": helpers.bundle(folder / "A"), "B": helpers.bundle(folder / "B", seed=1)}
    bundles["C"] = helpers.bundle(folder / "C", helpers.tiny_config(preset="paper"), seed=2)
    environment = {"PYTHONPATH": "", "PYTHONSAFEPATH": "1", "PIXELS": str(folder / "image.png")}
    dinov2 = helpers.tiny_config(family="dinov2_with_registers", num_register_tokens=2)
    bundles["dinov2"] = helpers.bundle(folder / "dinov2", dinov2)
    encoders = {"dinov2-plain": "dinov2", "clip": "clip_vision_model", "siglip": "siglip_vision_model"}
    for name, family in encoders.items():
        bundles[name] = folder / name
        config = helpers.tiny_config(family=family, trained_width_ratios=["1/2", "1"])
        helpers.tiny_model(config, model_class=LinGeneModel).save_pretrained(bundles[name])
    bundles["swin"] = folder / "swin"
    helpers.tiny_swin().save_pretrained(bundles["swin"])
    image_processor(16).save_pretrained(bundles["A"])
    pixels = (PIXELS[0].permute(1, 2, 0) * 127.5 + 127.5).round().byte().numpy()
    pytest.importorskip("PIL.Image").fromarray(pixels).save(folder / "image.png")
    sizes = {"weights_id": json.loads((bundles["A"] / INDEX).read_text())["metadata"]["weights_id"]}
    row = {"depth": 3, "width_ratio": "1/2", "num_components": 2, "params": 9, "macs": 9, "accuracy": 0.5}
    row |= {"stored_params": 9, "split": "test", "dataset": "made"}
    sizes = json.dumps(sizes | {"sizes": [row]})
    with HubServer(folder / "hub") as hub, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # away from the package
        environment["COMMIT"] = publish(hub, "org/bundle", bundles["B"])
        publish(hub, "org/bundle", bundles["A"], others={"sizes.json": sizes})
        publish(hub, "org/bundle", bundles["B"], branch="other")
        publish(hub, "org/dinov2", bundles["dinov2"])
        for name in (*encoders, "swin"):
            publish(hub, f"org/{name}", bundles[name])
        publish(hub, "org/several", bundles["B"], subfolder="few/")
        for name in ("org/few", "org/few-headless", "org/cached-elsewhere"):
            publish(hub, name, bundles["A"])
        others = {"README.md": "# Mine\n", "sizes.json": sizes, "notes.md": "kept", "model.safetensors": "stale"}
        before = publish(hub, "org/target", bundles["A"], others=others)
        moving = {}
        for name in ("org/moving-auto", "org/moving-class"):
            moving[name] = publish(hub, name, bundles["C"])
            publish(hub, name, bundles["A"])

        move_after_the_index(hub, moving)
        first = in_new_process(
            first_use, hub, folder / "first", SIZES, SMALL, str(folder), list(moving), **environment
        )
        pushed, downloads = first["pushed"], {name: hub.downloads(name) for name in hub.repos}
        hub.requests.clear()
        offline = in_new_process(
            offline_use, hub, folder / "first", SIZES, str(folder / "small"), **environment, HF_HUB_OFFLINE="1"
        )
        offline_requests = list(hub.requests)
        moved = [name for name in moving if hub.repos[name].branches["main"] == moving[name]]
        return SimpleNamespace(**locals())


def logits(model, pixels: torch.Tensor = PIXELS) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(pixels).logits


def local(trip: SimpleNamespace, name: str = "A", **size) -> torch.Tensor:
    """Logits of a size as the installed package computes them from the folder."""
    return logits(AutoModelForImageClassification.from_pretrained(trip.bundles[name], **size))


def equal(found: list, expected: torch.Tensor):
    torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_another_family_comes_with_its_backbone(trip):
    """`AutoBackbone` leads to the family's stock class, of the size asked for; a ViT has none and says so."""
    assert trip.first["backbone"].startswith("transformers.models.dinov2_with_registers.")
    assert trip.first["backbone"].endswith(".Dinov2WithRegistersBackbone")
    whole = AutoModel.from_pretrained(trip.bundles["dinov2"], depth=2).eval()
    output = whole(PIXELS[..., :12], output_hidden_states=True)
    maps = [whole.layernorm(one)[:, 3:].transpose(1, 2).reshape(1, 48, 4, 3) for one in output.hidden_states[1:]]
    for found, expected in zip(trip.first["maps"], maps, strict=True):
        assert torch.allclose(torch.tensor(found), expected, atol=1e-5)
    assert torch.allclose(torch.tensor(trip.first["pooled"]), output.pooler_output, atol=1e-5)
    assert "`family` vit of org/bundle has no backbone" in trip.first["no backbone"]


@torch.no_grad()
def test_encoders_of_other_families_come_with_their_code(trip):
    """Stock and constrained, of a size, in the family's own class."""
    kinds = {"dinov2-plain": "Dinov2Model", "clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
    for name, kind in kinds.items():
        stock = AutoModel.from_pretrained(trip.bundles[name], depth=2, width_ratio="1/2").eval()
        shown, *both = trip.first["encoders"][f"org/{name}"]
        assert shown == kind == type(stock).__name__
        for found in both:
            equal(found, stock(PIXELS).pooler_output)


def test_a_network_of_stages_comes_with_its_own_code(trip):
    """Another kind of bundle: stock Swins and constrained ones, by code of its own and none of a ViT's models."""
    stock, found, ours, again = trip.first["swin"]
    assert (stock, ours) == ("SwinForImageClassification", "LinGeneSwinForImageClassification")
    expected = helpers.tiny_swin()(PIXELS, depth=2, width_ratio="1/3").logits
    assert torch.allclose(torch.tensor(found), expected, atol=1e-5)
    assert torch.allclose(torch.tensor(again), expected, atol=1e-5)
    code = {file for file in trip.downloads["org/swin"] if file.endswith(".py")}
    assert "modeling_swin_lingene.py" in code and "modeling_lingene.py" not in code


def test_code_from_the_hub_is_refused_without_trust(trip):
    """Silence is no consent either; nothing of it may run before."""
    assert len(trip.first["refusals"]) == 2
    assert all("trust_remote_code=True" in message for message in trip.first["refusals"])
    assert trip.first["ran before trust"] == []


@pytest.mark.parametrize("number", range(len(SIZES)))
def test_a_size_loaded_by_name_is_what_the_package_computes(trip, number):
    """The code that travels is the code that was tested, and the result is a stock model."""
    assert trip.first["class"] == "transformers.models.vit.modeling_vit.ViTForImageClassification"
    equal(trip.first["logits"][number], local(trip, **SIZES[number]))


def test_automodel_by_name_gives_the_encoder(trip):
    """The second entry of `auto_map`."""
    encoder = AutoModel.from_pretrained(trip.bundles["A"], **SMALL).eval()
    with torch.no_grad():
        equal(trip.first["states"], encoder(PIXELS).last_hidden_state)


def test_only_the_files_that_a_size_needs_are_downloaded(trip):
    """The point of one file per component: two of five are two downloads, and each file is fetched once."""
    for name, count in (("org/few", 2), ("org/few-headless", 1)):
        weights = [file for file in trip.downloads[name] if file.endswith(".safetensors")]
        assert sorted(weights) == [*(f"component-{n:02d}.safetensors" for n in range(count)), "shared.safetensors"]
        others = [file for file in trip.downloads[name] if not file.endswith(".safetensors")]
        assert sorted(others) == sorted({INDEX, "config.json", *CODE}), "each once"


def test_all_the_code_that_travels_was_downloaded_from_the_hub(trip):
    """Were the package importable there, the test would prove nothing."""
    assert set(trip.downloads["org/bundle"]) >= CODE


def test_a_budget_by_name_reads_the_sizes_on_the_hub(trip):
    """sizes.json is fetched when, and only when, it decides something."""
    assert trip.first["budget"] == 3
    assert "sizes.json" in trip.downloads["org/bundle"]


def test_a_revision_gives_its_own_weights(trip):
    """Branch and commit, not the head of main: a paper pins one."""
    equal(trip.first["branch"], local(trip, "B"))
    equal(trip.first["commit"], local(trip, "B"))


def test_a_bundle_in_a_subfolder_finds_the_code_at_the_root(trip):
    """`subfolder=` with trusted code found none; its weights are those of the subfolder."""
    equal(trip.first["subfolder"], local(trip, "B", **SIZES[2]))


def test_cache_dir_is_where_files_go(trip):
    """On clusters the home directory is small."""
    assert trip.first["cached"] == ["component-00.safetensors", "shared.safetensors"]


def test_a_pipeline_by_name_classifies_an_image_file(trip):
    """The image processor is found in the repository as well."""
    assert trip.first["processor"].startswith("ViTImageProcessor")
    expected = local(trip, depth=4).softmax(-1)[0]
    for n in range(7):
        assert trip.first["scores"][f"LABEL_{n}"] == pytest.approx(expected[n].item(), abs=1e-3)


def test_what_was_loaded_once_loads_offline(trip):
    """Compute nodes have no network; no request may even be tried."""
    assert trip.offline["logits"] == trip.first["logits"]
    assert trip.offline_requests == []


def test_a_component_that_is_not_in_the_cache_is_an_error_offline(trip):
    """Two of five components are there: fewer than asked for must not be taken."""
    assert "cached" in trip.offline["not cached"]


def test_the_code_travels_on_with_a_constrained_model_saved_by_remote_code(trip):
    """A fine-tuned bundle must be as complete as the one it came from."""
    assert trip.first["constrained class"] == "LinGeneForImageClassification"
    assert {path.name for path in (trip.folder / "small").glob("*.py")} == CODE
    equal(trip.offline["small"], torch.tensor(trip.first["small"]))
    equal(trip.offline["smaller"], torch.tensor(trip.first["smaller"]))


def test_a_pushed_bundle_loads_by_name_with_an_empty_cache(trip):
    """The true round trip, over an existing repository and into a new one."""
    for name in ("org/target", "org/fresh"):
        equal(trip.pushed[name], torch.tensor(trip.first["small"]))
    equal(trip.pushed["smaller"], torch.tensor(trip.first["smaller"]))
    assert trip.hub.repos["org/fresh"].private


def test_a_push_replaces_the_bundle_in_one_commit_and_leaves_the_rest(trip):
    """Stale components would be downloaded by nobody and confuse everybody; the card is its author's."""
    hub = trip.hub
    assert len(hub.repos["org/target"].commits) == 2
    weights = {"shared.safetensors", *(f"component-{n:02d}.safetensors" for n in range(3))}
    others = {"README.md", "notes.md", "preprocessor_config.json"}
    assert set(hub.snapshot("org/target")[1]) == {*weights, INDEX, "config.json", *CODE, *others}
    assert hub.read("org/target", "README.md") == b"# Mine\n"
    assert "component-04.safetensors" in hub.snapshot("org/target", trip.before)[1]


def test_a_materialised_vit_is_pushed_as_a_stock_model(trip):
    """It must load for people who trust nobody's code."""
    equal(trip.pushed["org/stock"], local(trip, **SIZES[1]))
    assert not [name for name in trip.hub.snapshot("org/stock")[1] if name.endswith(".py")]


@pytest.mark.parametrize("name", ["org/moving-auto", "org/moving-class"])
def test_a_push_in_the_middle_of_a_load_gives_the_commit_that_it_began_with(trip, name):
    """Coefficients of one commit and components of the next would be a mixture that loads without a word."""
    assert name in trip.moved
    torch.testing.assert_close(torch.tensor(trip.pushed[name]), local(trip, "A"), rtol=0, atol=1e-5)
