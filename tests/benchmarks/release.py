"""Make a released bundle's folder in `hub_cards/`: half precision, every size measured anew, card, today's code.

python tests/benchmarks/release.py RUN/bundle hub_cards/lingene-fashion-mnist --data FOLDER
python tests/benchmarks/release.py hub_cards/lingene-fashion-mnist          # the code and the card alone
"""

import argparse
import shutil
from pathlib import Path

import torch

import modeling_lingene
from modeling_lingene import LinGeneConfig, LinGeneForImageClassification
from modeling_lingene.bundle_lingene import Bundle
from modeling_lingene.folders import check_folder, write_sizes
from modeling_lingene.hub import write_card
from modeling_lingene.images.data import batches, image_processor, load_images
from modeling_lingene.measuring.plots import plot_heat, plot_sizes
from modeling_lingene.measuring.sweep import measure_sizes
from modeling_lingene.measuring.tables import size_table


PACKAGE = Path(modeling_lingene.__file__).parent
OWNER = "modeling-lingene"


def refresh(folder: Path) -> None:
    """The code that travels with the bundle as it is today, and the card."""
    for file in PACKAGE.glob("*_lingene.py"):
        shutil.copyfile(file, folder / file.name)
    write_card(folder, f"{OWNER}/{folder.name}")
    check_folder(folder)


def release(bundle: Path, folder: Path, data: str) -> None:
    rows = Bundle(bundle, LinGeneConfig.from_pretrained(bundle)).measured()
    model = LinGeneForImageClassification.from_pretrained(bundle, constrained=True, dtype=torch.float16)
    model.save_pretrained(folder)
    processor = image_processor(model.config.image_size)
    processor.save_pretrained(folder)
    config, test = model.config, load_images(data, "test")
    totals = sorted({row["num_components"] for row in rows})
    widths = config.trained_width_ratios
    sizes = [(depth, width, total) for depth in config.trained_depths for width in widths for total in totals]
    measured = measure_sizes(folder, batches(test, processor, 500), sizes, threads=1)
    write_sizes(folder, measured)
    plot_sizes(measured, folder / "sizes.png")
    plot_heat(measured, folder / "sizes_heat.png")
    print(size_table(measured))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--data")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        release(arguments.bundle, arguments.folder, arguments.data)
    refresh(arguments.folder or arguments.bundle)


if __name__ == "__main__":
    main()
