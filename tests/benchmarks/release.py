"""Make a released bundle's folder in `hub_cards/`: half precision, every size measured anew, card, today's code, how
it was trained, and a few pictures with what two sizes say of them.

python tests/benchmarks/release.py RUN/bundle hub_cards/lingene-fashion-mnist --data FOLDER
python tests/benchmarks/release.py hub_cards/lingene-fashion-mnist --data FOLDER     # code, card and predictions alone
python tests/benchmarks/release.py hub_cards/lingene-fashion-mnist                   # code and card alone
python tests/benchmarks/release.py RUN/bundle hub_cards/NAME --data FOLDER --totals 1,2,4,9 --pictures digits
python tests/benchmarks/release.py RUN/bundle hub_cards/NAME --data JUDGED --reference SOURCE --set imagenette_128

The last is of an encoder, measured by the cosine with what it was made of, k-NN and a linear probe. A folder that
would be too large for git has no weights, and so no code and no predictions: its card says how to make them, with
`--whole` and another folder.
"""

import argparse
import base64
import dataclasses
import io
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import modeling_lingene
from lingene.options import integers
from modeling_lingene import LinGeneConfig, LinGeneForImageClassification, LinGeneModel
from modeling_lingene.bundle_lingene import Bundle
from modeling_lingene.folders import (
    PREDICTIONS_FILE,
    bundle_weights_id,
    check_folder,
    read_training,
    write_json,
    write_sizes,
    write_training,
)
from modeling_lingene.hub import write_card
from modeling_lingene.images.batches import batches, image_processor
from modeling_lingene.images.data import load_images
from modeling_lingene.measuring.features import no_pooler
from modeling_lingene.measuring.plots import plot_heat, plot_sizes
from modeling_lingene.measuring.sweep import measure_sizes, sweep
from modeling_lingene.measuring.tables import size_table
from modeling_lingene.zoo import OWNER


PACKAGE = Path(modeling_lingene.__file__).parent
PICTURES, SIDE = 4, 64  # recorded, pixels at most
LARGEST = 20e6  # bytes of a folder
LICENSES = {"lingene-vit-small-14": "mit"}  # of what a bundle was made of; else our own


def refresh(folder: Path) -> None:
    """The code that travels with the bundle as it is today, and the card."""
    models = PACKAGE / "modeling_lingene.py"
    if whole(folder):
        check_folder(folder)
        for file in (models, *map(Path, get_relative_import_files(models))):
            shutil.copyfile(file, folder / file.name)
    write_card(folder, f"{OWNER}/{folder.name}", license=LICENSES.get(folder.name, "apache-2.0"))


def whole(folder: Path) -> bool:
    """Whether the weights are in it."""
    return any(folder.glob("*.safetensors"))


def release_encoder(
    bundle: Path, folder: Path, data: str, reference: str, name: str | None, with_weights: bool
) -> None:
    """All of the folder but code, card and predictions, of a bundle without classifier.

    Args:
        data: labelled parts `train`, which votes and fits the probe, and `test`.
        reference: the encoder that it was made of.
        name: of the set that `data` is a part of, for the card; default as the folder is called.
        with_weights: however large they are.
    """
    config = LinGeneConfig.from_pretrained(bundle)
    with tempfile.TemporaryDirectory() as work:
        made = Path(work) / folder.name
        LinGeneModel.from_pretrained(bundle, constrained=True, dtype=torch.float16).save_pretrained(made)
        AutoImageProcessor.from_pretrained(bundle).save_pretrained(made)
        train, test = load_images(data, "train"), load_images(data, "test")
        test = dataclasses.replace(test, name=name or test.name)
        asked = {"metric": "probe,knn,cosine", "train": train, "reference": reference}
        rows = sweep(made, test, components=(config.reference_components,), device="cpu", **asked)
        trained = read_training(bundle, Bundle(bundle, config).weights_id)
        if trained is not None:
            write_training(made, trained | {"dataset": test.name})  # a benchmark calls its parts of the set `pictures`
        folder.mkdir(parents=True, exist_ok=True)
        large = not with_weights and sum(file.stat().st_size for file in made.iterdir()) > LARGEST
        for file in made.iterdir():
            if file.suffix in (".json", ".png") or (file.suffix == ".safetensors" and not large):
                shutil.copyfile(file, folder / file.name)
    print(size_table(rows))


