"""The card of a pruned model, from its measured numbers, and the way of its folder to the Hub."""

import glob
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..bundle_lingene import READOUT_FILE
from ..card import license_of, names_on_the_hub
from ..citations import bibtex
from ..folders import model_type_of
from ..hub import check_loads, check_repo_id, page_on_the_hub, reaching, verify_loads
from ..kinds import PRUNED, PRUNED_TYPES
from ..lingene_pruned import KERNELS
from ..markdown import code, text
from ..measuring.tables import aligned_table, readable
from ..reading_lingene import read_json
from ..readme import CARD_FILE, Page, agreed, read_page, write_readme
from ..readout import TURNED, is_turned
from ..saving_lingene import TRAINING_FILE, ensure_repo
from .picture import LAYER_PARTS


PICTURE = "layers.png"
NETWORKS = {"vit": "Vision Transformer", "swin": "Swin Transformer"}
SENT = (
    CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    TRAINING_FILE,
    READOUT_FILE,
    CARD_FILE,
    PICTURE,
    "LICENSE",
    SAFE_WEIGHTS_NAME,
)
SENT += (SAFE_WEIGHTS_INDEX_NAME, "model-*-of-*.safetensors", "*_lingene.py", "lingene_*.py")
PAGE = """---
{header}
---

# {name}

A {network} pruned to {share} of its multiply-accumulates: {became} (SPViT, He et al., TPAMI 2024, arXiv
2111.11802). Plain modules, no masks. Pruned from {origin} with `lingene prune`.

```python
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("FOLDER OR NAME"{trust})
```

{table}

Accuracy on {images}; MACs and latency are of one image, latency on {device}.

![{layers}]({picture})
{turned}
{citations}
"""


def prune_table(rows: Sequence[dict]) -> str:
    """Before and after, as a Markdown table."""
    lines = [["", "accuracy", "MACs", "parameters", "latency"]]
    for row in rows:
        cells = [row["name"], f"{100 * row['accuracy']:.1f} %", readable(row["macs"]), readable(row["params"])]
        lines.append([*cells, f"{row['latency_ms']:.2f} ms"])
    return aligned_table(lines)


def became(layers: Sequence[dict]) -> str:
    """What layers became, in words.

    Args:
        layers: each with `mixer`, one of `LAYER_PARTS`, `units`, of its MLP, and `of`, as many as it had.
    """
    mixers = [layer["mixer"] for layer in layers]
    small, none = sum(mixers.count(mixer) for mixer in KERNELS), mixers.count("none")
    others = [f"a small convolution in {small}"] * bool(small) + [f"nothing in {none}"] * bool(none)
    mixed = f"attention has become {' and '.join(others)} of {len(mixers)} layers"
    left, whole = (sum(layer[name] for layer in layers) for name in ("units", "of"))
    units = f"{left} of {whole} MLP units are left" if left < whole else "no MLP has lost a unit"
    return f"{mixed if others else 'every layer has kept its attention'}, and {units}"


def write_pruned_card(folder: Path, results: dict, picture: Path, config: PretrainedConfig) -> None:
    """The card and its picture, into the folder of the model that the results are of.

    Args:
        config: of the model, a pruned network's or the family's own.
    """
    row, source = results["rows"][-1], results["identity"]["model"]
    base = [] if Path(source).exists() else names_on_the_hub(source)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["lingene", "vision", "pruning"],
        datasets=names_on_the_hub(row["dataset"]) or None,
        base_model=base[0] if base else None,
        metrics=["accuracy"],
        model_name=folder.resolve().parent.name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=row["dataset"],
                dataset_name=row["dataset"],
                dataset_split=row["split"],
                metric_type="accuracy",
                metric_name="Accuracy",
                metric_value=row["accuracy"],
            )
        ],
    )
    mixers = [layer["mixer"] for layer in results["layers"]]
    counts = ", ".join(f"{mixers.count(mixer)} {LAYER_PARTS[mixer][2]}" for mixer in LAYER_PARTS if mixer in mixers)
    page = PAGE.format(
        header=data.to_yaml(),
        name=text(folder.resolve().parent.name),
        share=f"{100 * results['share']['macs']:.3g} %",
        became=became(results["layers"]),
        origin=code(Path(source).name),
        network=NETWORKS[getattr(config, "family", config.model_type)],
        trust="" if config.model_type in PRUNED else ", trust_remote_code=True",
        table=prune_table(results["rows"]),
        images=text(f"{row['dataset']} ({row['split']})"),
        device=text(row["device"]),
        layers=f"What the {len(mixers)} layers became: {counts}",
        picture=PICTURE,
        turned=f"\n{TURNED}\n" if is_turned(config.to_dict()) else "",
        citations=bibtex(["spvit"]),
    )
    shutil.copyfile(picture, folder / PICTURE)
    write_readme(folder, ModelCard(page).content, read_page(folder))


def is_pruned(folder: str | Path) -> bool:
    """Whether a folder holds what `lingene prune` writes: a class of its own, or a stock model that says so.

    Raises:
        ValueError: what it says is damaged.
    """
    kind, said = model_type_of(folder), Path(folder) / TRAINING_FILE
    if kind not in PRUNED or not said.is_file():
        return kind in PRUNED_TYPES
    return str(read_json(said, str(folder)).get("command")).startswith("lingene prune ")


def sent_files(folder: Path) -> list[str]:
    """Names of the files that a pruned model's folder consists of; none in folders, where it has none."""
    names = (path.name for path in folder.iterdir() if path.is_file())
    return sorted(name for name in names if any(fnmatch(name, pattern) for pattern in SENT))


def push_pruned(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    license: str | None = None,
) -> str:
    """Push a pruned model with its code and card, in one commit, and verify it by loading it back in a clean process.

    A stock model, too, which pruning leaves where all layers are alike; it has no code.

    What else lies in the folder is not sent.

    Args:
        license: by its name on the Hub, written into the folder's card; default the one that it names already.

    Returns:
        The commit's URL.

    Raises:
        ValueError: `folder` holds no pruned model; `repo_id` can be no repository's name, `license` no licence's.
        OSError: the Hub cannot be reached, or refuses.
        RuntimeError: the folder does not load in a clean process, and nothing was sent; or what was pushed does not
            load to the same model: says how it differs.
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    if not is_pruned(folder):
        raise ValueError(f"`folder` {folder} must hold a pruned model.")
    AutoConfig.from_pretrained(folder)
    license_of(folder, license)
    check_loads("AutoModelForImageClassification", str(folder), {})
    own = read_page(folder) or Page({}, "")
    with reaching(repo_id):
        repo_id, api = ensure_repo(repo_id, private=private), HfApi()
        there = page_on_the_hub(repo_id, revision)
    kept = agreed(own, there, (str(folder), repo_id))
    write_readme(folder, own.card(license=license), kept, {"license"} if license else (), pushed=True)
    with reaching(repo_id):
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            allow_patterns=list(map(glob.escape, sent_files(folder))),
            commit_message="Upload pruned model",
        )
    verify_loads("AutoModelForImageClassification", (str(folder), {}), (repo_id, {"revision": commit.oid}))
    return commit.commit_url
