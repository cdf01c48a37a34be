"""Training without labels: what the last layer of a teacher says of every token is what a student learns.

Proteus (Zhang et al., ICLR 2025, arXiv 2407.10366), as Scala uses it with DINOv2: no cross-entropy; mean squared error
between final normed tokens, summed over three terms of weight 1: the class token; all tokens; and the patches that a
second pass of the student has masked. Each goes through its own LayerNorm and linear layer into the teacher's width,
sliced with the student's width as a classifier is; where training goes on from a bundle, these layers begin as a fit
(ours). Every network of a step learns from the teacher itself.

Notation: b batch, p patches, t = 1 + p tokens (registers are left out), d channels of the student, D of the teacher.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..configuration_base_lingene import BundleConfig, Size
from ..families_lingene import has_stages, image_token
from ..images.loaders import Layout, derived_seed
from ..modeling_base_lingene import slice_of
from ..modeling_lingene import LinGeneModel
from ..progress import progress_bar
from .losses import TEACHER, Objective
from .validation import Metric


TERMS = ("class_token", "tokens", "masked")
MASK_TOKEN = "embeddings.mask_token"
FEATURE_LOSS = "feature_loss"
FIT_IMAGES, FIT_BATCH = 256, 32  # of the heads' first weights
RIDGES = [10.0**power for power in range(-6, 1)]  # of the mean moment


class FeatureHead(nn.Module):
    """A LayerNorm and a linear layer from any width of the student into the teacher's.

    Args:
        width, teacher_width: d and D, channels.
        std: of the first weights.
    """

    def __init__(self, width: int, teacher_width: int, std: float):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, teacher_width)
        nn.init.trunc_normal_(self.linear.weight, std=std)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: torch.Tensor, size: Size) -> torch.Tensor:
        """(b, t, d of the size) -> (b, t, D)."""
        gain, bias = (slice_of(f"norm.{name}", tensor, size) for name, tensor in self.norm.named_parameters())
        normed = functional.layer_norm(tokens, gain.shape, gain, bias, self.norm.eps)
        return functional.linear(normed, slice_of("classifier.weight", self.linear.weight, size), self.linear.bias)


class FeatureStudent(nn.Module):
    """An encoder, and the heads that are trained with it and are no part of the bundle.

    Args:
        encoder: constrained.
        teacher_width: D, channels of the teacher's tokens.
        objective: of the kind `features`.

    Raises:
        ValueError: identity heads and two widths, or masked patches and an encoder without a mask token.
    """

    def __init__(self, encoder: LinGeneModel, teacher_width: int, objective: Objective):
        super().__init__()
        check_objective(objective, encoder, teacher_width)
        width, std = encoder.config.hidden_size, encoder.config.initializer_range
        terms = TERMS if objective.mask_share else TERMS[:2]
        terms = terms if objective.feature_heads == "linear" else ()
        self.encoder = encoder
        self.heads = nn.ModuleDict({term: FeatureHead(width, teacher_width, std) for term in terms})

    @property
    def config(self) -> BundleConfig:
        return self.encoder.config

    @contextmanager
    def holding(self, count: int) -> Iterator[None]:
        """As of the encoder."""
        with self.encoder.holding(count):
            yield

    def forward(
        self, pixel_values: torch.Tensor, teacher: torch.Tensor, masked: torch.Tensor | None = None, **size
    ) -> torch.Tensor:
        """The loss of one network, image by image.

        Args:
            pixel_values: (b, channels, h, w).
            teacher: (b, t, D), its tokens of the same images; they get no gradient.
            masked: (b, p) bool, as many in every row; None is no second pass.
            size: depth, width_ratio, num_components.

        Returns:
            (b,) float32.
        """
        asked, patches, teacher = self.config.size(**size), teacher.shape[1] - 1, teacher.detach()
        tokens = tokens_of(self.encoder, pixel_values, asked, patches)
        loss = self._distance("class_token", tokens[:, :1], teacher[:, :1], asked)
        loss = loss + self._distance("tokens", tokens, teacher, asked)
        if masked is None:
            return loss
        seen = self.encoder(pixel_values, bool_masked_pos=masked, **size).last_hidden_state
        seen = self.encoder.normed(seen, asked)[:, -patches:]
        hidden, wanted = (values[masked].unflatten(0, (len(masked), -1)) for values in (seen, teacher[:, 1:]))
        return loss + self._distance("masked", hidden, wanted, asked)

    def _distance(self, term: str, tokens: torch.Tensor, teacher: torch.Tensor, size: Size) -> torch.Tensor:
        """Mean squared error of every image, (b,); without heads with the channels that a width keeps."""
        if self.heads:
            tokens = self.heads[term](tokens, size)
        else:
            teacher = slice_of("embeddings.tokens", teacher, size)
        return (tokens.float() - teacher.float()).square().mean((1, 2))

    def bundle_state(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What a bundle takes of a state dict of this module."""
        own = "encoder."
        return {name.removeprefix(own): tensor for name, tensor in state.items() if name.startswith(own)}


