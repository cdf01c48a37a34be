"""`lingene ...`: parses and calls, nothing more. Heavy imports happen in the command that needs them.

A command is a function under `@command`, which says its help and options; it gets their values as keywords.
"""

import argparse
import contextlib
import errno
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

import modeling_lingene


Options = Callable[[Any], object]  # adds an option or a group of them to a parser
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}  # of a write, which does not say its file


@dataclass(frozen=True)
class Command:
    """What one word after `lingene` does.

    Args:
        run: called with the options' values as keywords.
        help: one line.
        options: of its command line.
        resume: what to do after it was interrupted.
    """

    run: Callable[..., None]
    help: str
    options: tuple[Options, ...]
    resume: str


COMMANDS: dict[str, Command] = {}


def command(help: str, *options: Options, resume: str = "Nothing was changed.") -> Callable:
    """Makes a function a command of its name."""

    def register(run: Callable[..., None]) -> Callable[..., None]:
        COMMANDS[run.__name__] = Command(run, help, options, resume)
        return run

    return register


def option(*names: str, **settings) -> Options:
    """In the words of `argparse.ArgumentParser.add_argument`."""
    return lambda parser: parser.add_argument(*names, **settings)


def group(title: str, default: str, *options: Options) -> Options:
    """Options under a heading of their own."""

    def add(parser: argparse.ArgumentParser) -> None:
        section = parser.add_argument_group(title, f"default: {default}")
        for one in options:
            one(section)

    return add


def numbers(text: str) -> tuple[int, ...]:
    """`1,2,4` -> (1, 2, 4)."""
    from .training.options import integers

    return integers(text)


def depths(text: str) -> tuple[int | str, ...]:
    """`3,6` -> (3, 6); where several stages are decomposed, `2-4,2-6` -> ("2-4", "2-6")."""
    from .training.options import depths

    return depths(text)


def layers(text: str) -> int | str:
    """`6` -> 6; where several stages are decomposed, `2-6` -> "2-6"."""
    return int(text) if text.isdecimal() else text


def words(text: str) -> tuple[str, ...]:
    """`1/4,1/2` -> ("1/4", "1/2")."""
    from .training.options import words

    return words(text)


def grid(default: str) -> Options:
    """Depths, widths and numbers of components."""
    return group(
        "grid",
        default,
        option("--depths", type=depths, default=(), metavar="N,N", help="numbers of layers"),
        option("--widths", type=words, default=(), metavar="A,B", help="ratios such as 1/4,1/2,1"),
        option("--components", type=numbers, default=(), metavar="N,N", help="numbers of components"),
    )


def recipe(parser: argparse.ArgumentParser) -> None:
    """The options of training."""
    from .training.options import add_recipe_options

    add_recipe_options(parser)


