"""`lingene quickstart`, `decompose`, `prune`: what trains."""

import argparse
import shlex
from pathlib import Path

from .asked import SIZE_FLAGS, given, is_short, run_folder
from .shown import sizes_shown


def quickstart(out: Path, seed: int, epochs: int) -> None:
    from ..training.recipes import quickstart as run

    _print_trained(run(out, seed, epochs), out)


def decompose(out: Path | None, resume: Path | bool, **flags) -> None:
    from ..training.asked import asked_of
    from ..training.options import asked_recipe
    from ..training.recipes import decompose as run
    from ..training.settings import Recipe

    out = run_folder(out, resume)
    stored = None
    if is_short(resume, flags["data"] or flags["recipe"]):
        stored = asked_of(out, recipe=Recipe)["recipe"]
    asked = asked_recipe(argparse.Namespace(**flags), stored)
    rows = run(asked, out, resume=bool(resume))
    if rows:  # on the main process
        bundle = shlex.quote(str(out / "bundle"))
        _print_trained(rows, out)
        sweep = "" if asked.unlabelled else f"\n    lingene sweep {bundle} --data {shlex.quote(asked.data)}"
        if sweep and rows[0]["split"] not in ("test", "validation"):
            sweep += f" --split {rows[0]['split']}"
        print(f"\nMeasure other sizes, push:\n{sweep}" if sweep else "\nPush:\n")
        print(f"    lingene push {bundle} USER/NAME")


def recipes(recipe: str | None) -> None:
    from ..training.named import ABOUT, RECIPES
    from ..training.record import command_of

    if recipe not in (None, *RECIPES):
        raise ValueError(f"`recipe` must be one of {', '.join(RECIPES)}; got {recipe!r}.")
    if recipe is None:
        _print_recipes(RECIPES)
        print("\n".join(["", *(f"{name}: {about}" for name, about in ABOUT.items())]))
        print("\nAll settings of one: lingene recipes RECIPE. Run it: lingene decompose --recipe RECIPE --out DIR")
        return
    print(f"{ABOUT[recipe]}\n\nThe same without its name, whatever is not said being the default:\n")
    print(f"    {command_of(RECIPES[recipe], RECIPES[recipe].data)}")


def prune(model: str | None, out: Path | None, resume: Path | bool, **flags) -> None:
    from ..pruning.card import prune_table
    from ..pruning.options import KINDS, asked_pruning
    from ..pruning.prune import prune as run
    from ..training.asked import asked_of

    out = run_folder(out, resume)
    stored = asked_of(out, **KINDS) if is_short(resume, flags["data"]) else {}
    size = stored.get("size", {}) | given({name: flags.pop(name) for name in SIZE_FLAGS})
    if not (model or stored):
        raise ValueError("`model` says what to prune: give its folder or name.")
    model = model or stored["model"]
    results = run(model, out, **asked_pruning(flags, stored), size=size, resume=bool(resume))
    if results:  # on the main process
        layers = [f"{layer['mixer']}/{layer['units']}" for layer in results["layers"]]
        print(f"\n{prune_table(results['rows'])}\n\nlayers   {' '.join(layers)}")
        print(f"model    {out / 'model'}\nplot     {out / 'layers.png'}\nnumbers  {out / 'results.json'}")


def _print_recipes(recipes: dict) -> None:
    """A table of them, a line each."""
    from ..measuring.tables import aligned_table

    lines = [["recipe", "data", "layers", "channels", "heads", "schedule", "components", "depths", "widths", "epochs"]]
    for name, recipe in recipes.items():
        model, how = recipe.model, recipe.decomposition
        totals = how.prefixes(model.num_components or model.depth)
        sizes = [totals, sorted({*how.depths, model.depth}), how.trained_widths(model.num_attention_heads)]
        cells = [name, recipe.data, model.depth, model.hidden_size, model.num_attention_heads, how.schedule]
        cells += [", ".join(map(str, some)) for some in sizes]
        phases = f" x {len(totals)}" if how.schedule == "incremental" else ""
        lines.append([*map(str, cells), f"{recipe.training.epochs}{phases}"])
    print(aligned_table(lines))


def _print_trained(rows: list[dict], out: Path) -> None:
    """The table of a run, where its files are, and code that loads its best size."""
    from ..budget_lingene import metric_of
    from ..folders import download_of

    if "feature_loss" in rows[0]:
        _print_encoder(rows, out)
        return
    metric = metric_of(rows)
    best = max(rows, key=lambda row: row[metric])
    size = {name: best[name] for name in ("depth", "num_components")}
    size |= {"width_ratio": best["width_ratio"]} if best["width_ratio"] != "1" else {}
    asked = ", ".join(f"{name}={value!r}" for name, value in size.items())
    print(f"\n{sizes_shown(rows, download_of(out / 'bundle'))}\n")
    print(f"bundle   {out / 'bundle'}\nplot     {out / 'sizes.png'}\nnumbers  {out / 'results.json'}\n")
    print(
        "Load a size:\n\n    import modeling_lingene\n    from transformers import AutoModelForImageClassification\n"
    )
    print(f"    AutoModelForImageClassification.from_pretrained({str(out / 'bundle')!r}, {asked})")


def _print_encoder(rows: list[dict], out: Path) -> None:
    """The sizes of a run without labels, the smallest loss first."""
    from ..measuring.tables import aligned_table, readable

    columns = {"cosine": ("cosine", "{:.3f}"), "patch_cosine": ("of patches", "{:.3f}")}
    columns |= {"knn": ("k-NN", "{:.1%}"), "probe": ("probe", "{:.1%}")}
    columns = {name: column for name, column in columns.items() if name in rows[0]}
    headers = [header for header, _ in columns.values()]
    lines = [["depth", "width", "components", "loss", *headers, "parameters", "MACs"]]
    for row in sorted(rows, key=lambda row: row["feature_loss"]):
        cells = [str(row[name]) for name in ("depth", "width_ratio", "num_components")]
        cells.append(f"{row['feature_loss']:.4g}")
        cells += [form.format(row[name]) for name, (_, form) in columns.items()]
        lines.append([*cells, readable(row["params"]), readable(row["macs"])])
    print(f"\n{aligned_table(lines)}\n\nbundle   {out / 'bundle'}\nnumbers  {out / 'results.json'}")
    if columns:
        print(f"plot     {out / 'sizes.png'}")
    print(f"next     lingene sweep {out / 'bundle'} --data SET   k-NN with labels, or --metric cosine")
