"""A real trained ViT as one bundle: every kind of size, untrained and trained without labels, against simpler ways.

    python tests/benchmarks/backbone.py --data FOLDER --work DIR [--rows "untrained, rotated;elastic, rotated, 1"]
    python tests/benchmarks/backbone.py --data FOLDER --work DIR --collect FILE.json

The source is the ViT-S/14 of `tests/real_vit.py`, at 126 pixels. Pictures of `train/` are trained on without their
labels; a part of them with labels votes and fits the probe, and `test/` judges features by k-NN and that probe; the
cosine compares with the source's tokens, as `lingene sweep --reference` does. Starts:

    rotated  `lingene convert --sort`: the stream turned for the widths, each layer's heads and units in their order
    sorted   heads and units in one order for all layers, the stream as it is: the earlier `--sort`
    plain    `lingene convert`

A bundle draws four networks a step over all depths and widths, which share its images; `alone` trains one width of
the rotated start for as many pictures, `depths` a bundle whose layers alone are left out, `healed` one of fewer
components. One teacher, the source; losses are those of the validation part, through each run's own heads. The rate of
a row is the one with the lowest mean loss of its sizes there after one epoch, tried on until the best has neighbours;
longer trainings take it from there. Rows at `the rate of rotated` take that of the rotated start in its place: of
starts whose narrow widths begin far off, the mean is lowest where the full width is ruined.

With `--cache-teacher` the source is asked once of every picture, not in every step: its answers are then float32.
With `--precision bf16` steps, and the passes of what is judged and of the source, compute in bfloat16 by autocast; a
row says which it was, and how many pictures judged it. What is done in the work folder, or stands in the results file
of `--known`, is not run again.
"""

import argparse
import contextlib
import dataclasses
import json
import resource
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from preparing import write_set
from protocol import slug
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from transformers import AutoModel, BitImageProcessor, Dinov2Model

from modeling_lingene.configuration_lingene import LinGeneConfig
from modeling_lingene.conversion.calibration import calibration_images
from modeling_lingene.conversion.convert import convert
from modeling_lingene.conversion.ordering import sort_width
from modeling_lingene.folders import publish_model, write_json
from modeling_lingene.images.data import load_images, split_off
from modeling_lingene.measuring.metrics import device_name
from modeling_lingene.measuring.sweep import sweep
from modeling_lingene.modeling_lingene import LinGeneModel
from modeling_lingene.progress import quiet_loading
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.losses import Objective
from modeling_lingene.training.recipes import Recipe, decompose
from modeling_lingene.training.steps import TrainingSettings


PIXELS = 126
DEPTH, DEPTHS, WIDTHS, COUNTS = 12, (6, 8, 10), ("1/2", "2/3", "5/6"), (3, 4, 6, 9)
STARTS = ("rotated", "sorted", "plain")
ROTATED_RATE = "the rate of rotated"
SHOWN = ("depth", "width_ratio", "num_components", "feature_loss")


@dataclasses.dataclass(frozen=True)
class Scale:
    """What a machine can do.

    Args:
        pictures: for training; voters with labels; judged pictures.
        calibration: images for fewer components; a quarter of them orders channels and chooses layers.
        epochs: of the shortest training, which chooses rates; of all starts; of the rotated start alone, with widths
            alone beside it.
        rate: tried first.
        training: everything else.
    """

    pictures: tuple[int, int, int]
    calibration: int
    epochs: tuple[int, ...]
    rate: float
    training: TrainingSettings


CPU = TrainingSettings(batch_size=32, device="cpu", evaluate_every=0, keep_checkpoints=1)
SCALES = {
    "cpu": Scale((4000, 1000, 3925), 256, (1, 3, 12, 30), 1e-5, CPU),
    "smoke": Scale((64, 60, 40), 16, (1, 2, 3), 3e-4, dataclasses.replace(CPU, batch_size=16)),  # no measurement
    "gpu": Scale(
        (9000, 9000, 3925),
        512,
        (1, 3, 12, 30),
        3e-5,
        dataclasses.replace(CPU, batch_size=128, device="auto"),
    ),
}


def rows_of(scale: Scale) -> dict[str, str]:
    """By name the method of `Backbone` that measures it."""
    short, longer, *longest = scale.epochs
    trained = [f"elastic, {start}, {epochs}" for start in STARTS for epochs in (short, longer)]
    trained += [f"{row}, {ROTATED_RATE}" for row in trained if "rotated" not in row]
    trained += [f"elastic, rotated, {epochs}" for epochs in longest]
    trained += [f"alone, {width}, {epochs}" for epochs in (short, *longest) for width in WIDTHS]
    trained += [f"depths, {heads} heads" for heads in ("linear", "identity")]
    return {
        **{f"untrained, {start}": "widths_of" for start in STARTS},
        **dict.fromkeys(trained, "trained"),
        "layers": "layers",
        **{f"{count} components": "components" for count in COUNTS},
        **{f"healed, {count} components": "trained" for count in COUNTS},
    }


