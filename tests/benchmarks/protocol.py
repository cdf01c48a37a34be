"""How every row of a training table is trained, chosen, counted and reported.

Images: `train/` of the set loses a validation part by seed (`split_off`), and keeps as many of the rest, by seed, as
the scale says; everything is chosen on the validation part. The test part is read by the chosen runs alone.
Learning rate: for every row the lowest of `RATES` that is within half a point of the best on the validation part, with
the first seed; where that is an end of the list, it goes on by factors of two. The other seeds take it.
Cost: MACs of forward and backward passes (three forward passes) and of the teacher's forward passes, in those of the
dense network's training (its teacher counted too); beside it, how many pictures were seen.
Accuracy: of stock models through `from_pretrained`, over `SEEDS`: mean, least, most.

A run that is done in the work folder is not run again, one that was stopped goes on (SIGTERM asks it to stop); a row
that stands in the file of `--known`, measured under the same protocol, is taken from there.
"""

import argparse
import dataclasses
import functools
import json
import shlex
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from preparing import accuracy_of, fit_plain, make_teacher, write_parts
from scales import RATES, SCALES, Row, Scale
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForImageClassification,
)

from modeling_lingene.configuration_base_lingene import BundleConfig
from modeling_lingene.folders import write_json
from modeling_lingene.images.augmentation import Augmentation
from modeling_lingene.images.batches import image_processor
from modeling_lingene.images.data import LabelledImages, load_images
from modeling_lingene.images.loaders import training_images
from modeling_lingene.kinds import model_class
from modeling_lingene.measuring.metrics import count_macs, device_name
from modeling_lingene.progress import quiet_loading
from modeling_lingene.training.decomposition import DecompositionSettings, phases
from modeling_lingene.training.losses import Objective
from modeling_lingene.training.processes import make_accelerator
from modeling_lingene.training.recipes import Recipe, train


NOISE = 0.005  # of accuracy: smaller differences choose nothing
MEASURED = "measured.json"  # of a run that is done: what it was worth; the run's own files have other names


