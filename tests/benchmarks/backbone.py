"""A real trained ViT as one bundle: every kind of size, untrained and trained without labels, against simpler ways.

    python tests/benchmarks/backbone.py --data FOLDER --work DIR [--rows "untrained, rotated;elastic, rotated, 1"]
    python tests/benchmarks/backbone.py --data FOLDER --work DIR --collect FILE.json

The source is the ViT-S/14 of `tests/real_vit.py`, at 126 pixels. Pictures of `train/` are trained on without their
labels; a part of them with labels votes and fits the probe, and `test/` judges features by k-NN and that probe; the
cosine compares with the source's tokens, as `lingene sweep --reference` does. Starts:

    rotated  `lingene convert --sort`: the stream turned for the widths, each layer's heads and units in their order
    sorted   heads and units in one order for all layers, the stream as it is: the earlier `--sort`
    plain    `lingene convert`

A bundle draws one network a step over all depths and widths, or several that share its images; `alone` trains one
width of the rotated start for as many pictures. One teacher, the source; losses are those of the validation part,
through each run's own heads. The rate is the one with the lowest mean loss of the sizes there, for each row by itself:
after a short try, or, of rows whose networks share a step and those `tried whole`, after the shorter training. The two
are not tuned alike: compare rows that were tried in one way.
"""

import argparse
import dataclasses
import json
import resource
import shlex
import shutil
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from preparing import write_set
from protocol import slug
from transformers import AutoModel, BitImageProcessor

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
SHARED = 4  # networks that share the images of a step, in a row that names them
WHOLE = "tried whole"  # each rate by the shorter training, as rows of shared steps are
SHOWN = ("depth", "width_ratio", "num_components", "feature_loss")


@dataclasses.dataclass(frozen=True)
class Scale:
    """What a machine can do.

    Args:
        pictures: for training; for a try of a rate; voters with labels; judged pictures.
        calibration: images for fewer components; a quarter of them orders channels and chooses layers.
        epochs: of the shorter and the longer training; longer ones of networks that share a step and of widths alone.
        rates: tried for every row.
        training: everything else.
    """

    pictures: tuple[int, int, int, int]
    calibration: int
    epochs: tuple[int, ...]
    rates: tuple[float, ...]
    training: TrainingSettings


CPU = TrainingSettings(batch_size=32, device="cpu", evaluate_every=0, keep_checkpoints=1)
SCALES = {
    "cpu": Scale(
        (4000, 1000, 1000, 500),
        256,
        (1, 3, 12, 30),
        (1e-6, 3e-6, 1e-5, 3e-5),
        CPU,
    ),
    "smoke": Scale(  # a try of minutes, and no measurement
        (64, 32, 60, 40),
        16,
        (1, 1),
        (3e-4,),
        dataclasses.replace(CPU, batch_size=16),
    ),
    "gpu": Scale(
        (9000, 2000, 9000, 3925),
        512,
        (3, 30),
        (1e-6, 3e-6, 1e-5, 3e-5),
        dataclasses.replace(CPU, batch_size=128, device="auto", precision="bf16"),
    ),
}