class Backbone:
    """The rows of one scale.

    Args:
        data: a labelled set with `train` and `test`.
        work: folder for everything that is made.
        scale: name.
        precision: of training and of passes that are judged: no or bf16.
        known: a results file whose rows are not run again.
        cached: ask the teacher once of every picture.

    Raises:
        ValueError: `known` is of another scale.
    """

    def __init__(
        self,
        data: str,
        work: Path,
        scale: str,
        precision: str = "no",
        known: Path | None = None,
        cached: bool = False,
    ):
        self.work, self.name, self.scale, self.data = work, scale, SCALES[scale], data
        self.source, self.pictures, self.judged = work / "source", work / "pictures", work / "judged"
        self.precision, self.cached = precision, cached
        self.known = known_rows(known, scale) if known else {}
        self._make_source()
        self._make_sets()
        self.rows = {row: getattr(self, way) for row, way in rows_of(self.scale).items()}

    def _make_source(self) -> None:
        if (self.source / "preprocessor_config.json").is_file():
            return
        sys.path.append(str(Path(__file__).parents[1]))
        from real_vit import real_vit

        self.source.mkdir(parents=True, exist_ok=True)
        made = real_vit(self.source)
        if made != self.source:
            shutil.copytree(made, self.source, dirs_exist_ok=True)
        size = {"size": {"shortest_edge": PIXELS}, "crop_size": {"height": PIXELS, "width": PIXELS}}
        BitImageProcessor(**size).save_pretrained(self.source)

    def _make_sets(self) -> None:
        if (self.judged / "parts.json").is_file():
            return
        train, test = load_images(self.data, "train"), load_images(self.data, "test")
        trained, voters, judged = self.scale.pictures

        def part(images, count):
            return images if count >= len(images) else split_off(images, count / len(images), seed=0)[1]

        write_set({"train": part(train, trained)}, self.pictures)
        write_set({"train": part(train, voters), "test": part(test, judged)}, self.judged)

    def finish(self, name: str) -> dict:
        """A row, from its file where it is done."""
        file = self.row_file(name)
        if file.is_file():
            return json.loads(file.read_text())
        if name in self.known:
            return self.known[name]
        file.parent.mkdir(exist_ok=True)
        hardware = device_name(None if self.scale.training.device == "auto" else "cpu")
        row = {"row": name, "hardware": hardware, "precision": self.precision, "judged": self.scale.pictures[-1]}
        row |= self.rows[name](name)
        row["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
        write_json(file, row)
        return row

    def row_file(self, name: str) -> Path:
        return self.work / "rows" / f"{slug(name)}.json"

    def start(self, kind: str) -> Path:
        """A bundle of as many components as layers."""
        bundle = self.work / "starts" / kind
        asked = {"calibrate": str(self.pictures), "images": self.scale.calibration // 4}
        if kind == "rotated" and not bundle.exists():
            convert(str(self.source), bundle, **asked, sort=True, widths=WIDTHS, depths=DEPTHS)
        elif kind == "layers" and not bundle.exists():
            convert(str(self.source), bundle, **asked, depths=sorted({*DEPTHS, *COUNTS}, reverse=True))
        elif not bundle.exists():
            if kind == "plain":
                convert(str(self.source), bundle)
            else:
                with quiet_loading():
                    model = LinGeneModel.from_pretrained(self.start("plain"), constrained=True)
                    processor = BitImageProcessor.from_pretrained(self.source)
                sort_width(model, calibration_images(str(self.pictures), processor, asked["images"], 0)[0])
                model.save_pretrained(bundle)
                processor.save_pretrained(bundle)
        return bundle

    def measured(self, bundle: Path, compared: bool = True, **grid) -> list[dict]:
        """Sizes by k-NN, by probe, and compared with the source, whose channels a bundle of one width has not."""
        train, test = load_images(str(self.judged), "train"), load_images(str(self.judged), "test")
        metrics = {"metric": "cosine,knn,probe", "reference": str(self.source)}
        metrics = metrics if compared else {"metric": "knn,probe"}
        with passes_in_bfloat16() if self.precision == "bf16" else contextlib.nullcontext():
            rows = sweep(bundle, test, out=bundle, train=train, latency=False, allow_untrained=True, **metrics, **grid)
        kept = {"depth", "width_ratio", "num_components", "params", "macs", "knn", "probe"}
        return [{key: value for key, value in row.items() if key in kept or "cosine" in key} for row in rows]

    def widths_of(self, name: str) -> dict:
        """Every width of a start as it is."""
        bundle = self.start(name.split(", ")[1])
        return {"sizes": self.measured(bundle, widths=(*WIDTHS, "1"), components=(DEPTH,))}

    def components(self, name: str) -> dict:
        """Fewer components than layers, by the default fit, untrained."""
        bundle = self._fitted(name)
        found = self.measured(bundle, components=(int(name.split()[0]),))
        return {"sizes": found, "fit": json.loads((bundle.parent / f"{bundle.name}.json").read_text())}

    def _fitted(self, name: str) -> Path:
        bundle = self.work / "starts" / name.replace(" ", "-")
        if not bundle.exists():
            asked, begun = {"calibrate": str(self.pictures), "images": self.scale.calibration}, time.perf_counter()
            convert(str(self.source), bundle, num_components=int(name.split()[0]), **asked)
            fit = {"seconds": round(time.perf_counter() - begun, 1), "threads": torch.get_num_threads()}
            fit["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)  # of the process
            write_json(bundle.parent / f"{bundle.name}.json", fit)
        return bundle

    def layers(self, name: str) -> dict:
        """Layers chosen on the calibration images, all else left out: as many as components, and the depths."""
        bundle, depths = self.start("layers"), sorted({*DEPTHS, *COUNTS, DEPTH})
        return {"sizes": self.measured(bundle, depths=depths, components=(DEPTH,))}

    def recipe(self, name: str, rate: float) -> Recipe:
        kind, what, *others = name.split(", ")
        epochs, heads = int((others or self.scale.epochs)[0]), "linear"
        if kind == "alone":
            init, decomposition = self._narrow(what), DecompositionSettings("simultaneous", totals=(DEPTH,))
        elif kind == "healed":
            init, heads = self._fitted(what), "identity"
            decomposition = DecompositionSettings("simultaneous", totals=(int(what.split()[0]),))
        elif kind == "depths":
            init, heads = self.start("layers"), what.split()[0]
            decomposition = DecompositionSettings("elastic", totals=(DEPTH,), depths=DEPTHS)
        else:
            init = self.start(what)
            decomposition = DecompositionSettings("elastic", totals=(DEPTH,), depths=DEPTHS, widths=WIDTHS)
        return Recipe(
            data=str(self.pictures),
            init=str(init),
            teacher=str(self.source),
            training=dataclasses.replace(
                self.scale.training, epochs=epochs, learning_rate=rate, precision=self.precision
            ),
            decomposition=decomposition,
            objective=Objective(kind="features", feature_heads=heads),
            validation_share=0.05,
            cache_teacher=self.cached,
        )

    def _narrow(self, width: str) -> Path:
        """One width of the rotated start as a bundle of its own."""
        bundle = self.work / "starts" / f"alone-{width.replace('/', '-')}"
        if not bundle.exists():
            whole, plain = self.start("rotated"), bundle.with_name(f"{bundle.name}-plain")
            with quiet_loading():
                model = AutoModel.from_pretrained(whole, width_ratio=width, allow_untrained=True)
            if not plain.exists():
                publish_model(model, whole, plain)
            convert(str(plain), bundle)
        return bundle

    def choose(self, name: str) -> dict[float, float]:
        """The mean loss of a row's sizes on the validation part after its shortest training, by learning rate; the
        full size alone begins as the teacher, and is best where nothing is learned."""
        short = self.shortest(name)
        if short in self.known or self.row_file(short).is_file():
            return {float(rate): loss for rate, loss in self.finish(short)["rates"].items()}

        def loss(rate: float) -> float:
            rows = self.decomposed(short, rate, self.tried_in(short, rate))
            return statistics.mean(row["feature_loss"] for row in rows)

        losses = {self.scale.rate: loss(self.scale.rate)}
        while (best := min(losses, key=losses.get)) in (min(losses), max(losses)):
            further = beside(best, lower=best != max(losses))
            losses[further] = loss(further)
        return losses

    def decomposed(self, name: str, rate: float, out: Path) -> list[dict]:
        """A training; flash attention of CPUs is slow in bfloat16, backwards, at 82 tokens."""
        slow = self.precision == "bf16" and self.scale.training.device == "cpu"
        with sdpa_kernel(SDPBackend.MATH) if slow else contextlib.nullcontext():
            return decompose(self.recipe(name, rate), out)

    def shortest(self, name: str) -> str:
        """The row whose training is that of a row but short, at rates of its own."""
        kind, what, *others = name.split(", ")
        return ", ".join([kind, what, *([str(self.scale.epochs[0])] if others else [])])

    def tried_in(self, short: str, rate: float) -> Path:
        return self.work / "tries" / f"{slug(short)}-{rate:g}"

    def trained(self, name: str) -> dict:
        """A training, its losses and what its features are worth."""
        own, short = name.removesuffix(f", {ROTATED_RATE}"), self.shortest(name)
        tried = self.choose(name if own == name else f"elastic, rotated, {self.scale.epochs[0]}")
        rate = min(tried, key=tried.get)
        out = self.tried_in(short, rate) if own == short else self.work / "runs" / slug(name)
        losses = self.decomposed(name, rate, out)
        bundle, history = out / "bundle", json.loads((out / "history.json").read_text())["epochs"]
        made = json.loads((bundle / "training.json").read_text())
        config = LinGeneConfig.from_pretrained(bundle)
        grid = {
            "depths": (DEPTH,),
            "widths": config.trained_width_ratios,
            "components": (config.reference_components,),
        }
        if name.startswith("depths"):
            grid["depths"] = (*DEPTHS, DEPTH)
        return {
            "rate": rate,
            "rates": {f"{one:g}": loss for one, loss in sorted(tried.items())},
            "pictures": len(history) * round(0.95 * self.scale.pictures[0]),
            "seconds": round(sum(row["seconds"] for row in history), 1),
            "hardware": made["hardware"],
            **({"cached": True} if self.cached else {}),
            "losses": [{key: row[key] for key in SHOWN} for row in losses],
            "sizes": self.measured(bundle, compared=not name.startswith("alone"), **grid),
        }

    def collect(self) -> dict:
        line = f"python tests/benchmarks/backbone.py --data DATA --work DIR --scale {self.name}"
        done = [name for name in self.rows if name in self.known or self.row_file(name).is_file()]
        rows = [self.finish(name) for name in done]
        for row in rows:
            flags = "" if row["precision"] == "no" else f" --precision {row['precision']}"
            flags += " --cache-teacher" if row.get("cached") else ""
            row["command"] = f"{line}{flags} --rows {shlex.quote(row['row'])}"
        trained, voters, _ = self.scale.pictures
        return {"command": line, "scale": self.name, "trained": trained, "voters": voters, "rows": rows}


@contextlib.contextmanager
def passes_in_bfloat16() -> Iterator[None]:
    """Encoders compute by autocast; what is then made of their tokens is not."""
    begun = []

    def begin(module: nn.Module, _) -> None:
        if isinstance(module, Dinov2Model):  # one on the device meta has its MACs counted
            begun.append(torch.autocast(module.device.type.replace("meta", "cpu"), torch.bfloat16))
            begun[-1].__enter__()

    def end(module: nn.Module, *_) -> None:
        if isinstance(module, Dinov2Model):
            begun.pop().__exit__(None, None, None)

    hooks = register_module_forward_pre_hook(begin), register_module_forward_hook(end)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def known_rows(file: Path, scale: str) -> dict[str, dict]:
    """The rows of a results file, by name.

    Raises:
        ValueError: they are of another scale.
    """
    results = json.loads(file.read_text(encoding="utf-8"))
    if results["scale"] != scale:
        raise ValueError(f"{file} is of the scale {results['scale']}, not of {scale}.")
    return {row["row"]: row for row in results["rows"]}


def beside(rate: float, lower: bool) -> float:
    """The next of 1, 3, 10, 30 and so on."""
    digits, exponent = f"{rate:e}".split("e")
    step = {(1, True): 0.3, (1, False): 3, (3, True): 1, (3, False): 10}[round(float(digits)), lower]
    return float(f"{step}e{exponent}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--rows", help="separated by semicolons; default all")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="of training and of what is judged")
    parser.add_argument("--cache-teacher", action="store_true", help="ask the source once of every picture")
    parser.add_argument("--known", type=Path, help="results file whose rows are not run again")
    parser.add_argument("--collect", type=Path, help="write the rows that are done into this file, run nothing")
    arguments = parser.parse_args()
    how = arguments.precision, arguments.known, arguments.cache_teacher
    backbone = Backbone(arguments.data, arguments.work, arguments.scale, *how)
    if arguments.collect:
        return write_json(arguments.collect, backbone.collect())
    for name in arguments.rows.split(";") if arguments.rows else backbone.rows:
        print(json.dumps(backbone.finish(name)), flush=True)


if __name__ == "__main__":
    main()
