"""`lingene ...`: parses and calls, nothing more. Heavy imports happen in the command that needs them."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run one command: 0 on success, 2 for wrong input, 1 for what failed on the way, 130 when interrupted.

    Whatever is wrong is one line on stderr that says what to do.
    """
    argv = sys.argv[1:] if argv is None else argv
    arguments = build_parser(next((word for word in argv if not word.startswith("-")), None)).parse_args(argv)
    try:
        arguments.run(arguments)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError) as error:
        return _fail(arguments.command, error, 2)
    except RuntimeError as error:
        return _fail(arguments.command, error, 1)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":  # of several processes the main one
            print(f"\nlingene {arguments.command}: interrupted. {arguments.resume}", file=sys.stderr)
        return 130
    return 0


def _fail(command: str, error: Exception, status: int) -> int:
    print(f"lingene {command}: {' '.join(str(error).split())}", file=sys.stderr)
    return status


def build_parser(wanted: str | None = None) -> argparse.ArgumentParser:
    """The parser; with the options of training commands only for the one that is wanted."""
    parser = argparse.ArgumentParser(prog="lingene", description="One bundle, Vision Transformers of many sizes.")
    parser.set_defaults(resume="Nothing was changed.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = _add(commands, "quickstart", quickstart, "train a small bundle on handwritten digits, measure its sizes")
    command.set_defaults(resume="Run the same command again to go on.")
    command.add_argument("--out", type=Path, default=Path("lingene-quickstart"), help="folder (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    command.add_argument("--epochs", type=int, default=60, help="of each of the four phases (default: %(default)s)")

    command = _add(commands, "decompose", decompose, "train a bundle: components, and every number of them measured")
    command.set_defaults(resume="Run the same command with --resume to go on.")
    if wanted == "decompose":
        from .training.options import add_recipe_options  # imports torch: only for the command that is asked for

        add_recipe_options(command)

    command = _add(commands, "convert", convert, "turn a trained ViT into a bundle, without training")
    command.add_argument("source", metavar="SOURCE", help="transformers name or folder, or timm:NAME")
    command.add_argument("--out", type=Path, required=True, help="new or empty folder for the bundle")
    command.add_argument("--weights", metavar="FILE", help="of timm:NAME: safetensors or a state dict")
    command.add_argument("--prefix", help="of the network's tensors in that file, where it holds several")
    command.add_argument("--headless", action="store_true", help="leave the classifier out")
    command.add_argument("--num-components", type=int, help="default: as many as layers, which loses nothing")
    command.add_argument("--calibrate", metavar="DATA", help="unlabelled images for a better fit, and to measure it")
    command.add_argument("--images", type=int, default=512, help="of them (default: %(default)s)")
    command.add_argument(
        "--fit", help="weights, activations, weighted, kronecker, aligned, matched (default: the last)"
    )
    command.add_argument("--rounds", type=int, default=20, help="of the last three (default: %(default)s)")
    command.add_argument("--depths", type=_numbers, default=(), metavar="N,N", help="choose the layers to keep there")
    command.add_argument(
        "--sort", action="store_true", help="put channels, heads and MLP units that matter first, for widths to come"
    )
    command.add_argument("--device", help="default: the GPU if there is one, else the CPU")
    command.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    basis = command.add_argument_group("basis", "default: the preset stable")
    basis.add_argument("--preset", help="stable or paper")
    basis.add_argument("--basis", help="chebyshev, legendre, taylor or fourier")
    basis.add_argument("--nodes", help="roots or uniform")
    basis.add_argument("--start-degree", type=int, help="of the first component")
    basis.add_argument("--degree-weight", type=float, help="w divides the coefficients of degree g by (g + 1)^w")

    command = _add(commands, "export", export, "write one size for transformers, timm, ONNX or as a torch program")
    _add_bundle(command)
    command.add_argument("--to", required=True, help="transformers, timm, onnx or program")
    command.add_argument("--out", type=Path, required=True, help="new or empty folder")
    command.add_argument(
        "--weights", default="float32", help="float32; onnx also float16, int8 (default: %(default)s)"
    )
    command.add_argument(
        "--tolerance", type=float, help="largest difference accepted, as a share of the largest logit"
    )
    _add_size(command)

    command = _add(commands, "materialise", materialise, "write one size of a bundle as a plain model folder")
    _add_bundle(command)
    _add_size(command)
    command.add_argument("--out", type=Path, required=True, help="new or empty folder for the model")

    command = _add(commands, "evaluate", evaluate, "accuracy, parameters, MACs and latency of one size, or of a model")
    command.add_argument("model", metavar="MODEL", help="a bundle or a plain ViT, by folder or name on the Hub")
    _add_size(command)
    command.add_argument("--data", required=True, help="digits, a folder of images, parquet files, a name on the Hub")
    command.add_argument("--split", default="test", help="default: %(default)s")
    command.add_argument("--batch-size", type=int, default=64, help="images at once (default: %(default)s)")
    command.add_argument("--device", help="default: the GPU if there is one, else the CPU")
    command.add_argument("--out", type=Path, help="JSON file for the numbers")

    command = _add(commands, "sweep", sweep, "measure a grid of sizes into sizes.json, with a table and pictures")
    command.set_defaults(resume="Run the same command again to go on.")
    command.add_argument("bundle", metavar="BUNDLE", help="folder, or name on the Hub with --out")
    _add_grid(command, "what was trained, and components doubling up to all")
    command.add_argument("--data", required=True, help="digits, a folder of images, parquet files, a name on the Hub")
    command.add_argument("--split", default="test", help="default: %(default)s")
    command.add_argument("--batch-size", type=int, default=64, help="images at once (default: %(default)s)")
    command.add_argument("--device", help="default: the GPU if there is one, else the CPU")
    command.add_argument("--allow-untrained", action="store_true", help="measure widths that were never trained, too")
    command.add_argument("--no-latency", dest="latency", action="store_false", help="do not time one image of each")
    command.add_argument("--out", type=Path, help="folder for sizes.json and the pictures (default: the bundle)")

    command = _add(commands, "profile", profile, "latency and throughput of sizes on this device, into sizes.json")
    command.add_argument("bundle", metavar="BUNDLE", help="folder or name on the Hub")
    _add_grid(command, "the measured sizes")
    command.add_argument("--device", help="default: the GPU if there is one, else the CPU")
    command.add_argument("--threads", type=int, help="of the CPU (default: as many as torch uses)")
    command.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (default: %(default)s)")
    command.add_argument("--compile", dest="compiled", action="store_true", help="time the compiled model")
    command.add_argument("--batch-size", type=int, default=64, help="for the throughput (default: %(default)s)")
    command.add_argument("--out", type=Path, help="JSON file for the numbers")

    command = _add(commands, "info", info, "what a bundle holds, its legal, trained and measured sizes")
    _add_bundle(command)
    command.add_argument("--out", type=Path, help="JSON file for the same")

    command = _add(commands, "card", card, "render a bundle's model card from its measured numbers")
    command.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder")
    command.add_argument("--repo", metavar="REPO", help="name in the loading example (default: the folder's)")

    command = _add(commands, "push", push, "push a bundle to the Hub and verify it by loading it back")
    command.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder")
    command.add_argument("repo", metavar="REPO", help="name on the Hub")
    command.add_argument("--private", action="store_true", default=None, help="if the repository is new")
    command.add_argument("--revision", help="branch (default: main)")
    return parser


def _add(commands, name: str, run: Callable, help: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    command.set_defaults(run=run)
    return command


def _add_bundle(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", metavar="BUNDLE", help="folder or name on the Hub")
    command.add_argument("--revision", help="on the Hub (default: main)")


def _add_size(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("size", "default: all that is stored")
    group.add_argument("--depth", type=int, help="number of layers")
    group.add_argument("--width-ratio", help="fraction of the width, such as 1/2")
    group.add_argument("--num-components", type=int, help="number of components combined")
    group.add_argument("--allow-untrained", action="store_true", help="accept a width that was never trained")
    group.add_argument("--max-params", type=float, help="or a budget: the most accurate measured size within it")
    group.add_argument("--max-macs", type=float, help="multiply-accumulates of one image, such as 2e9")
    group.add_argument("--max-latency-ms", type=float, help="milliseconds of one image, as measured")
    group.add_argument("--latency-device", help="by its name in sizes.json (default: this machine's)")


def _add_grid(command: argparse.ArgumentParser, default: str) -> None:
    group = command.add_argument_group("grid", f"default: {default}")
    group.add_argument("--depths", type=_numbers, default=(), metavar="N,N", help="numbers of layers")
    group.add_argument("--widths", type=_words, default=(), metavar="A,B", help="ratios such as 1/4,1/2,1")
    group.add_argument("--components", type=_numbers, default=(), metavar="N,N", help="numbers of components")


SIZE_FIELDS = "depth width_ratio num_components allow_untrained max_params max_macs max_latency_ms".split()
SIZE_FIELDS += ["latency_device"]


def _numbers(text: str) -> tuple[int, ...]:
    from .training.options import integers

    return integers(text)


def _words(text: str) -> tuple[str, ...]:
    from .training.options import words

    return words(text)


def _asked(arguments: argparse.Namespace) -> dict:
    """The size options that were given."""
    given = {name: getattr(arguments, name) for name in SIZE_FIELDS}
    return {name: value for name, value in given.items() if value is not None and value is not False}


def quickstart(arguments: argparse.Namespace) -> None:
    from .measuring.tables import size_table
    from .training.recipes import quickstart as run

    rows = run(arguments.out, arguments.seed, arguments.epochs)
    best = max(rows, key=lambda row: row["accuracy"])
    asked = f"depth={best['depth']}, num_components={best['num_components']}"
    print(f"\n{size_table(rows)}\n")
    print(f"bundle   {arguments.out / 'bundle'}\nplot     {arguments.out / 'sizes.png'}")
    print(f"numbers  {arguments.out / 'results.json'}\n\nLoad a size:\n")
    print("    import modeling_lingene\n    from transformers import AutoModelForImageClassification\n")
    print(f"    AutoModelForImageClassification.from_pretrained({str(arguments.out / 'bundle')!r}, {asked})")


def decompose(arguments: argparse.Namespace) -> None:
    from .measuring.tables import size_table
    from .training.options import asked_recipe
    from .training.recipes import decompose as run

    rows = run(asked_recipe(arguments), arguments.out, resume=arguments.resumed)
    if rows:
        print(f"\n{size_table(rows)}\n\nbundle   {arguments.out / 'bundle'}\nplot     {arguments.out / 'sizes.png'}")
        print(f"numbers  {arguments.out / 'results.json'}")


def convert(arguments: argparse.Namespace) -> None:
    from .conversion.convert import convert as run
    from .conversion.report import count_table

    names = (
        "weights prefix headless num_components calibrate images fit rounds depths sort device seed preset basis nodes"
    )
    names = (*names.split(), "start_degree", "degree_weight")
    report = run(arguments.source, arguments.out, **{name: getattr(arguments, name) for name in names})
    calibrated = report.get("calibration", {})
    if calibrated:
        print(f"\n{count_table(calibrated['rows'])}\n")
        for depth, rows in calibrated.get("depth_rows", {}).items():
            print(f"depth {depth}: layers {', '.join(map(str, rows))}")
    print(f"{report['num_components']} components of {report['depth']} layers, fit: {report['fit']}")
    print(f"condition number of the coefficients {report['condition']:.4g}")
    print(f"relative logit error on random images {report['relative_logit_error']:.2g}")
    if report["left_out"]:
        print(f"left out: {len(report['left_out'])} tensors ({'; '.join(sorted(set(report['left_out'].values())))})")
    print(f"bundle   {arguments.out}\nnumbers  {arguments.out / 'conversion.json'}")
    if calibrated:
        print(f"plot     {arguments.out / 'conversion.png'}")
    if report["advice"]:
        print(f"\n{report['advice']['statement']} Train it:\n\n    {report['advice']['command']}")


def export(arguments: argparse.Namespace) -> None:
    from .conversion.export import export as run

    asked = _asked(arguments) | ({"revision": arguments.revision} if arguments.revision else {})
    words = {"weights": arguments.weights, "tolerance": arguments.tolerance}
    report = run(arguments.bundle, arguments.out, arguments.to, **words, **asked)
    size = ", ".join(f"{name} {value}" for name, value in report["size"].items())
    print(f"{arguments.out}: {report['format']}, {report['weights']}, {size}")
    print(f"largest difference of logits {report['largest_difference']:.2g}, ", end="")
    print(f"{report['relative_difference']:.1g} of the largest one (tolerance {report['tolerance']:g})")
    if "load" in report:
        print(f"load it  {report['load'].replace('FOLDER', str(arguments.out))}")


def materialise(arguments: argparse.Namespace) -> None:
    from .folders import check_empty, publish_model, read_config
    from .measuring.metrics import count_macs, count_parameters
    from .measuring.tables import readable
    from .modeling_lingene import LinGeneForImageClassification
    from .progress import quiet_loading

    check_empty(arguments.out)
    hub = {"revision": arguments.revision} if arguments.revision else {}
    read_config(arguments.bundle, **hub)
    with quiet_loading():
        model = LinGeneForImageClassification.from_pretrained(arguments.bundle, **_asked(arguments), **hub)
    publish_model(model, arguments.bundle, arguments.out, **hub)
    params, macs = readable(count_parameters(model)), readable(count_macs(model.config))
    print(f"{arguments.out}: ViT of {model.config.num_hidden_layers} layers, {params} parameters, {macs} MACs")


def evaluate(arguments: argparse.Namespace) -> None:
    from .folders import write_json
    from .images.data import load_images
    from .measuring.metrics import evaluate_model
    from .measuring.tables import size_table

    images = load_images(arguments.data, arguments.split)
    row = evaluate_model(arguments.model, _asked(arguments), images, arguments.batch_size, arguments.device)
    print(size_table([row]))
    print(f"{row['dataset']} ({row['split']}), latency of one image on {row['device']}")
    if arguments.out:
        write_json(arguments.out, row)


def sweep(arguments: argparse.Namespace) -> None:
    from .images.data import load_images
    from .measuring.sweep import sweep as run
    from .measuring.tables import size_table

    names = "depths widths components out batch_size device allow_untrained latency".split()
    images = load_images(arguments.data, arguments.split)
    rows = run(arguments.bundle, images, **{name: getattr(arguments, name) for name in names})
    if rows:
        folder = arguments.out or Path(arguments.bundle)
        print(f"\n{size_table(rows)}\n\nnumbers  {folder / 'sizes.json'}")
        print(f"plots    {folder / 'sizes.png'}, {folder / 'sizes_heat.png'}")


def profile(arguments: argparse.Namespace) -> None:
    from .measuring.sweep import profile as run
    from .measuring.sweep import profile_table

    names = "depths widths components device threads dtype compiled batch_size out".split()
    rows = run(arguments.bundle, **{name: getattr(arguments, name) for name in names})
    print(f"\n{profile_table(rows)}\n\none image, and {arguments.batch_size} at once, on {rows[0]['device']}")
    if (Path(arguments.bundle) / "sizes.json").is_file():
        print(f"numbers  {Path(arguments.bundle) / 'sizes.json'}")


def info(arguments: argparse.Namespace) -> None:
    from .folders import describe, write_json
    from .measuring.tables import readable, size_table

    facts, rows = describe(arguments.bundle, **({"revision": arguments.revision} if arguments.revision else {}))
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        print(f"{name:<{width}}  {readable(value) if name == 'stored_params' else shown}")
    print(f"\n{size_table(rows)}" if rows else "\nno measured sizes")
    if arguments.out:
        write_json(arguments.out, {**facts, "sizes": rows})


def card(arguments: argparse.Namespace) -> None:
    from .folders import check_folder
    from .hub import write_card

    check_folder(arguments.bundle)
    write_card(arguments.bundle, arguments.repo)
    print(arguments.bundle / "README.md")


def push(arguments: argparse.Namespace) -> None:
    from .hub import push as run

    url = run(arguments.bundle, arguments.repo, private=arguments.private, revision=arguments.revision)
    print(f"{url}: pushed, and loads to the same logits in a clean process")


if __name__ == "__main__":
    sys.exit(main())