class Protocol:
    """The rows of one scale on one set of images.

    Args:
        data: folder or name of the set.
        work: folder for the runs.
        scale: name.
        rows: by name; `dense` among them.
        bundle: folder that rows with another start than `scratch` begin with.
        known: a results file whose rows are not run again.

    Raises:
        ValueError: `known` was measured under another protocol.
    """

    def __init__(
        self,
        data: str,
        work: Path,
        scale: str,
        rows: Callable[[Scale], dict[str, Row]],
        bundle: Path | None = None,
        known: Path | None = None,
    ):
        self.scale, self.name, self.work, self.rows = SCALES[scale], scale, work, rows(SCALES[scale])
        self.data, self.bundle = str(work / "data"), bundle
        if not (work / "data" / "parts.json").is_file():
            write_parts(data, self.scale, work / "data")
        self.teacher = work / "teacher" / "model" if self.scale.teacher else None
        if self.teacher:
            make_teacher(self.data, self.scale, work / "teacher")
        self.known: dict[str, dict] = {}
        self.known_tries: dict[str, dict] = {}
        if known is not None:
            results = json.loads(known.read_text(encoding="utf-8"))
            if results["protocol"] != self.described():
                raise ValueError(f"{known} was measured under another protocol: {results['protocol']}.")
            self.known = {row["row"]: row for row in results["rows"]}
            self.known_tries = results.get("tried", {})

    @functools.cached_property
    def parts(self) -> dict[str, LabelledImages]:
        """The sets that accuracy is measured on, ready."""
        device = make_accelerator(self.scale.training).device
        processor = image_processor(self.scale.image_size)
        loaded = {part: load_images(self.data, part) for part in ("validation", "test")}
        return {part: training_images(images, processor, Augmentation(), device) for part, images in loaded.items()}

    @functools.cached_property
    def labels(self) -> dict:
        names = load_images(self.data, "train").class_names
        return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}

    def config(self, row: Row) -> BundleConfig:
        """Of a row's full network."""
        recipe, sizes = self.recipe(row), (self.scale.image_size, self.scale.model.patch_size)
        shape = recipe.model.shape(recipe.decomposition)
        return recipe.model.network(**shape, image_size=sizes[0], patch_size=sizes[1], **self.labels)

    def network(self, row: Row):
        """A network that is trained alone, with its first weights."""
        depth, width = row.size
        if row.start == "scratch":
            config = self.config(row)
            return AutoModelForImageClassification.from_config(config.stock_config(config.size(depth, width)))
        asked = {"depth": depth, "width_ratio": width, "constrained": row.start == "constrained"}
        with quiet_loading():
            return AutoModelForImageClassification.from_pretrained(self.bundle, **asked, **self.labels)

    def recipe(self, row: Row, epochs: int = 0, seed: int = 0, rate: float = RATES[0], init: str = "") -> Recipe:
        """A run of so many epochs, all phases together; 0 is one for every phase."""
        settings = row.settings or {}

        def with_own(default):
            fields = {field.name for field in dataclasses.fields(default)}
            return dataclasses.replace(default, **{key: settings[key] for key in settings.keys() & fields})

        decomposition = with_own(DecompositionSettings(totals=self.scale.totals, networks=1))
        stages = len(decomposition.totals) if decomposition.schedule == "incremental" else 1
        if epochs % stages:
            raise ValueError(f"{epochs} epochs do not divide into {stages} phases.")
        training = dataclasses.replace(
            self.scale.training, epochs=epochs // stages or 1, seed=seed, learning_rate=rate, keep_checkpoints=1
        )
        return Recipe(
            data=self.data,
            model=with_own(self.scale.model),
            training=training,
            decomposition=decomposition,
            augmentation=self.scale.augmentation,
            objective=with_own(Objective()),
            teacher=str(self.teacher or ""),
            init=init,
        )

    def macs(self, row: Row) -> int:
        """Of one picture's forward passes through a row's networks, on average over what its steps draw."""
        config = self.config(row)
        if row.size:
            return count_macs(config.stock_config(config.size(*row.size)))
        (phase, *_) = phases(model_class(config, head=True)(config), self.recipe(row).decomposition)

        @functools.cache
        def macs(depth: int | None, width: str) -> int:
            return count_macs(config.stock_config(config.size(depth, width)))

        generator, steps = torch.Generator().manual_seed(0), 4000
        drawn = [network for step in range(steps) for network in phase.draw(generator, step / steps)]
        of_step = [(network, network.get("part", (0, 1))[1]) for network in drawn]  # with a part of the pictures each
        return sum(macs(one.get("depth"), one.get("width_ratio", "1")) // parts for one, parts in of_step) // steps

    @functools.cached_property
    def teacher_macs(self) -> int:
        """Of one forward pass of the teacher."""
        if not self.teacher:
            return 0
        model = AutoModelForImageClassification.from_pretrained(self.teacher).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, self.scale.image_size, self.scale.image_size))
        return counter.get_total_flops() // 2

    def per_picture(self, row: Row) -> int:
        """MACs of training on one picture, the teacher's included."""
        return 3 * self.macs(row) + self.teacher_macs

    def epochs(self, row: Row) -> int:
        """What the row's cost pays for; a start from another row's bundle has paid for that first."""
        if row.pictures_of:
            return self.epochs(self.rows[row.pictures_of])
        if row.size:
            return self.scale.training.epochs
        cost = row.cost - (self.cost(self.rows[row.init]) if row.init else 0)
        return round(cost * self.scale.training.epochs * self.per_picture(self.rows["dense"]) / self.per_picture(row))

    def cost(self, row: Row) -> float:
        """In trainings of the dense network."""
        own = self.epochs(row) * self.per_picture(row)
        before = self.cost(self.rows[row.init]) if row.init else 0.0
        return before + own / (self.scale.training.epochs * self.per_picture(self.rows["dense"]))

    def run(self, name: str, seed: int, rate: float) -> dict:
        """One training, and its validation accuracies."""
        row, out = self.rows[name], self.work / slug(name) / f"{seed}-{rate:g}"
        if (out / MEASURED).is_file():
            return json.loads((out / MEASURED).read_text())
        init = ""
        if row.init:
            chosen = self.choose(row.init)
            self.run(row.init, seed, chosen)
            init = str(self.work / slug(row.init) / f"{seed}-{chosen:g}" / "bundle")
        recipe = self.recipe(row, self.epochs(row), seed, rate, init)
        if row.size:
            torch.manual_seed(seed)
            identity = recipe.identity() | {"size": list(row.size), "start": row.start}
            history = fit_plain(self.network(row), recipe, out, identity, self.scale.image_size)
        else:
            history = train(recipe, out)
        run = {
            "validation": self.accuracies(row, out, "validation"),
            "epochs": len(history),
            "seconds": round(sum(entry["seconds"] for entry in history), 1),
        }
        write_json(out / MEASURED, run)
        print(f"{name}, seed {seed}, rate {rate:g}: {judged(row, run['validation']):.4f}", flush=True)
        return run

    def accuracies(self, row: Row, out: Path, part: str) -> dict[str, float]:
        folder = out / ("model" if row.size else "bundle")
        return {name: accuracy_of(folder, self.parts[part], **size) for name, size in row.measured.items()}

    def choose(self, name: str) -> float:
        """The learning rate of a row's runs."""
        if name in self.known:
            return self.known[name]["rate"]
        return lowest_good(self.tried(name))

    def tried(self, name: str) -> dict[float, float]:
        """Learning rates, ascending, and the mean validation accuracy of each; the chosen one has neighbours."""
        row = self.rows[name]

        def found(rate: float) -> float:
            return judged(row, self.run(name, self.scale.seeds[0], rate)["validation"])

        rates = {rate: found(rate) for rate in self.scale.rates}
        while len(rates) > 1 and (rate := lowest_good(rates)) in (min(rates), max(rates)):
            further = rate / 2 if rate == min(rates) else 2 * rate
            rates[further] = found(further)
        return dict(sorted(rates.items()))

    def finish(self, name: str) -> dict:
        """All runs of a row, the test part read by the chosen ones, as an entry of the results."""
        row, file = self.rows[name], self.work / slug(name) / "row.json"
        if name in self.known:
            return self.known[name]
        if file.is_file():
            return json.loads(file.read_text())
        rate = self.choose(name)
        runs = [self.run(name, seed, rate) for seed in self.scale.seeds]
        folders = [self.work / slug(name) / f"{seed}-{rate:g}" for seed in self.scale.seeds]
        tests = [self.accuracies(row, folder, "test") for folder in folders]
        epochs, images = runs[0]["epochs"], len(load_images(self.data, "train"))
        entry = {
            "row": name,
            "settings": row.settings if row.size is None else {"size": list(row.size), "start": row.start},
            "init": row.init,
            "rate": rate,
            "rates": {f"{rate:g}": round(found, 4) for rate, found in self.tried(name).items()},
            "epochs": epochs,
            "pictures": epochs * images,
            "cost": round(self.cost(row), 3),
            "validation": {key: [run["validation"][key] for run in runs] for key in row.measured},
            "test": {key: [test[key] for test in tests] for key in row.measured},
            "seconds": statistics.median(run["seconds"] for run in runs),
            **self.machine(),
        }
        write_json(file, entry)
        return entry

    def machine(self) -> dict:
        """What a row ran on."""
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        return {"hardware": device_name(make_accelerator(self.scale.training).device), "versions": versions}

    def done(self) -> list[str]:
        """The rows whose runs are all there."""
        return [name for name in self.rows if name in self.known or (self.work / slug(name) / "row.json").is_file()]

    def collect(self, command: str) -> dict:
        """What is done, as a results file."""
        done = self.done()
        teacher = {}
        if self.teacher:
            teacher = json.loads((self.work / "teacher" / "results.json").read_text())
            teacher |= {"macs": self.teacher_macs, "share": self.teacher_share}
        line = self.line(command)
        return {
            "command": line,
            "protocol": self.described(),
            "teacher": teacher,
            "rows": [self.finish(name) | {"command": f"{line} --rows {shlex.quote(name)}"} for name in done],
        }

    def again(self, name: str, seed: int) -> dict:
        """A row's test accuracies with one more seed, at its learning rate."""
        row, rate, file = self.rows[name], self.choose(name), self.work / slug(name) / f"again-{seed}.json"
        if file.is_file():
            return json.loads(file.read_text())
        self.run(name, seed, rate)
        tests = self.accuracies(row, self.work / slug(name) / f"{seed}-{rate:g}", "test")
        entry = {"row": name, "rate": rate, "test": {label: [accuracy] for label, accuracy in tests.items()}}
        entry |= self.machine()
        write_json(file, entry)
        return entry

    def collect_again(self, command: str, seed: int) -> dict:
        """What `again` has done, as a results file."""
        done = [name for name in self.done() if (self.work / slug(name) / f"again-{seed}.json").is_file()]
        line = f"{self.line(command)} --seed {seed}"
        described = self.described() | {"seeds": [seed]}
        rows = [self.again(name, seed) | {"command": f"{line} --rows {shlex.quote(name)}"} for name in done]
        return {"command": line, "protocol": described, "rows": rows}

    def line(self, command: str) -> str:
        """What runs this table."""
        bundle = " --bundle BUNDLE" if self.bundle else ""
        return f"python tests/benchmarks/{command} --data DATA{bundle} --work DIR --scale {self.name}"

    def described(self) -> dict:
        """What rows must have in common to stand in one table."""
        said = {"scale": self.name, "seeds": self.scale.seeds, "rates": self.scale.rates, "noise": NOISE}
        said |= {"images": json.loads((Path(self.data) / "parts.json").read_text(encoding="utf-8"))}
        said |= {"epochs of the dense network": self.scale.training.epochs, "teacher": self.scale.teacher}
        return json.loads(json.dumps(said))

    @property
    def teacher_share(self) -> float:
        """Of the cost of one picture in the dense network's training."""
        return round(self.teacher_macs / self.per_picture(self.rows["dense"]), 3)


