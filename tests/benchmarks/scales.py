"""What the tables train, and how large: the scales of images, networks and budgets, and the rows of a table."""

import dataclasses

from modeling_lingene.images.augmentation import Augmentation
from modeling_lingene.training.recipes import ModelSettings
from modeling_lingene.training.steps import TrainingSettings


RATES = (2e-3, 4e-3, 8e-3)
SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Scale:
    """What a machine can do.

    Args:
        images: for training and for validation.
        training: its epochs are those of the dense network.
        totals, depths, widths: numbers of components, layers, shares of the width that are measured; the last is all.
        teacher: of a residual network; empty: labels alone.
        rates: the list begins with; one alone is taken as it is, from another table.
        seeds: of a row; differences under 2 points need three.
    """

    image_size: int
    images: tuple[int, int]
    model: ModelSettings
    training: TrainingSettings
    augmentation: Augmentation
    totals: tuple[int, ...]
    depths: tuple[int, ...]
    widths: tuple[str, ...]
    teacher: dict
    teacher_epochs: int = 0
    rates: tuple[float, ...] = RATES
    seeds: tuple[int, ...] = SEEDS


SCALES = {
    "fashion": Scale(  # CPU
        28,
        (12_800, 5_000),
        ModelSettings(64, 4, intermediate_size=128, patch_size=7, depth=6),
        TrainingSettings(epochs=8, batch_size=128, device="cpu", evaluate_every=0),
        Augmentation(crop_padding=2, flip=True),
        totals=(1, 2, 4, 6),
        depths=(3, 4, 6),
        widths=("1/4", "1/2", "3/4", "1"),
        teacher={"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [2, 2, 2]},
        teacher_epochs=30,
    ),
    "tiny": Scale(  # one GPU
        32,
        (90_000, 10_000),
        ModelSettings(192, 6, patch_size=4, depth=12),
        TrainingSettings(epochs=10, batch_size=512, precision="bf16", evaluate_every=0),
        Augmentation(crop_padding=4, flip=True, erasing=0.25, mixup=0.8, cutmix=1.0),
        totals=(1, 2, 4, 8, 12),
        depths=(6, 9, 12),
        widths=("1/3", "1/2", "2/3", "1"),
        teacher={"embedding_size": 64, "hidden_sizes": [128, 256, 512], "depths": [2, 2, 2]},
        teacher_epochs=20,
    ),
    "cifar": Scale(  # CPU
        32,
        (45_000, 5_000),
        ModelSettings(128, 4, intermediate_size=256, patch_size=4, depth=9),
        TrainingSettings(epochs=4, batch_size=128, device="cpu", evaluate_every=0),
        Augmentation(crop_padding=4, flip=True),
        totals=(1, 2, 4, 9),
        depths=(5, 7, 9),
        widths=("1/2", "3/4", "1"),
        teacher={"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [2, 2, 2]},
        teacher_epochs=12,
        rates=(1e-3, 2e-3),
        seeds=(0,),
    ),
    "swin": Scale(  # CPU; the second of three stages, of 8 x 8 patches in shifted windows of 4 x 4, has components
        32,
        (6_400, 3_000),
        ModelSettings(32, 2, intermediate_size=64, patch_size=2, stages=(2, 6, 2), window_size=4),
        TrainingSettings(epochs=8, batch_size=64, device="cpu", evaluate_every=0),
        Augmentation(crop_padding=4, flip=True),
        totals=(1, 2, 3, 6),
        depths=(6,),
        widths=("1",),
        teacher={},
    ),
    "swin_tiny": Scale(  # one GPU; the stages of `swin`, wider
        32,
        (90_000, 10_000),
        ModelSettings(64, 2, patch_size=2, stages=(2, 6, 2), window_size=4),
        TrainingSettings(epochs=10, batch_size=512, precision="bf16", evaluate_every=0),
        Augmentation(crop_padding=4, flip=True, erasing=0.25, mixup=0.8, cutmix=1.0),
        totals=(1, 2, 3, 6),
        depths=(6,),
        widths=("1",),
        teacher={},
    ),
}
SCALES["cifar_gpu"] = dataclasses.replace(  # one GPU, one seed
    SCALES["tiny"],
    images=(45_000, 5_000),
    training=dataclasses.replace(SCALES["tiny"].training, epochs=60),
    seeds=(0,),
)
SCALES["tuning"] = dataclasses.replace(SCALES["fashion"], teacher={})  # other images at the size of a bundle's


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to train.

    Args:
        settings: fields of the model's, the decomposition's and the objective's settings that differ from their
            defaults; None for a stock ViT alone.
        size: (layers, share of the width) of a network that is trained alone.
        start: of that network: `scratch`, or out of the bundle that the table starts from: `free`, a stock ViT, or
            `constrained`, its components.
        cost: of one run, in trainings of the dense network.
        pictures_of: a row's name: as many pictures as it sees, whatever that costs; for a stock ViT.
        init: a row's name: starts from its bundle of the same seed.
        measured: label -> size, as keywords of `from_pretrained`.
        judged: labels by whose mean validation accuracy the learning rate is chosen; empty: all.
    """

    measured: dict[str, dict]
    settings: dict | None = None
    size: tuple[int, str] | None = None
    start: str = "scratch"
    cost: float = 1.0
    pictures_of: str = ""
    init: str = ""
    judged: tuple[str, ...] = ()


def prefixes(scale: Scale) -> dict[str, dict]:
    return {str(count): {"num_components": count} for count in scale.totals}


def grid(scale: Scale) -> dict[str, dict]:
    sizes = [(depth, width) for depth in scale.depths for width in scale.widths]
    return {label(*size): {"depth": size[0], "width_ratio": size[1], "allow_untrained": True} for size in sizes}


def label(depth: int, width: str) -> str:
    return f"{depth} layers, width {width}"


def dense(scale: Scale) -> Row:
    """The largest network alone: the unit of cost."""
    return alone(scale, scale.depths[-1], "1")


def alone(scale: Scale, depth: int, width: str, pictures_of: str = "") -> Row:
    """A stock ViT of one size, for the dense network's epochs or for as many pictures as another row sees."""
    return Row({label(depth, width): {}}, size=(depth, width), pictures_of=pictures_of)
