"""What makes a run: which images, which network at full size, trained how."""

import json
from dataclasses import dataclass, field
from typing import Any

from ..configuration_base_lingene import BundleConfig
from ..configuration_lingene import LinGeneConfig
from ..configuration_swin_lingene import LinGeneSwinConfig
from ..images.augmentation import Augmentation
from ..images.batches import first_height
from ..images.data import LabelledImages
from ..measuring.grids import trained_depths
from .decomposition import DecompositionSettings
from .losses import Objective
from .steps import TrainingSettings


LOWEST = {"hidden_size": 1, "num_attention_heads": 1, "patch_size": 1, "depth": 1, "intermediate_size": 0}
LOWEST |= {"window_size": 1, "image_size": 0, "num_components": 0, "start_degree": -1}


@dataclass(frozen=True)
class ModelSettings:
    """The network at full size, and the components it is made of.

    Args:
        hidden_size: channels; of a network of stages those of the first one, and they double from stage to stage.
        num_attention_heads: of each layer; of a network of stages as its channels.
        intermediate_size: MLP units; 0 is four times the channels.
        image_size: pixels; 0 is the height of the first training image that decodes.
        patch_size: pixels.
        depth: number of layers; of a network of stages `stages` says it.
        stages: layers of each stage of a Swin Transformer, whose deepest stage is made of components; empty is a ViT.
        window_size: of a Swin's attention, in patches.
        num_components: number of components; 0 is as many as layers.
        preset: stable or paper: nodes, start degree, gain offset and depth map, if not given.
        basis: chebyshev, legendre, taylor or fourier.
        nodes: roots or uniform; empty is the preset's.
        start_degree: of the first component; -1 is the preset's.
        degree_weight: w divides the coefficients of degree g by (g + 1)^w; -1 is the schedule's: 0 of incremental
            training and where no prefix of the components is asked for, else 1.
        depth_map: resample or select; empty is the preset's.
        dropout: probability, of hidden states.
    """

    hidden_size: int = 192
    num_attention_heads: int = 3
    intermediate_size: int = 0
    image_size: int = 0
    patch_size: int = 4
    depth: int = 12
    stages: tuple[int, ...] = ()
    window_size: int = 7
    num_components: int = 0
    preset: str = "stable"
    basis: str = "chebyshev"
    nodes: str = ""
    start_degree: int = -1
    degree_weight: float = -1.0  # tests/benchmarks/README.md, tests/test_evidence.py
    depth_map: str = ""
    dropout: float = 0.0

    def __post_init__(self):
        for name, low in LOWEST.items():
            if getattr(self, name) < low:
                raise ValueError(f"`{name}` must be an integer of at least {low}, got {getattr(self, name)!r}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be from 0 to below 1, got {self.dropout!r}.")
        if not abs(self.degree_weight) < float("inf"):
            raise ValueError(f"`degree_weight` must be a number, got {self.degree_weight!r}.")

    def config(
        self, images: LabelledImages, decomposition: DecompositionSettings, labelled: bool = True
    ) -> BundleConfig:
        """For the classes and, where no size is given, the size of these images, and the sizes that are trained."""
        names = images.class_names
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
        config = self.network(
            **self.shape(decomposition),
            image_size=self.image_size or first_height(images),
            patch_size=self.patch_size,
            hidden_dropout_prob=self.dropout,
            trained_width_ratios=decomposition.trained_widths(self.num_attention_heads),
            isolated_activation=decomposition.isolated_activation,
            **(labels if labelled else {}),
        )
        config.trained_depths = trained_depths(config, decomposition.depths)
        config.trained_components = list(decomposition.prefixes(config.reference_components))
        return config

    @property
    def layers(self) -> int:
        """Of the stack that components stand for."""
        return max(self.stages, default=self.depth)

    def network(self, **fields) -> BundleConfig:
        """The configuration of a bundle with these fields, of the kind of network that is asked for."""
        return (LinGeneSwinConfig if self.stages else LinGeneConfig)(**fields)

    def shape(self, decomposition: DecompositionSettings) -> dict[str, Any]:
        """What the images have no say in."""
        components = self.num_components or self.layers
        weight = self.degree_weight
        if weight == -1:
            weight = float(decomposition.schedule != "incremental" and len(decomposition.prefixes(components)) > 1)
        units = self.intermediate_size or 4 * self.hidden_size
        if self.stages:
            own = {"embed_dim": self.hidden_size, "depths": list(self.stages), "window_size": self.window_size}
            own["num_heads"] = [self.num_attention_heads << stage for stage in range(len(self.stages))]
            own["mlp_ratio"] = units / self.hidden_size
        else:
            own = {"hidden_size": self.hidden_size, "num_attention_heads": self.num_attention_heads}
            own |= {"intermediate_size": units, "depth": self.depth, "layer_norm_eps": 1e-6}
        return dict(
            **own,
            num_components=components,
            preset=self.preset,
            basis=self.basis,
            nodes=self.nodes or None,
            start_degree=None if self.start_degree < 0 else self.start_degree,
            degree_weight=weight,
            depth_map=self.depth_map or None,
        )