def release(bundle: Path, folder: Path, data: str, totals: Sequence[int] = ()) -> None:
    """All of the folder but code, card and predictions.

    Args:
        totals: numbers of components to measure; default those that the bundle's own sizes have.
    """
    rows = Bundle(bundle, LinGeneConfig.from_pretrained(bundle)).measured()
    model = LinGeneForImageClassification.from_pretrained(bundle, constrained=True, dtype=torch.float16)
    for old in (*folder.glob("*.safetensors"), *folder.glob("*.json")):  # a save over another one names its files anew
        old.unlink()
    model.save_pretrained(folder)
    processor = image_processor(model.config.image_size)
    processor.save_pretrained(folder)
    config, test = model.config, load_images(data, "test")
    totals = totals or sorted({row["num_components"] for row in rows})
    widths = config.trained_width_ratios
    sizes = [(depth, width, total) for depth in config.trained_depths for width in widths for total in totals]
    measured = measure_sizes(folder, batches(test, processor, 500), sizes, threads=1)
    write_sizes(folder, measured)
    plot_sizes(measured, folder / "sizes.png")
    plot_heat(measured, folder / "sizes_heat.png")
    trained = read_training(bundle, Bundle(bundle, config).weights_id)
    if trained is not None:
        write_training(folder, trained | {"dataset": test.name})  # a benchmark calls its parts of the set `data`
    print(size_table(measured))


def record(folder: Path, images: Sequence) -> None:
    """`predictions.json`: pictures, and the logits, or class tokens, of two measured sizes, the first and the last, by
    stock models that were saved and loaded without our code.

    Args:
        images: PIL images, the first of which are taken, made small.
    """
    processor, pictures, sizes = AutoImageProcessor.from_pretrained(folder), [], []
    for index in range(PICTURES):
        picture = images[index].convert("RGB")
        picture.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        picture.save(file, "PNG", optimize=True)
        pictures.append(base64.b64encode(file.getvalue()).decode())
    pixels = processor([opened(one) for one in pictures], return_tensors="pt")["pixel_values"]
    bundle = Bundle(folder, LinGeneConfig.from_pretrained(folder))
    head, rows = bundle.has_head, bundle.measured()
    for row in (rows[0], rows[-1]):
        size = {name: row[name] for name in ("depth", "width_ratio", "num_components")}
        load = AutoModelForImageClassification if head else AutoModel
        with tempfile.TemporaryDirectory() as work, torch.no_grad():
            model = load.from_pretrained(folder, dtype=torch.float32, **size)
            model.save_pretrained(work)
            kept = {} if head else no_pooler(model.config)
            output = getattr(transformers, type(model).__name__).from_pretrained(work, **kept).eval()(pixels)
        values = output.logits if head else output.last_hidden_state[:, 0]
        sizes.append({**size, "outputs": [[round(value, 5) for value in line] for line in values.tolist()]})
    identity = bundle_weights_id(folder)
    write_json(folder / PREDICTIONS_FILE, {"weights_id": identity, "pictures": pictures, "sizes": sizes})


def opened(picture: str) -> Image.Image:
    """A recorded picture."""
    return Image.open(io.BytesIO(base64.b64decode(picture)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--data")
    parser.add_argument("--totals", type=integers, default=(), help="of a bundle that was never measured: 1,2,4")
    parser.add_argument("--reference", help="of an encoder: what it was made of")
    parser.add_argument("--pictures", help="a set whose pictures may be given away, where those of --data may not")
    parser.add_argument("--set", help="of an encoder: what the set is called that --data is a part of")
    parser.add_argument("--whole", action="store_true", help="of an encoder: with its weights, however large")
    arguments = parser.parse_args()
    folder = arguments.folder or arguments.bundle
    if arguments.folder is not None and arguments.reference:
        asked = arguments.data, arguments.reference, arguments.set, arguments.whole
        release_encoder(arguments.bundle, folder, *asked)
    elif arguments.folder is not None:
        release(arguments.bundle, folder, arguments.data, arguments.totals)
    if arguments.data is not None and whole(folder):
        record(folder, load_images(arguments.pictures or arguments.data, "test").images)
    refresh(folder)


if __name__ == "__main__":
    main()
