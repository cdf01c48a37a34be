"""Files of weights that are cut, empty, of another shape or not finite are refused by name (DESIGN 6).

pytest tests/loading/test_damaged_weights.py
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from refusing import INF, NAN, SHARED, refused, replace_tensor
from safetensors.torch import load_file, save_file

import helpers
from modeling_lingene import LinGeneForImageClassification


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_last_byte(path: Path):
    path.write_bytes(path.read_bytes()[:-1])


BROKEN = {
    "truncated": truncate,
    "a byte short": cut_last_byte,
    "garbage": lambda path: path.write_bytes(b"\x93" * 4000),
    "a page of HTML": lambda path: path.write_bytes(b"<html>404</html>" * 100),
    "empty": lambda path: path.write_bytes(b""),
    "a header only": lambda path: path.write_bytes(path.read_bytes()[:8]),
    "other tensors": lambda path: save_file({"other": torch.ones(1)}, path),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("file", [SHARED, "component-03.safetensors"])
@pytest.mark.parametrize("constrained", [False, True])
def test_a_damaged_file_is_refused_by_name(load, folder, damage, file, constrained):
    """Interrupted downloads and full disks leave such files; a random layer would be the worst answer."""
    damage(folder / file)
    refused(load, folder, file, "damaged", "again", constrained=constrained)


SHAPES = {
    "narrower": ("components.2.mlp.fc1.weight", lambda tensor: tensor[:, :47]),
    "transposed": ("components.2.mlp.fc2.weight", lambda tensor: tensor.T),
    "another dimension": ("components.2.norm1.weight", lambda tensor: tensor[None]),
    "wider": ("components.2.attention.query.bias", lambda tensor: torch.cat((tensor, tensor))),
    "shared": ("embeddings.position_embeddings", lambda tensor: tensor[:, :16]),
    "shared, wider": ("layernorm.weight", lambda tensor: torch.cat((tensor, tensor))),
}


@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("keywords", [{}, {"width_ratio": "1/2"}, {"constrained": True}], ids=str)
def test_a_tensor_of_another_shape_than_the_configuration_says_is_refused(load, folder, case, keywords):
    """A slice of a larger tensor would fit, and be the wrong one."""
    key, change = case
    file = "component-02.safetensors" if key.startswith("components") else SHARED
    stored = load_file(folder / file)[key]
    replace_tensor(folder / file, key, change)
    refused(load, folder, f"`{key}`", str(tuple(change(stored).shape)), str(tuple(stored.shape)), **keywords)


def poison(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> Path:
    """The preset in which odd degrees, components 0 and 2, have the coefficient 0 in the first layer."""
    return helpers.bundle(tmp_path_factory.mktemp("paper") / "bundle", helpers.tiny_config(preset="paper"))


@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize(
    "key",
    [
        "components.0.attention.query.weight",
        "components.2.norm1.weight",
        "components.4.mlp.fc2.bias",
        "embeddings.cls_token",
        "layernorm.bias",
        "classifier.weight",
        "classifier.bias",
    ],
)
@pytest.mark.parametrize("keywords", [{}, {"depth": 3, "width_ratio": "1/2"}, {"constrained": True}], ids=str)
def test_weights_that_are_not_finite_are_refused(load, paper, tmp_path, value, key, keywords):
    """A diverged training saves them; the first sign would be an accuracy of chance."""
    folder = Path(shutil.copytree(paper, tmp_path / "bundle"))
    component = key.split(".")[1]
    file = f"component-0{component}.safetensors" if key.startswith("components") else SHARED
    replace_tensor(folder / file, key, poison(value))
    name = key.removeprefix(f"components.{component}.")
    refused(load, folder, name, "not finite", **keywords)


def test_a_component_with_coefficient_zero_in_the_first_layer_is_the_case_tested_above(paper):
    """Otherwise a check of the first layer alone could not miss anything."""
    config = LinGeneForImageClassification.config_class.from_pretrained(paper)
    table = config.coefficients(config.size())
    assert table[0, 0] == table[0, 2] == 0 and table[1, 0] != 0


def test_a_bfloat16_bundle_with_nan_is_refused(load, tmp_path):
    """The check adds up in float32 whatever is stored."""
    helpers.tiny_model().to(torch.bfloat16).save_pretrained(tmp_path / "bundle")
    replace_tensor(tmp_path / "bundle" / "component-00.safetensors", "components.0.norm2.bias", poison(NAN))
    refused(load, tmp_path / "bundle", "norm2.bias", "not finite")
