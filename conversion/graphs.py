"""What every exported graph is traced from: a model as a function of images alone, and images to trace it with."""

import torch
from torch import nn
from transformers import PreTrainedModel

from ..configuration_base_lingene import sides
from ..measuring.features import normed_tokens
from .any_size import any_size, family_of


SMALL, WIDE = (2, 3), (5, 3)  # patches down and across, at which models that take images of any size are compared


class Outputs(nn.Module):
    """Images to logits, or without a classifier to what stands for the image and the normed tokens behind it, as plain
    tensors.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        output = self.model(pixel_values=pixel_values)
        return output.logits if hasattr(output, "logits") else normed_tokens(self.model, output)


def output_name(model: PreTrainedModel) -> str:
    """Of a graph: logits, last_hidden_state, or tokens where the stock model's `last_hidden_state` is not that."""
    if hasattr(model, "classifier"):
        return "logits"
    family = family_of(model)
    return "last_hidden_state" if family.norms_tokens and family.class_token else "tokens"


def random_images(model: PreTrainedModel, count: int, size: tuple[int, int]) -> torch.Tensor:
    """Random images of (height, width) pixels."""
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, model.config.num_channels, *size, generator=generator)


def of_patches(model: PreTrainedModel, patches: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels of so many patches."""
    down, across = (count * side for count, side in zip(patches, sides(model.config.patch_size)))
    return down, across


def example_images(model: PreTrainedModel, size: tuple[int, int]) -> tuple[torch.Tensor, dict]:
    """Images for a graph, and which of their dimensions it takes in any size: the batch, and where the family
    interpolates height and width, from two patches on.

    Args:
        size: (height, width) in pixels of the images that any other graph takes alone.
    """
    batch = {0: torch.export.Dim("batch")}
    if not family_of(model).traces_any_size:
        return random_images(model, 2, size), batch
    least = zip((2, 3), ("height", "width"), of_patches(model, (2, 2)))
    any_sides = {dim: torch.export.Dim(name, min=pixels) for dim, name, pixels in least}
    return random_images(model, 2, of_patches(model, WIDE)), batch | any_sides


def traced(model: PreTrainedModel, size: tuple[int, int]) -> torch.export.ExportedProgram:
    """The graph that takes every batch; `size` as for `example_images`."""
    example, dynamic = example_images(model, size)
    with any_size(model):
        return torch.export.export(Outputs(model).eval(), (example,), dynamic_shapes={"pixel_values": dynamic})
