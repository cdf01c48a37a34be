"""Laws of files that may lie beside a model: absence is what the Hub said, not that nobody could be asked.

On the local Hub of hub_server.py; what is offline there has been loaded before, in some way or other.

    pytest tests/test_beside.py
"""

import json
from collections.abc import Iterator
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from transformers import ViTConfig, ViTModel

import helpers
from hub_server import HubServer
from modeling_lingene import LinGeneModel
from modeling_lingene.conversion.convert import convert
from modeling_lingene.folders import processor_or_none, write_sizes
from modeling_lingene.images.batches import image_processor
from modeling_lingene.readout import write_readout
from test_hub_server import api, in_new_process


DAMAGED = '{"image_mean": [0.5'


def used(cache: str) -> dict[str, Any]:
    """What a bundle gives that a stock load alone brought into the cache, offline and then online again."""
    import logging
    import os

    import huggingface_hub

    from modeling_lingene import LinGeneModel

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    said, places = [], {"org/turned": {}, "org/bare": {}}
    logging.getLogger("modeling_lingene").addHandler(Told())
    models = {}
    for name in places:
        LinGeneModel.from_pretrained(name, cache_dir=cache, depth=6)
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    for name, one in places.items():
        said.clear()
        for asked in ({"depth": 6}, {"depth": 3}):
            model = LinGeneModel.from_pretrained(name, cache_dir=cache, local_files_only=True, **asked)
            one.setdefault("layers", []).append(model.config.num_hidden_layers)
        (one["depth"],) = said
        try:
            LinGeneModel.from_pretrained(name, cache_dir=cache, local_files_only=True, max_params=1e9)
        except ValueError as error:
            one["budget"] = str(error)
        said.clear()
        models[name] = LinGeneModel.from_pretrained(name, cache_dir=cache, constrained=True)
        one["loaded"] = list(said)
        models[name].save_pretrained(os.path.join(cache, "offline", name))
    huggingface_hub.constants.HF_HUB_OFFLINE = False
    for name, one in places.items():
        said.clear()
        models[name].save_pretrained(os.path.join(cache, "online", name))
        one["saved"] = list(said)
        if name == "org/turned":
            one["again"] = LinGeneModel.from_pretrained(name, cache_dir=cache, max_params=1e9).config.hidden_size
        for state in ("offline", "online"):
            one[state] = sorted(
                set(os.listdir(os.path.join(cache, state, name))) & {"preprocessor_config.json", "readout.safetensors"}
            )
    return places


