"""What a conversion has kept: numbers at every count of components, a table of them, and what to do next."""

import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from ..folders import read_config
from ..kept import is_model, kept, last_row, verdict
from ..kinds import model_class
from ..measuring.features import class_and_patches
from ..measuring.judging import agreement, cosines
from ..measuring.tables import aligned_table
from ..progress import quiet_loading
from .calibration import class_outputs_of, distance
from .moments import Stack
from .sources import names_classes


# By the logit error of the start, up to which a rate is taken: a high one harms a good start, for an epoch at least.
LEARNING_RATES = ((0.05, 1e-4), (0.2, 7e-4))
# Without labels, at 128 images a step. With 32, six of twelve components of a ViT-S/14 learned best at 3e-5 and nine,
# which are nearer to their source, at 1e-5: the geometric mean of four times the one and the other.
HEALING_RATE = 7e-5
TEACHER = "TEACHER"  # in a command, of weights from a file, which no name stands for
COLUMNS = {
    "num_components": "components",
    "activation_residual": "layers",
    "relative_logit_error": "",  # what was compared
    "divergence": "KL",
    "agreement": "agreement",
    "cosine": "cosine",
    "cosine_p5": "5th percentile",
    "patch_cosine": "of patches",
}
COUNT_LEGEND = {
    "layers": "relative error of what all maps of the layers give",
    "KL": "divergence of the class probabilities, nats",
    "agreement": "images of the source's class",
    "cosine": "of the {compared}s with the source's, mean over images",
    "of patches": "the same of the patch tokens",
}


def count_legend(rows: list[dict], compared: str) -> str:
    """What the columns of `count_table` are, in one line."""
    legend = {"layers": COUNT_LEGEND["layers"], f"{compared}s": f"relative error of the {compared}s", **COUNT_LEGEND}
    shown = count_table(rows, compared).splitlines()[0]
    said = "; ".join(f"{name}: {said}" for name, said in legend.items() if f" {name} |" in shown)
    return said.format(compared=compared)


