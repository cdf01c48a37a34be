"""A ViT pruned to shares of its MACs, by each search, against what it could be instead: see `protocol.py`.

    python tests/benchmarks/pruning.py --data FOLDER --work DIR [--rows "dense;none, 50 of 100"] [--scale fashion]
    python tests/benchmarks/pruning.py --data FOLDER --work DIR --collect FILE.json

Every pruning starts from the dense network of the same seed. `published` searches for as many epochs as the dense
network was trained, and tunes for as many; `none` (training-free) and `random` tune for both. `smaller` is an unpruned
size of the nearest MACs, and `dense, long` the dense network, both trained from scratch for as many pictures as all of
that, the dense training included: pruned networks have seen three times the pictures of `dense`. All learn from the
same teacher. `--scale smoke` is a try of a minute, and no measurement.
"""

import dataclasses
import json
from fractions import Fraction
from pathlib import Path

from protocol import MEASURED, Protocol, judged, main, slug
from scales import SCALES, Row, Scale, alone, dense, label

from modeling_lingene.configuration_lingene import LinGeneConfig
from modeling_lingene.folders import write_json
from modeling_lingene.lingene_vit import LinGeneViTConfig
from modeling_lingene.measuring.metrics import count_macs
from modeling_lingene.pruning.costs import costs_of
from modeling_lingene.pruning.prune import prune
from modeling_lingene.pruning.settings import PruneSettings


SHARES = (0.7, 0.5)
SEARCHES = ("published", "none", "random")
LONG = "dense, long"
GATES = (1e-2, 3e-2, 1e-1)  # learning rates that were tried in place of the published one, one run each
SCALES["smoke"] = dataclasses.replace(
    SCALES["fashion"],
    images=(640, 320),
    training=dataclasses.replace(SCALES["fashion"].training, epochs=1, batch_size=64),
    teacher={},
    rates=(2e-3,),
    seeds=(0,),
)


def rows(scale: Scale) -> dict[str, Row]:
    full = (scale.depths[-1], "1")
    found = {"dense": dense(scale), LONG: alone(scale, *full, pictures_of=named("published", SHARES[0]))}
    for share in SHARES:
        for search in SEARCHES:
            found[named(search, share)] = Row({"pruned": {}}, {"search": search, "target_macs": share})
        size = nearest(scale, share)
        found[named("smaller", share)] = Row({label(*size): {}}, size=size, pictures_of=named("published", share))
    for gates in GATES:
        settings = {"search": "published", "target_macs": SHARES[-1], "gate_learning_rate": gates}
        found[named(f"gates {gates:g}", SHARES[-1])] = Row({"pruned": {}}, settings)
    return found


def named(way: str, share: float) -> str:
    return f"{way}, {round(100 * share)} of 100"


def nearest(scale: Scale, share: float) -> tuple[int, str]:
    """The unpruned size whose MACs are nearest to a share of all; the wider one of equals."""
    model = scale.model
    config = LinGeneConfig(
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        intermediate_size=model.intermediate_size or 4 * model.hidden_size,
        depth=model.depth,
        image_size=scale.image_size,
        patch_size=model.patch_size,
    )

    def macs(depth: int, width: Fraction) -> int:
        return count_macs(config.stock_config(config.size(depth, width)))

    sizes = [(depth, width) for depth in range(1, model.depth + 1) for width in config.legal_width_ratios]
    target = share * macs(model.depth, Fraction(1))
    depth, width = min(sizes, key=lambda size: (abs(macs(*size) - target), -size[1]))
    return depth, str(width)


class PruningProtocol(Protocol):
    """With rows that prune the row `dense`."""

    def epochs(self, row: Row) -> int:
        return 3 * self.scale.training.epochs if self._prunes(row) else super().epochs(row)

    def cost(self, row: Row) -> float:
        """Dense training, search and tuning, each with its teacher; a search computes both convolutions besides."""
        if not self._prunes(row):
            return super().cost(row)
        whole, share = self.per_picture(self.rows["dense"]), row.settings["target_macs"]
        macs = self.macs(self.rows["dense"])
        tuning = 3 * share * macs + self.teacher_macs
        searching = 3 * (macs + self._convolutions()) + self.teacher_macs
        return 1 + ((searching if row.settings["search"] == "published" else tuning) + tuning) / whole

    def _convolutions(self) -> int:
        """MACs of one picture through the convolutions of all layers."""
        config = self.config(self.rows["dense"])
        fields = ("hidden_size", "num_attention_heads", "image_size", "patch_size")
        layers = {"mixers": ["attention"], "intermediate_sizes": [config.intermediate_size]}
        layers = {name: config.num_hidden_layers * one for name, one in layers.items()}
        costs = costs_of(LinGeneViTConfig(**layers, **{field: getattr(config, field) for field in fields}))
        return sum(layer.mixers["conv1"] + layer.mixers["conv3"] for layer in costs.layers)

    @staticmethod
    def _prunes(row: Row) -> bool:
        return "search" in (row.settings or {})

    def run(self, name: str, seed: int, rate: float) -> dict:
        row, out = self.rows[name], self.work / slug(name) / f"{seed}-{rate:g}"
        if not self._prunes(row):
            return super().run(name, seed, rate)
        if (out / MEASURED).is_file():
            return json.loads((out / MEASURED).read_text())
        start = self.choose("dense")
        self.run("dense", seed, start)
        epochs = self.scale.training.epochs
        tuned = epochs if row.settings["search"] == "published" else 2 * epochs
        training = dataclasses.replace(
            self.scale.training, epochs=tuned, seed=seed, learning_rate=rate, keep_checkpoints=1
        )
        settings = PruneSettings(data=self.data, search_epochs=epochs, teacher=str(self.teacher or ""), **row.settings)
        results = prune(
            self.work / "dense" / f"{seed}-{start:g}" / "model",
            out,
            settings,
            training,
            augmentation=self.scale.augmentation,
            resume=True,
        )
        files = (file for file in (out / "search.json", out / "tune.json") if file.is_file())
        history = [json.loads(file.read_text())["epochs"] for file in files]
        run = {
            "validation": self.accuracies(row, out, "validation"),
            "epochs": self.epochs(row),
            "seconds": round(sum(entry["seconds"] for part in history for entry in part), 1),
            "layers": results["layers"],
        }
        write_json(out / MEASURED, run)
        print(f"{name}, seed {seed}, rate {rate:g}: {judged(row, run['validation']):.4f}", flush=True)
        return run

    def collect(self, command: str) -> dict:
        """With single runs of what was tried: its validation accuracy, by learning rate."""
        tried = dict(self.known_tries)
        for name in (named(f"gates {gates:g}", SHARES[-1]) for gates in GATES):
            files = sorted((self.work / slug(name)).glob(f"{self.scale.seeds[0]}-*/{MEASURED}"))
            found = {file.parent.name.partition("-")[2]: json.loads(file.read_text())["validation"] for file in files}
            tried |= {name: {rate: accuracies["pruned"] for rate, accuracies in found.items()}} if found else {}
        results = super().collect(command)
        return results | {"tried": tried} if tried else results

    def accuracies(self, row: Row, out: Path, part: str) -> dict[str, float]:
        return super().accuracies(dataclasses.replace(row, size=row.size or (0, "1")), out, part)


if __name__ == "__main__":
    main(rows, "pruning.py", __doc__.splitlines()[0], kind=PruningProtocol)