BUNDLE = option("bundle", metavar="BUNDLE", help="folder or name on the Hub")
BUNDLE_FOLDER = option("bundle", metavar="BUNDLE", type=Path, help="folder")
REVISION = option("--revision", help="on the Hub (default: main)")
OUT = option("--out", type=Path, required=True, help="new or empty folder for the result")
OUT_FILE = option("--out", type=Path, help="JSON file for the numbers")
DATA = option("--data", required=True, help="digits, a folder of images, parquet files, a name on the Hub")
SPLIT = option("--split", default="test", help="default: %(default)s")
BATCH_SIZE = option("--batch-size", type=int, default=64, help="images at once (default: %(default)s)")
DEVICE = option("--device", help="default: the GPU if there is one, else the CPU")
METRIC = option(
    "--metric",
    help="accuracy, knn, probe or cosine; of several, with commas, the first decides (default: accuracy with a "
    "classifier; without one knn with labels, cosine without)",
)
REFERENCE = option("--reference", metavar="MODEL", help="of the cosine: an encoder (default: the bundle's full size)")
SEED = option("--seed", type=int, default=0, help="default: %(default)s")
LICENSE = option(
    "--license", help="by its name on the Hub, such as apache-2.0 (default: that of the card that is there)"
)
QUIET = option("--quiet", action="store_true", help="no progress bars")
SIZE = group(
    "size",
    "all that is stored",
    option("--depth", type=layers, metavar="N", help="number of layers; of several decomposed stages as in 2-6"),
    option("--width-ratio", help="fraction of the width, such as 1/2"),
    option("--num-components", type=int, help="number of components combined"),
    option("--allow-untrained", action="store_true", help="accept a width that was never trained"),
    option("--max-params", type=float, help="or a budget: the most accurate measured size within it"),
    option("--max-macs", type=float, help="multiply-accumulates of one image, such as 2e9"),
    option("--max-latency-ms", type=float, help="milliseconds of one image, as measured"),
    option("--latency-device", help="by its name in sizes.json (default: this machine's)"),
)
SIZE_FLAGS = ("depth", "width_ratio", "num_components", "allow_untrained")
SIZE_FLAGS += ("max_params", "max_macs", "max_latency_ms", "latency_device")
ANALYSIS_FLAGS = {"images": "components", "count": "components", "depths": "coefficients"}
ANALYSIS_FLAGS |= {"data": "similarity", "reference": "similarity"}
BASIS = group(
    "basis",
    "the preset stable",
    option("--preset", help="stable or paper"),
    option("--basis", help="chebyshev, legendre, taylor or fourier"),
    option("--nodes", help="roots or uniform"),
    option("--start-degree", type=int, help="of the first component"),
    option("--degree-weight", type=float, help="w divides the coefficients of degree g by (g + 1)^w"),
)
AGAIN = "Run the same command again to go on."


@command(
    "train a small bundle on handwritten digits, measure its sizes",
    option("--out", type=Path, default=Path("lingene-quickstart"), help="folder (default: %(default)s)"),
    SEED,
    option("--epochs", type=int, default=60, help="of each of the four phases (default: %(default)s)"),
    QUIET,
    resume=AGAIN,
)
def quickstart(out: Path, seed: int, epochs: int) -> None:
    from .training.recipes import quickstart as run

    _print_trained(run(out, seed, epochs), out)


@command(
    "train a bundle: components, and every number of them measured",
    recipe,
    QUIET,
    resume="Run the same command with --resume to go on.",
)
def decompose(out: Path, resume: bool, **flags) -> None:
    from .training.options import asked_recipe
    from .training.recipes import decompose as run

    asked = asked_recipe(argparse.Namespace(**flags))
    rows = run(asked, out, resume=resume)
    if rows:  # on the main process
        bundle = shlex.quote(str(out / "bundle"))
        _print_trained(rows, out)
        sweep = "" if asked.unlabelled else f"\n    lingene sweep {bundle} --data {shlex.quote(asked.data)}"
        print(f"\nMeasure other sizes, push:\n{sweep}" if sweep else "\nPush:\n")
        print(f"    lingene push {bundle} USER/NAME")


def pruning(parser: argparse.ArgumentParser) -> None:
    """The options of pruning."""
    from .pruning.options import add_prune_options

    add_prune_options(parser)


@command(
    "prune a ViT or Swin, or a size of a bundle, to a share of its cost: attention into convolution",
    option(
        "model", metavar="MODEL", help="a ViT or Swin with a classifier, or a bundle, by folder or name on the Hub"
    ),
    OUT,
    pruning,
    QUIET,
    SIZE,
    resume="Run the same command with --resume to go on.",
)
def prune(model: str, out: Path, resume: bool, **flags) -> None:
    from .pruning.card import prune_table
    from .pruning.options import asked_pruning
    from .pruning.prune import prune as run

    size = {name: flags.pop(name) for name in SIZE_FLAGS}
    results = run(model, out, **asked_pruning(flags), size=_given(size), resume=resume)
    if results:  # on the main process
        layers = [f"{layer['mixer']}/{layer['units']}" for layer in results["layers"]]
        print(f"\n{prune_table(results['rows'])}\n\nlayers   {' '.join(layers)}")
        print(f"model    {out / 'model'}\nplot     {out / 'layers.png'}\nnumbers  {out / 'results.json'}")


