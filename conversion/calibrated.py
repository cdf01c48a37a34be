"""A conversion on a few hundred images: its fit, its order of heads and units, its layers, what it is worth."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from ..bundle_lingene import component_file
from ..configuration_base_lingene import BundleConfig
from ..folders import change_settings, read_config
from ..kinds import model_class
from ..loading_lingene import stock_model
from ..modeling_base_lingene import RecomposingModel
from ..progress import progress_bar, quiet_loading
from ..recompose_lingene import BLOCK_NORMS, block_linears
from .calibration import LEFT_OUT, choose_rows, class_outputs_of
from .fitting import ROUNDS, fit_block, fold_norms, order_components
from .matching import PASSES, match
from .moments import Stack, moments, stacks_of
from .ordering import sort_width
from .report import measure_counts, tokens_of
from .sources import Source, changed


class Calibration:
    """What is known of a source on some images: its answers, and the moments around its linear maps.

    Args:
        source: the checkpoint.
        pixel_values: (images, channels, h, w).
        device: where passes run.
        seed: of the labels drawn.
        left_out: other images, likewise, which judge the result; where there are none, those of the fit do.
    """

    def __init__(
        self, source: Source, pixel_values: torch.Tensor, device: str, seed: int, left_out: torch.Tensor | None = None
    ):
        self.source, self.pixel_values, self.device, self.seed = source, pixel_values, device, seed
        self.left_out = left_out
        self.weights = {name: torch.stack(source.layers(name)).double() for name in source.config.component_shapes()}
        self.stacks, self.fit_of = None, None

    def fitted(self, config: BundleConfig, fit: str, rounds: int) -> tuple[BundleConfig, Iterator]:
        """Fewer components, fitted on the images: the configuration that they need, and the components by tensor."""
        with fast_products():
            self.fit_of = stacks, parts, table = self._fit(config, fit, rounds)
        changes = {"gain_offset": 1.0, "qkv_bias": True}
        if fit in ROUNDS:
            changes |= {"basis": "learned", "coefficient_matrix": table.double().tolist(), "degree_weight": 0.0}
        return changed(config, **changes), tensors_of(parts, config)

    def _fit(self, config: BundleConfig, fit: str, rounds: int) -> tuple:
        """Stacks, components and coefficients."""
        stacks = self._stacks(fold_norms(self.weights))
        total = rounds if fit in ROUNDS else 1
        with progress_bar(total=total, desc="fitting", unit="round") as bar:
            start = config.coefficients(config.size())
            heads, rotary = config.num_attention_heads, config.stands_for.rotates
            stacks, parts, table = fit_block(stacks, start, fit, heads, rounds, bar.update, rotary)
        if fit == "matched":
            with progress_bar(total=PASSES, desc="matching", unit="pass") as bar:
                parts, table = match(
                    stacks,
                    parts,
                    table,
                    self._built,
                    self.source.names_classes,
                    self.pixel_values,
                    PASSES,
                    bar.update,
                )
            metrics = {part: stack.metric(fit) for part, stack in stacks.items()}
            parts, table = order_components(parts, table, metrics)
        return stacks, parts, table

    def sort(self, folder: Path, config: BundleConfig) -> None:
        """The bundle's heads and units in the order in which they matter, one for all layers."""
        self._found(folder, config)  # in the fit's own order
        model = self._loaded(folder)
        with progress_bar(total=len(self.pixel_values), desc="sorting", unit="image") as bar:
            sort_width(model, self.pixel_values, self.seed, bar.update)
        model.to("cpu").save_pretrained(folder)

    def measured(self, folder: Path, config: BundleConfig, depths: Sequence[int]) -> dict:
        """Errors at every number of components; and, for the depths asked for, the layers chosen."""
        stacks, parts, table = self._found(folder, config)
        left_out = self.left_out is not None and len(self.left_out) > 0
        shown = self.left_out if left_out else self.pixel_values[:LEFT_OUT]
        answers = class_outputs_of if self.source.head else tokens_of
        expected = answers(self.source.stock().to(self.device), shown)
        with progress_bar(total=table.shape[1], desc="measuring", unit="count") as bar:
            rows = measure_counts(
                folder, self.source.head, stacks, parts, table, shown, expected, self.device, bar.update
            )
        result = {"images": len(self.pixel_values), "measured_images": len(shown), "left_out": left_out}
        result["rows"] = rows
        if depths:
            result["depth_rows"] = self._choose(folder, depths)
        return result

    def _found(self, folder: Path, config: BundleConfig) -> tuple:
        """Stacks, components and coefficients of the fit; exact, or of least squares, what the folder holds."""
        if self.fit_of is None:
            self.fit_of = (self._stacks(self.weights), *stored_parts(folder, config))
        return self.fit_of

    def _built(self, maps: dict[str, torch.Tensor]) -> nn.Module:
        """The source's shape with these linear maps, (l, o, i), and no LayerNorms' gains."""
        weights = {f"{part}.weight": own[..., :-1] for part, own in maps.items()}
        weights |= {f"{part}.bias": own[..., -1] for part, own in maps.items()}
        return stock_of(self.source, weights).to(self.device).requires_grad_(False)

    def _stacks(self, weights: dict[str, torch.Tensor]) -> dict[str, Stack]:
        """Weights with their moments; those of LayerNorms, if any, stay where they are."""
        model = stock_of(self.source, weights).to(self.device).requires_grad_(False)
        with progress_bar(total=len(self.pixel_values), desc="calibrating", unit="image") as bar:
            found = moments(
                model,
                self.source.names_classes,
                self.pixel_values,
                self.source.depth,
                seed=self.seed,
                progress=bar.update,
            )
        return stacks_of(weights, found)

    def _choose(self, folder: Path, depths: Sequence[int]) -> dict[int, list[int]]:
        model = self._loaded(folder)
        layers = range(min(depths) + 1, self.source.depth + 1)
        with progress_bar(total=len(self.pixel_values), desc="asking the source", unit="image") as bar:
            expected = class_outputs_of(self.source.stock().to(self.device), self.pixel_values, progress=bar.update)
        with progress_bar(total=sum(layers), desc="choosing layers", unit="candidate") as bar:
            rows = choose_rows(model, self.source.names_classes, self.pixel_values, expected, depths, bar.update)
        config = read_config(folder)
        config.depth_rows = rows
        change_settings(folder, config)
        return rows

    def _loaded(self, folder: Path) -> RecomposingModel:
        """The bundle as components."""
        with quiet_loading():
            model = model_class(self.source.config, self.source.head).from_pretrained(
                folder, constrained=True, dtype=torch.float32
            )
        return model.eval().to(self.device)


