"""Cards, measured sizes, pushing: what turns a bundle folder into a repository on the Hub.

The card is rendered from the bundle's files (`card.py`) and the template in `hub_cards/`; no number in it is typed, no
name in it is markup. A push is verified by loading the repository back in a process of its own.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from importlib import resources
from pathlib import Path

import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData, metadata_load
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from .budget_lingene import METRICS, metric_of
from .bundle_lingene import Bundle
from .card import (
    first_sizes,
    images_of,
    keywords,
    layers_of,
    license_of,
    limits,
    made_how,
    names_on_the_hub,
    papers,
    pictures,
    results,
    shape_of,
)
from .citations import bibtex
from .configuration_base_lingene import BundleConfig, Size
from .families_lingene import image_token_name
from .folders import (
    PREDICTIONS_FILE,
    SIZE_PICTURES,
    check_folder,
    processor_or_none,
    read_config,
    read_conversion,
    read_training,
)
from .kept import fitted, kept, verdict
from .markdown import code, loading, text
from .measuring.grids import least_size
from .measuring.tables import EXPLAINED, metrics_in, readable, size_table, told_error, told_timing
from .readme import CARD_FILE, Page, agreed, parsed, read_page, write_readme
from .saving_lingene import CONVERSION_FILE, CONVERSION_PICTURE, ensure_repo, push_bundle


logger = logging.get_logger(__name__)

HTTP_ERROR = HfHubHTTPError.__bases__[0]  # of the library by which huggingface_hub asks the Hub
SHOWN = (
    CONVERSION_FILE,
    CONVERSION_PICTURE,
    PREDICTIONS_FILE,
    *SIZE_PICTURES,
)  # of a bundle, beside its weights
VERIFY = """
import json, sys
import torch
import transformers

auto_class, places = json.loads(sys.argv[1])
sys.modules["modeling_lingene"] = None  # as on a machine without the package: the code comes from the repository
for name, kwargs in places:
    model = getattr(transformers, auto_class).from_pretrained(name, trust_remote_code=True, **kwargs)
    size = model.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.linspace(-1, 1, model.config.num_channels * height * width).view(1, -1, height, width)
    with torch.no_grad():
        output = model(pixels.to(model.dtype))
        values = [output.logits] if hasattr(output, "logits") else [output.last_hidden_state[:, 0]]
        if getattr(output, "pooler_output", None) is not None:
            values.append(output.pooler_output)
        print(json.dumps(torch.cat(values, dim=1).float().flatten().tolist()), flush=True)