def tokens_of(encoder: LinGeneModel, pixel_values: torch.Tensor, size: Size, patches: int) -> torch.Tensor:
    """What stands for the image and the tokens of so many patches, normed: (b, 1 + patches, d of the size)."""
    asked = {"depth": size.depth, "width_ratio": size.width_ratio, "num_components": size.num_components}
    output = encoder(pixel_values, **asked)
    tokens = encoder.normed(output.last_hidden_state[:, -patches:], size)
    return torch.cat((image_token(encoder.config, output)[:, None], tokens), dim=1)


@torch.no_grad()
def fit_heads(
    student: FeatureStudent, source: Any, teacher: Callable[[dict], torch.Tensor], seed: int, shown: bool = True
) -> None:
    """Let linear heads begin as the best linear maps from the tokens of every width to the teacher's, at once: least
    squares on some pictures, the widths alike, with the ridge that is best for pictures left out of the fit. In the
    head of the class token it counts as much as all patches, which keep the fit from following a few pictures' class
    tokens. Behind random heads, or ones that fit few pictures too closely, the first steps would change an encoder
    that is as it should be.

    The same on every process, which all see the same pictures.

    Args:
        student: with linear heads, whose norms are as they were made; where its encoder is to compute.
        source: of the batches of training.
        teacher: its tokens (b, t, D) of a batch.
        seed: draws the pictures.
        shown: whether this process has the progress bar.
    """
    encoder, heads = student.encoder.eval(), student.heads
    batch_size = max(1, min(FIT_BATCH, len(source) // 2))
    steps = min(FIT_IMAGES, len(source)) // batch_size
    sizes = [student.config.size(width_ratio=width) for width in student.config.trained_width_ratios]
    sums = {term: [[0.0, 0.0], [0.0, 0.0]] for term in heads}  # moments (d + 1, d + 1), products (d + 1, D), by halves
    with progress_bar(total=steps * batch_size, desc="fitting heads", unit="image", shown=shown) as bar:
        for step, (batch,) in zip(range(steps), source.batches(f"{seed} heads", Layout(batch_size))):
            wanted = teacher(batch).double()
            for size in sizes:
                tokens = tokens_of(encoder, batch["pixel_values"], size, wanted.shape[1] - 1).double()
                placed = _placed(tokens, next(iter(heads.values())).norm, size)
                for term, halves in sums.items():
                    weighted, (moments, products) = placed.clone(), halves[step % 2]
                    weighted[:, 0] *= wanted.shape[1] - 1 if term == "class_token" else 1
                    left = weighted.flatten(0, 1).T
                    halves[step % 2] = [moments + left @ placed.flatten(0, 1), products + left @ wanted.flatten(0, 1)]
            bar.update(len(batch["pixel_values"]))
    for head, halves in zip(heads.values(), sums.values()):
        found = chosen_map(halves).T
        head.linear.weight.copy_(found[:, :-1])
        head.linear.bias.copy_(found[:, -1])


def ridge_map(moments: torch.Tensor, products: torch.Tensor, ridge: float) -> torch.Tensor:
    """The linear map of ridge regression, (d, D).

    Args:
        moments, products: X^T X (d, d) and X^T Y (d, D).
        ridge: of the mean of the diagonal.
    """
    eye = torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
    return torch.linalg.solve(moments + ridge * moments.diagonal().mean() * eye, products)


def chosen_map(halves: list[list[torch.Tensor]]) -> torch.Tensor:
    """Of all, with the ridge by which the maps of either half are best on the other, (d, D).

    Args:
        halves: moments and products of either; of a single picture the first's alone.
    """
    if not torch.is_tensor(halves[1][0]):
        return ridge_map(*halves[0], RIDGES[-1])

    def error(ridge: float) -> float:
        """Squared errors on the half that was left out, but for what no map changes."""
        total = 0.0
        for known, (moments, products) in zip(halves, reversed(halves)):
            found = ridge_map(*known, ridge)
            total += float((found * (moments @ found - 2 * products)).sum())
        return total

    return ridge_map(*map(sum, zip(*halves)), min(RIDGES, key=error))


def _placed(tokens: torch.Tensor, norm: nn.LayerNorm, size: Size) -> torch.Tensor:
    """Tokens of a width (b, t, d of the size), normed, where the head of the full width has them, and 1 for its bias;
    (b, t, d + 1)."""
    width = len(norm.weight)
    placed = tokens.new_zeros(*tokens.shape[:2], width + 1)
    kept = slice_of("norm.weight", torch.arange(width, device=tokens.device), size)
    placed[..., kept] = functional.layer_norm(tokens, tokens.shape[-1:], eps=norm.eps)
    placed[..., -1] = 1
    return placed


def check_tokens(config: BundleConfig) -> None:
    """Refuse networks of stages, whose tokens are no patches of the picture's grid."""
    if has_stages(config):
        raise ValueError(
            "`objective` features compares class tokens, and a network of stages has none; train it with labels."
        )


def check_objective(objective: Objective, encoder: LinGeneModel, teacher_width: int | None) -> None:
    """Refuse terms that a student and a teacher cannot have.

    Args:
        teacher_width: D, channels; None where it is not known yet.

    Raises:
        ValueError: masked patches without a mask token, or identity heads and two widths.
    """
    if objective.mask_share and MASK_TOKEN not in dict(encoder.named_parameters()):
        raise ValueError(
            "`mask_share` puts a mask token in place of patches, and this bundle's family has none; leave it at 0."
        )
    width = encoder.config.hidden_size
    if objective.feature_heads == "identity" and teacher_width not in (None, width):
        raise ValueError(
            f"`feature_heads` identity needs one width, and the teacher has {teacher_width} channels, the student "
            f"{width}; use linear."
        )


def features_loss(
    objective: Objective, student: Callable, batch: dict, generator: torch.Generator, **size
) -> torch.Tensor:
    """The loss of one network of a step, averaged over the batch.

    Args:
        objective: of the kind `features`.
        student: a `FeatureStudent`, prepared or not.
        batch: pixel_values, index (b,) and teacher (b, t, D).
        generator: the same on every process; draws the masks, where there are any.
    """
    masked = None
    if objective.mask_share:
        seed, patches = int(torch.randint(1 << 31, (), generator=generator)), batch[TEACHER].shape[1] - 1
        masked = masked_patches(seed, batch["index"], patches, objective.mask_share)
    return student(batch["pixel_values"], batch[TEACHER], masked, **size).mean()


def masked_patches(seed: int, index: torch.Tensor, patches: int, share: float) -> torch.Tensor:
    """(b, p) bool: as many random patches of every image; which ones, an image's index says, not its place in a batch,
    so that a step may be divided among processes.
    """
    count, mask = max(1, round(share * patches)), torch.zeros(len(index), patches, dtype=torch.bool)
    for row, number in zip(mask, index.tolist()):
        generator = torch.Generator().manual_seed(derived_seed(seed, "mask", number))
        row[torch.randperm(patches, generator=generator)[:count]] = True
    return mask.to(index.device)


def feature_metric(teacher: Callable[[dict], torch.Tensor]) -> Metric:
    """The loss, without masks, on held-out images; the smallest is the best.

    Args:
        teacher: its tokens (b, t, D) of a batch of them.
    """

    def count(student: nn.Module, batch: dict, size: dict) -> torch.Tensor:
        losses = student(batch["pixel_values"], teacher(batch), **size).double()
        return torch.stack((losses.sum(), losses.new_tensor(len(losses))))

    return Metric(FEATURE_LOSS, count, larger_is_better=False)
