"""Settings as they are typed and as they arrive, and command lines as they are parsed: what tests of options share."""

import argparse
from typing import Any

from modeling_lingene import cli
from modeling_lingene.training.options import asked_recipe
from modeling_lingene.training.recipes import Recipe


# Every setting, and another value than its default and those of the recipes, as it is typed and as it arrives.
OTHERS: dict[str, dict[str, tuple[str, Any]]] = {
    "model": {
        "hidden_size": ("48", 48),
        "num_attention_heads": ("8", 8),
        "intermediate_size": ("96", 96),
        "image_size": ("40", 40),
        "patch_size": ("5", 5),
        "depth": ("9", 9),
        "stages": ("2,4", (2, 4)),
        "window_size": ("4", 4),
        "num_components": ("3", 3),
        "preset": ("other", "other"),
        "basis": ("taylor", "taylor"),
        "nodes": ("uniform", "uniform"),
        "start_degree": ("2", 2),
        "degree_weight": ("0.5", 0.5),
        "depth_map": ("select", "select"),
        "dropout": ("1e-1", 0.1),
    },
    "decomposition": {
        "schedule": ("simultaneous", "simultaneous"),
        "totals": ("1,3,5", (1, 3, 5)),
        "depths": ("7", (7,)),
        "sampling": ("sandwich", "sandwich"),
        "widths": ("1/4,1/2", ("1/4", "1/2")),
        "full_share": ("1", 1.0),
        "networks": ("4", 4),
        "full_first": ("0.1", 0.1),
        "isolated_activation": (True, True),
        "new_components": ("random", "random"),
        "freeze_outside": (True, True),
    },
    "training": {
        "epochs": ("7", 7),
        "batch_size": ("33", 33),
        "accumulation": ("3", 3),
        "learning_rate": ("3e-4", 3e-4),
        "weight_decay": ("0", 0.0),
        "warmup": ("0.25", 0.25),
        "max_grad_norm": ("0.5", 0.5),
        "ema": ("0.99", 0.99),
        "seed": ("-5", -5),
        "precision": ("fp16", "fp16"),
        "device": ("{cpu,auto}", None),
        "compile": (True, True),
        "activation_checkpointing": (True, True),
        "checkpoint_every": ("50", 50),
        "keep_checkpoints": ("4", 4),
        "evaluate_every": ("6", 6),
        "tracker": ("wandb", "wandb"),
    },
    "objective": {
        "distillation": ("hard", "hard"),
        "temperature": ("3", 3.0),
        "label_smoothing": ("0.1", 0.1),
        "kind": ("features", "features"),
        "feature_heads": ("identity", "identity"),
        "mask_share": ("0.3", 0.3),
    },
    "augmentation": {
        "crop_padding": ("3", 3),
        "flip": (True, True),
        "resized_crop": (True, True),
        "rand_augment": ("rand-m5", "rand-m5"),
        "color_jitter": ("0.4", 0.4),
        "erasing": ("0.5", 0.5),
        "mixup": ("0.2", 0.2),
        "cutmix": ("0.7", 0.7),
        "mixing": ("0.5", 0.5),
    },
}
SINGLE = {
    "data": ("faces", "faces"),
    "init": ("bundle", "bundle"),
    "teacher": ("timm:x", "timm:x"),
    "teacher_size": ("196", 196),
    "cache_teacher": (True, True),
    "cache_gb": ("1.5", 1.5),
    "workers": ("0", 0),
    "streaming": (True, True),
    "validation_share": ("0.2", 0.2),
    "validation_seed": ("3", 3),
    "epoch_images": ("600", 600),
    "metric": ("knn", "knn"),
    "relabel": (True, True),
}
FIELDS = [(group, name) for group, names in OTHERS.items() for name in names]
FLAGS = {"kind": "objective"}  # of fields that have another name there


def options(line: str) -> argparse.Namespace:
    """The flags of one command line, parsed as `lingene decompose` does."""
    return cli.build_parser("decompose").parse_args(["decompose", "--out", "out", *line.split()])


def asked(line: str) -> Recipe:
    return asked_recipe(options(line))
