"""Laws of what a run says of itself: before its first step what it is about to do, then an epoch a line in a file.

pytest tests/training/test_summary.py
"""

import io
import re
import sys

import pytest

import helpers
from modeling_lingene import cli, progress
from modeling_lingene.images.batches import image_processor
from modeling_lingene.training.summary import network_lines, pictures_line


pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

LINE = "decompose --data digits --hidden-size 16 --num-attention-heads 2 --intermediate-size 32 --depth 2 --epochs 3"
LINE += " --device cpu --batch-size 64 --depths 1 --widths 1/2 --out run"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def said(monkeypatch, tmp_path, stream: io.StringIO, *more: str) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stderr", stream)
    assert cli.main([*LINE.split(), *more]) == 0
    return stream.getvalue()


def test_in_a_file_a_run_says_what_it_is_about_to_do_and_then_an_epoch_a_line(monkeypatch, tmp_path):
    """Counts by hand: 1437 images of 8 pixels, a tenth held out, 21 steps of 64 images; four tokens and one more."""
    lines = said(monkeypatch, tmp_path, io.StringIO()).splitlines()
    about = {line.split()[0]: line for line in lines[:4]}
    assert list(about) == ["pictures", "network", "sizes", "training"]
    expected = (
        "digits: 1293 images of 10 classes (0, 1, 2, ...) to train on, 144 held out to choose the best by, 360 to"
    )
    assert expected in about["pictures"]
    assert "2 layers from 2 components, 16 channels, 2 heads, images of 8 x 8 pixels" in about["network"]
    # Patches 4 x 48 x 16; a layer 4 x 5 x 16 x 16 + 2 x 5 x 5 x 16 + 2 x 5 x 16 x 32; classifier 160.
    macs = 4 * 48 * 16 + 2 * (4 * 5 * 256 + 2 * 25 * 16 + 2 * 5 * 512) + 160
    assert f"{macs / 1000:.3g} k MACs an image" in about["network"]
    assert "depths 1, 2, widths 1/2, 1" in about["sizes"] and f"to {macs / 1000:.3g} k MACs" in about["sizes"]
    assert about["training"].endswith("3 epochs, 60 steps of 64 images, learning rate 0.016")
    (time,) = [line for line in lines if line.startswith("about ")]
    assert re.fullmatch(r"about \d+ (s|min) for 40 steps more, evaluation not counted", time)
    epochs = [line for line in lines if "epoch" in line and line.startswith("elastic, ")]
    shown = r"elastic, epoch (\d) of 3: loss \d\.\d+, accuracy \d+\.\d%, \S+ images/s"
    assert [re.fullmatch(shown, line)[1] for line in epochs] == ["1", "2", "3"]
    assert lines.index(time) < lines.index(epochs[1])


def test_on_a_terminal_the_bar_says_the_epochs_and_quiet_says_nothing(monkeypatch, tmp_path):
    """Lines between redraws would tear the bar; what is asked to be quiet is read by a program."""
    told = said(monkeypatch, tmp_path, Terminal())
    assert "pictures  digits" in told and "about " in told and "epoch 1 of 3" not in told
    assert said(monkeypatch, tmp_path / "run", io.StringIO(), "--quiet", "--epochs", "1", "--out", "other") == ""


def test_a_set_without_labels_has_no_classes_and_a_stream_counts_its_epoch():
    """A stream holds one picture, and knows how many there are."""
    made = helpers.pictures(3)
    assert "classes" not in pictures_line(made, 3, made, None, labelled=False)
    line = pictures_line(made, 1000, None, made)
    assert "1000 images of 7 classes (class 0, class 1, class 2, ...)" in line and "held out" not in line


def test_a_network_of_one_size_costs_one_number():
    """`514 k to 514 k` asks what the difference is."""
    config = helpers.tiny_config(trained_depths=[6], trained_width_ratios=["1"])
    network, sizes = network_lines(config, True, image_processor(16))
    assert " to " not in sizes and sizes.split(": ")[1] in network


@pytest.mark.parametrize("seconds, told", [(0.2, "0 s"), (95, "95 s"), (130, "2 min"), (12000, "3.3 h")])
def test_durations_are_read_at_a_glance(seconds, told):
    """Two digits; nobody divides 12,000 seconds."""
    assert progress.duration(seconds) == told
