"""Someone fine-tunes with Trainer: one size as a plain ViT, and a smaller bundle that keeps all of its sizes.

pytest -m slow -s tests/journeys/test_tuner.py           # about two minutes on one CPU core
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    ViTForImageClassification,
)
from walking import FLOWERS, lingene, plant

from modeling_lingene.images.batches import to_tensors
from modeling_lingene.images.data import load_images


pytestmark = pytest.mark.slow
SIZE = {"depth": 2, "width_ratio": "1/2"}


def test_someone_fine_tunes_with_trainer(tmp_path, monkeypatch):
    for package in ("matplotlib", "datasets"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    plant(Path("flowers"))

    # A bundle that somebody has published: hardly trained, and of two depths and widths.
    lingene(
        "decompose --data flowers --hidden-size 48 --num-attention-heads 4 --depth 4 --patch-size 8 --depths 2 "
        "--widths 1/2 --totals 4 --epochs 2 --batch-size 32 --device cpu --out published --quiet"
    )
    lingene("evaluate published/bundle --data flowers --depth 2 --width-ratio 1/2 --out before.json --quiet")

    # Free: the size is a plain ViT, and what is saved needs none of our code.
    vit = AutoModelForImageClassification.from_pretrained("published/bundle", **SIZE)
    assert type(vit) is ViTForImageClassification
    processor = AutoImageProcessor.from_pretrained("published/bundle")
    tuned(vit, processor, "free").save_model("free/model")
    assert json.loads(Path("free/model/config.json").read_text())["model_type"] == "vit"
    lingene("evaluate free/model --data flowers --out free.json --quiet")

    # Constrained: the components stay the parameters; what is saved is a bundle with its preprocessing, of every size.
    components = AutoModelForImageClassification.from_pretrained("published/bundle", constrained=True)
    trainer = tuned(components, None, "constrained")
    trainer.save_model("constrained/model")
    for folder in (Path("constrained/model"), *Path("constrained").glob("checkpoint-*")):
        assert (folder / "preprocessor_config.json").is_file() and (folder / "component-03.safetensors").is_file()
    lingene("info constrained/model")
    lingene("verify constrained/model")
    lingene("sweep constrained/model --data flowers --depths 2,4 --components 4 --no-latency --quiet")
    rows = json.loads(Path("constrained/model/sizes.json").read_text())["sizes"]
    worth = {(row["depth"], row["width_ratio"]): row["accuracy"] for row in rows}
    assert set(worth) == {(2, "1/2"), (2, "1"), (4, "1/2"), (4, "1")}

    # Both are better than what they began with; chance is 25 %.
    before, free = (json.loads(Path(f"{name}.json").read_text())["accuracy"] for name in ("before", "free"))
    print(f"\nbefore {before:.1%}, free {free:.1%}, constrained {worth[4, '1']:.1%}")
    assert free >= max(0.6, before) and worth[4, "1"] >= 0.6


def tuned(model: torch.nn.Module, processor, folder: str) -> Trainer:
    """A dozen epochs of Trainer, its checkpoints kept."""
    pixels, labels = to_tensors(
        load_images("flowers", "train"), AutoImageProcessor.from_pretrained("published/bundle")
    )
    assert labels.max() + 1 == len(FLOWERS) == model.config.num_labels
    samples = [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, labels)]
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=12,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        save_strategy="epoch",
        save_total_limit=1,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=samples, processing_class=processor)
    trainer.train()
    return trainer
