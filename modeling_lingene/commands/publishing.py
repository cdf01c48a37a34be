"""`lingene card`, `app`, `push`, `zoo`: what shows bundles to others."""

from pathlib import Path


def card(bundle: Path, repo: str | None, license: str | None) -> None:
    from ..folders import check_folder
    from ..hub import write_card

    check_folder(bundle)
    write_card(bundle, repo, license=license)
    print(bundle / "README.md")


def app(bundles: list[str], **options) -> None:
    from ..app.page import serve

    serve(bundles, **options)


def push(bundle: Path, repo: str, **options) -> None:
    from ..hub import push as run
    from ..pruning.card import is_pruned, push_pruned

    if bundle.is_dir() and is_pruned(bundle):
        if options.pop("subfolder"):
            raise ValueError("`subfolder` is for bundles; a pruned model is pushed to a repository of its own.")
        url = push_pruned(bundle, repo, **options)
        return print(f"{url}: pushed, and loads to the same logits in a clean process")
    url = run(bundle, repo, **options)
    print(f"{url}: pushed, and loads to the same logits in a clean process")


def zoo(out: Path | None) -> None:
    from ..folders import check_file, write_json
    from ..zoo import released, where_to_load, zoo_table

    check_file(out)
    bundles = released()
    if out:
        write_json(out, {"bundles": bundles})
    print(f"{zoo_table(bundles)}\n\nbest and smallest by the metric of each card. Load one:\n")
    for facts in bundles:
        print(f"    {where_to_load(facts)}")