class Backbone:
    """The rows of one scale.

    Args:
        data: a labelled set with `train` and `test`.
        work: folder for everything that is made.
        scale: name.
    """

    def __init__(self, data: str, work: Path, scale: str):
        self.work, self.name, self.scale, self.data = work, scale, SCALES[scale], data
        self.source, self.pictures, self.tried = work / "source", work / "pictures", work / "tried"
        self.judged = work / "judged"
        self._make_source()
        self._make_sets()
        short, *longer = self.scale.epochs
        self.rows = {
            **{f"untrained, {start}": self.widths_of for start in STARTS},
            f"elastic, rotated, {short}": self.trained,
            f"elastic, plain, {short}": self.trained,
            **{f"{count} components": self.components for count in COUNTS},
            "layers": self.layers,
            f"elastic, sorted, {short}": self.trained,
            **{f"elastic, {start}, {longer[0]}": self.trained for start in STARTS},
            **{f"elastic, rotated, {epochs}, {SHARED} networks": self.trained for epochs in self.scale.epochs},
            "depths, linear heads": self.trained,
            "depths, identity heads": self.trained,
            **{f"healed, {count} components": self.trained for count in (6, 9)},
            f"elastic, rotated, {short}, {WHOLE}": self.trained,
            **{f"alone, {width}, {epochs}, {WHOLE}": self.trained for epochs in self.scale.epochs for width in WIDTHS},
        }

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
        trained, tried, voters, judged = self.scale.pictures

        def part(images, count):
            return images if count >= len(images) else split_off(images, count / len(images), seed=0)[1]

        write_set({"train": part(train, trained)}, self.pictures)
        write_set({"train": part(train, tried)}, self.tried)
        write_set({"train": part(train, voters), "test": part(test, judged)}, self.judged)

    def finish(self, name: str) -> dict:
        """A row, from its file where it is done."""
        file = self.work / "rows" / f"{slug(name)}.json"
        if file.is_file():
            return json.loads(file.read_text())
        file.parent.mkdir(exist_ok=True)
        hardware = device_name(None if self.scale.training.device == "auto" else "cpu")
        row = {"row": name, "hardware": hardware, **self.rows[name](name)}
        row["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
        write_json(file, row)
        return row

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
                sort_width(model, calibration_images(str(self.pictures), processor, asked["images"], 0))
                model.save_pretrained(bundle)
                processor.save_pretrained(bundle)
        return bundle

    def measured(self, bundle: Path, compared: bool = True, **grid) -> list[dict]:
        """Sizes by k-NN, by probe, and compared with the source, whose channels a bundle of one width has not."""
        train, test = load_images(str(self.judged), "train"), load_images(str(self.judged), "test")
        metrics = {"metric": "cosine,knn,probe", "reference": str(self.source)}
        metrics = metrics if compared else {"metric": "knn,probe"}
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

    def recipe(self, name: str, rate: float, tried: bool) -> Recipe:
        kind, what, *others = name.split(", ")
        epochs, heads = 1 if tried else int((others or [self.scale.epochs[0]])[0]), "linear"
        if kind == "alone":
            init, decomposition = self._narrow(what), DecompositionSettings("simultaneous", totals=(DEPTH,))
        elif kind == "healed":
            init, heads = self._fitted(what), "identity"
            decomposition = DecompositionSettings("simultaneous", totals=(int(what.split()[0]),))
        elif kind == "depths":
            init, heads = self.start("layers"), what.split()[0]
            decomposition = DecompositionSettings("elastic", totals=(DEPTH,), depths=DEPTHS, networks=1)
        else:
            init, drawn = self.start(what), {"depths": DEPTHS, "widths": WIDTHS}
            networks = SHARED if others[-1].endswith("networks") else 1
            decomposition = DecompositionSettings("elastic", totals=(DEPTH,), networks=networks, **drawn)
        return Recipe(
            data=str(self.tried if tried else self.pictures),
            init=str(init),
            teacher=str(self.source),
            training=dataclasses.replace(self.scale.training, epochs=epochs, learning_rate=rate),
            decomposition=decomposition,
            objective=Objective(kind="features", feature_heads=heads),
            validation_share=0.05,
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
        """The mean loss of the sizes on the validation part after a try, by learning rate: the full size alone begins
        as the teacher, and is best where nothing is learned. Rows whose networks share a step, and those that say so,
        are tried by their shorter training as a whole, as short tries favour low rates. Longer trainings of the same
        go by the same try.
        """
        losses, short = {}, self.shorter(name)
        for rate in self.scale.rates[1:] if whole_try(short) else self.scale.rates:
            rows = decompose(self.recipe(short, rate, tried=not whole_try(short)), self.tried_in(short, rate))
            losses[rate] = statistics.mean(row["feature_loss"] for row in rows)
        return losses

    def shorter(self, name: str) -> str:
        """The row whose training is that of a row but short."""
        parts, epochs = name.split(", "), {str(one) for one in self.scale.epochs}
        return ", ".join(str(self.scale.epochs[0]) if part in epochs else part for part in parts)

    def tried_in(self, name: str, rate: float) -> Path:
        return self.work / "tries" / f"{slug(name)}-{rate:g}"

    def trained(self, name: str) -> dict:
        """A training, its losses and what its features are worth."""
        tried = self.choose(name)
        rate = min(tried, key=tried.get)
        out = self.work / "runs" / slug(name)
        if whole_try(name) and name == self.shorter(name):
            out = self.tried_in(name, rate)
        losses = decompose(self.recipe(name, rate, tried=False), out)
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
            "rates": {f"{one:g}": loss for one, loss in tried.items()},
            "pictures": len(history) * round(0.95 * self.scale.pictures[0]),
            "seconds": round(sum(row["seconds"] for row in history), 1),
            "hardware": made["hardware"],
            "losses": [{key: row[key] for key in SHOWN} for row in losses],
            "sizes": self.measured(bundle, compared=not name.startswith("alone"), **grid),
        }

    def collect(self) -> dict:
        line = f"python tests/benchmarks/backbone.py --data DATA --work DIR --scale {self.name}"
        files = {json.loads(file.read_text())["row"] for file in (self.work / "rows").glob("*.json")}
        done = [
            self.finish(name) | {"command": f"{line} --rows {shlex.quote(name)}"}
            for name in self.rows
            if name in files
        ]
        return {"command": line, "scale": self.name, "pictures": list(self.scale.pictures), "rows": done}


def whole_try(name: str) -> bool:
    """Whether a row's rates are tried by its shorter training as a whole."""
    return name.endswith(("networks", WHOLE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--rows", help="separated by semicolons; default all")
    parser.add_argument("--collect", type=Path, help="write the rows that are done into this file, run nothing")
    arguments = parser.parse_args()
    backbone = Backbone(arguments.data, arguments.work, arguments.scale)
    if arguments.collect:
        return write_json(arguments.collect, backbone.collect())
    for name in arguments.rows.split(";") if arguments.rows else backbone.rows:
        print(json.dumps(backbone.finish(name)), flush=True)


if __name__ == "__main__":
    main()
