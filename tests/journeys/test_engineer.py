"""An engineer ships flowers to phones: one bundle trained and measured, a size chosen by budget, a file for the phone.

pytest -m slow -s tests/journeys/test_engineer.py        # about two minutes on one CPU core
"""

import json
from pathlib import Path

import numpy
import pytest
from PIL import Image
from transformers import AutoModelForImageClassification
from walking import FLOWERS, lingene, plant

from modeling_lingene.training.loop import TrainingLoop


pytestmark = pytest.mark.slow


def test_an_engineer_ships_flowers_to_phones(tmp_path, monkeypatch, capfd):
    for package in ("onnx", "onnxscript", "onnxruntime", "matplotlib", "datasets"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    plant(Path("flowers"))

    # A bundle of two widths and two depths. The laptop's lid is closed half way through; its folder is all it takes.
    closed_lid(monkeypatch, epoch=6)
    lingene(
        "decompose --data flowers --out run --hidden-size 48 --num-attention-heads 4 --depth 4 --patch-size 8 "
        "--depths 2 --widths 1/2 --totals 4 --epochs 24 --batch-size 32 --learning-rate 0.003 --device cpu",
        status=130,
    )
    said = capfd.readouterr().err
    assert "192 images of 4 classes" not in said and "173 images of 4 classes" in said  # a tenth is held out
    assert "lingene decompose --resume run goes on." in said
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    lingene("decompose --resume run --quiet")
    assert {"training.json", "README.md", "sizes.png", "preprocessor_config.json"} <= names("run/bundle")

    # What each size is worth and costs here; the card follows.
    lingene("sweep run/bundle --data flowers --components 2,4 --quiet")
    lingene("profile run/bundle --threads 1 --batch-size 8 --quiet")
    rows = json.loads(Path("run/bundle/sizes.json").read_text())["sizes"]
    best = max(row["accuracy"] for row in rows)
    assert len(rows) == 8 and best >= 0.8, best  # chance is 25 %
    assert "All 8 measured sizes" in Path("run/bundle/README.md").read_text()

    # The phone has room for half of the multiply-accumulates.
    budget = max(row["macs"] for row in rows) / 2
    within = [row for row in rows if row["macs"] <= budget]
    lingene(f"export run/bundle --to onnx --max-macs {budget} --out phone")
    chosen = json.loads(Path("phone/export.json").read_text())["size"]
    assert [chosen["depth"], chosen["num_components"]] in [[row["depth"], row["num_components"]] for row in within]

    # On the phone there is neither torch nor this package: a picture, the file and its preprocessing.
    model = AutoModelForImageClassification.from_pretrained("run/bundle", max_macs=budget).eval()
    right = 0
    for name in FLOWERS:
        for path in sorted(Path("flowers/test", name).glob("*.png"))[:10]:
            right += sorted(FLOWERS)[on_the_phone(Path("phone"), path)] == name
    assert right / 40 >= 0.7, right
    assert model.config.id2label == dict(enumerate(sorted(FLOWERS)))


def closed_lid(monkeypatch, epoch: int) -> None:
    """Stops the training after an epoch as Ctrl-C does: what was asked for is finished and kept."""
    save, done = TrainingLoop._save, []

    def saving(loop, run):
        save(loop, run)
        done.append(run)
        if len(done) == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingLoop, "_save", saving)


def names(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def on_the_phone(folder: Path, picture: Path) -> int:
    """The class that the exported file names, by onnxruntime and numpy alone."""
    import onnxruntime

    how = json.loads((folder / "preprocessor_config.json").read_text())
    with Image.open(picture) as opened:
        pixels = opened.convert("RGB").resize((how["size"]["width"], how["size"]["height"]))
    values = numpy.asarray(pixels, numpy.float32) * how["rescale_factor"]
    values = (values - numpy.array(how["image_mean"], numpy.float32)) / numpy.array(how["image_std"], numpy.float32)
    session = onnxruntime.InferenceSession(str(next(folder.glob("*.onnx"))))
    (logits,) = session.run(None, {session.get_inputs()[0].name: values.transpose(2, 0, 1)[None]})
    return int(logits.argmax())