@dataclass(frozen=True)
class Recipe:
    """Everything that makes a run: which images, which network, trained how.

    Args:
        data: as for `load_images`; trained on its split `train`, measured on `test`; where it has no test part a
            fifth, drawn by seed, is held out for that. With the objective `features` any folder of pictures, of which
            the validation part is held out.
        init: a bundle to go on from, by folder or name (a warm start); its shape, not that of the model settings, of
            which only the number of components and the dropout count then.
        teacher: a classifier by name (see `teachers.py`); empty for none. With the objective `features` an encoder
            (see `encoders.py`); empty for the bundle that `init` names.
        teacher_size: pixels, height and width, that such an encoder sees; 0 is what its own preprocessing says.
        cache_teacher: ask the teacher once per image; for images that are not varied. Its answers are kept on disk.
        cache_gb: most that these may take, gigabytes.
        workers: processes that decode, where the images are not kept in memory.
        streaming: read the training images as they come, without downloading or indexing them first.
        epoch_images: what counts as an epoch of a stream; 0 asks the set.
        validation_share: part of the training images that is held out: what is seen of a run while it trains, and the
            choice of `best/`, come from it; the split `test` is read once, at the end. A set with a split
            `validation` beside `test` gives that one; 0, and a stream, hold nothing out.
        validation_seed: draws that part. It is not the training's seed: what one run holds out, a run that starts from
            its bundle holds out as well.
        metric: with the objective `features`, what the sizes are measured by at the end, of cosine, knn, probe,
            comma-separated, the first deciding between sizes; the last two on the test part of a set with labels, by
            its train part. Empty is the cosine with whom the run learns from, where the channels are the same.
        relabel: where the names of classes differ, take class i of the images for output i of `init`, whose head is
            kept, and of the teacher.
    """

    data: str
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    decomposition: DecompositionSettings = field(default_factory=DecompositionSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    objective: Objective = field(default_factory=Objective)
    init: str = ""
    teacher: str = ""
    teacher_size: int = 0
    cache_teacher: bool = False
    cache_gb: float = 20.0
    workers: int = 4
    streaming: bool = False
    epoch_images: int = 0
    validation_share: float = 0.1
    validation_seed: int = 0
    metric: str = ""
    relabel: bool = False

    def __post_init__(self):
        if self.workers < 0:
            raise ValueError(f"`workers` must be an integer of at least 0, got {self.workers!r}.")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"`validation_share` must be from 0 to below 1, got {self.validation_share!r}.")
        if self.teacher_size < 0 or (self.teacher_size and not (self.teacher and self.unlabelled)):
            raise ValueError(
                f"`teacher_size` {self.teacher_size} is what a `teacher` of `objective` features sees; leave it out."
            )
        if self.cache_teacher and self.streaming:
            raise ValueError("`cache_teacher` needs images that can be counted; leave `streaming` out.")
        if self.unlabelled:
            self._check_unlabelled()
        elif self.metric:
            raise ValueError(f"`metric` {self.metric} is for `objective` features; a classifier has its accuracy.")

    @property
    def unlabelled(self) -> bool:
        return self.objective.kind == "features"

    def _check_unlabelled(self) -> None:
        if not (self.teacher or self.init):
            raise ValueError("`objective` features needs a `teacher`, or `init`, whose bundle then is the teacher.")
        if self.streaming:
            raise ValueError("`streaming` is for labelled images; `objective` features holds a part of a set out.")
        if not self.validation_share:
            raise ValueError("`validation_share` must be above 0 with `objective` features: the part chooses `best/`.")

    def identity(self, processes: int = 1) -> dict:
        """What makes this run another run than its neighbour, flat, as JSON takes it."""
        fields = {**vars(self.model), **self.training.identity(processes), **vars(self.decomposition)}
        fields |= {**vars(self.augmentation), **vars(self.objective)}
        fields |= {"data": self.data, "init": self.init, "teacher": self.teacher, "cache_teacher": self.cache_teacher}
        fields |= {"teacher_size": self.teacher_size}
        fields |= {"streaming": self.streaming, "epoch_images": self.epoch_images}
        fields |= {"validation_share": self.validation_share, "validation_seed": self.validation_seed}
        fields |= {"metric": self.metric} if self.metric else {}
        fields |= {"relabel": True} if self.relabel else {}
        return json.loads(json.dumps(fields))
