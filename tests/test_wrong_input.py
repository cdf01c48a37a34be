"""Laws of wrong input: every command answers it with one line that names the flag and the way out, and leaves nothing.

The whole table takes seconds: nothing of it may reach a network, a training or a measurement.

    pytest tests/test_wrong_input.py
"""

import logging
import shlex
import warnings
from pathlib import Path

import pytest
from PIL import Image

import helpers
from helpers import files
from lingene.telling import flags_of, in_flags, warnings_in_lines
from modeling_lingene import cli
from modeling_lingene import found as module
from modeling_lingene.found import check_timm_within_reach
from modeling_lingene.images.batches import image_processor


# B a bundle, P a plain model, D a bundle that takes pictures of any size and V one that does not, both behind
# preprocessing that makes them smaller than a patch, F a person's folder, T a person's file, S pictures of one class,
# A of two, N new.
SMALL = "preprocessing makes images of 2x2, smaller than a patch of 4x4; set `size` in its preprocessor_config.json to"
WRONG = {
    "evaluate /nope --data digits": "`MODEL` must be a bundle or a plain ViT, by folder or name on the Hub; there",
    "evaluate T --data digits": "is a file, not a bundle or a plain ViT",
    "evaluate F --data digits": "is a folder without a config.json",
    "evaluate B --data /nope": "there is no file or folder '/nope' here",
    "evaluate B --data digits --split tset": "give `--split` train, or held-out",
    "evaluate B --data digits --depth 0": "`--depth` must be an integer of at least 1, got 0",
    "evaluate B --data digits --depth x": "`--depth` must be a number of layers",
    "evaluate B --data digits --width-ratio 1/3": "`--width-ratio` must leave whole heads",
    "evaluate B --data digits --num-components 99": "`--num-components` 99 is more than the 5 stored; use 1 to 5",
    "evaluate B --data digits --max-macs 4e6": "`--max-macs` 4 M needs measured sizes",
    "evaluate B --data digits --max-macs 4e6 --depth 2": "`--max-macs` chooses the size; do not give `--depth`",
    "evaluate B --data digits --metric acuracy": "`--metric` must be one or more of accuracy, knn, probe, cosine",
    "evaluate B --data digits --reference P": "`--reference` is whom the cosine compares with; `--metric` is accuracy",
    "evaluate B --data digits --metric cosine --reference /nope": "`--reference` must be a bundle or an encoder",
    "evaluate B --data digits --out F": "is a folder, and what is written is one file: give its name",
    "evaluate B --data digits --dpeth 3": "lingene evaluate: `--dpeth 3` is none of its options",
    "evaluate B": "lingene evaluate: the following arguments are required: --data; lingene evaluate --help",
    "evaluate P --data digits --depth 2": "`--depth` chooses a size of a bundle",
    "evaluate B --data A": "has no class ant, bee",
    "info /nope": "there is no folder /nope",
    "info T": "is a file",
    "info B --out F": "is a folder, and what is written is one file",
    "info B --revision v1": "`--revision` is of a name on the Hub",
    "zoo --out F": "is a folder, and what is written is one file",
    "verify ~/nope": "there is no folder ~/nope",
    "card nope": "`BUNDLE` must be the folder of a bundle, and there is no folder nope",
    "push B org/name/more": "`REPO` must be a name on the Hub such as org/name",
    "materialise B --out F": "must be a new or empty folder",
    "materialise B --out N --width-ratio 1/4": "pass --allow-untrained",
    "materialise B --out N --latency-device X": "`--latency-device` says whose latencies `--max-latency-ms` bounds",
    "export B --to onx --out N": "`--to` must be one of transformers, timm, onnx",
    "export B --to transformers --weights int8 --out N": "`--weights` int8 is for onnx",
    "export B --to transformers --out N --data /nope": "`--data` must be",
    "export B --to transformers --out N --revision v1": "`--revision` is of a name on the Hub",
    "convert /nope --out N": "`SOURCE` must be a trained ViT of transformers",
    "convert B --out N": "`lingene decompose --init",
    "convert P --out N --weights T": "`--weights`, `--prefix` and `--model-args` belong to timm:NAME",
    "convert P --out N --num-components 9": "`--num-components` must be from 1 to the 2 layers, got 9",
    "convert P --out N --fit wieghts": "`--fit` must be one of weights, activations",
    "convert P --out N --depths 1": "`--depths` needs images to calibrate on: give --calibrate DATA",
    "convert P --out N --widths 1/2": "give --sort as well",
    "convert P --out N --calibrate /nope": "`--calibrate` must be",
    "convert P --out N --model-args deep6": "`--model-args` must be NAME=VALUE with commas between",
    "decompose --data digits": "`--out` says where the run goes",
    "decompose --out N": "`--data` says what to train on",
    "decompose --data S --out N": "has a single class, 'ant'",
    "decompose --data digits --out N --recipe nope": "`--recipe` invalid choice: 'nope'",
    "decompose --data digits --out N --depths 99": "`--depths` 99 is above",
    "decompose --data digits --out N --widths 2/5": "`--widths` must leave whole heads",
    "decompose --data digits --out N --objective features": "`--objective` features needs a `--teacher`, or `--init`",
    "decompose --data digits --out N --cache-teacher": "`--cache-teacher` keeps what a teacher says, and there",
    "decompose --data digits --out N --teacher /nope": "`--teacher` must be a trained model, by folder or name",
    "decompose --init P --data digits --out N": "`lingene convert",
    "decompose --resume F": "`--resume` F holds no run.json",
    "sweep B": "`--data` says what is measured",
    "sweep B --data digits --depths 99": "`--depths` 99 is above",
    "sweep B --data digits --components 99": "`--components` 99 is more than the 5 stored",
    "sweep B --data digits --out T": "`--out` T cannot be written to",
    "sweep B --data digits --reference P": "`--reference` is whom the cosine compares with",
    "profile B --dtype int8": "`--dtype` must be one of float32, bfloat16, float16",
    "profile B --out F": "is a folder, and what is written is one file",
    "prune B --out N --data digits": "`--target-macs` or `--target-params` says how much is to be left",
    "prune B --out N --data digits --target-macs 0.001": "`--target-macs` 0.001 of the dense network's cost",
    "prune B --out N --data digits --target-macs 0.5 --teacher /nope": "`--teacher` must be a trained model",
    "prune B --out N --data A --target-macs 0.5": "`MODEL` B has no class ant, bee",
    "analyse nope B --out N": "invalid choice: 'nope'",
    "analyse trend B --out N --data digits": "`--data` is of components and similarity",
    "analyse coefficients B --out N --depths 99": "`--depths` 99 is above",
    "analyse similarity P --out N --data digits": "give one by --reference",
    "recipes nope": "`RECIPE` must be one of digits",
    "quickstart --epochs 0 --out N": "`--epochs` must be an integer of at least 1",
    "app /nope": "there is no folder /nope",
    "evaluate D --data digits": f"`MODEL` D: its {SMALL}",
    "evaluate V --data digits": f"`MODEL` V: its {SMALL}",
    "sweep D --data digits": f"`BUNDLE` D: its {SMALL}",
    "sweep V --data digits --metric knn": f"`BUNDLE` V: its {SMALL}",
    "decompose --init D --data digits --out N": f"`--init` D: its {SMALL}",
    "decompose --init D --data A --out N --objective features": f"`--init` D: its {SMALL}",
    "analyse similarity D --data digits --out N": f"D: its {SMALL}",
    "analyse components V --data digits --out N": f"V: its {SMALL}",
    "profile D": SMALL.removeprefix("preprocessing "),
    "materialise D --out N": SMALL.removeprefix("preprocessing "),
    "export D --to transformers --out N": SMALL.removeprefix("preprocessing "),
    "evalute B": "lingene: `COMMAND` invalid choice: 'evalute'",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("wrong")
    found = {name: root / name for name in "BPDVFTSAN"}
    config = helpers.tiny_config(num_labels=10, image_size=8, id2label={n: str(n) for n in range(10)})
    helpers.bundle(found["B"], config)
    helpers.tiny_model(config).materialise(2).save_pretrained(found["P"])
    helpers.bundle(found["D"], helpers.tiny_config(family="dinov2", num_labels=10, id2label=config.id2label))
    helpers.bundle(found["V"], config)
    for kind, size in (("B", 8), ("P", 8), ("D", 2), ("V", 2)):
        image_processor(size).save_pretrained(found[kind])
    found["F"].mkdir()
    (found["F"] / "notes.txt").write_text("mine")
    found["T"].write_text("mine")
    for kind, names in (("S", ["ant"]), ("A", ["ant", "bee"])):
        for name in names:
            (found[kind] / name).mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (9, 9), (40 * number,) * 3).save(found[kind] / name / f"{number}.png")
    return found


