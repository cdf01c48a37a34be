"""Logits, sizes and bundles that the tests of loading share.

The reference is the constrained model that was saved; its own arithmetic is tested elsewhere.
"""

import json
from pathlib import Path

import torch
from transformers import (
    AutoModelForImageClassification,
)

import helpers
from modeling_lingene import LinGeneForImageClassification, LinGeneModel
from modeling_lingene.budget_lingene import device_name


VARIANTS = {
    "paper": {"preset": "paper"},
    "resample": {"depth_map": "resample"},
    "select": {"depth_map": "select", "depth_rows": {"4": [0, 2, 3, 5]}},
    "legendre": {"basis": "legendre", "degree_weight": 0.5},
    "fourier, grown with scaled branches": {
        "basis": "fourier",
        "scale_residual": True,
        "reference_depth": 3,
        "depth_map": "resample",
    },
    "learned": {"basis": "learned", "coefficient_matrix": torch.linspace(-1, 1, 30).view(6, 5).sin().tolist()},
    "no q, k, v biases": {"qkv_bias": False},
    "labels": {"num_labels": 3, "id2label": {0: "cat", 1: "dog", 2: "bee"}},
}


LOADERS = {
    "auto": AutoModelForImageClassification.from_pretrained,
    "class": LinGeneForImageClassification.from_pretrained,
}


def logits(model, **size) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(helpers.images().to(model.dtype), **size).logits


def asked(depth, width_ratio, num_components) -> dict:
    return {"depth": depth, "width_ratio": width_ratio, "num_components": num_components}


def headless(model: LinGeneForImageClassification) -> LinGeneModel:
    """The same weights without the classifier."""
    twin = LinGeneModel(model.config).eval()
    twin.load_state_dict({key: value for key, value in model.state_dict().items() if "classifier" not in key})
    return twin


def write_sizes(folder: Path, rows: list[dict]):
    weights_id = json.loads((folder / "config.json").read_text())["weights_id"]
    (folder / "sizes.json").write_text(json.dumps({"weights_id": weights_id, "sizes": rows}))


SMALLER = {"depth": 3, "width_ratio": "1/2", "num_components": 2}


def row(depth, width_ratio, num_components, params, macs, accuracy, latency_ms=None) -> dict:
    measured = {
        "params": params,
        "stored_params": params,
        "macs": macs,
        "accuracy": accuracy,
        "split": "test",
        "dataset": "none",
    }
    timed = {"latency_ms": latency_ms, "device": device_name()} if latency_ms else {}
    return asked(depth, width_ratio, num_components) | measured | timed


ROWS = [
    row(6, "1", 4, 2000, 2000, 0.99),
    row(6, "1", 5, 1000, 1000, 0.9, 9.0),
    row(4, "1", 4, 650, 700, 0.8, 7.0),
    row(3, "1", 5, 700, 600, 0.8, 8.0),
    row(5, "1/2", 5, 300, 650, 0.7, 5.0),
    row(3, "1/2", 2, 200, 100, 0.4, 1.0),
]
