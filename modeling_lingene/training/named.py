"""Runs that have a name: recipes for known sets, and the training schemes that the papers publish."""

import dataclasses
from typing import Any

from ..images.augmentation import AUGMENTATIONS, Augmentation
from .decomposition import DecompositionSettings
from .settings import ModelSettings, Recipe
from .steps import TrainingSettings


RECIPES = {
    "digits": Recipe(
        data="digits",
        model=ModelSettings(64, 4, intermediate_size=128, depth=6),
        training=TrainingSettings(epochs=240, device="cpu", evaluate_every=0),
        decomposition=DecompositionSettings("elastic", totals=(1, 2, 4, 6), depths=(3, 4)),
        augmentation=Augmentation(**AUGMENTATIONS["shift"]),
    ),
    "fashion_mnist": Recipe(
        data="zalando-datasets/fashion_mnist",
        model=ModelSettings(64, 4, intermediate_size=128, patch_size=7, depth=6),
        training=TrainingSettings(epochs=12, device="cpu"),
        decomposition=DecompositionSettings("elastic", totals=(1, 2, 4, 6), depths=(3, 4)),
        augmentation=Augmentation(crop_padding=2, flip=True),
    ),
    "fashion_mnist_sizes": Recipe(
        data="zalando-datasets/fashion_mnist",
        model=ModelSettings(64, 4, intermediate_size=128, patch_size=7, depth=6),
        training=TrainingSettings(epochs=81, device="cpu"),
        decomposition=DecompositionSettings(
            "elastic", totals=(1, 2, 4, 6), depths=(3, 4), widths=("1/4", "1/2", "3/4")
        ),
        augmentation=Augmentation(crop_padding=2, flip=True),
    ),
    "tiny_imagenet_32": Recipe(
        data="tiny_imagenet_32",
        model=ModelSettings(192, 6, image_size=32, patch_size=4, depth=12),
        training=TrainingSettings(epochs=300, batch_size=512, learning_rate=1e-3, precision="bf16"),
        decomposition=DecompositionSettings("elastic", totals=(1, 2, 4, 8, 12)),
        augmentation=Augmentation(**AUGMENTATIONS["mixed"]),
    ),
    "paper_imagenet": Recipe(
        data="ILSVRC/imagenet-1k",
        model=ModelSettings(768, 12, image_size=224, patch_size=16, preset="paper"),
        training=TrainingSettings(
            epochs=100, batch_size=512, learning_rate=8e-4, warmup=0.05, precision="bf16", tracker="tensorboard"
        ),
        decomposition=DecompositionSettings("incremental", totals=(1, 2, 4, 8, 12)),
        augmentation=Augmentation(**AUGMENTATIONS["deit"]),
        teacher="timm:regnety_160",
        workers=16,
    ),
}
# Where the numbers of each are, or that it has none.
ABOUT = {
    "digits": "`lingene quickstart`: one run, every prefix at three depths. tests/benchmarks/results/quickstart.json.",
    "fashion_mnist": "One run, every prefix at three depths. Not measured; fashion_mnist_sizes has widths as well.",
    "fashion_mnist_sizes": (
        "One run, every prefix at four widths and three depths: hub_cards/lingene-fashion-mnist, which was trained "
        "with one network a step at a learning rate of 0.002. "
        "tests/benchmarks/README.md has a shorter one with a teacher, beside each size trained alone."
    ),
    "tiny_imagenet_32": (
        "Never run: written for one GPU, every prefix. --data FOLDER names its parquet files of 32 pixels."
    ),
    "paper_imagenet": (
        "LinDec, section 4.1: ImageNet-1k, DeiT-Base shape, 1, 2, 4, 8, 12 components, 100 epochs a phase; "
        "83.70 % there. Never run here: weeks of GPU time, and images that are not ours to bring."
    ),
}


# What the papers publish, as changes of a recipe's settings.
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    # LinDec, section 3.2: incremental training with the coefficients of Eq. 3, soft distillation.
    "lindec": {
        "model": {"preset": "paper"},
        "decomposition": {"schedule": "incremental"},
        "objective": {"distillation": "soft"},
    },
    # Scala: four networks a step (stable sampling, progressive knowledge transfer), the full one alone for the first
    # tenth, isolated activation, hard distillation; all components.
    "scala": {
        "decomposition": {
            "schedule": "elastic",
            "totals": (),
            "sampling": "scala",
            "full_first": 0.1,
            "isolated_activation": True,
        },
        "objective": {"distillation": "hard"},
    },
}


def as_published(recipe: Recipe, method: str) -> Recipe:
    """A recipe with the training scheme of a paper.

    Args:
        recipe: images, network, length of the training.
        method: lindec (Lin et al., NeurIPS 2024) or scala (Zhang et al., NeurIPS 2024, arXiv 2412.04786).
    """
    groups = {
        group: dataclasses.replace(getattr(recipe, group), **changes) for group, changes in METHODS[method].items()
    }
    return dataclasses.replace(recipe, **groups)