def _print_trained(rows: list[dict], out: Path) -> None:
    """The table of a run, where its files are, and code that loads its best size."""
    from .budget_lingene import metric_of
    from .measuring.tables import size_table

    if "feature_loss" in rows[0]:
        _print_encoder(rows, out)
        return
    metric = metric_of(rows)
    best = max(rows, key=lambda row: row[metric])
    size = {name: best[name] for name in ("depth", "num_components")}
    size |= {"width_ratio": best["width_ratio"]} if best["width_ratio"] != "1" else {}
    asked = ", ".join(f"{name}={value!r}" for name, value in size.items())
    print(f"\n{size_table(rows)}\n")
    print(f"bundle   {out / 'bundle'}\nplot     {out / 'sizes.png'}\nnumbers  {out / 'results.json'}\n")
    print(
        "Load a size:\n\n    import modeling_lingene\n    from transformers import AutoModelForImageClassification\n"
    )
    print(f"    AutoModelForImageClassification.from_pretrained({str(out / 'bundle')!r}, {asked})")


def _print_encoder(rows: list[dict], out: Path) -> None:
    """The sizes of a run without labels, the smallest loss first."""
    from .measuring.tables import aligned_table, readable

    lines = [["depth", "width", "components", "loss", "parameters", "MACs"]]
    for row in sorted(rows, key=lambda row: row["feature_loss"]):
        size = [str(row[name]) for name in ("depth", "width_ratio", "num_components")]
        lines.append([*size, f"{row['feature_loss']:.4g}", readable(row["params"]), readable(row["macs"])])
    print(f"\n{aligned_table(lines)}\n\nbundle   {out / 'bundle'}\nnumbers  {out / 'results.json'}")
    print(f"next     lingene sweep {out / 'bundle'} --data SET   k-NN with labels, or --metric cosine")


@command(
    "turn a trained ViT into a bundle, without training",
    option("source", metavar="SOURCE", help="transformers name or folder, or timm:NAME"),
    OUT,
    option("--weights", metavar="FILE", help="of timm:NAME: safetensors or a state dict"),
    option("--prefix", help="of the network's tensors in that file, where it holds several"),
    option("--headless", action="store_true", help="leave the classifier out"),
    option("--num-components", type=int, help="default: as many as layers, which loses nothing"),
    option("--calibrate", metavar="DATA", help="unlabelled images for a better fit, and to measure it"),
    option("--images", type=int, default=512, help="of them (default: %(default)s)"),
    option("--stages", type=numbers, default=(), metavar="N,N", help="of a Swin to decompose (default: the deepest)"),
    option("--fit", help="weights, activations, weighted, kronecker, aligned, matched (default: the last)"),
    option("--rounds", type=int, default=20, help="of the last three (default: %(default)s)"),
    option("--depths", type=numbers, default=(), metavar="N,N", help="choose the layers to keep there"),
    option("--sort", action="store_true", help="put what matters first, for widths to come; exact at full width"),
    option("--widths", type=words, default=(), metavar="R,R", help="of --sort (default: every legal width)"),
    DEVICE,
    SEED,
    QUIET,
    BASIS,
)
def convert(source: str, out: Path, **options) -> None:
    from .conversion.convert import convert as run
    from .conversion.report import count_table

    report = run(source, out, **options)
    calibrated = report.get("calibration", {})
    if calibrated:
        print(f"\n{count_table(calibrated['rows'])}\n")
        for depth, rows in calibrated.get("depth_rows", {}).items():
            print(f"depth {depth}: layers {', '.join(map(str, rows))}")
    print(f"{report['num_components']} components of {report['depth']} layers, fit: {report['fit']}")
    print(f"condition number of the coefficients {report['condition']:.4g}")
    print(f"relative {report['compared']} error on random images {report['relative_logit_error']:.2g}")
    if report["left_out"]:
        print(f"left out: {len(report['left_out'])} tensors ({'; '.join(sorted(set(report['left_out'].values())))})")
    print(f"bundle   {out}\nnumbers  {out / 'conversion.json'}")
    if calibrated:
        print(f"plot     {out / 'conversion.png'}")
    if report["advice"]:
        print(f"\n{report['advice']['statement']} Train it:\n\n    {report['advice']['command']}")


