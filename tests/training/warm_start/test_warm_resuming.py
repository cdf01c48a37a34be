"""Laws of a warm start that is stopped or begun twice: it goes on bit by bit, and from no other bundle or teacher.

Against the run that went through.

    pytest tests/training/warm_start/test_warm_resuming.py
"""

import numpy
import pytest
import torch
from warm import FITTED, begun, history, trained

from modeling_lingene import LinGeneConfig, LinGeneForImageClassification
from modeling_lingene.folders import bundle_weights_id
from modeling_lingene.training.loop import TrainingLoop


pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    "schedule, fields, stop",
    [
        ("simultaneous", FITTED, 4),
        ("elastic", {"num_labels": 5}, 5),
        ("incremental", {}, 3),
        ("incremental", {}, 10),
    ],
)
def test_a_stopped_run_ends_bitwise_as_one_that_went_through(tmp_path, monkeypatch, schedule, fields, stop):
    """A start that is loaded, cut, given a head or rescaled once more on resuming would show in some bit."""
    init = begun(tmp_path / "init", **fields)
    moved = {"crop_padding": 1, "epochs": 2, "totals": (2, 5), "depths": (3,), "dropout": 0.1}
    whole = trained(tmp_path / "whole", init, schedule, **moved)
    step, steps = TrainingLoop._step, []

    def stopping(*inputs):
        if len(steps) == stop:
            raise KeyboardInterrupt
        steps.append(stop)
        return step(*inputs)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingLoop, "_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "stopped", init, schedule, **moved)
    assert not (tmp_path / "stopped" / "bundle").exists()
    torch.manual_seed(99)  # as in another process
    stopped = trained(tmp_path / "stopped", init, schedule, **moved)
    assert bundle_weights_id(stopped) == bundle_weights_id(whole) != bundle_weights_id(init)
    assert history(stopped.parent) == history(whole.parent)
    assert LinGeneConfig.from_pretrained(stopped).to_dict() == LinGeneConfig.from_pretrained(whole).to_dict()


def test_a_finished_run_from_another_bundle_is_not_read_back(tmp_path, init):
    """The same settings from another start are another run."""
    trained(tmp_path / "out", init)
    other = begun(tmp_path / "other")
    with pytest.raises(ValueError, match=r"`out` .*another run, differing in init"):
        trained(tmp_path / "out", other)


def test_another_content_is_not_said_to_be_resumable(tmp_path, init):
    """No flag brings the old one back."""
    own = begun(tmp_path / "own")
    trained(tmp_path / "out", own)
    LinGeneForImageClassification.from_pretrained(own, constrained=True, num_components=2).save_pretrained(own)
    with pytest.raises(ValueError, match=r"differing in init_content .* or delete this one\.$"):
        trained(tmp_path / "out", own)


def test_a_run_goes_on_with_a_version_whose_configurations_have_a_field_more(tmp_path, monkeypatch, init):
    """A field that the bundle does not set makes no other start of it."""
    trained(tmp_path / "out", init)
    to_dict = LinGeneConfig.to_dict
    monkeypatch.setattr(LinGeneConfig, "to_dict", lambda config: {**to_dict(config), "later": 5})
    assert trained(tmp_path / "out", init).is_dir()


def test_a_run_does_not_go_on_with_another_teacher_of_the_same_name(tmp_path, init):
    """Half of what was learned came from the one that is gone."""
    teacher = begun(tmp_path / "teacher")
    trained(tmp_path / "out", init, teacher=str(teacher))
    assert trained(tmp_path / "out", init, teacher=str(teacher)).is_dir()
    LinGeneForImageClassification.from_pretrained(teacher, constrained=True, num_components=2).save_pretrained(teacher)
    with pytest.raises(ValueError, match=r"another run, differing in teacher_content \(\S+ there, \S+ asked\);"):
        trained(tmp_path / "out", init, teacher=str(teacher))


def test_a_run_does_not_go_on_from_another_bundle_of_the_same_name(tmp_path, monkeypatch):
    """Converted anew with other coefficients: the checkpoint's components belong to the old ones."""
    init = begun(tmp_path / "init", **FITTED)
    trained(tmp_path / "out", init)
    for result in ("results.json", "bundle/config.json"):
        (tmp_path / "out" / result).unlink()
    other = numpy.random.default_rng(1).normal(size=(6, 5)).tolist()
    begun(tmp_path / "init", **{**FITTED, "coefficient_matrix": other})
    with pytest.raises(ValueError, match="another run"):
        trained(tmp_path / "out", init)
