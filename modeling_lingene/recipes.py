"""Named runs as Python functions. Each docstring gives cost and expected number, or says that it was never run."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .configuration_lingene import LinGeneConfig
from .data import batches, image_processor, load_images, to_tensors
from .decomposition import incremental_phases
from .hub import write_card, write_json, write_sizes
from .metrics import measure_sizes
from .modeling_lingene import LinGeneForImageClassification
from .plots import plot_sizes
from .training import STAGING, TrainingLoop, TrainingSettings, check_identity


TOTALS = (1, 2, 4, 6)
DEPTHS = (3, 4, 6)


def quickstart(out: str | Path = "lingene-quickstart", seed: int = 0, epochs: int = 60) -> list[dict]:
    """A small bundle on the digits set of scikit-learn, from nothing to measured sizes and a picture.

    Six layers, six components in phases of 1, 2, 4, 6, depths 3, 4 and 6; twelve sizes materialised through
    `from_pretrained` and measured on the 360 held-out images. A minute and a half on two CPU cores; 99 % for the best
    size (tests/benchmarks/results/quickstart.json).

    Args:
        out: `bundle/`, `checkpoints/`, `results.json` and `sizes.png` go there; a run that was interrupted goes on,
            a finished one is read back.
        seed: of initialisation, order and augmentation.
        epochs: of a phase.

    Returns:
        The rows of `sizes.json`.

    Raises:
        ValueError: the folder holds another run, or files of something else.
    """
    out = Path(out)
    settings = TrainingSettings(seed=seed, epochs=epochs, device="cpu")
    recipe = {"recipe": "quickstart", "totals": list(TOTALS), "depths": list(DEPTHS)}
    identity = {**vars(settings), **recipe}
    finished = _finished(out, identity)
    if finished is not None:
        return finished
    train, test = load_images("digits", "train"), load_images("digits", "test")
    processor = image_processor(8)
    model = _quickstart_model(train.class_names, seed)
    phases = incremental_phases(model, TOTALS, DEPTHS)
    with one_thread():  # matrices of 64 x 128
        TrainingLoop(model, to_tensors(train, processor), settings, out, recipe, shift).fit(phases)
    bundle = out / "bundle"
    model.save_pretrained(bundle)
    processor.save_pretrained(bundle)
    sizes = [(depth, 1, total) for depth in DEPTHS for total in TOTALS]
    rows = measure_sizes(bundle, batches(test, processor, 128), sizes, threads=1)  # so small that threads only wait
    write_sizes(bundle, rows)
    write_card(bundle, "lingene-digits")
    plot_sizes(rows, out / "sizes.png", "One bundle, twelve sizes: handwritten digits")
    write_json(out / "results.json", {"identity": identity, "sizes": rows})
    return rows


def _quickstart_model(class_names: list[str], seed: int) -> LinGeneForImageClassification:
    torch.manual_seed(seed)
    config = LinGeneConfig(
        hidden_size=64,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=8,
        patch_size=4,
        layer_norm_eps=1e-6,
        depth=max(DEPTHS),
        num_components=TOTALS[-1],
        trained_depths=list(DEPTHS),
        id2label=dict(enumerate(class_names)),
        label2id={name: index for index, name in enumerate(class_names)},
    )
    return LinGeneForImageClassification(config)


@contextmanager
def one_thread() -> Iterator[None]:
    """With matrices this small, threads only wait for each other: on a busy machine up to fifty times the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def shift(pixel_values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to one pixel in both directions, black moving in; (b, c, h, w) -> (b, c, h, w)."""
    padded = torch.nn.functional.pad(pixel_values, (1, 1, 1, 1), value=-1.0)
    height, width = pixel_values.shape[-2:]
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (b, c, 3, 3, h, w)
    down, right = torch.randint(3, (2, len(pixel_values)), generator=generator).to(pixel_values.device)
    return windows[torch.arange(len(pixel_values), device=pixel_values.device), :, down, right]


def _finished(out: Path, identity: dict) -> list[dict] | None:
    """The rows of a finished run; None where it is yet to run or to go on. Refuses the place of something else."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise ValueError(f"`out` must be a folder, and {out} is a file.")
    results = out / "results.json"
    if results.is_file():
        try:
            stored = json.loads(results.read_text(encoding="utf-8"))
            named, rows = stored["identity"], stored["sizes"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"`out` {out} holds a results.json that is not this run's; choose another.") from None
        check_identity(out, named, identity)
        return rows
    found = {path.name for path in out.iterdir()}
    begun = found & {"checkpoints", STAGING}  # a bundle without them is somebody's
    if found and not begun or found - {"checkpoints", "bundle", "sizes.png", STAGING}:
        raise ValueError(f"`out` {out} holds other files; choose a new or empty folder.")
    return None
