"""What the runs of `lingene prune` in tests begin with."""

import pruning_helpers as made
import torch
from transformers import (
    ViTConfig,
    ViTForImageClassification,
)

from modeling_lingene.images.batches import image_processor
from modeling_lingene.pruning.settings import PruneSettings
from modeling_lingene.training.steps import TrainingSettings


NAMES = {index: str(index) for index in range(10)}
LABELS = {"id2label": NAMES, "label2id": {name: index for index, name in NAMES.items()}}
TRAINING = TrainingSettings(epochs=1, batch_size=128, learning_rate=5e-3, device="cpu")
SETTINGS = PruneSettings(data="digits", target_macs=0.5, search="none", calibration_images=32, teacher="")


def small_vit(folder, seed: int = 0, **fields):
    """Three layers, 17 tokens, ten classes, weights changed; with its preprocessing."""
    shape = dict(hidden_size=32, num_attention_heads=4, intermediate_size=64, num_hidden_layers=3)
    shape |= dict(image_size=8, patch_size=2, **LABELS)
    torch.manual_seed(seed)
    model = ViTForImageClassification(ViTConfig(**{**shape, **fields}))
    made.shake(model)
    model.save_pretrained(folder)
    image_processor(8).save_pretrained(folder)
    return folder
