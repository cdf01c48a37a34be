"""A bundle for digits, and how a command is run in this process: a new one costs seconds of imports."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

import helpers
from helpers import BAR, ROWS
from modeling_lingene import cli, folders
from modeling_lingene.images.batches import image_processor


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A bundle for digits with preprocessing and measured sizes, and a size of it as a plain model; read only."""
    folder = tmp_path_factory.mktemp("digits")
    config = helpers.tiny_config(num_labels=10, image_size=8)
    bundle = helpers.bundle(folder / "bundle", config)
    image_processor(8).save_pretrained(bundle)
    folders.write_sizes(bundle, ROWS)
    plain = folder / "plain"
    helpers.tiny_model(config).materialise(3).save_pretrained(plain)
    image_processor(8).save_pretrained(plain)
    return SimpleNamespace(bundle=bundle, plain=plain, model=helpers.tiny_model(config))


@pytest.fixture
def lingene(capfd: pytest.CaptureFixture):
    """Runs a command; gives its status, and the lines of both outputs that are not a progress bar's."""

    def run(*arguments: Any) -> SimpleNamespace:
        capfd.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = stop.code
        captured = capfd.readouterr()
        errors = [line for line in re.split(r"[\r\n]+", captured.err) if line.strip() and not BAR.search(line)]
        return SimpleNamespace(code=code, out=captured.out, errors=errors)

    return run
