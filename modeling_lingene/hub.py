"""Cards, measured sizes, pushing: what turns a bundle folder into a repository on the Hub.

The card is rendered from `config.json`, `sizes.json` and the template in `hub_cards/`; no number in it is typed. A
push is verified by loading the repository back in a process of its own.
"""

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from importlib import resources
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_INDEX_NAME
from transformers.utils.hub import cached_file

from .bundle_lingene import SIZES_FILE, Bundle
from .configuration_lingene import LinGeneConfig, Size
from .saving_lingene import bundle_weights_id, ensure_repo, push_bundle


CARD_FILE, CONVERSION_FILE = "README.md", "conversion.json"
SIZE_PICTURES = ("sizes.png", "sizes_heat.png")
DESCRIBED = ("hidden_size", "num_attention_heads", "intermediate_size", "image_size", "patch_size", "num_channels")
DESCRIBED += ("num_labels", "basis", "nodes", "start_degree", "depth_map")
VERIFY = """
import json, sys
import torch
import transformers

name, auto_class, kwargs = json.loads(sys.argv[1])
sys.modules["modeling_lingene"] = None  # as on a machine without the package: the code comes from the repository
model = getattr(transformers, auto_class).from_pretrained(name, trust_remote_code=True, **kwargs)
size = model.config.image_size
height, width = (size, size) if isinstance(size, int) else size
pixels = torch.linspace(-1, 1, model.config.num_channels * height * width).view(1, -1, height, width)
with torch.no_grad():
    output = model(pixels.to(model.dtype))
    values = output.logits if hasattr(output, "logits") else output.last_hidden_state[:, 0]
    print(json.dumps(values.float().flatten().tolist()))
"""


