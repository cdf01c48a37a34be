"""A run without labels before its first step: pictures with a part held out, an encoder, its heads and its teacher."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoModel

from ..images.augmentation import Augmentation
from ..images.batches import image_processor
from ..images.data import HELD_OUT, split_off
from ..images.loaders import training_images
from ..images.pictures import load_pictures
from ..kinds import model_class
from ..measuring.features import no_pooler
from ..measuring.metrics import count_macs, count_parameters, seen_size
from ..measuring.yardsticks import JUDGES, Sets, check_sets, metric_names, open_sets
from ..modeling_base_lingene import RecomposingModel
from ..progress import progress_bar
from ..readout import Readout, known_readout, read_readout, write_readout
from .asked import keep_asked
from .checkpoints import contents_of_pictures
from .encoders import Encoder, Preprocessing, bundle_encoder, load_encoder, stated_width
from .features import FEATURE_LOSS, FeatureStudent, check_objective, check_tokens, feature_metric, fit_heads
from .loop import TrainingLoop
from .processes import layout
from .settings import Recipe
from .teacher_cache import CachedTeacher, RememberedTeacher, check_cache, open_cache
from .warm_start import fit_sizes, processor_of, resized_by, start_of


@dataclass(frozen=True)
class UnlabelledStart:
    """What a run begins with.

    Args:
        trained: the encoder with its heads.
        source, held_out: of batches, for training and for choosing the best state.
        encoder: whom it learns from.
        teacher, held_out_teacher: batch -> its tokens (b, t, D) of the one and of the other, perhaps kept.
        readout: of the bundle that it starts from, kept: training goes on in its channels. Of a teacher whose
            channels a new bundle learns one by one, that one's.
        contents: of its pictures, as part of the run's identity.
    """

    trained: FeatureStudent
    source: Any
    held_out: Any
    encoder: Encoder
    teacher: Callable[[dict], torch.Tensor]
    held_out_teacher: Callable[[dict], torch.Tensor]
    readout: Readout | None
    contents: dict[str, str]

    @property
    def model(self) -> RecomposingModel:
        """What becomes the bundle."""
        return self.trained.encoder

    def others(self) -> tuple[Any, None]:
        """The images that are not trained on, for validation and for the end."""
        return self.held_out.images, None

    def parts(self) -> dict[str, Any]:
        """Of a `TrainingLoop`."""
        metric = feature_metric(self.held_out_teacher)
        return {"held_out": self.held_out, "teacher": self.teacher, "metric": metric}

    def taught(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What it is to learn of some pictures, as the student sees them, (b, C, h, w): class tokens (b, D) and patch
        tokens (b, p, D)."""
        tokens = self.encoder({"pixel_values": pixel_values.to(self.source.device)})
        return tokens[:, 0], tokens[:, 1:]

    def save(self, folder: Path, state: dict) -> None:
        """A bundle with this state, without the heads, and its preprocessing."""
        self.model.save_pretrained(folder, state_dict=self.trained.bundle_state(state))
        self.source.processor.save_pretrained(folder)
        write_readout(folder, self.readout)


def start_without_labels(recipe: Recipe, out: Path, identity: dict, accelerator: Accelerator) -> UnlabelledStart:
    """Everything that can be refused is, before a picture is decoded.

    Args:
        recipe: with the objective `features`.
        out: folder of the run.
        identity: of the run.
        accelerator: of the run, on every process.

    Raises:
        ValueError: whatever of the recipe cannot be met.
    """
    encoder = start_of(recipe.init, recipe.model.num_components, recipe.model.dropout, head=False)
    if encoder is not None:
        _check_encoder(recipe, encoder)
        processor = processor_of(recipe.init, encoder)
    pictures, held = split_off(load_pictures(recipe.data, "train"), recipe.validation_share, recipe.validation_seed)
    layout(accelerator, recipe.training).steps(len(pictures))
    torch.manual_seed(recipe.training.seed)
    if encoder is None:
        config = recipe.model.config(pictures, recipe.decomposition, labelled=False)
        check_tokens(config)
        encoder = model_class(config, head=False)(config)
        _check_encoder(recipe, encoder)
        processor = image_processor(encoder.config.image_size)
    else:
        fit_sizes(encoder, recipe.decomposition)
    readout = _readout(recipe)
    encoder.config.turned |= readout is not None  # bundles from before the field do not say it
    teacher = _teacher(recipe, encoder, Preprocessing(processor, accelerator.device))
    student = FeatureStudent(encoder, teacher.width, recipe.objective)
    if recipe.cache_teacher:
        check_cache(out, len(pictures) + len(held), teacher.shape, recipe.cache_gb, recipe.augmentation)
    sources = [
        training_images(images, processor, augmentation, accelerator.device, recipe.workers)
        for images, augmentation in ((pictures, recipe.augmentation), (held, Augmentation()))
    ]
    if recipe.init and student.heads:
        shown = accelerator.is_main_process
        fit_heads(student.to(accelerator.device), sources[0], teacher, recipe.training.seed, shown)
    contents = contents_of_pictures(pictures, held)
    teachers = [teacher, RememberedTeacher(teacher)]  # which every size and every epoch ask of the same pictures
    if recipe.cache_teacher:
        folder, size = open_cache(out, identity | contents, accelerator), recipe.training.batch_size
        if accelerator.is_main_process:
            keep_asked(out, identity, recipe=recipe)  # nothing is left to refuse, and asking may take hours
        files = zip(sources, ("train", "held_out"))
        teachers = [
            CachedTeacher(teacher, source, folder / f"{name}.f32", teacher.shape, accelerator, size)
            for source, name in files
        ]
    return UnlabelledStart(student, *sources, teacher, *teachers, readout, contents)