def lowest_good(rates: dict[float, float]) -> float:
    """High rates are good by chance, with one seed, and bad with another."""
    return min(rate for rate, accuracy in rates.items() if accuracy >= max(rates.values()) - NOISE)


def judged(row: Row, accuracies: dict[str, float]) -> float:
    return statistics.mean(accuracies[name] for name in row.judged or row.measured)


def slug(name: str) -> str:
    return name.replace("/", "-").replace(",", "").replace(" ", "-")


def main(
    rows: Callable[[Scale], dict[str, Row]],
    script: str,
    about: str,
    scale: str = "fashion",
    kind: type[Protocol] = Protocol,
) -> None:
    """The command line of a table."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs; tables may share it")
    parser.add_argument("--scale", choices=SCALES, default=scale)
    parser.add_argument("--rows", help="separated by semicolons; default all")
    parser.add_argument("--bundle", type=Path, help="folder, for rows that tune its sizes")
    parser.add_argument("--known", type=Path, help="results file whose rows are not run again")
    parser.add_argument("--seed", type=int, help="run rows once more with this seed, at the rates that were chosen")
    parser.add_argument("--collect", type=Path, help="write the rows that are done into this file, run nothing")
    arguments = parser.parse_args()
    protocol = kind(arguments.data, arguments.work, arguments.scale, rows, arguments.bundle, known=arguments.known)
    again = arguments.seed is not None
    if arguments.collect:
        results = protocol.collect_again(script, arguments.seed) if again else protocol.collect(script)
        return write_json(arguments.collect, results)
    every = protocol.done() if again else protocol.rows
    for name in arguments.rows.split(";") if arguments.rows else every:
        entry = protocol.again(name, arguments.seed) if again else protocol.finish(name)
        print(name, {key: [f"{100 * value:.1f}" for value in values] for key, values in entry["test"].items()})
