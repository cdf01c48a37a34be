"""Small bundles that every test module uses, a reference for them that is written in numpy and shares no code, and the
files, tables and cards that are made of them, read again.

Plain functions, so that a test may vary them; fixtures are in conftest.py.
"""

import ast
import json
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from huggingface_hub import ModelCard
from numpy.polynomial import Chebyshev, Legendre, Polynomial
from numpy.polynomial.chebyshev import chebpts1
from transformers import ViTConfig, ViTForImageClassification
from transformers.dynamic_module_utils import get_relative_import_files

import modeling_lingene
from modeling_lingene import (
    LinGeneConfig,
    LinGeneForImageClassification,
    LinGenePreTrainedModel,
    LinGeneSwinConfig,
    LinGeneSwinForImageClassification,
)
from modeling_lingene.budget_lingene import device_name
from modeling_lingene.images.augmentation import Augmentation
from modeling_lingene.images.batches import image_processor
from modeling_lingene.images.data import LabelledImages
from modeling_lingene.images.loaders import MemoryImages
from modeling_lingene.measuring import drawing


DPI = drawing.DPI  # as people get pictures; tests draw smaller ones
torch.set_num_threads(1)  # for rows, which name the device with them, and fixtures of modules, too


TINY = dict(
    hidden_size=48,
    num_attention_heads=4,
    intermediate_size=96,
    image_size=16,
    patch_size=4,
    depth=6,
    num_components=5,
    num_labels=7,
    trained_width_ratios=["1/2", "1"],
)