@command(
    "write one size for transformers, timm, ONNX, ExecuTorch, OpenVINO or as a torch program",
    BUNDLE,
    REVISION,
    option("--to", required=True, help="transformers, timm, onnx, program, executorch, openvino"),
    OUT,
    option(
        "--weights",
        default="float32",
        help="float32; onnx also float16, int8; openvino float16 (default: %(default)s)",
    ),
    option("--tolerance", type=float, help="largest difference accepted, as a share of the largest logit"),
    QUIET,
    SIZE,
)
def export(bundle: str, out: Path, to: str, weights: str, tolerance: float | None, **asked) -> None:
    from .conversion.export import export as run

    report = run(bundle, out, to, weights=weights, tolerance=tolerance, **_given(asked))
    size = ", ".join(f"{name} {value}" for name, value in report["size"].items())
    print(f"{out}: {report['format']}, {report['weights']}, {size}")
    print(f"largest difference of logits {report['largest_difference']:.2g}, ", end="")
    print(f"{report['relative_difference']:.1g} of the largest one (tolerance {report['tolerance']:g})")
    if "load" in report:
        print(f"load it  {report['load'].replace('FOLDER', str(out))}")


@command("write one size of a bundle as a plain model folder", BUNDLE, REVISION, OUT, SIZE)
def materialise(bundle: str, revision: str | None, out: Path, **size) -> None:
    from .bundle_lingene import Bundle
    from .families_lingene import layers_of
    from .folders import check_empty, processor_or_none, publish_model, read_config
    from .kinds import model_class
    from .measuring.metrics import count_macs, count_parameters, seen_size
    from .measuring.tables import readable
    from .progress import quiet_loading

    check_empty(out)
    hub = _given({"revision": revision})
    config = read_config(bundle, **hub)
    head = Bundle(bundle, config, hub).has_head
    with quiet_loading():
        model = model_class(config, head).from_pretrained(bundle, **_given(size), **hub)
    publish_model(model, bundle, out, **hub)
    seen = seen_size(model.config, processor_or_none(bundle, **hub))
    params, macs = readable(count_parameters(model)), readable(count_macs(model.config, head, seen))
    print(f"{out}: {type(model).__name__} of {layers_of(model.config)} layers, {params} parameters, {macs} MACs")


@command(
    "accuracy or another metric, parameters, MACs and latency of one size, or of a model",
    option("model", metavar="MODEL", help="a bundle or a plain ViT, by folder or name on the Hub"),
    DATA,
    SPLIT,
    METRIC,
    REFERENCE,
    BATCH_SIZE,
    DEVICE,
    OUT_FILE,
    QUIET,
    SIZE,
)
def evaluate(
    model: str,
    data: str,
    split: str,
    metric: str | None,
    reference: str | None,
    batch_size: int,
    device: str | None,
    out: Path | None,
    **size,
) -> None:
    from .folders import write_json
    from .measuring.evaluation import evaluate_data
    from .measuring.tables import size_table

    how = {"reference": reference, "batch_size": batch_size, "device": device}
    row = evaluate_data(model, _given(size), data, split, metric, **how)
    print(size_table([row]))
    if "reference" in row:
        print(f"cosine with {row['reference']}: mean over the images, in brackets the 5th percentile")
    print(f"{row['dataset']} ({row['split']}), latency of one image on {row['device']}")
    if out:
        write_json(out, row)


