"""`lingene convert`, `export`, `materialise`: what makes one model of another."""

from pathlib import Path

from .asked import given, on_the_hub


def convert(source: str, out: Path, **options) -> None:
    from ..conversion.convert import convert as run
    from ..conversion.report import TEACHER, advice, count_legend, count_table
    from ..kept import fitted, kept

    report = run(source, out, **options)
    calibrated = report.get("calibration", {})
    if calibrated:
        shown = calibrated["rows"], report["compared"]
        print(f"\n{count_table(*shown)}\n\n{count_legend(*shown)}\n")
        for depth, rows in calibrated.get("depth_rows", {}).items():
            print(f"depth {depth}: layers {', '.join(map(str, rows))}")
    print(f"{report['num_components']} components of {report['depth']} layers; {fitted(report)}")
    if not report["advice"]:  # which says it, too
        print(kept(report))
    if report["left_out"]:
        print(f"left out: {len(report['left_out'])} tensors ({'; '.join(sorted(set(report['left_out'].values())))})")
    print(f"bundle   {out}\nnumbers  {out / 'conversion.json'}")
    if calibrated:
        print(f"plot     {out / 'conversion.png'}")
    if report["advice"]:  # whose command calls folders by their names alone, as others will read it
        here = advice(report, TEACHER if options.get("weights") else source, out)
        print(f"\n{here['statement']} Train it:\n\n    {here['command']}")


def export(bundle: str, out: Path, to: str, weights: str, tolerance: float | None, data: str | None, **asked) -> None:
    from ..conversion.export import export as run
    from ..conversion.export import load_code

    asked |= on_the_hub(bundle, asked.pop("revision"))
    report = run(bundle, out, to, weights=weights, tolerance=tolerance, data=data, **given(asked))
    size = ", ".join(f"{name} {value}" for name, value in report["size"].items())
    print(f"{out}: {report['format']}, {report['weights']}, {size}")
    print(f"largest difference of {report['compared']} {report['largest_difference']:.2g}, ", end="")
    print(f"{report['relative_difference']:.1g} of the largest one (tolerance {report['tolerance']:g}), ", end="")
    print(f"on {report['checked_on']}")
    if "agreement" in report:
        print(f"the same class as the bundle's for {100 * report['agreement']:.1f} % of the pictures")
    print(f"load it  {load_code(report, out)}")


def materialise(bundle: str, revision: str | None, out: Path, **size) -> None:
    from ..bundle_lingene import Bundle
    from ..families_lingene import layers_of
    from ..folders import check_empty, processor_or_none, publish_model, read_config
    from ..kinds import model_class
    from ..measuring.metrics import count_macs, count_parameters, seen_size
    from ..measuring.tables import readable
    from ..progress import quiet_loading

    check_empty(out)
    hub = on_the_hub(bundle, revision)
    config = read_config(bundle, **hub)
    head = Bundle(bundle, config, hub).has_head
    with quiet_loading():
        model = model_class(config, head).from_pretrained(bundle, **given(size), **hub)
    seen = seen_size(model.config, processor_or_none(bundle, **hub))
    publish_model(model, bundle, out, **hub)
    params, macs = readable(count_parameters(model)), readable(count_macs(model.config, head, seen))
    print(f"{out}: {type(model).__name__} of {layers_of(model.config)} layers, {params} parameters, {macs} MACs")
