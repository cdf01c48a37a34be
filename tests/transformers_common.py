"""transformers' own common model tests, run on the constrained models and on a pruned one.

They are in transformers' source distribution, not in its wheel; `LINGENE_TRANSFORMERS_SOURCE` names an unpacked one.
Not collected by itself: `test_transformers_common.py` fetches the distribution and runs this file.
"""

import functools
import importlib
import os
import sys
import types
import unittest
from pathlib import Path

import torch
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from modeling_lingene import LinGeneConfig, LinGeneForImageClassification, LinGeneModel
from modeling_lingene.lingene_swin import (
    LinGenePrunedSwinConfig,
    LinGenePrunedSwinForImageClassification,
    LinGenePrunedSwinModel,
)
from modeling_lingene.lingene_vit import LinGeneViTConfig, LinGeneViTForImageClassification, LinGeneViTModel


# What the test module imports that the distribution lacks: the tests of text generation and of exporters.
ABSENT = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}


def import_common() -> types.ModuleType:
    """The test module, part of a package of another name (`tests` is ours), with empty classes for what is absent."""
    package = sys.modules["transformers_tests"] = types.ModuleType("transformers_tests")
    package.__path__ = [str(Path(os.environ["LINGENE_TRANSFORMERS_SOURCE"]) / "tests")]
    for name, mixin in ABSENT.items():
        parent, _, _ = name.partition(".")
        sys.modules[f"transformers_tests.{parent}"] = types.ModuleType(f"transformers_tests.{parent}")
        module = sys.modules[f"transformers_tests.{name}"] = types.ModuleType(f"transformers_tests.{name}")
        setattr(module, mixin, type(mixin, (), {}))
    return importlib.import_module("transformers_tests.test_modeling_common")


common = import_common()


def constrained(model_class: type) -> type:
    """The class under its own name, whose `from_pretrained` gives itself: what the tests expect of a model class."""
    load = functools.partial(model_class.from_pretrained.__func__, constrained=True)
    return type(model_class.__name__, (model_class,), {"from_pretrained": classmethod(load), "__module__": __name__})


MODEL_MAPPING_NAMES["lingene"] = "LinGeneModel"  # the tests look class names up there: no head, no loss
MODEL_MAPPING_NAMES[LinGeneViTConfig.model_type] = "LinGeneViTModel"
MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[LinGeneViTConfig.model_type] = "LinGeneViTForImageClassification"
MODEL_MAPPING_NAMES[LinGenePrunedSwinConfig.model_type] = "LinGenePrunedSwinModel"
MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[LinGenePrunedSwinConfig.model_type] = (
    "LinGenePrunedSwinForImageClassification"
)
MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["lingene"] = "LinGeneForImageClassification"


class Tester:
    """What transformers calls a model tester: a small configuration and inputs for it."""

    is_training = True
    batch_size, image_size, patch_size, num_channels = 3, 16, 4, 3
    hidden_size, num_hidden_layers, num_attention_heads, intermediate_size = 32, 2, 4, 64
    seq_length, num_masks, mask_length = 17, 5, 16
    family = "dinov2"  # whose models can mask patches, as the tests do with every model that has an argument for it

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        fields = "family hidden_size num_attention_heads intermediate_size image_size patch_size num_channels".split()
        return LinGeneConfig(**{name: getattr(self, name) for name in fields}, depth=2, num_components=2)

    def prepare_config_and_inputs_for_common(self):
        shape = (self.batch_size, self.num_channels, self.image_size, self.image_size)
        return self.get_config(), {"pixel_values": torch.rand(shape)}


class LinGeneCommonTest(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (constrained(LinGeneModel), constrained(LinGeneForImageClassification))
    pipeline_model_mapping = {}
    test_resize_embeddings = False
    has_attentions = True

    def setUp(self):
        self.model_tester = Tester(self)

    def test_model_get_set_embeddings(self):
        """As in transformers' own vision models: the input embedding of an image model is its patch projection."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            assert isinstance(model_class(config).get_input_embeddings(), torch.nn.Conv2d)

    def check_training_gradient_checkpointing(self, *args, **kwargs):
        """Every parameter must get a gradient: of a family without a mask token, which classification never reads."""
        self.model_tester.family = "vit"
        super().check_training_gradient_checkpointing(*args, **kwargs)

    @unittest.skip("reads model.safetensors; a bundle is one file per component")
    def test_load_save_without_tied_weights(self):
        pass

    @unittest.skip("plants a model.safetensors; a bundle is one file per component")
    def test_model_weights_reload_no_missing_tied_weights(self):
        pass


class PrunedTester(Tester):
    """All kinds of mixer and none, MLPs of several sizes."""

    num_hidden_layers = 5

    def get_config(self):
        shape = "hidden_size num_attention_heads image_size patch_size num_channels".split()
        layers = {
            "mixers": ["attention", "conv3", "conv1", "none", "attention"],
            "intermediate_sizes": [64, 24, 8, 16, 8],
        }
        return LinGeneViTConfig(**{name: getattr(self, name) for name in shape}, **layers)


class PrunedCommonTest(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (LinGeneViTModel, LinGeneViTForImageClassification)
    pipeline_model_mapping = {}
    test_resize_embeddings = False
    has_attentions = True

    def setUp(self):
        self.model_tester = PrunedTester(self)

    test_model_get_set_embeddings = LinGeneCommonTest.test_model_get_set_embeddings

    @unittest.skip("five layers hold every kind of mixer")
    def test_num_layers_is_small(self):
        pass

    @unittest.skip("expects attentions of every layer, and those that became convolutions have none")
    def test_attention_outputs(self):
        pass


class PrunedSwinTester(Tester):
    """Two stages, shifted windows, all kinds of mixer and none."""

    num_hidden_layers, patch_size = 4, 2

    def get_config(self):
        stages = {"embed_dim": 24, "depths": [2, 2], "num_heads": [3, 6], "window_size": 4}
        layers = {"mixers": ["conv3", "attention", "none", "conv1"], "intermediate_sizes": [48, 24, 8, 16]}
        return LinGenePrunedSwinConfig(image_size=self.image_size, patch_size=self.patch_size, **stages, **layers)


class PrunedSwinCommonTest(PrunedCommonTest):
    all_model_classes = (LinGenePrunedSwinModel, LinGenePrunedSwinForImageClassification)

    def setUp(self):
        self.model_tester = PrunedSwinTester(self)

    @unittest.skip("expects hidden states of every layer; as of transformers' Swin there is one of each stage")
    def test_hidden_states_output(self):
        pass