@command(
    "measure a grid of sizes into sizes.json, with a table and pictures",
    option("bundle", metavar="BUNDLE", help="folder, or name on the Hub with --out"),
    DATA,
    SPLIT,
    METRIC,
    REFERENCE,
    BATCH_SIZE,
    DEVICE,
    option("--allow-untrained", action="store_true", help="measure widths that were never trained, too"),
    option("--no-latency", dest="latency", action="store_false", help="do not time one image of each"),
    option("--out", type=Path, help="folder for sizes.json and the pictures (default: the bundle)"),
    QUIET,
    grid("what was trained, and components doubling up to all"),
    resume=AGAIN,
)
def sweep(bundle: str, data: str, split: str, out: Path | None, **options) -> None:
    from .measuring.sweep import sweep_data
    from .measuring.tables import size_table

    rows = sweep_data(bundle, data, split, out=out, **options)
    if rows:  # on the main process
        folder = out or Path(bundle)
        print(f"\n{size_table(rows)}\n\nnumbers  {folder / 'sizes.json'}")
        print(f"plots    {folder / 'sizes.png'}, {folder / 'sizes_heat.png'}")


@command(
    "latency and throughput of sizes on this device, into sizes.json",
    BUNDLE,
    DEVICE,
    option("--threads", type=int, help="of the CPU (default: as many as torch uses)"),
    option("--dtype", default="float32", help="float32, bfloat16 or float16 (default: %(default)s)"),
    option("--compile", dest="compiled", action="store_true", help="time the compiled model"),
    option("--batch-size", type=int, default=64, help="for the throughput (default: %(default)s)"),
    OUT_FILE,
    QUIET,
    grid("the measured sizes"),
)
def profile(bundle: str, batch_size: int, **options) -> None:
    from .measuring.profiling import profile as run
    from .measuring.profiling import profile_table

    rows = run(bundle, batch_size=batch_size, **options)
    print(f"\n{profile_table(rows)}\n\none image, and {batch_size} at once, on {rows[0]['device']}")
    if (Path(bundle) / "sizes.json").is_file():
        print(f"numbers  {Path(bundle) / 'sizes.json'}")


@command("what a bundle holds, its legal, trained and measured sizes", BUNDLE, REVISION, OUT_FILE)
def info(bundle: str, revision: str | None, out: Path | None) -> None:
    from .folders import describe, write_json
    from .measuring.tables import readable, size_table

    facts, rows = describe(bundle, **_given({"revision": revision}))
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        print(f"{name:<{width}}  {readable(value) if name == 'stored_params' else shown}")
    print(f"\n{size_table(rows)}" if rows else "\nno measured sizes")
    if out:
        write_json(out, {**facts, "sizes": rows})


@command("compare every weight file with the hash that was taken when it was saved", BUNDLE, REVISION)
def verify(bundle: str, revision: str | None) -> None:
    from .bundle_lingene import Bundle
    from .folders import read_config
    from .measuring.tables import readable

    hub = _given({"revision": revision})
    held = Bundle(bundle, read_config(bundle, **hub), hub)
    files = held.verify()
    held.measured()  # of these weights, or refused
    for file, size in files.items():
        print(f"{file:<{max(map(len, files))}}  {readable(size)}B  as it was saved")
    print(f"\n{len(files)} files, {readable(sum(files.values()))}B, weights_id {held.weights_id}")