"""


def render_card(
    folder: str | os.PathLike,
    repo_id: str | None = None,
    *,
    title: str | None = None,
    subfolder: str | None = None,
    license: str | None = None,
) -> str:
    """The model card of a bundle folder, from its configuration, measured sizes, and what is recorded of its making.

    Whatever these say is data: it is shown as it stands, and is no markup, no code and no header of the card.

    Args:
        repo_id: name in the loading example.
        title: any name, shown where no repository is known yet; default the folder's.
        subfolder: of the repository, where the bundle is one of several.
        license: by its name on the Hub, such as apache-2.0; default the one that the folder's card names already.

    Raises:
        ValueError: `repo_id` can be no repository's name, `license` no licence's; a file of the folder is damaged.
    """
    if repo_id is not None:
        check_repo_id(repo_id)
    folder = Path(folder)
    config = read_config(folder)
    bundle = Bundle(folder, config)
    rows, head, converted = _rows(bundle), bundle.has_head, read_conversion(folder)
    trained, name = read_training(folder, bundle.weights_id), repo_id or title or folder.resolve().name
    examples = (
        first_sizes(rows, config, bundle.download_bytes) if rows else [{"keywords": _example(config, converted)}]
    )
    for one in examples:
        given = ({"subfolder": subfolder} if subfolder else {}) | one["keywords"]
        one["code"] = loading(_auto_class(head), name, given)
    template = resources.files("modeling_lingene.hub_cards").joinpath("TEMPLATE.md").read_text(encoding="utf-8")
    return ModelCard.from_template(
        _metadata(name, license_of(folder, license), config, head, rows, converted, trained),
        template_str=template,
        text=text,  # how the template shows what it does not know
        code=code,
        name=name,
        conversion=converted,
        **({} if converted is None else told_of(converted)),
        training=trained,
        made_how=made_how(trained),
        head=head,
        examples=examples,
        config=config,
        layers=layers_of(config),
        shape=shape_of(config),
        **images_of(config, processor_or_none(folder)),
        family=config.stands_for,
        widths=", ".join(map(str, config.legal_width_ratios)),
        table=size_table(rows, fetched=bundle.download_bytes) if rows else None,
        sizes=len(rows),
        pictures=pictures(folder, rows, converted),
        explained=_explained(rows, config) if rows else "",
        metric=METRICS[metric_of(rows)],
        timing=told_timing(rows),
        error=told_error(rows),
        classes=_classes(config),
        limits=limits(config, head, rows, trained),
        stored=readable(config.stored_params(config.size(), head)),
        citations=bibtex(papers(config, trained)),
    ).content


def _metadata(
    name: str,
    license: str | None,
    config: BundleConfig,
    head: bool,
    rows: list[dict],
    converted: dict | None,
    trained: dict | None,
) -> ModelCardData:
    """The header of a card: what the Hub's buttons, filters and results come from."""
    task = "image-classification" if head else "image-feature-extraction"
    base = names_on_the_hub(trained["base_model"] if trained else converted["source"] if converted else None)
    return ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag=task,
        tags=["lingene", "vision", "elastic"],
        datasets=names_on_the_hub(*([trained["dataset"]] if trained else []), *(row["dataset"] for row in rows))
        or None,
        base_model=base[0] if base else None,
        metrics=metrics_in(rows, metric_of(rows)) if rows else None,
        model_name=name,
        eval_results=results(rows, config, task) or None,
    )


