"""Someone with a trained ViT: converts it without loss, fits a smaller one on pictures, trains it on, exports it.

pytest -m slow -s tests/journeys/test_owner.py           # about two minutes on one CPU core
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification
from walking import FLOWERS, PIXELS, lingene, plant

from modeling_lingene.images.batches import image_processor, to_tensors
from modeling_lingene.images.data import load_images


pytestmark = pytest.mark.slow


def test_someone_converts_calibrates_and_exports_a_trained_vit(tmp_path, monkeypatch, capfd):
    for package in ("matplotlib", "datasets"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    plant(Path("flowers"))
    trained_vit(Path("vit"))
    lingene("evaluate vit --data flowers --out vit.json --quiet")
    before = json.loads(Path("vit.json").read_text())
    assert before["accuracy"] >= 0.8, before  # chance is 25 %

    # As it is: a bundle of as many components as layers is the same network.
    lingene("convert vit --out same --quiet")
    lingene("evaluate same --data flowers --out same.json --quiet")
    after = json.loads(Path("same.json").read_text())
    assert after["accuracy"] == before["accuracy"] and after["params"] == before["params"]
    own, ours = (AutoModelForImageClassification.from_pretrained(name).eval() for name in ("vit", "same"))
    pixels = torch.randn(4, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(own(pixels).logits, ours(pixels).logits, atol=1e-4)

    # Smaller: half of the width and two of four layers, sorted and chosen on unlabelled pictures, then trained on.
    lingene("convert vit --out start --calibrate flowers/train --images 96 --sort --widths 1/2 --depths 2 --quiet")
    assert (Path("start") / "conversion.png").is_file()
    lingene(
        "decompose --init start --data flowers --teacher vit --depths 2 --widths 1/2 --totals 4 --epochs 10 "
        "--batch-size 32 --learning-rate 0.001 --device cpu --out run --quiet"
    )
    rows = json.loads(Path("run/results.json").read_text())["sizes"]
    worth = {(row["depth"], row["width_ratio"]): row["accuracy"] for row in rows}
    assert set(worth) == {(2, "1/2"), (2, "1"), (4, "1/2"), (4, "1")} and worth[2, "1/2"] >= 0.6, worth

    # Out: a folder that stock transformers reads, without this package.
    lingene("export run/bundle --to transformers --depth 2 --width-ratio 1/2 --out small")
    small = ViTForImageClassification.from_pretrained("small").eval()
    assert small.config.num_hidden_layers == 2 and small.num_parameters() < own.num_parameters() / 3
    assert {"README.md", "training.json", "sizes.png"} <= {path.name for path in Path("run/bundle").iterdir()}
    lingene("card run/bundle --license mit")
    lingene("verify run/bundle")


def trained_vit(folder: Path) -> None:
    """A stock ViT of four layers that knows the flowers, as somebody else may have trained it."""
    names = sorted(FLOWERS)
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=PIXELS,
        patch_size=8,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    model, processor = ViTForImageClassification(config), image_processor(PIXELS)
    pixels, labels = to_tensors(load_images("flowers", "train"), processor)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(25):
        for part in torch.randperm(len(pixels)).split(32):
            optimizer.zero_grad()
            model(pixels[part], labels=labels[part]).loss.backward()
            optimizer.step()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
