"""A size as a model of timm: the arguments that build it, its tensors, its preprocessing in timm's words.

Where a name of timm stands for another epsilon of the norms, which no file can say, it is a file of weights and the
code that builds the network.
"""

import functools
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from ..configuration_base_lingene import sides
from ..extras import require
from ..folders import keep_processor, publish_model
from .any_size import family_of
from .from_timm import load_all
from .from_transformers import read_transformers
from .timm_dinov3 import dinov3_arguments, dinov3_state
from .timm_swin import swin_arguments, swin_state
from .timm_vit import mlp_ratio, vit_arguments, vit_state
from .timm_words import leave_out_unsaid, say_preprocessing


TIMM_NAMES = {
    "vit": "vit_base_patch16_224",
    "dinov2": "vit_base_patch14_dinov2",
    "dinov2_with_registers": "vit_base_patch14_reg4_dinov2",
    "dinov3_vit": "vit_base_patch16_dinov3_qkvb",
    "swin": "swin_base_patch4_window7_224",
}
# Their MLPs are gated, which no argument that a file can hold says.
GATED_NAMES = {
    "dinov2": "vit_giant_patch14_dinov2",
    "dinov2_with_registers": "vit_giant_patch14_reg4_dinov2",
    "dinov3_vit": "vit_huge_plus_patch16_dinov3_qkvb",
}
TIMM_EPS = {"swin": 1e-5, "dinov3_vit": 1e-5}  # of the norms that a name stands for, where it is not:
VIT_EPS = 1e-6
TIMM_LOAD = (
    "import functools, safetensors.torch, timm; norm = functools.partial(timm.layers.LayerNorm, eps={eps}); "
    "model = timm.create_model({name!r}, **{arguments!r}, norm_layer=norm); "
    f"model.load_state_dict(safetensors.torch.load_file('FOLDER/{SAFE_WEIGHTS_NAME}'))"
)


def check_patches(bundle: str | os.PathLike, model: PreTrainedModel, pixels: tuple[int, int]) -> None:
    """Refuse images whose margins a family cuts that takes any size: timm's takes multiples of a patch alone.

    Args:
        pixels: (height, width) of the images that the model gets.

    Raises:
        ValueError: names both sizes.
    """
    patch = sides(model.config.patch_size)
    if family_of(model).traces_any_size and any(side % step for side, step in zip(pixels, patch)):
        made, of = ("x".join(map(str, pair)) for pair in (pixels, patch))
        raise ValueError(
            f"`to` timm: {bundle} takes images of {made}, no multiple of its patches of {of}, and timm takes no "
            "others; give it preprocessing that makes one, or export to another format."
        )


def write_timm(
    model: PreTrainedModel, bundle: str | os.PathLike, folder: Path, hub: dict, size: tuple[int, int], weights: str
) -> dict:
    """One size in timm's names, verified by what timm makes of it; arguments and result as `Format.write` says."""
    timm = require("timm")
    plain = folder / "plain"
    publish_model(model, bundle, plain, **hub)
    try:
        source = read_transformers(str(plain))
    except ValueError as error:
        raise ValueError(str(error).replace(str(plain), str(bundle))) from None
    staged = source.config.stands_for.stages
    names = TIMM_NAMES if staged or not source.config.gated_mlp else GATED_NAMES
    name = names[source.config.family]
    if staged:
        arguments, state = swin_arguments(source, size), swin_state(source)
    elif source.config.stands_for.rotates:
        arguments, state = dinov3_arguments(source, mlp_ratio(source.config)), dinov3_state(source)
    else:
        arguments, state = vit_arguments(source), vit_state(source)
    shutil.rmtree(plain)
    eps = source.config.layer_norm_eps
    if eps == TIMM_EPS.get(source.config.family, VIT_EPS):
        built = timm.create_model(name, **arguments)
        load_all(built, state)
        say_preprocessing(built, keep_processor(bundle, folder, hub), bundle)
        if source.head:
            built.pretrained_cfg["label_names"] = [
                model.config.id2label[index] for index in range(model.config.num_labels)
            ]
        timm.models.save_for_hf(built, folder, model_args=arguments, safe_serialization=True)
        leave_out_unsaid(built, folder / CONFIG_NAME)
        again = timm.create_model(f"local-dir:{folder}", pretrained=True)
        load = "import timm; model = timm.create_model('local-dir:FOLDER', pretrained=True)"
    else:  # JSON holds no function, and timm takes the epsilon as part of one
        keep_processor(bundle, folder, hub)
        save_file(state, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
        norm = functools.partial(timm.layers.LayerNorm, eps=eps)
        again = timm.create_model(name, **arguments, norm_layer=norm)
        load_all(again, load_file(folder / SAFE_WEIGHTS_NAME))
        load = TIMM_LOAD.format(name=name, eps=eps, arguments=arguments)
    again = again.eval()
    facts = {"name": name, "arguments": arguments, "load": load}

    def loaded(values: torch.Tensor) -> torch.Tensor:
        if source.head:
            return again(values)
        tokens = again.forward_features(values)
        if not staged:
            return tokens
        tokens = tokens.flatten(1, 2)  # timm gives rows and columns
        return torch.cat((tokens.mean(dim=1, keepdim=True), tokens), dim=1)  # what stands for the image first

    return {"loaded": loaded, "facts": facts}