def read_config(bundle: str | os.PathLike, **hub) -> LinGeneConfig:
    """The configuration of a bundle.

    Raises:
        ValueError: the name is a model, but not a bundle; or nothing is there.
    """
    if not os.path.isdir(bundle) and (os.path.isabs(bundle) or str(bundle).count("/") > 1 or str(bundle)[:1] == "."):
        raise ValueError(f"`bundle` must be a folder or a name on the Hub, and there is no folder {bundle}.")
    try:
        config = AutoConfig.from_pretrained(bundle, **hub)
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and str(error).startswith("`"):
            raise
        raise ValueError(f"`bundle` {bundle} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(config, LinGeneConfig):
        raise ValueError(f"`bundle` {bundle} is a {config.model_type} model, not a bundle of shared components.")
    return config


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place and rename it, so that no half-written one is ever seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_sizes(folder: str | os.PathLike, rows: list[dict]) -> None:
    """`sizes.json` of a bundle folder, tied to its weights."""
    write_json(Path(folder) / SIZES_FILE, {"weights_id": bundle_weights_id(folder), "sizes": rows})


def check_folder(folder: str | os.PathLike) -> LinGeneConfig:
    """The configuration of a bundle folder whose weights are the ones that its index and sizes speak of.

    Raises:
        ValueError: no bundle, a file missing, or `weights_id` of index or sizes not that of the files.
    """
    folder = Path(folder)
    if not (folder / CONFIG_NAME).is_file() or not (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        raise ValueError(f"`bundle` {folder} must be a folder with {CONFIG_NAME} and {SAFE_WEIGHTS_INDEX_NAME}.")
    config = read_config(folder)
    bundle = Bundle(folder, config)
    missing = sorted(file for file in set(bundle.weight_map.values()) if not (folder / file).is_file())
    if missing:
        raise ValueError(f"`bundle` {folder} lacks {', '.join(missing)}; save it again.")
    if bundle_weights_id(folder) != bundle.weights_id:
        raise ValueError(f"`weights_id` of {folder} is not that of its weight files; save the bundle again.")
    bundle.measured()
    return config


def describe(bundle: str | os.PathLike, **hub) -> tuple[dict, list[dict]]:
    """What a bundle holds, as JSON takes it, and the rows of its `sizes.json`; no weights are read or downloaded."""
    config = read_config(bundle, **hub)
    facts = {
        "bundle": str(bundle),
        "weights_id": config.weights_id,
        "depth": config.reference_depth,
        "trained_depths": list(config.trained_depths),
        "num_components": config.reference_components,
        "trained_width_ratios": list(config.trained_width_ratios),
        "legal_width_ratios": [str(ratio) for ratio in config.legal_width_ratios],
        "stored_params": config.stored_params(config.size()),
    }
    for field in DESCRIBED:
        facts[field] = getattr(config, field)
    return facts, Bundle(bundle, config, hub).measured()


@contextmanager
def complete_or_absent(out: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when the block ends well and is gone when it does not.

    Args:
        out: new or empty.
    """
    out = Path(os.path.abspath(out))
    staging = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.partial"
    staging.mkdir(parents=True)
    try:
        yield staging
        if out.exists():  # empty, and perhaps somebody's working directory: filled, not replaced; config.json last
            for file in sorted(staging.iterdir(), key=lambda path: path.name == CONFIG_NAME):
                os.replace(file, out / file.name)
        else:
            os.replace(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_empty(out: str | os.PathLike) -> None:
    """Refuse a place for a result that holds something."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"`out` {out} must be a new or empty folder.")


def publish_model(model: PreTrainedModel, source: str | os.PathLike, out: Path, **hub) -> None:
    """Save a materialised model with its bundle's preprocessing, as a folder that is complete or absent."""
    with complete_or_absent(out) as staging:
        model.save_pretrained(staging)
        processor = cached_file(source, IMAGE_PROCESSOR_NAME, _raise_exceptions_for_missing_entries=False, **hub)
        if processor is not None:
            shutil.copyfile(processor, staging / IMAGE_PROCESSOR_NAME)


def size_table(rows: list[dict]) -> str:
    """Measured sizes as a Markdown table, the most accurate first; `-` where a number was not measured."""
    columns = ["depth", "width", "components", "accuracy", "parameters", "download", "MACs"]
    timed = any("latency_ms" in row for row in rows)
    lines = [columns + ["latency"] * timed]
    for row in sorted(rows, key=lambda row: (-row["accuracy"], row["macs"], row["stored_params"])):
        cells = [row["depth"], row["width_ratio"], row["num_components"] or "-", f"{100 * row['accuracy']:.1f} %"]
        cells += [readable(row["params"]), readable(row["stored_params"]), readable(row["macs"])]
        cells += [f"{row['latency_ms']:.2f} ms" if "latency_ms" in row else "-"] * timed
        lines.append([str(cell) for cell in cells])
    return aligned_table(lines)


def aligned_table(lines: list[list[str]]) -> str:
    """A Markdown table, right-aligned; the first line is the heading."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    drawn = ["| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
    return "\n".join([drawn[0], "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|", *drawn[1:]])


def readable(count: float) -> str:
    """1234567 -> `1.23 M`: three digits and a unit."""
    for unit in ("", " k", " M", " G"):
        rounded = float(f"{count:.3g}")
        if rounded < 1000:
            return f"{rounded:g}{unit}"
        count /= 1000
    return f"{count:.3g} T"


def render_card(folder: str | os.PathLike, repo_id: str | None = None) -> str:
    """The model card of a bundle folder, from its configuration and measured sizes.

    Args:
        repo_id: name in the loading example; default the folder's.
    """
    folder = Path(folder)
    config = read_config(folder)
    bundle = Bundle(folder, config)
    rows, head, converted = bundle.measured(), bundle.has_head, _conversion(folder)
    name = repo_id or folder.resolve().name
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification" if head else "image-feature-extraction",
        tags=["lingene", "vision", "elastic"],
        datasets=sorted({row["dataset"] for row in rows if "/" in row["dataset"]}) or None,
        model_name=name,
    )
    classes = [config.id2label[index] for index in sorted(config.id2label)]
    template = resources.files("modeling_lingene.hub_cards").joinpath("TEMPLATE.md").read_text(encoding="utf-8")
    return ModelCard.from_template(
        data,
        template_str=template,
        repo_id=name,
        conversion=converted,
        auto_class=_auto_class(head),
        head=head,
        example=", ".join(f"{key}={value!r}" for key, value in _example(config, rows, converted).items()),
        config=config,
        widths=", ".join(map(str, config.legal_width_ratios)),
        table=size_table(rows) if rows else None,
        pictures=[name for name in SIZE_PICTURES if rows and (folder / name).is_file()],
        measured_on=sorted({f"{row['dataset']} ({row['split']})" for row in rows}),
        devices=sorted({row["device"] for row in rows if "device" in row}),
        classes=", ".join(classes[:50]) + (f", ... ({len(classes)} in all)" if len(classes) > 50 else ""),
        stored=readable(config.stored_params(config.size())),
    ).content


def _conversion(folder: Path) -> dict | None:
    """The report of the conversion that a bundle comes from."""
    path = folder / CONVERSION_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _example(config: LinGeneConfig, rows: list[dict], converted: dict | None) -> dict:
    """The size in the card's loading example: the best of the measured ones that are less deep than the best; of a
    converted bundle, whose prefixes are no models, the greatest depth whose layers were chosen.
    """
    if rows:
        best = max(rows, key=lambda row: (row["accuracy"], -row["macs"]))
        smaller = [row for row in rows if row["depth"] < best["depth"]] or rows
        chosen = max(smaller, key=lambda row: (row["accuracy"], -row["macs"]))
        example = {key: chosen[key] for key in ("depth", "num_components", "width_ratio")}
    elif converted:
        return {"depth": max(config.depth_rows or [config.size().depth])}
    else:
        size, trained = config.size(), [Fraction(ratio) for ratio in config.trained_width_ratios]
        example = {"depth": max(1, size.depth // 2), "num_components": max(1, size.num_components // 2)}
        example["width_ratio"] = str(max(trained, default=1))
    if example["width_ratio"] not in config.trained_width_ratios:
        example["allow_untrained"] = True
    if example["width_ratio"] == "1":
        del example["width_ratio"]
    return example


def write_card(folder: str | os.PathLike, repo_id: str | None = None) -> None:
    """Render the card into a bundle folder."""
    write_text(Path(folder) / CARD_FILE, render_card(folder, repo_id) + "\n")


def push(folder: str | os.PathLike, repo_id: str, *, private: bool | None = None, revision: str | None = None) -> str:
    """Push a bundle folder with its card, in one commit, and verify it by loading it back in a clean process.

    Args:
        folder: a bundle; checked before anything is sent, changed only by its rendered card.
        repo_id: created where it is missing.
        private: of a new repository.
        revision: branch; created where it is missing.

    Returns:
        The commit's URL.

    Raises:
        ValueError: the folder is not a complete bundle.
        RuntimeError: what was pushed does not load to the same model; says how it differs.
    """
    config = check_folder(folder)
    try:
        repo_id = ensure_repo(repo_id, private=private)
        write_card(folder, repo_id)
        commit = push_bundle(folder, repo_id, revision=revision, commit_message="Upload bundle")
    except (OSError, ValueError):
        raise
    except Exception as error:  # what the HTTP library of the day raises without a network
        raise ConnectionError(f"{repo_id} cannot be pushed to: {error}") from error
    size = Size(1, min(config.legal_width_ratios), 1)  # the least to download that still reads every kind of tensor
    verify(str(folder), repo_id, commit.oid, size, Bundle(folder, config).has_head)
    return commit.commit_url


def _auto_class(head: bool) -> str:
    return "AutoModelForImageClassification" if head else "AutoModel"


def verify(folder: str, repo_id: str, revision: str, size: Size, head: bool = True) -> None:
    """Load one size of a pushed bundle without this package and compare its logits with the folder's."""
    asked = {"depth": size.depth, "width_ratio": str(size.width_ratio), "num_components": size.num_components}
    asked["allow_untrained"] = True
    auto_class, logits = _auto_class(head), []  # without a head a random classifier would be compared
    for name, kwargs in ((folder, asked), (repo_id, {**asked, "revision": revision})):
        command = [sys.executable, "-c", VERIFY, json.dumps([name, auto_class, kwargs])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{name} does not load in a clean process:\n{done.stderr[-2000:]}")
        logits.append(torch.tensor(json.loads(done.stdout.splitlines()[-1])))
    if not torch.allclose(*logits, rtol=1e-5, atol=1e-5):
        difference = (logits[0] - logits[1]).abs().max().item()
        raise RuntimeError(f"{repo_id} was pushed, but its logits differ from {folder}'s by up to {difference:.3g}.")