def logit_error(found: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """How far logits are from the expected ones: relative (Frobenius norms; of zeros absolute) and at most."""
    difference, whole = found - expected, expected.norm()
    relative = float(difference.norm() / whole if whole else difference.norm())
    return {"relative_logit_error": relative, "largest_logit_error": float(difference.abs().max())}


@torch.no_grad()
def outputs(folder: Path, head: bool, pixel_values: torch.Tensor, device: str = "cpu", **size) -> torch.Tensor:
    """Logits, or class tokens, of a size of a bundle as a user loads it."""
    return class_outputs_of(_loaded(folder, head, device, **size), pixel_values)


def _loaded(folder: Path, head: bool, device: str, **size) -> nn.Module:
    with quiet_loading():
        model = model_class(read_config(folder), head).from_pretrained(
            folder, dtype=torch.float32, allow_untrained=True, **size
        )
    return model.eval().to(device)


@torch.no_grad()
def tokens_of(model: nn.Module, pixel_values: torch.Tensor, batch_size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Class tokens (n, d) and patch tokens (n, p, d) of many images, on the CPU."""
    found = [[part.cpu() for part in class_and_patches(model, images)] for images in pixel_values.split(batch_size)]
    tokens, patches = zip(*found)
    return torch.cat(tokens), torch.cat(patches)


def measure_counts(
    folder: Path,
    head: bool,
    stacks: Mapping[str, Stack],
    components: Mapping[str, torch.Tensor],
    table: torch.Tensor,
    pixel_values: torch.Tensor,
    expected: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
    device: str,
    progress: Callable[[], None] = lambda: None,
) -> list[dict]:
    """A row for every number of components of a converted bundle.

    Args:
        stacks: what was approximated, by part, with its moments.
        components: by part (n, o, i).
        table: (l, n).
        pixel_values: images that judge.
        expected: the source's logits for them, or without a classifier its tokens, as of `tokens_of`.

    Returns:
        Rows of num_components, activation_residual and weight_residual (relative, Frobenius norms, all maps together
        and per part; that of weights says nothing of how good a fit is, and may grow as it gets better),
        relative_logit_error, and with a classifier that names classes divergence (KL, nats) and agreement (0..1),
        without a classifier cosines of what stands for the image and of the patch tokens with the source's, mean over
        images and 5th percentile.
    """
    rows = []
    for count in range(1, table.shape[1] + 1):
        parts, totals = {}, torch.zeros(2, 2, dtype=torch.float64)
        for part, stack in stacks.items():
            layers = torch.einsum("ln,noi->loi", table[:, :count], components[part][:count])
            squares = _squares(stack, layers)
            totals += squares
            parts[part] = dict(zip(("activations", "weights"), _ratio(squares)))
        model = _loaded(folder, head, device, num_components=count)
        found = class_outputs_of(model, pixel_values) if head else tokens_of(model, pixel_values)
        activations, weights = _ratio(totals)
        row = {"num_components": count, "activation_residual": activations, "weight_residual": weights}
        answers = (found, expected) if head else (found[0], expected[0])
        row["relative_logit_error"] = logit_error(*answers)["relative_logit_error"]
        if names_classes(model.config, head):
            row["divergence"] = distance(found, expected, classes=True)
            row["agreement"] = float((found.argmax(-1) == expected.argmax(-1)).double().mean())
        elif not head:
            row |= agreement(cosines(found, expected))
        rows.append({**row, "parts": parts})
        progress()
    return rows


def _squares(stack: Stack, layers: torch.Tensor) -> torch.Tensor:
    """[[error, whole] of activations, [error, whole] of weights], squared norms."""
    pair = (stack.weights - layers, stack.weights)
    activations = [float(((one @ stack.inputs) * one).sum()) for one in pair]
    return torch.tensor([activations, [float(one.square().sum()) for one in pair]], dtype=torch.float64)


def _ratio(squares: torch.Tensor) -> list[float]:
    return (squares[:, 0] / squares[:, 1]).clamp(min=0).sqrt().tolist()


def count_table(rows: list[dict], compared: str) -> str:
    """The rows as a Markdown table.

    Args:
        rows: of a conversion's report.
        compared: what of bundle and source was compared, as the report says: "logit", "class token" ...
    """
    columns = {key: name for key, name in COLUMNS.items() if key in rows[0]} | {"relative_logit_error": f"{compared}s"}
    lines = [list(columns.values())]
    for row in rows:
        shown = [f"{100 * row[key]:.1f} %" if key == "agreement" else f"{row[key]:.3g}" for key in columns]
        lines.append([str(row["num_components"]), *shown[1:]])
    return aligned_table(lines)


def learning_rate(error: float) -> float:
    """For a start with this relative logit error; logarithmic between the two that are known."""
    (low, least), (high, most) = LEARNING_RATES
    share = min(max((error - low) / (high - low), 0.0), 1.0)
    return float(f"{math.exp((1 - share) * math.log(least) + share * math.log(most)):.1g}")


def advice(report: dict, source: str, out: str | Path) -> dict | None:
    """What a bundle that is no model yet needs: the command, its learning rate and a sentence; None for a model.

    Args:
        report: of the conversion, with `compared`: `logit`, or what stands for the image where there is no
            classifier; such a bundle learns from the source's tokens and needs no labels. `turned` says that its
            channels are not the source's.
        source: who teaches it, by folder or name; TEACHER where the reader has to say it.
        out: the bundle's folder.
    """
    if is_model(report):
        return None
    row, labelled = last_row(report), report["compared"] == "logit"
    rate = learning_rate((report if row is None else row)["relative_logit_error"]) if labelled else HEALING_RATE
    heads = "" if report.get("turned") else "--feature-heads identity "  # as channels mean what the teacher's do
    unlabelled = "" if labelled else f"--objective features {heads}"
    command = (
        f"lingene decompose --init {shlex.quote(str(out))} --data DATA --teacher {shlex.quote(source)} {unlabelled}"
        f"--schedule simultaneous --learning-rate {rate:g} --epochs 3 --out RUN"
    )
    return {"statement": f"{verdict(report)} {kept(report)}", "learning_rate": rate, "command": command}