def check_repo_id(repo_id: str) -> None:
    """Refuse what can be no repository's name on the Hub."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        said = " ".join(str(error).split())
        raise ValueError(f"`repo_id` must be a name on the Hub such as org/name, got {repo_id!r}: {said}") from None


@contextmanager
def reaching(repo_id: str) -> Iterator[None]:
    """Around calls to the Hub: where there is no connection, an error that names the repository.

    What the Hub answers is an OSError already, and says it itself.

    Raises:
        ConnectionError: the HTTP library's own error, in words.
    """
    try:
        yield
    except OSError:
        raise
    except HTTP_ERROR as error:
        raise ConnectionError(f"{repo_id} cannot be pushed to: {error}") from error


def told_of(converted: dict) -> dict[str, str | bool]:
    """How a conversion was fitted and what it kept, for the template."""
    return {"fitted": fitted(converted), "kept": kept(converted), "verdict": verdict(converted)}


def _rows(bundle: Bundle) -> list[dict]:
    """The measured sizes, their widths as the configuration writes them."""
    return [{**row, "width_ratio": str(Fraction(row["width_ratio"]))} for row in bundle.measured()]


def _explained(rows: list[dict], config: BundleConfig) -> str:
    """What the columns of the table say, in Markdown."""
    on = ", ".join(sorted({f"{row['dataset']} ({row['split']})" for row in rows}))
    against = ", ".join(sorted({row["reference"] for row in rows if "reference" in row}))
    words = {"on": text(on), "reference": text(against), "token": image_token_name(config)}
    return " ".join(EXPLAINED[name].format(**words) for name in metrics_in(rows, metric_of(rows)))


def _classes(config: BundleConfig) -> str:
    names = [str(config.id2label[index]) for index in sorted(config.id2label)]
    return ", ".join(names[:50]) + (f", ... ({len(names)} in all)" if len(names) > 50 else "")


def _example(config: BundleConfig, converted: dict | None) -> dict:
    """The size in the card's loading example where none was measured: about half of all; of a converted bundle, whose
    prefixes are no models, the greatest depth whose layers were chosen.
    """
    if converted:
        return {"depth": max(config.depth_rows or [config.size().depth])}
    size, trained = config.size(), [Fraction(ratio) for ratio in config.trained_width_ratios]
    example = {"num_components": max(1, size.num_components // 2)}
    if isinstance(size.depth, int):
        example = {"depth": max(1, size.depth // 2), **example}
    return keywords(example | {"width_ratio": str(max(trained, default=1))}, config)


def write_card(folder: str | os.PathLike, repo_id: str | None = None, **named: str | None) -> None:
    """Render the card into a bundle folder's README, between its marks; arguments as for `render_card`.

    What people wrote there is kept, and told (`readme.py`).
    """
    card, folder = render_card(folder, repo_id, **named), Path(folder)
    write_readme(folder, card, read_page(folder), _asked(named))


def write_pushed_card(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    revision: str | None = None,
    token: bool | str | None = None,
    **named: str | None,
) -> None:
    """`write_card` for a push to a repository that is there: what people wrote in its README is kept as well.

    Raises:
        ValueError: people wrote in both since they were the same.
        OSError: the Hub cannot be reached, or refuses.
    """
    folder = Path(folder)
    with reaching(repo_id):
        there = page_on_the_hub(repo_id, revision, named.get("subfolder"), token)
    kept = agreed(read_page(folder), there, (str(folder), repo_id))
    write_readme(folder, render_card(folder, repo_id, **named), kept, _asked(named), pushed=True)


def _asked(named: dict[str, str | None]) -> set[str]:
    """Fields of the header that are asked for by name."""
    return {"license"} if named.get("license") else set()


def page_on_the_hub(
    repo_id: str, revision: str | None = None, subfolder: str | None = None, token: bool | str | None = None
) -> Page | None:
    """The README of a repository; None where it has none.

    Args:
        revision: where it is yet to be, it begins as the main branch.
    """
    with tempfile.TemporaryDirectory() as place:
        asked = {"filename": CARD_FILE, "subfolder": subfolder, "local_dir": place}
        try:
            try:
                path = HfApi(token=token).hf_hub_download(repo_id, revision=revision, **asked)
            except RevisionNotFoundError:
                path = HfApi(token=token).hf_hub_download(repo_id, **asked)
        except LocalEntryNotFoundError:  # the Hub cannot be reached
            raise
        except EntryNotFoundError:
            return None
        page = parsed(Path(path).read_text(encoding="utf-8"), repo_id)
    if page.edited:
        logger.warning(f"{CARD_FILE} of {repo_id} was changed between its marks: the commit before this one has it.")
    return page


def refresh_card(folder: str | os.PathLike) -> Path | None:
    """Render a bundle folder's card again where it has one of ours: under the name and the licence that it has.

    Returns:
        The card; None where there is none, or another page.

    Raises:
        ValueError: its header, or a file that it tells of, is damaged.
    """
    path = Path(folder) / CARD_FILE
    if not path.is_file():
        return None
    license_of(Path(folder), None)  # refuses a damaged header
    header, page = metadata_load(path) or {}, path.read_text(encoding="utf-8")
    if "lingene" not in (header.get("tags") or ()):
        return None
    subfolder = re.search(r"\bsubfolder=(['\"])(.+?)\1", page)
    write_card(folder, title=_name_in(header), subfolder=subfolder and subfolder[2])
    return path


def _name_in(header: dict) -> str | None:
    """The name that a card's header gives its model: with results it stands among them."""
    results = header.get("model-index")
    first = results[0] if isinstance(results, list) and results and isinstance(results[0], dict) else {}
    name = header.get("model_name", first.get("name"))
    return name if isinstance(name, str) else None


