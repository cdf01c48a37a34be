"""Kinds of bundles, and how far outputs and gradients are apart: what the tests of the constrained models share."""

import numpy


RESAMPLED = {"depth_map": "resample"}
MATRIX = numpy.random.default_rng(0).normal(size=(6, 5)).tolist()
BUNDLES = {
    "stable": RESAMPLED,
    "paper": {"preset": "paper"},
    "legendre": {"basis": "legendre", "nodes": "uniform", "degree_weight": 1.0, **RESAMPLED},
    "taylor": {"basis": "taylor", "start_degree": 1, "gain_offset": 1.0, **RESAMPLED},
    "fourier": {"basis": "fourier", "nodes": "uniform", **RESAMPLED},
    "learned": {"basis": "learned", "coefficient_matrix": MATRIX, "gain_offset": 1.0, **RESAMPLED},
    "scaled": {"scale_residual": True, "qkv_bias": False, "hidden_act": "relu", "layer_norm_eps": 1e-3, **RESAMPLED},
    "selected": {"depth_map": "select"},
    "chosen": {"depth_map": "select", "depth_rows": {2: [0, 5], 3: [0, 4, 5], 4: [0, 2, 3, 5]}},
    "oblong": {"image_size": [8, 20], "patch_size": [4, 5], **RESAMPLED},
}


def distance(one, other):
    return (one - other).abs().max().item()


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(ours, expected, tolerance=1e-5):
    """Same parameters, and each gradient within a relative tolerance; none of them zero, but for the bias of the keys.

    That bias shifts all scores of a query alike and the softmax does not see it: its gradient is rounding.
    """
    assert ours.keys() == expected.keys() and ours
    for name, gradient in expected.items():
        largest = gradient.abs().max().item()
        assert largest < 1e-6 if name.endswith("key.bias") else largest > 1e-5, name
        assert distance(ours[name], gradient) <= tolerance * max(largest, 1e-2), name


def set_checkpointing(model, use_reentrant=False):
    """Activation checkpointing on, under the name that this version of transformers prefers."""
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": use_reentrant})