def labelled_sets(recipe: Recipe, reference: str | None) -> Sets | None:
    """The labelled images that measure the sizes at the end, where what `metric` asks for needs some.

    Args:
        recipe: with a metric.
        reference: whom the cosine compares with, if anybody.

    Raises:
        ValueError: a metric that is none; the cosine without a reference, accuracy; images without labels or without a
            test part, for k-NN and the probe.
        ImportError: scikit-learn is missing for a probe.
    """
    names = metric_names(recipe.metric)
    if "accuracy" in names:
        raise ValueError("`metric` accuracy needs a classifier, which `objective` features has none of; use knn.")
    if "cosine" in names and reference is None:
        alike = "`feature_heads` identity with a teacher that sees the same pixels"
        if recipe.init and read_readout(os.path.expanduser(recipe.init)) is not None:
            alike = "leave `teacher` out, for the channels of `init` were turned"
        raise ValueError(
            f"`metric` cosine compares channel by channel, and those of `teacher` {recipe.teacher} may mean something "
            f"else: use knn, or {alike}."
        )
    if not JUDGES.keys() & set(names):
        return None
    sets = open_sets(recipe.data, "test", recipe.metric, False)
    if sets.images.split == HELD_OUT:
        raise ValueError(f"`metric` {recipe.metric} needs a test part, and `data` {recipe.data} is trained on whole.")
    check_sets(sets, "the bundle", False)
    return sets


def _check_encoder(recipe: Recipe, encoder: RecomposingModel) -> None:
    """Refuse what the student cannot have, with this teacher where its configuration says enough, before it is loaded.

    Raises:
        ValueError: a network of stages, sizes that it has not, masked patches without a mask token, identity heads
            between two widths.
    """
    check_tokens(encoder.config)
    recipe.decomposition.check(encoder.config)
    alike = recipe.teacher and recipe.objective.feature_heads == "identity"
    check_objective(recipe.objective, encoder, stated_width(recipe.teacher) if alike else None)


def _readout(recipe: Recipe) -> Readout | None:
    """What brings the tokens of what is trained back, by whose channels it is trained in; None where nobody's were
    turned.

    Raises:
        ValueError: identity heads between channels that were turned and others, which would be compared one by one
            and mean different things, or that nothing brings back.
    """
    alike = recipe.objective.feature_heads == "identity" and recipe.teacher
    read = known_readout if alike else read_readout
    own = read(os.path.expanduser(recipe.init)) if recipe.init else None
    if not alike:
        return own
    theirs = read(os.path.expanduser(recipe.teacher))
    if not recipe.init:
        return theirs
    same = theirs is own or (None not in (theirs, own) and all(map(torch.equal, theirs, own)))
    if not same:
        raise ValueError(
            f"`feature_heads` identity compares channel by channel, and those of `init` {recipe.init} or of `teacher` "
            f"{recipe.teacher} were turned (`convert --sort`): use linear heads, or leave `teacher` out, so that the "
            "bundle learns from itself."
        )
    return own


def _teacher(recipe: Recipe, encoder: RecomposingModel, pictures: Preprocessing) -> Encoder:
    """Whom the student learns from: by name, or the bundle that it starts from, as it was."""
    patch = tuple(encoder.config.shared_shapes()["embeddings.patch_embeddings.weight"][2:])
    if recipe.teacher:
        resized = resized_by(recipe.init, encoder) if recipe.init else "`image_size`"
        return load_encoder(recipe.teacher, pictures, patch, recipe.teacher_size, resized)
    return bundle_encoder(recipe.init, pictures, patch)


def feature_rows(loop: TrainingLoop, start: UnlabelledStart, sizes: list[tuple]) -> list[dict]:
    """The loss of sizes on the held-out pictures, one row each; called on every process.

    Args:
        loop: after `fit`.
        start: what it began with.
        sizes: (depth, width ratio, components).
    """
    config, held, rows = start.model.config, start.held_out.images, []
    seen = seen_size(config, start.source.processor)
    for depth, width, count in progress_bar(sizes, unit="size", desc="measuring", shown=loop.is_main):
        size, asked = config.size(depth, width, count), {"depth": depth, "num_components": count}
        value = loop.evaluate(**asked, width_ratio=width)
        shape = config.stock_config(size)
        with torch.device("meta"):
            params = count_parameters(AutoModel.from_config(shape, **no_pooler(shape)))
        row = {"depth": depth, "width_ratio": str(size.width_ratio), "num_components": count, "params": params}
        row |= {
            "stored_params": config.stored_params(size, head=False),
            "macs": count_macs(shape, head=False, image_size=seen),
        }
        rows.append(row | {FEATURE_LOSS: round(value, 6), "split": held.split, "dataset": held.name})
    return rows