# Parts of a block in a bundle, and the modules of transformers' ViT that hold the same.
STOCK_PARTS = {
    "norm1": "layernorm_before",
    "attention.query": "attention.q_proj",
    "attention.key": "attention.k_proj",
    "attention.value": "attention.v_proj",
    "attention.output": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def code_of(module: str = "modeling_lingene") -> dict[str, Path]:
    """The files that travel with a bundle whose models are in a module, by name, as transformers finds them."""
    models = Path(modeling_lingene.__file__).parent / f"{module}.py"
    return {path.name: path for path in (models, *map(Path, get_relative_import_files(models)))}


TINY_SWIN = dict(embed_dim=12, depths=[2, 4, 2], num_heads=[3, 6, 12], window_size=2, image_size=16, patch_size=2)
TINY_SWIN |= {"num_labels": 5, "reference_components": 3, "trained_width_ratios": ["1/3", "2/3", "1"]}


def tiny_swin(**fields) -> LinGeneSwinForImageClassification:
    """Three stages of 12, 24 and 48 channels, the second of four layers from 3 components, drawn anew."""
    return drawn(LinGeneSwinForImageClassification(LinGeneSwinConfig(**{**TINY_SWIN, **fields})))


def drawn(model, seed: int = 0):
    """The same model with every parameter drawn anew, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.dim() == 1) * 0.5)
    return model.eval()


def tiny_config(**fields) -> LinGeneConfig:
    """Six layers of 48 channels and 4 heads from 5 components, 17 tokens, 7 labels; any field may be replaced."""
    return LinGeneConfig(**{**TINY, **fields})


def tiny_model(
    config: LinGeneConfig | None = None,
    seed: int = 0,
    model_class: type[LinGenePreTrainedModel] = LinGeneForImageClassification,
    noise: float = 0.1,
) -> LinGenePreTrainedModel:
    """A constrained model in evaluation mode, every parameter changed by seeded noise.

    Args:
        config: default `tiny_config()`.
        noise: standard deviation of what is added, so that no initial value (0, 1, or drawn again) can pass for it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(tiny_config() if config is None else config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=noise)
    return model


def bundle(folder: str | Path, config: LinGeneConfig | None = None, seed: int = 0) -> Path:
    """A `tiny_model` of that configuration saved as a bundle into the folder, which is returned."""
    tiny_model(config, seed).save_pretrained(folder)
    return Path(folder)


def images(batch: int = 3, height: int = 16, width: int | None = None, seed: int = 0) -> torch.Tensor:
    """Seeded images (b, 3, height, width), unit variance; square unless a width is given."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width or height, generator=generator)


def pictures(count: int, size: int = 16, seed: int = 0) -> LabelledImages:
    """Seeded pictures of noise, `size` pixels square, labels 0, 1, 2, ... of the seven of `TINY` in turn."""
    from PIL import Image

    pixels = numpy.random.default_rng(seed).integers(30, 256, (count, size, size, 3), dtype=numpy.uint8)
    classes = TINY["num_labels"]
    names = [f"class {index}" for index in range(classes)]
    return LabelledImages(
        [Image.fromarray(one) for one in pixels], [i % classes for i in range(count)], names, "made", "train"
    )


def source(count: int, augmentation: Augmentation | None = None, seed: int = 0) -> MemoryImages:
    """Those pictures as training images."""
    return MemoryImages(pictures(count, seed=seed), image_processor(16), augmentation or Augmentation())


def labels(batch: int = 3, seed: int = 0) -> torch.Tensor:
    """Seeded class indices (b,) of 7 classes."""
    return torch.randint(0, TINY["num_labels"], (batch,), generator=torch.Generator().manual_seed(seed))


def numpy_nodes(depth: int, nodes: str) -> numpy.ndarray:
    """(depth,) positions of the layers: numpy's Chebyshev points of the first kind, or (l - 1) / L."""
    return chebpts1(depth) if nodes == "roots" else numpy.arange(depth) / depth


def numpy_basis(x: numpy.ndarray, basis: str, degree: int) -> numpy.ndarray:
    """One column: numpy's polynomial classes, and for Fourier 1, cos(pi x), sin(pi x), cos(2 pi x), ..."""
    if basis == "fourier":
        wave = numpy.cos if degree % 2 or degree == 0 else numpy.sin
        return wave(numpy.pi * ((degree + 1) // 2) * x)
    return {"chebyshev": Chebyshev, "legendre": Legendre, "taylor": Polynomial}[basis].basis(degree)(x)


def numpy_table(config: LinGeneConfig, depth: int, num_components: int) -> numpy.ndarray:
    """a(l, n) of one size, (depth, num_components), by numpy alone (LinDec, Eq. 3 and 9)."""
    rows = range(depth)
    if config.depth_map == "select":
        reference = config.reference_depth
        rows = (config.depth_rows or {}).get(depth) or [i * reference // depth for i in range(depth)]
        depth = reference
    if config.basis == "learned":
        matrix = numpy.array(config.coefficient_matrix)
        stored, asked = ((numpy.arange(count) + 0.5) / count for count in (len(matrix), depth))
        columns = [numpy.interp(asked, stored, column) for column in matrix.T]
    else:
        x = numpy_nodes(depth, config.nodes)
        degrees = range(config.start_degree, config.start_degree + num_components)
        columns = [numpy_basis(x, config.basis, g) / (g + 1) ** config.degree_weight for g in degrees]
    return numpy.stack(columns[:num_components], axis=1)[list(rows)]


def residual_scale(config: LinGeneConfig, part: str, depth: int) -> float:
    """Factor on one part of a block: reference / depth on the branch outputs of a deeper model, if asked."""
    scaled = config.scale_residual and depth > config.reference_depth and part in ("attention.output", "mlp.fc2")
    return config.reference_depth / depth if scaled else 1.0


def reference_vit(
    model: LinGeneForImageClassification, depth: int, width_ratio: str = "1", num_components: int | None = None
) -> ViTForImageClassification:
    """A stock ViT of one size: shapes from its own configuration, weights summed by numpy in float64 (LinDec, Eq. 1).

    Every tensor of a slice is the leading part of the full one, so the stock tensor's shape says what to keep.
    """
    config, ratio = model.config, Fraction(width_ratio)
    num_components = num_components or config.reference_components
    same = "image_size patch_size num_channels qkv_bias layer_norm_eps hidden_act num_labels problem_type".split()
    sized = "hidden_size num_attention_heads intermediate_size".split()
    fields = {name: getattr(config, name) for name in same}
    fields |= {name: int(getattr(config, name) * ratio) for name in sized}
    vit = ViTForImageClassification(ViTConfig(**fields, num_hidden_layers=depth)).eval()
    stored = {key: tensor.detach().double().numpy() for key, tensor in model.state_dict().items()}
    table, weights = numpy_table(config, depth, num_components), {}
    for key, target in vit.state_dict().items():
        part, _, kind = key.removeprefix("vit.").rpartition(".")
        if part.startswith("layers."):
            _, layer, part = part.split(".", 2)
            ours = next(name for name, stock in STOCK_PARTS.items() if stock == part)
            parts = [stored[f"components.{n}.{ours}.{kind}"] for n in range(num_components)]
            full = numpy.einsum("n,n...->...", table[int(layer)], parts) * residual_scale(config, ours, depth)
            if ours.startswith("norm") and kind == "weight":
                full = full + config.gain_offset
        else:
            full = stored[key.removeprefix("vit.").replace("patch_embeddings.projection", "patch_embeddings")]
        leading = full[tuple(slice(size) for size in target.shape)]
        weights[key] = torch.from_numpy(numpy.ascontiguousarray(leading)).to(target.dtype)
    vit.load_state_dict(weights)
    return vit


ROWS = [
    {
        "depth": depth,
        "width_ratio": width,
        "num_components": count,
        "params": 123_456 * depth,
        "stored_params": 70_707 * count,
        "macs": 2_345_678 * depth,
        "accuracy": accuracy,
        "split": "validation",
        "dataset": "org/set",
    }
    for depth, width, count, accuracy in [
        (6, "1", 5, 0.9876),
        (3, "1", 2, 0.51234),
        (4, "1/2", 3, 0.76549),
        (1, "1", 5, 0.9),
    ]
]
for timed in ROWS[:2]:
    timed |= {"latency_ms": 1.2345 * timed["depth"], "device": device_name()}


BAR = re.compile(r"\d%\|.*\|")  # of tqdm


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Changes a JSON file in place."""
    content = read(path)
    change(content)
    path.write_text(json.dumps(content))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def table(text: str) -> list[dict[str, str]]:
    """The first table with a column `depth` in a Markdown text, one dict per row."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    start = next(number for number, line in enumerate(lines) if line[0] == "depth")
    rows = [line for line in lines[start + 2 :] if len(line) == len(lines[start])]
    return [dict(zip(lines[start], row)) for row in rows]


def number(cell: str) -> float:
    """`1.23 M` -> 1230000; `81.2 ± 1.3 %` -> 0.812."""
    value, _, unit = re.sub(r" ± [\d.]+", "", cell).partition(" ")
    return float(value) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "%": 0.01, "ms": 1}[unit]


def assert_table_shows(rows: list[dict], shown: list[dict[str, str]]) -> None:
    """Every row, the most accurate first, each number to three digits or the decimals of its unit."""
    assert len(shown) == len(rows)
    for row, cells in zip(sorted(rows, key=lambda row: -row["accuracy"]), shown):
        assert cells["depth"] == str(row["depth"]) and cells["components"] == str(row["num_components"])
        assert cells["width"] == row["width_ratio"]
        assert cells["accuracy"].endswith(" %") and abs(number(cells["accuracy"]) - row["accuracy"]) <= 0.00051
        for column, field in (("parameters", "params"), ("MACs", "macs")):
            assert number(cells[column]) == pytest.approx(row[field], rel=5.1e-3)
        if "latency_ms" in row:
            assert number(cells["latency"]) == pytest.approx(row["latency_ms"], abs=0.0051)
        else:
            assert cells["latency"] == "-"


def told_by(page: str) -> tuple[dict, str]:
    """What a card's header says, in whatever order, and its text without the marks around it."""
    card = ModelCard(page)
    return card.data.to_dict(), re.sub(r"<!-- /?lingene card.*? -->\n?", "", card.text).strip()


def examples(card: str) -> list[tuple[str, ast.Call]]:
    """The Python blocks of a card, and the one call of `from_pretrained` in each."""
    found = []
    for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
        (call,) = [call for call in calls if call.func.attr == "from_pretrained"]
        found.append((block, call))
    return found


def example(card: str) -> tuple[str, ast.Call]:
    """The first of them."""
    return examples(card)[0]


def run_examples(card: str, repo_id: str, folder: Path) -> list[ViTForImageClassification]:
    """What the card's blocks give, each alone, where its repository is a folder on this machine."""
    models = []
    for block, call in examples(card):
        assert call.args[0].value == repo_id
        names: dict[str, Any] = {}
        exec(block.replace(f'"{repo_id}"', repr(str(folder))), names)
        models.append(names["model"])
    return models
