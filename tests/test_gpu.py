"""What only a GPU can show; deselected by default. `pytest -m gpu`"""

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModelForImageClassification
from transformers.utils import is_flash_attn_2_available

import helpers
from modeling_lingene import LinGeneForImageClassification, LinGeneModel
from modeling_lingene.analysis.components import analyse_components
from modeling_lingene.images.batches import image_processor
from modeling_lingene.training.processes import make_accelerator
from modeling_lingene.training.steps import TrainingSettings


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_materialised_and_constrained_logits_agree_on_the_gpu(bundle, dtype, tolerance):
    """The same sizes through `device_map`, and through the recomposing forward pass where the matrices are."""
    for size in ({}, {"depth": 3, "width_ratio": "1/2", "num_components": 2}):
        vit = AutoModelForImageClassification.from_pretrained(bundle, device_map="cuda", dtype=dtype, **size)
        shared = AutoModelForImageClassification.from_pretrained(
            bundle, constrained=True, device_map="cuda", dtype=dtype, **size
        )
        pixels = helpers.images().cuda()
        with torch.no_grad():
            torch.testing.assert_close(vit(pixels).logits, shared(pixels).logits, rtol=0, atol=tolerance)


@pytest.mark.skipif(not is_flash_attn_2_available(), reason="needs flash-attn")
def test_flash_attention_agrees_with_sdpa(bundle):
    """The constrained block calls transformers' attention functions by name."""
    pixels = helpers.images().cuda()
    logits = []
    for implementation in ("sdpa", "flash_attention_2"):
        model = AutoModelForImageClassification.from_pretrained(
            bundle, constrained=True, dtype=torch.bfloat16, attn_implementation=implementation
        ).cuda()
        with torch.no_grad():
            logits.append(model(pixels).logits.float())
    torch.testing.assert_close(*logits, rtol=0, atol=0.1)


def test_a_run_on_the_gpu_follows_one_on_the_cpu():
    """In one process: the earlier run's device is not the later one's."""
    AcceleratorState._reset_state(reset_partial_state=True)
    devices = [make_accelerator(TrainingSettings(device=device)).device.type for device in ("cpu", "auto", "cpu")]
    assert devices == ["cpu", "cuda", "cpu"]


def test_a_compiled_step_trains_on_the_gpu():
    """One graph, gradients to the components, loss going down."""
    model = helpers.tiny_model().cuda().train()
    compiled = torch.compile(model, fullgraph=True)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    pixels, labels = helpers.images().cuda(), helpers.labels().cuda()
    losses = []
    for _ in range(20):
        loss = compiled(pixels, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("model_class", [LinGeneForImageClassification, LinGeneModel])
def test_what_components_look_at_is_the_same_on_the_gpu(tmp_path, model_class):
    """Pictures are decoded on the CPU, where the model is not."""
    for package in ("pytorch_grad_cam", "matplotlib", "sklearn"):
        pytest.importorskip(package)
    helpers.tiny_model(model_class=model_class).save_pretrained(tmp_path / "bundle")
    image_processor(16).save_pretrained(tmp_path / "bundle")
    found = [
        analyse_components(tmp_path / "bundle", tmp_path / device, "digits", device=device)
        for device in ("cpu", "cuda")
    ]
    scores = [[row["score"] for picture in rows for row in picture["first"]] for rows in found]
    assert scores[0] == pytest.approx(scores[1], abs=1e-2)