@command(
    "explain a model by its weights: how they change over depth",
    option(
        "what",
        choices=("trend", "components", "coefficients", "similarity"),
        help="trend: the linear trend of weights over depth, of any stack of equal layers; components: what each "
        "component of a bundle looks at in pictures, alone and with those before it; coefficients: how much of every "
        "component its layers hold; similarity: how alike the layers of a size and of its reference are on pictures",
    ),
    option("model", metavar="MODEL", help="a bundle or another model of transformers, by folder or name on the Hub"),
    OUT,
    option("--images", help="of components: pictures, a folder or another set as for --data; labels are not needed"),
    option("--count", type=int, help="of components: how many of the pictures (default: 2)"),
    option("--depths", type=depths, default=(), metavar="N,N", help="of coefficients (default: the trained ones)"),
    option("--data", help="of the similarity: pictures, as for the other commands; labels are not needed"),
    option("--reference", metavar="MODEL", help="of the similarity: an encoder (default: the bundle's full size)"),
    QUIET,
    SIZE,
)
def analyse(what: str, model: str, out: Path, **asked) -> None:
    asked = {name: value for name, value in _given(asked).items() if value != ()}
    for name in asked:
        whose = ("components", "similarity") if name in SIZE_FLAGS else (ANALYSIS_FLAGS[name],)
        if what not in whose:
            raise ValueError(f"`{name}` is of {' and '.join(whose)}, and {what} has no such choice.")
    if what == "components":
        from .analysis.components import PICTURES, RESULTS_FILE, analyse_components

        _print_components(analyse_components(model, out, **asked))
    elif what == "coefficients":
        from .analysis.coefficients import PICTURES, RESULTS_FILE, analyse_coefficients

        analyse_coefficients(model, out, **asked)
    elif what == "similarity":
        from .analysis.similarity import PICTURES, RESULTS_FILE, analyse_similarity

        if "data" not in asked:
            raise ValueError("`data` says on which pictures layers are compared: give --data.")
        _print_similarity(analyse_similarity(model, out, **asked))
    else:
        from .analysis.trend import PICTURES, RESULTS_FILE, analyse_trend

        _print_trends(analyse_trend(model, out))
    print(f"\nplot     {out / PICTURES[0]}\nnumbers  {out / RESULTS_FILE}")


def _print_similarity(table: list[list[float]]) -> None:
    """To which layer of the reference each is most alike."""
    for layer, values in enumerate(table, start=1):
        best = max(range(len(values)), key=values.__getitem__)
        print(f"layer {layer:>2} is most alike to layer {best + 1:>2} of the reference ({values[best]:.2f})")


def _print_components(found: list[dict]) -> None:
    """A table per picture: what each component, and the first n, say of it."""
    from .measuring.tables import aligned_table

    for place, picture in enumerate(found, start=1):
        lines = [["components", "says", "score", "centre", "entropy", "like all"]]
        for way, name in (("alone", "{} alone"), ("first", "first {}")):
            for n, row in enumerate(picture[way], start=1):
                cells = [row.get("class", "cosine"), f"{round(row['score'], 2) + 0.0:.2f}"]
                cells += [
                    "-" if row[key] is None else f"{row[key]:.2f}" for key in ("centre", "entropy", "correlation")
                ]
                lines.append([name.format(n), *cells])
        print(f"\npicture {place}, explained: {picture['explained'] or 'what sets it apart'}")
        print(aligned_table(lines))


def _print_trends(trends: dict) -> None:
    """A table of the stacks, and what each says."""
    from .measuring.tables import aligned_table

    lines = [["stack", "layers", "axis holds", "correlation"]]
    for name, trend in trends.items():
        cells = [str(len(trend.values)), f"{100 * trend.explained:.0f} %", f"{trend.correlation:.2f}"]
        lines.append([name, *cells])
    print(f"\n{aligned_table(lines)}\n")
    for name, trend in trends.items():
        print(f"{name}: {trend.sentence()}")


@command(
    "render a bundle's model card from its measured numbers",
    BUNDLE_FOLDER,
    option("--repo", metavar="REPO", help="name in the loading example (default: the folder's)"),
    LICENSE,
)
def card(bundle: Path, repo: str | None, license: str | None) -> None:
    from .folders import check_folder
    from .hub import write_card

    check_folder(bundle)
    write_card(bundle, repo, license=license)
    print(bundle / "README.md")


@command(
    "show bundles on a page to try them on: sizes, budgets, your own pictures",
    option("bundles", metavar="BUNDLE", nargs="+", help="folder or name on the Hub; several to choose from"),
    option("--images", metavar="DATA", help="sample pictures: a folder, or what --data of other commands takes"),
    option("--host", default="127.0.0.1", help="0.0.0.0 for other machines too (default: %(default)s)"),
    option("--port", type=int, default=7860, help="default: %(default)s"),
)
def app(bundles: list[str], **options) -> None:
    from .app.page import serve

    serve(bundles, **options)


