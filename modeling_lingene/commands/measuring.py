"""`lingene evaluate`, `sweep`, `profile`, `info`, `verify`: what a model is worth, costs and holds."""

from contextlib import suppress
from pathlib import Path

from .asked import given, on_the_hub
from .shown import sizes_shown


def evaluate(
    model: str,
    data: str,
    split: str,
    metric: str | None,
    reference: str | None,
    batch_size: int,
    device: str | None,
    relabel: bool,
    out: Path | None,
    **size,
) -> None:
    from ..folders import check_file, download_of, write_json
    from ..measuring.evaluation import evaluate_data
    from ..measuring.tables import size_table, told_error, told_timing

    check_file(out, late=True)
    how = {"reference": reference, "batch_size": batch_size, "device": device, "relabel": relabel}
    row = evaluate_data(model, given(size), data, split, metric, **how)
    if out:  # before the table, which perhaps nobody reads to its end
        write_json(out, row)
    if "file_bytes" in row:  # of an exported folder
        print(size_table([row], fetched=lambda _: row["file_bytes"]))
    else:
        print(size_table([row], fetched=download_of(model) if row["num_components"] else None))
    if "reference" in row:
        print(f"cosine with {row['reference']}: mean over the images, in brackets the 5th percentile")
    print(f"{row['dataset']} ({row['split']}), {told_error([row])}")
    print(f"latency: median of one image on {told_timing([row])}, interquartile range {row['iqr_ms']:.2g} ms")


def sweep(resume: Path | None, **asked) -> None:
    from ..folders import download_of
    from ..measuring.sweep import asked_of, sweep_data

    if resume is not None:
        asked = _stored(asked_of(resume), asked, resume)
    for name, flag in (("bundle", "BUNDLE"), ("data", "--data")):
        if asked[name] is None:
            raise ValueError(f"`{name}` says what is measured: give {flag}, or --resume with the folder of a sweep.")
    rows = sweep_data(**asked)
    if rows:  # on the main process
        folder = asked["out"] or Path(asked["bundle"])
        print(f"\n{sizes_shown(rows, download_of(asked['bundle']))}\n\nnumbers  {folder / 'sizes.json'}")
        print(f"plots    {folder / 'sizes.png'}, {folder / 'sizes_heat.png'}")
        _print_card(folder)


def _print_card(folder: Path) -> None:
    """A bundle's card tells its numbers: one that is there is rendered again."""
    from ..folders import is_bundle
    from ..hub import refresh_card

    card = refresh_card(folder) if is_bundle(folder) else None
    if card is not None:
        print(f"card     {card}")


def _stored(stored: dict, asked: dict, folder: Path) -> dict:
    """What an interrupted sweep was asked for; refused are flags that say otherwise."""
    defaults = {"split": "test", "batch_size": 64, "latency": True}
    for name, value in asked.items():
        value = list(value) if isinstance(value, tuple) else value
        if value not in (None, [], False, defaults.get(name)) and str(value) != str(stored.get(name)):
            raise ValueError(
                f"`{name}` is {value} here and {stored.get(name)} in the sweep in {folder}: leave it out to go on, or "
                "leave out --resume to begin another."
            )
    return stored


def profile(bundle: str, batch_size: int, **options) -> None:
    from ..measuring.profiling import profile as run
    from ..measuring.profiling import profile_table

    rows = run(bundle, batch_size=batch_size, **options)
    print(f"\n{profile_table(rows)}\n\none image, and {batch_size} at once, on {rows[0]['device']}")
    if (Path(bundle) / "sizes.json").is_file():
        print(f"numbers  {Path(bundle) / 'sizes.json'}")
        _print_card(Path(bundle))


def info(bundle: str, revision: str | None, out: Path | None) -> None:
    from ..folders import check_file, describe, download_of, processor_or_none, read_config, write_json
    from ..measuring.metrics import seen_size
    from ..measuring.tables import readable

    check_file(out)
    hub = on_the_hub(bundle, revision)
    facts, rows = describe(bundle, **hub)
    with suppress(ValueError):  # damaged, or nobody knows; the rest is known without
        height, width = seen_size(read_config(bundle, **hub), processor_or_none(bundle, **hub))
        facts["pictures"] = f"{height}x{width}"  # as its preprocessing makes them
    if out:
        write_json(out, {**facts, "sizes": rows})
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        print(f"{name:<{width}}  {readable(value) if name == 'stored_params' else shown}")
    print(f"\n{sizes_shown(rows, download_of(bundle, **hub))}" if rows else "\nno measured sizes")


def verify(bundle: str, revision: str | None) -> None:
    from ..bundle_lingene import Bundle
    from ..folders import read_config
    from ..measuring.tables import bytes_shown

    hub = on_the_hub(bundle, revision)
    held = Bundle(bundle, read_config(bundle, **hub), hub)
    files = held.verify()
    held.measured()  # of these weights, or refused
    for file, size in files.items():
        print(f"{file:<{max(map(len, files))}}  {bytes_shown(size)}  as it was saved")
    print(f"\n{len(files)} files, {bytes_shown(sum(files.values()))}, weights_id {held.weights_id}")
