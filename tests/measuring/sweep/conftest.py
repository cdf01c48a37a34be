"""Bundles, counters and times of the tests of sweeps, profiles and budgets."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import encoding
import pytest
import torch
from sweeping import (
    GRID,
    HERE,
    MEASURED,
    ORDER,
    PROGRESS,
    STORED,
    Watched,
    counted_macs,
    forget,
    made_up_run,
    made_up_time,
    pictures,
    timed_rows,
    weights_id,
)
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTModel

import helpers
from helpers import BAR
from modeling_lingene import LinGeneModel, cli, folders
from modeling_lingene.images import data
from modeling_lingene.images.batches import image_processor
from modeling_lingene.measuring import metrics, profiling, sweep, yardsticks


@pytest.fixture(autouse=True)
def cheap(monkeypatch) -> None:
    """No clock, no counter and no pictures, for tests that are not about them."""
    for module in (metrics, profiling):
        monkeypatch.setattr(module, "latency_ms", made_up_time)
        monkeypatch.setattr(module, "timing_run", made_up_run)
    monkeypatch.setattr(
        sweep,
        "count_macs",
        lambda vit, head=True, image_size=None: counted_macs(vit.num_hidden_layers, vit.hidden_size, vit.image_size),
    )
    for name in ("plot_sizes", "plot_heat"):
        monkeypatch.setattr(sweep, name, lambda *_: None)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A bundle of trained depths 3 and 6 and widths 1/2 and 1 with preprocessing, nothing measured; read only."""
    folder = tmp_path_factory.mktemp("source") / "bundle"
    helpers.bundle(folder, helpers.tiny_config(trained_depths=[6, 3], **STORED))
    image_processor(16).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(source, tmp_path) -> Path:
    """A copy of it that a test may write to."""
    return Path(shutil.copytree(source, tmp_path / "bundle"))


@pytest.fixture
def work(monkeypatch) -> SimpleNamespace:
    """What is done: sizes in the order they are loaded, forward passes on images; `stop_at` interrupts one of them."""
    done = SimpleNamespace(loads=[], passes=0, stop_at=None, error=KeyboardInterrupt)
    load, forward = AutoModelForImageClassification.from_pretrained, ViTForImageClassification.forward

    def loading(name, **asked):
        done.loads.append((asked["depth"], asked["width_ratio"], asked["num_components"]))
        return load(name, **asked)

    def passing(self, pixel_values, **keywords):
        if not pixel_values.is_meta:  # counting MACs takes no image
            done.passes += 1
            if done.passes == done.stop_at:
                raise done.error
        return forward(self, pixel_values, **keywords)

    monkeypatch.setattr(AutoModelForImageClassification, "from_pretrained", loading)
    monkeypatch.setattr(ViTForImageClassification, "forward", passing)
    return done


