"""Teachers of noise, as people publish them, and what each must answer: from the raw pictures, by stock code."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

import helpers
from modeling_lingene.images.batches import image_processor
from modeling_lingene.images.data import LabelledImages
from modeling_lingene.images.loaders import Layout, MemoryImages, PictureImages
from modeling_lingene.training.processes import make_accelerator
from modeling_lingene.training.steps import TrainingSettings
from modeling_lingene.training.teacher_cache import CachedTeacher
from modeling_lingene.training.teachers import Teacher, load_teacher


CLASSES = helpers.TINY["num_labels"]
NORMALISED = dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
IMAGES = helpers.source(14)
LAYOUT = Layout(4)


def vit(size: int = 16, model_class: type = ViTForImageClassification, **fields) -> nn.Module:
    """A stock model of noise whose answers depend on the picture."""
    sizes = dict(hidden_size=16, num_attention_heads=2, intermediate_size=32, num_hidden_layers=1, num_labels=CLASSES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(ViTConfig(**{**sizes, "image_size": size, "patch_size": size // 4, **fields})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def square(size: int, **fields) -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": size, "width": size}, **fields)


def saved(folder: Path, model: nn.Module | None = None, processor: Any = None) -> str:
    """Both in one folder, as people publish them."""
    (model or vit()).save_pretrained(folder)
    (processor or square(16, **NORMALISED)).save_pretrained(folder)
    return str(folder)


def by_hand(folder: str, images: LabelledImages) -> torch.Tensor:
    """What the stock model in that folder says about the raw pictures, through its own processor."""
    model, processor = ViTForImageClassification.from_pretrained(folder), ViTImageProcessorPil.from_pretrained(folder)
    with torch.no_grad():
        return model(processor(list(images.images), return_tensors="pt")["pixel_values"]).logits


def answers(teacher, images: MemoryImages | PictureImages) -> torch.Tensor:
    """To every image as it is, in order."""
    return torch.cat([teacher(batch) for batch in images.in_order(LAYOUT)])


def cached_teacher(teacher, images: MemoryImages | PictureImages, folder: Path) -> CachedTeacher:
    """Asked in steps of three pictures, by one process."""
    accelerator = make_accelerator(TrainingSettings(device="cpu"))
    return CachedTeacher(teacher, images, folder / "train.f32", (CLASSES,), accelerator, 3)


def resized(images: LabelledImages, size: int) -> torch.Tensor:
    """The raw pictures at another size by Pillow, in floating point, and normalised: (n, 3, size, size)."""
    from PIL import Image

    raw = numpy.stack([numpy.asarray(picture, dtype=numpy.float32) / 255 for picture in images.images])
    planes = [Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC) for plane in planes_of(raw)]
    pixels = numpy.stack(planes).reshape(len(raw), 3, size, size)
    mean, std = (numpy.reshape(NORMALISED[key], (3, 1, 1)) for key in ("image_mean", "image_std"))
    return torch.from_numpy((pixels - mean) / std).float()


def planes_of(raw: numpy.ndarray) -> numpy.ndarray:
    """(n, h, w, 3) -> (3 n, h, w)."""
    return numpy.ascontiguousarray(numpy.moveaxis(raw, -1, 1)).reshape(-1, *raw.shape[1:3])


def tiny_timm(folder: Path, size: int, **model_fields) -> tuple[str, nn.Module]:
    """A timm model with a mean and deviation of its own, saved as timm does; its name here."""
    timm = pytest.importorskip("timm")
    from timm.models import save_for_hf

    shape = dict(img_size=size, patch_size=size // 4, embed_dim=16, depth=1, num_heads=2)
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **shape, **{"num_classes": CLASSES, **model_fields}).eval()
    model.pretrained_cfg |= {"mean": NORMALISED["image_mean"], "std": NORMALISED["image_std"]}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    save_for_hf(model, str(folder), model_args=shape)
    return f"timm:local-dir:{folder}", model


def load(kind: str, folder: Path, images: MemoryImages = IMAGES) -> Teacher:
    """A teacher of each kind, with dropout where it is a transformers model."""
    if kind == "timm":
        return load_teacher(tiny_timm(folder, 16, proj_drop_rate=0.5)[0], images)
    if kind == "bundle":
        image_processor(16).save_pretrained(helpers.bundle(folder, helpers.tiny_config(hidden_dropout_prob=0.5)))
        return load_teacher(str(folder), images)
    return load_teacher(saved(folder, vit(hidden_dropout_prob=0.5)), images)