@command(
    "push a bundle, or a pruned model, to the Hub and verify it by loading it back",
    BUNDLE_FOLDER,
    option("repo", metavar="REPO", help="name on the Hub"),
    option("--private", action="store_true", default=None, help="if the repository is new"),
    option("--revision", help="branch (default: main)"),
    option("--subfolder", help="of the repository, for one of several bundles in it"),
    LICENSE,
    QUIET,
)
def push(bundle: Path, repo: str, **options) -> None:
    from .folders import model_type_of
    from .hub import push as run
    from .kinds import PRUNED_TYPES

    if bundle.is_dir() and model_type_of(bundle) in PRUNED_TYPES:
        from .pruning.card import push_pruned

        if options.pop("subfolder"):
            raise ValueError("`subfolder` is for bundles; a pruned model is pushed to a repository of its own.")
        url = push_pruned(bundle, repo, **options)
        return print(f"{url}: pushed, and loads to the same logits in a clean process")
    url = run(bundle, repo, **options)
    print(f"{url}: pushed, and loads to the same logits in a clean process")


@command("the released bundles: what each is for, its sizes and what they reach", OUT_FILE)
def zoo(out: Path | None) -> None:
    from .folders import write_json
    from .zoo import released, where_to_load, zoo_table

    bundles = released()
    print(f"{zoo_table(bundles)}\n\ndownload in parameters; best and smallest by the metric of each card. Load one:\n")
    for facts in bundles:
        print(f"    {where_to_load(facts)}")
    if out:
        write_json(out, {"bundles": bundles})


def _given(options: dict) -> dict:
    """Those that were given."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


def build_parser(wanted: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands, with the options of the one that is wanted: those of training import much."""
    parser = argparse.ArgumentParser(prog="lingene", description="One bundle, Vision Transformers of many sizes.")
    parser.add_argument("--version", action="version", version=f"modeling_lingene {modeling_lingene.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, chosen in COMMANDS.items():
        own = commands.add_parser(name, help=chosen.help, description=chosen.help[0].upper() + chosen.help[1:] + ".")
        for add in chosen.options if name == wanted else ():
            add(own)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command: 0 on success, 2 for wrong input, 1 for what failed on the way, 130 when interrupted.

    Whatever is wrong is one line on stderr that says what to do.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser(next((word for word in argv if not word.startswith("-")), None))
    options = vars(parser.parse_args(argv))
    name, quiet = options.pop("command"), options.pop("quiet", False)
    place = options.get("out") or options.get("bundle")
    try:
        with _bars(quiet):
            COMMANDS[name].run(**options)
            sys.stdout.flush()
    except (ValueError, OSError, ImportError, SafetensorError) as error:
        if isinstance(error, BrokenPipeError):  # `| head`; or Python would fail once more when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _fail(name, _told(error, place), 2)
    except RuntimeError as error:
        return _fail(name, str(error), 1)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":  # of several processes the main one
            print(f"\nlingene {name}: interrupted. {COMMANDS[name].resume}", file=sys.stderr)
        return 130
    return 0


def _bars(quiet: bool) -> contextlib.AbstractContextManager:
    from .progress import no_bars

    return no_bars() if quiet else contextlib.nullcontext()


def _fail(name: str, message: str, status: int) -> int:
    print(f"lingene {name}: {' '.join(message.split())}", file=sys.stderr)
    return status


def _told(error: Exception, place: Path | str | None) -> str:
    """What is wrong, with the file that it is wrong with.

    Args:
        place: where the command writes: a disk that is full does not say what could not be written.
    """
    if isinstance(error, OSError) and error.strerror:
        files = [str(file) for file in (error.filename, error.filename2) if file is not None]
        if files or (error.errno in DISK and error.strerror == os.strerror(error.errno)):
            return f"{' -> '.join(files) or place}: {error.strerror}"
        return error.strerror  # of `writing`, with the place
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