@pytest.fixture(scope="module")
def through(source, tmp_path_factory) -> list[dict]:
    """The rows of the sweep that was not interrupted, of one part."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(metrics, "latency_ms", made_up_time)
        patched.setattr(metrics, "timing_run", made_up_run)
        return sweep.sweep(source, pictures(12), batch_size=4, out=tmp_path_factory.mktemp("through"), **GRID)


@pytest.fixture
def left(folder, halves, work) -> Path:
    """A progress file as an interruption in the second part leaves it, but for numbers that no sweep would find: were
    they used, the rows would tell.
    """
    about = sweep.what_is_swept(weights_id(folder), halves["images"])
    forget(work)
    one = {"right": -100, "images": 6, "parts": 1, "params": 9, "latency_ms": 9.0, "device": HERE}
    names = [f"depth {depth}, width ratio {width}, {count} components" for depth, width, count in ORDER]
    folders.write_json(folder / PROGRESS, {"about": about, "found": dict.fromkeys(names, one)})
    return folder / PROGRESS


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A bundle for the digits, of 8 pixels and 10 classes; read only."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("digits") / "bundle"
    config = helpers.tiny_config(num_labels=10, image_size=8, trained_depths=[3, 6], **STORED)
    helpers.tiny_model(config, noise=0.2).save_pretrained(folder)
    image_processor(8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def two(digits, tmp_path_factory) -> SimpleNamespace:
    """The rows of one process, and a sweep of two that goes on with a progress in which one size is given 1 right
    answer: the 1437 images of `train` do not divide by two.
    """
    images, grid = data.load_images("digits", "train"), {"depths": (3, 6), "components": (2, 5)}
    alone = sweep.sweep(digits, images, latency=False, out=tmp_path_factory.mktemp("alone"), **grid)
    folder = Path(shutil.copytree(digits, tmp_path_factory.mktemp("two") / "bundle"))
    about = sweep.what_is_swept(weights_id(folder), images, processes=2)
    known = {"right": 1, "images": 1437, "parts": 1, "params": alone[0]["params"]}
    folders.write_json(folder / PROGRESS, {"about": about, "found": {"depth 6, width ratio 1, 5 components": known}})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "modeling_lingene.cli", "sweep", str(folder), "--data", "digits", "--split", "train"]
    command += ["--device", "cpu", "--depths", "3,6", "--components", "2,5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return SimpleNamespace(folder=folder, alone=alone, done=done)


@pytest.fixture
def measured(folder) -> Path:
    """The bundle with three measured sizes, two of them of one shape."""
    folders.write_sizes(folder, MEASURED)
    return folder


@pytest.fixture(scope="module")
def timed(source, tmp_path_factory) -> Path:
    """The bundle with latencies of three devices; read only."""
    folder = Path(shutil.copytree(source, tmp_path_factory.mktemp("timed") / "bundle"))
    folders.write_sizes(folder, timed_rows())
    return folder


@pytest.fixture
def lingene(capfd, monkeypatch):
    """Runs a command, with `pictures(12)` for `--data made`; its status and outputs without progress bars."""
    read_images = data.load_images
    monkeypatch.setattr(
        yardsticks, "load_images", lambda name, split: pictures(12) if name == "made" else read_images(name, split)
    )

    def run(*arguments) -> SimpleNamespace:
        capfd.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        errors = [line for line in re.split(r"[\r\n]+", captured.err) if line.strip() and not BAR.search(line)]
        return SimpleNamespace(code=code, out=captured.out, errors=errors)

    return run


@pytest.fixture
def untimed(monkeypatch) -> None:
    """No clock where there is no classifier; MACs are counted."""
    monkeypatch.setattr(metrics, "latency_ms", made_up_time)
    monkeypatch.setattr(metrics, "timing_run", made_up_run)
    monkeypatch.setattr(sweep, "count_macs", metrics.count_macs)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Path:
    """An encoder bundle of trained depths 3 and 6 and widths 1/2 and 1; read only."""
    folder = tmp_path_factory.mktemp("encoder") / "bundle"
    config = helpers.tiny_config(trained_depths=[6, 3], **STORED)
    helpers.tiny_model(config, model_class=LinGeneModel).save_pretrained(folder)
    image_processor(16).save_pretrained(folder)
    return folder


@pytest.fixture
def bundle(encoder, tmp_path) -> Path:
    """A copy of it that a test may write to."""
    return Path(shutil.copytree(encoder, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def other(tmp_path_factory) -> Path:
    """A stock encoder of the bundle's width with a pooler, and preprocessing that halves the values."""
    folder = tmp_path_factory.mktemp("other") / "vit"
    torch.manual_seed(5)
    shape = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4)
    model = ViTModel(ViTConfig(**shape, intermediate_size=64))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(folder)
    processor = image_processor(16)
    processor.image_std = [1.0] * 3
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def whole(encoder, tmp_path_factory) -> SimpleNamespace:
    """A sweep of all four measures that a classifier does not need, and how often each image was decoded."""
    folder = Path(shutil.copytree(encoder, tmp_path_factory.mktemp("whole") / "bundle"))
    images = dataclasses.replace(encoding.TEST, images=Watched(encoding.TEST.images))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(metrics, "latency_ms", made_up_time)
        patched.setattr(metrics, "timing_run", made_up_run)
        rows = sweep.sweep(
            folder, images, metric="knn,probe,cosine", train=encoding.TRAIN, batch_size=4, **encoding.GRID
        )
    return SimpleNamespace(folder=folder, rows=rows, decoded=images.images.decoded)