def asked(caches: dict, names: list[str]) -> dict:
    """What is said of each name's preprocessing and readout, by a way in which a cache came to be, then offline."""
    import huggingface_hub

    from modeling_lingene import beside_lingene as beside
    from modeling_lingene.folders import processor_or_none
    from modeling_lingene.readout import read_readout

    def said(name: str, cache: str) -> list[str]:
        found = []
        for read in (processor_or_none, read_readout):
            try:
                found.append("none" if read(name, cache_dir=cache) is None else "there")
            except beside.NobodyKnows as error:
                found.append(f"unknown: {error}")
        return found

    for name in names:
        huggingface_hub.snapshot_download(name, cache_dir=caches["whole"])
        huggingface_hub.hf_hub_download(name, "config.json", cache_dir=caches["configuration"])
    told = {"online": {name: said(name, caches["asked before"]) for name in names}}
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    return told | {how: {name: said(name, cache) for name in names} for how, cache in caches.items()}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    """A turned bundle with preprocessing, one without either, and a plain model without."""
    root = tmp_path_factory.mktemp("beside")
    model = helpers.tiny_model(helpers.tiny_config(), model_class=LinGeneModel)
    for name in ("turned", "bare"):
        model.save_pretrained(root / name)
    image_processor(16).save_pretrained(root / "turned")
    write_readout(root / "turned", (torch.eye(48), torch.zeros(48)))
    write_sizes(root / "turned", helpers.ROWS)
    stock = model.materialise()
    del stock.config.materialised_from
    stock.save_pretrained(root / "plain")
    names = ["org/turned", "org/bare", "org/plain"]
    caches = {how: str(root / "caches" / how) for how in ("asked before", "whole", "configuration")}
    with pytest.MonkeyPatch.context() as patch, HubServer(root / "hub") as hub:
        patch.setenv("NO_PROXY", "127.0.0.1")
        for switch, value in {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
            patch.setattr(constants, switch, value)
        huggingface_hub.close_session()  # of a client that may have read other variables
        for name in names:
            api(hub).create_repo(name)
            api(hub).upload_folder(repo_id=name, folder_path=root / name.partition("/")[2])
        told = in_new_process(asked, hub, root / "home", caches, names)
        yield told | {"used": in_new_process(used, hub, root / "home", str(root / "caches" / "used"))}
        huggingface_hub.close_session()


BOTH, NEITHER = ["there", "there"], ["none", "none"]


@pytest.mark.parametrize("how", ["online", "asked before", "whole"])
def test_what_the_hub_has_and_has_not_is_known_online_and_from_what_it_said_before(told, how):
    """Offline by its earlier answers, or by the list of files that comes with a whole download."""
    assert told[how] == {"org/turned": BOTH, "org/bare": NEITHER, "org/plain": NEITHER}


def test_what_nobody_can_say_is_no_absence(told):
    """With the configuration alone in the cache; but channels are turned of bundles only, and sizes of them."""
    for name in ("org/turned", "org/bare"):
        for file, said in zip(("preprocessor_config.json", "readout.safetensors"), told["configuration"][name]):
            assert said.startswith(f"unknown: `{file}` of {name} is not in the cache, and the Hub cannot be asked")
            assert "\n" not in said and said.endswith("Ask again while the Hub is within reach, once.")
    processor, readout = told["configuration"]["org/plain"]
    assert processor.startswith("unknown: ") and readout == "none"


def test_a_bundle_that_was_loaded_before_loads_offline_and_claims_no_absence(told):
    """Of a file that the Hub has, and that no load needed so far. Once the Hub can be asked, the bundle is saved with
    what brings its tokens back: a push without would delete that there.
    """
    one = told["used"]["org/turned"]
    assert one["layers"] == [6, 3] and "nor is it known here whether it was measured" in one["depth"]
    assert one["budget"].startswith("`sizes.json` of org/turned is not in the cache, and the Hub cannot be asked")
    files = ["preprocessor_config.json", "readout.safetensors"]
    for file, line in zip(files, one["loaded"], strict=True):
        assert line.startswith(f"`{file}` of org/turned is not in the cache")
        assert line.endswith("Until then this model is saved without it.")
    assert one["offline"] == [] and one["saved"] == [] and one["online"] == files
    assert one["again"] == 48


def test_what_a_list_of_files_does_not_name_is_absent_offline(told):
    """It comes with the first files of a bundle."""
    one = told["used"]["org/bare"]
    assert one["layers"] == [6, 3] and "was neither trained ([6]) nor measured" in one["depth"]
    assert "needs measured sizes in `sizes.json`, and this bundle has none" in one["budget"]
    assert one["loaded"] == one["offline"] == one["saved"] == one["online"] == []


def test_damaged_preprocessing_is_refused_where_none_would_be_replaced(tmp_path):
    """A conversion would calibrate on pixels of another normalisation, and save that beside the bundle."""
    shape = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    ViTModel(ViTConfig(image_size=16, patch_size=4, **shape)).save_pretrained(tmp_path / "vit")
    assert processor_or_none(tmp_path / "vit") is None
    convert(str(tmp_path / "vit"), tmp_path / "without")
    (tmp_path / "vit" / "preprocessor_config.json").write_text(DAMAGED)
    with pytest.raises(ValueError, match="`preprocessor_config.json` of .*vit is damaged"):
        convert(str(tmp_path / "vit"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    said = {"image_processor_type": "NoSuchImageProcessor"}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="give no image processor"):
        processor_or_none(tmp_path / "vit")
