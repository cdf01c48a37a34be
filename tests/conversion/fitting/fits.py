"""Stock models, their layers, moments and metrics by hand: what the tests of fitting share."""

import numpy
import torch
from transformers import ViTConfig, ViTForImageClassification

from helpers import STOCK_PARTS
from modeling_lingene.conversion.moments import moments, stacks_of


SHAPE = dict(hidden_size=48, num_attention_heads=4, num_hidden_layers=6, intermediate_size=96)


SHAPE |= dict(image_size=16, patch_size=4)


HEADS, DEPTH, COUNT = 4, 6, 40


FITTED = 32  # of these; a fifth judges


def in_two(values, count=FITTED, seed=0):
    """Pictures in the order of their names, (n, 3, h, w), as a conversion divides them: fitted, left out."""
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    return values[order[:count]], values[order[count:]]


LINEAR_PARTS = [part for part in STOCK_PARTS if not part.startswith("norm")]


def stock(model_class=ViTForImageClassification, seed=0, noise=0.08, **fields):
    """A stock ViT, every parameter moved away from its initial value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        labels = {"num_labels": 7} if model_class is ViTForImageClassification else {}
        model = model_class(ViTConfig(**{**SHAPE, **fields}, **labels))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=noise)
    return model.eval().requires_grad_(False)


def layers_of(model):
    """Every block tensor by the bundle's name, (l, ...) float64."""
    weights = {}
    for ours, theirs in STOCK_PARTS.items():
        modules = [layer.get_submodule(theirs) for layer in getattr(model, "vit", model).layers]
        for kind in ("weight", "bias"):
            if getattr(modules[0], kind) is not None:
                weights[f"{ours}.{kind}"] = torch.stack(
                    [getattr(module, kind).detach().double() for module in modules]
                )
    return weights


def with_layers(model, weights):
    """The model with other linear maps and biases, and LayerNorms of blocks that only normalise."""
    fields = {**model.config.to_dict(), "qkv_bias": True}
    other = type(model)(ViTConfig.from_dict(fields)).to(model.dtype).eval().requires_grad_(False)
    other.load_state_dict(model.state_dict(), strict=model.config.qkv_bias)
    neutral = {"weight": 1.0, "bias": 0.0}
    for ours, theirs in STOCK_PARTS.items():
        for index, layer in enumerate(getattr(other, "vit", other).layers):
            for kind in neutral:
                target = getattr(layer.get_submodule(theirs), kind)
                if ours.startswith("norm"):
                    target.fill_(neutral[kind])
                else:
                    target.copy_(weights[f"{ours}.{kind}"][index])
    return other


def maps_of(model):
    """The six linear maps with their bias as the last column, (l, o, i + 1) numpy."""
    weights = layers_of(model)
    whole = {}
    for part in LINEAR_PARTS:
        matrix = weights[f"{part}.weight"].numpy()
        bias = weights.get(f"{part}.bias", torch.zeros(matrix.shape[:2])).numpy()
        whole[part] = numpy.concatenate((matrix, bias[..., None]), axis=-1)
    return whole


def entering(model, values):
    """What enters every linear map, a constant 1 appended: by part a list over the layers of (b t, i + 1) numpy."""
    found, hooks = {part: [None] * DEPTH for part in LINEAR_PARTS}, []
    for part in LINEAR_PARTS:
        for index, layer in enumerate(getattr(model, "vit", model).layers):

            def hook(module, inputs, part=part, index=index):
                flat = inputs[0].reshape(-1, inputs[0].shape[-1]).double().numpy()
                found[part][index] = numpy.concatenate((flat, numpy.ones((len(flat), 1))), axis=1)

            hooks.append(layer.get_submodule(STOCK_PARTS[part]).register_forward_pre_hook(hook))
    with torch.no_grad():
        model(values)
    for hook in hooks:
        hook.remove()
    return found


def relative(one, other):
    return float(((one - other).norm() / other.norm()).detach())


def logits(model, values):
    with torch.no_grad():
        return model(values).logits


def divergence(found, expected):
    """KL(expected || found) of classes, mean over images, by numpy in float64."""
    p, q = (numpy.exp(one.double().numpy()) for one in (expected, found))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    return float((p * numpy.log(p / q)).sum(1).mean())


def weights_of(maps):
    """Matrices with their bias as the last column, by part, as tensors by name."""
    return {f"{part}.weight": whole[..., :-1] for part, whole in maps.items()} | {
        f"{part}.bias": whole[..., -1] for part, whole in maps.items()
    }


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measured(model, values):
    """Stacks of a stock ViT without gains."""
    return stacks_of(layers_of(model), moments(model, True, values, DEPTH))