@contextmanager
def fast_products() -> Iterator[None]:
    """Matrix products of float32 on CPUs by oneDNN, which on some is much faster than what torch takes by itself: it
    is asked for TF32, for which CPUs have no units, and computes in float32. In bfloat16 fits of small networks lose
    nothing, but those of a trained ViT-Small came out further from it.
    """
    backend = torch.backends.mkldnn.matmul
    before = backend.fp32_precision
    backend.fp32_precision = "tf32"
    try:
        yield
    finally:
        backend.fp32_precision = before


def stock_of(source: Source, weights: dict[str, torch.Tensor]) -> nn.Module:
    """The source as a stock ViT with these block tensors, (l, ...); LayerNorms that were folded away do nothing."""
    ones = torch.ones(source.depth, source.config.hidden_size)
    neutral = {f"{norm}.{kind}": ones * (kind == "weight") for norm in BLOCK_NORMS for kind in ("weight", "bias")}
    layers = {name: [row.float().contiguous() for row in rows] for name, rows in {**neutral, **weights}.items()}
    config = changed(source.config, qkv_bias="attention.query.bias" in weights)
    shape = config.stock_config(config.size())
    with quiet_loading():
        return stock_model(dict(source.outside), layers, shape, source.head, dtype=torch.float32).eval()


def tensors_of(parts: dict[str, torch.Tensor], config: BundleConfig) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """Fitted parts as the components' tensors; those of the folded LayerNorms are zero."""
    count, size = config.reference_components, config.hidden_size
    for part, fitted in parts.items():
        fitted = fitted.float().cpu()
        yield f"{part}.weight", [one[:, :-1].contiguous() for one in fitted]
        yield f"{part}.bias", [one[:, -1].contiguous() for one in fitted]
    for norm in BLOCK_NORMS:
        for kind in ("weight", "bias"):
            yield f"{norm}.{kind}", [torch.zeros(size) for _ in range(count)]


def stored_parts(folder: Path, config: BundleConfig) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The linear maps of a bundle's components, biases appended, and the coefficients."""
    size = config.size()
    parts = {}
    for count in range(size.num_components):
        state = load_file(folder / component_file(count))
        for part in block_linears(config.gated_mlp):
            matrix = state[f"components.{count}.{part}.weight"]
            bias = state.get(f"components.{count}.{part}.bias", torch.zeros(len(matrix)))
            parts.setdefault(part, []).append(torch.cat((matrix, bias[:, None]), dim=1))
    return {part: torch.stack(own) for part, own in parts.items()}, config.coefficients(size).float()