def push(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    license: str | None = None,
) -> str:
    """Push a bundle with its card, in one commit, and verify it by loading it back in a clean process.

    What else lies in the folder is not sent; a warning names it.

    Args:
        folder: a bundle; checked before anything is sent, changed only by its rendered card, and by what people have
            written into the repository's since.
        repo_id: created where it is missing.
        private: of a new repository.
        revision: branch; created where it is missing.
        subfolder: of the repository, for one of several bundles in it; its code goes to the root, in a commit before.
        license: see `render_card`.

    Returns:
        The commit's URL.

    Raises:
        ValueError: the folder is not a complete bundle; `repo_id` can be no repository's name; people changed the card
            both here and there.
        OSError: the Hub cannot be reached, or refuses.
        RuntimeError: the folder does not load in a clean process, and nothing was sent; or what was pushed does not
            load to the same model: says how it differs.
    """
    check_repo_id(repo_id)
    config = check_folder(folder)
    size, head = least_size(config), Bundle(folder, config).has_head
    check_loads(_auto_class(head), str(folder), _asked_for(size))
    with reaching(repo_id):
        repo_id = ensure_repo(repo_id, private=private)
    write_pushed_card(folder, repo_id, revision=revision, subfolder=subfolder, license=license)
    sent = {"also": SHOWN, "revision": revision, "subfolder": subfolder, "commit_message": "Upload bundle"}
    with reaching(repo_id):
        commit = push_bundle(folder, repo_id, **sent)
    place = {"revision": commit.oid, **({"subfolder": subfolder} if subfolder else {})}
    verify(str(folder), repo_id, place, size, head)
    return commit.commit_url


def _auto_class(head: bool) -> str:
    return "AutoModelForImageClassification" if head else "AutoModel"


def verify(folder: str, repo_id: str, place: dict[str, str], size: Size, head: bool = True) -> None:
    """Load one size of a pushed bundle without this package and compare its logits with the folder's.

    Args:
        place: in the repository: `revision` and perhaps `subfolder`.
    """
    asked = _asked_for(size)
    # Without a head a random classifier would be compared.
    verify_loads(_auto_class(head), (folder, asked), (repo_id, {**asked, **place}))


def _asked_for(size: Size) -> dict[str, int | str | bool]:
    asked = {"depth": size.depth, "width_ratio": str(size.width_ratio), "num_components": size.num_components}
    return {**asked, "allow_untrained": True}


def check_loads(auto_class: str, folder: str, asked: dict) -> None:
    """Load a folder in a process without this package, before anything of it is public.

    Args:
        asked: keywords of `from_pretrained`.

    Raises:
        RuntimeError: it does not load.
    """
    _answers(auto_class, (folder, asked))


def verify_loads(auto_class: str, here: tuple[str, dict], there: tuple[str, dict]) -> None:
    """Compare what a folder and the repository it was pushed to give, in a process without this package.

    Args:
        here, there: name and keywords of `from_pretrained`.
    """
    (folder, _), (repo_id, _) = here, there
    logits = _answers(auto_class, here, there)
    if not torch.allclose(*logits, rtol=1e-5, atol=1e-5):
        difference = (logits[0] - logits[1]).abs().max().item()
        raise RuntimeError(f"{repo_id} was pushed, but its logits differ from {folder}'s by up to {difference:.3g}.")


def _answers(auto_class: str, *places: tuple[str, dict]) -> list[torch.Tensor]:
    """What the model at each place gives for one image, in a process without this package; the first that does not
    load is named.
    """
    command = [sys.executable, "-c", VERIFY, json.dumps([auto_class, places])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    if done.returncode != 0:
        name, _ = places[min(len(lines), len(places) - 1)]
        raise RuntimeError(f"{name} does not load in a clean process:\n{done.stderr[-2000:]}")
    return [torch.tensor(json.loads(line)) for line in lines]