def run(line: str) -> int:
    try:
        return cli.main(shlex.split(line))
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize("line", WRONG)
def test_wrong_input_is_one_line_that_names_the_flag_and_leaves_nothing(places, monkeypatch, capsys, line):
    """As it is typed, in the folder where everything lies; whoever reads it knows what to type next."""
    if line.startswith("app"):
        pytest.importorskip("gradio", reason="needs gradio, of the extra app")
    pytest.importorskip("sklearn"), pytest.importorskip("matplotlib")
    root = places["B"].parent
    monkeypatch.chdir(root)
    before = files(root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pictures that are held out
        assert run(line) == 2
    said = capsys.readouterr()
    (told,) = [one for one in said.err.splitlines() if one.startswith("lingene")]
    assert said.err.rstrip().endswith(told) and "Traceback" not in said.err and said.out == ""
    assert WRONG[line] in told
    assert not places["N"].exists() and files(root) == before


class Nowhere:
    """A Hub that cannot be reached, and counts who tries."""

    def __init__(self):
        self.asked = []

    def head(self, url, **_):
        self.asked.append(url)
        raise ConnectionError("Name or service not known")


@pytest.fixture
def nowhere(monkeypatch) -> Nowhere:
    hub = Nowhere()
    monkeypatch.setattr(module.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module, "get_session", lambda: hub)
    return hub


@pytest.mark.parametrize(
    "line, way",
    [
        (
            "convert timm:vit_tiny_patch16_224 --out N",
            "`SOURCE` timm:vit_tiny_patch16_224 lies on the Hub as timm/vit_",
        ),
        ("convert timm:hf-hub:org/net --out N", "lies on the Hub as org/net, which cannot be asked"),
        ("convert timm:hf-hub:org/net --weights T --out N", "lies on the Hub as org/net, which cannot be asked"),
        ("decompose --data digits --teacher timm:regnety_160 --out N", "`--teacher` timm:regnety_160 lies on the Hub"),
        ("decompose --data digits --teacher nope --out N", "`--teacher` nope: there is no such folder here"),
        ("evaluate B --data nope", "no file or folder 'nope' here, and the Hub cannot be asked"),
        ("convert P --calibrate org/set --out N", "`--calibrate` must be"),
        (
            "decompose --data org/set --streaming --out N",
            "no file or folder 'org/set' here, and the Hub cannot be asked",
        ),
    ],
)
def test_a_name_on_a_hub_that_is_out_of_reach_is_asked_for_once(places, nowhere, monkeypatch, capsys, line, way):
    """By themselves timm, transformers and datasets try every file of it six times, for most of a minute."""
    pytest.importorskip("timm"), pytest.importorskip("datasets"), pytest.importorskip("sklearn")
    monkeypatch.chdir(places["B"].parent)
    assert run(line) == 2 and len(nowhere.asked) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert way in told and "Name or service not known" in told and not places["N"].exists()


def test_what_is_in_the_cache_needs_no_hub(nowhere, monkeypatch, tmp_path):
    """Nor does timm's own file, or a folder."""
    timm = pytest.importorskip("timm")
    monkeypatch.setattr(module.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="lies on the Hub as org/net"):
        check_timm_within_reach("source", "timm:hf-hub:org/net", timm)
    (tmp_path / "models--org--net").mkdir()
    check_timm_within_reach("source", "timm:hf-hub:org/net@main", timm)
    check_timm_within_reach("source", f"timm:local-dir:{tmp_path}", timm)
    assert len(nowhere.asked) == 2


def test_warnings_are_a_line_in_the_words_of_the_command_line():
    """The line of code that raised one is nothing to who typed a command."""
    usual = warnings.formatwarning
    with warnings_in_lines({"split": "--split"}):
        told = warnings.formatwarning("held out (`split` held-out)", UserWarning, "a.py", 7, "code()")
        assert told == "held out (`--split` held-out)\n"
        record = logging.LogRecord("any", logging.WARNING, "a.py", 7, "within `split` %s", ("x",), None)
        assert logging.lastResort.format(record) == "within `--split` x"
        assert "a.py:7" in warnings.formatwarning("old", DeprecationWarning, "a.py", 7, "code()")
    assert warnings.formatwarning is usual and logging.lastResort.format(record) == "within `split` x"


def test_flags_are_found_by_their_own_words_and_by_pythons(monkeypatch):
    """`--objective` is `kind` in Python, and a value may stand in quotation marks."""
    parser = cli.build_parser("decompose")._subparsers._group_actions[0].choices["decompose"]
    flags = flags_of(parser)
    assert in_flags("`objective`, `kind`, depth_map='resample'", flags) == (
        "`--objective`, `--objective`, --depth-map resample"
    )
