"""Laws of `modeling_lingene.measuring.metrics`; references: closed forms, scikit-learn, stock transformers."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model, ViTConfig, ViTForImageClassification

from modeling_lingene.measuring.metrics import (
    accuracy,
    count_macs,
    count_parameters,
    device_name,
    latency_ms,
    measure,
    seen_size,
)


SMALL = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=12, patch_size=4
)
SHAPES = [
    SMALL,
    {},
    {**SMALL, "num_channels": 1, "num_hidden_layers": 5},
    {**SMALL, "image_size": (8, 16), "num_labels": 1, "qkv_bias": False},
    dict(hidden_size=384, num_attention_heads=6, intermediate_size=1536, image_size=32, patch_size=4, num_labels=200),
]


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other make tiny models a hundred times slower where tests run in parallel."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def vit(seed=0, **changes):
    torch.manual_seed(seed)
    return ViTForImageClassification(ViTConfig(**{**SMALL, "num_labels": 4, **changes}))


def random_batches(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "pixel_values": torch.randn(size, 3, 12, 12, generator=generator),
            "labels": torch.randint(0, 4, (size,), generator=generator),
        }
        for size in sizes
    ]


def closed_form(config):
    height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    p, d, m = config.patch_size, config.hidden_size, config.intermediate_size
    patches = (height // p) * (width // p)
    t = patches + 1
    block = 4 * t * d * d + 2 * t * t * d + 2 * t * d * m
    return patches * config.num_channels * p * p * d + config.num_hidden_layers * block + d * config.num_labels


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("attention", [None, "sdpa", "eager"])
def test_counted_macs_are_the_closed_form_for_any_attention(shape, attention):
    """Budgets compare sizes by this number; fused attention must not hide its matrix products."""
    config = ViTConfig(**shape)
    if attention:
        config._attn_implementation = attention
    before = (config.to_dict(), config._attn_implementation)
    assert count_macs(config) == closed_form(config)
    assert (config.to_dict(), config._attn_implementation) == before  # transformers writes into what it is given


@pytest.mark.parametrize("seen", [(12, 20), (28, 28)])
def test_a_family_of_any_image_size_is_counted_and_timed_at_the_one_it_sees(monkeypatch, seen):
    """DINOv2 keeps positions for 518 pixels and sees 224: a sixth of the MACs, and a tenth of the time."""
    shape = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, mlp_ratio=2, patch_size=4, num_channels=3)
    config = Dinov2Config(**shape, image_size=40)
    made = BitImageProcessor(crop_size={"height": seen[0], "width": seen[1]})
    assert seen_size(config, made) == seen and seen_size(config) == (40, 40)
    assert seen_size(ViTConfig(image_size=40), made) == (40, 40)  # which takes no other
    vit = ViTConfig(**{**SHAPES[0], **shape, "image_size": seen, "intermediate_size": 48, "num_labels": 0})
    assert count_macs(config, head=False, image_size=seen) == closed_form(vit)
    timed, model = [], Dinov2Model(config)
    monkeypatch.setattr(model, "forward", lambda pixel_values: timed.append(pixel_values.shape))
    latency_ms(model, min_run_time=1e-6, image_size=seen)
    assert set(timed) == {(1, 3, *seen)}


def test_vit_base_costs_what_is_published():
    """17.56 G: an anchor that does not come from our own formula."""
    assert count_macs(ViTConfig(num_labels=1000)) == pytest.approx(17.56e9, rel=1e-3)


def test_parameters_are_counted_once_frozen_or_not():
    """A frozen component is still stored; a shared one is stored once."""
    model = vit()
    d, m, patches = 24, 40, 9
    block = 4 * (d * d + d) + (d * m + m) + (m * d + d) + 4 * d
    expected = (d + (patches + 1) * d + 48 * d + d) + 2 * block + 2 * d + (d * 4 + 4)
    assert count_parameters(model) == expected == model.num_parameters()
    model.requires_grad_(False)
    assert count_parameters(model) == expected
    tied = nn.Linear(3, 3)
    assert count_parameters(nn.Sequential(tied, tied)) == 12


def test_accuracy_is_scikit_learns():
    """Counted over unequal batches: a mean of batch means would be wrong."""
    metrics = pytest.importorskip("sklearn.metrics")
    model, batches = vit(), random_batches([7, 7, 2])
    value, count = accuracy(model, batches)
    with torch.no_grad():
        predictions = [model.eval()(batch["pixel_values"]).logits.argmax(-1) for batch in batches]
    expected = metrics.accuracy_score(torch.cat([batch["labels"] for batch in batches]), torch.cat(predictions))
    assert value == expected and 0 < value < 1 and count == 16


def test_accuracy_leaves_every_module_in_its_mode():
    """A frozen part in evaluation mode inside a model in training must stay so, also after an error."""
    model = vit(hidden_dropout_prob=0.5).train()
    model.vit.embeddings.eval()
    modes = [module.training for module in model.modules()]
    batches = random_batches([8])
    assert accuracy(model, batches) == accuracy(model, batches)  # no dropout
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(KeyError):
        accuracy(model, [{}])
    assert [module.training for module in model.modules()] == modes


def test_accuracy_runs_in_the_models_own_dtype():
    """Batches are float32; a bfloat16 model refuses them uncast."""
    model, batches = vit().to(torch.bfloat16), random_batches([8])
    with torch.no_grad():
        logits = model.eval()(batches[0]["pixel_values"].to(torch.bfloat16)).logits
    assert accuracy(model, batches, device="cpu") == ((logits.argmax(-1) == batches[0]["labels"]).sum().item() / 8, 8)


def test_accuracy_of_nothing_is_an_error_and_no_zero():
    """0 % and "not measured" are different things."""
    with pytest.raises(ValueError, match="`batches` must hold at least one image"):
        accuracy(vit(), [])


def test_latency_is_that_of_a_known_wait():
    """A model that sleeps 5 ms takes 5 ms, in milliseconds, per pass."""
    import time

    class Sleeper(nn.Module):
        config = ViTConfig(**SMALL)

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, pixel_values):
            assert pixel_values.shape == (1, 3, 12, 12) and not self.training and torch.is_inference_mode_enabled()
            time.sleep(0.005)

    model = Sleeper().train()
    times = latency_ms(model, min_run_time=0.05)
    assert 5 <= times["median"] < 10 and 0 <= times["iqr"] < 5
    assert (times["batch_size"], times["threads"]) == (1, torch.get_num_threads())
    assert model.training


def test_latency_takes_other_batches_and_bfloat16():
    """The batch is the caller's choice; the dtype the model's."""
    times = latency_ms(vit().to(torch.bfloat16), torch.zeros(3, 3, 12, 12), min_run_time=0.02)
    assert times["batch_size"] == 3 and times["median"] > 0


def test_device_names_are_for_people():
    """A latency without the machine it was taken on says nothing."""
    assert device_name().endswith(f"({torch.get_num_threads()} thread{'s' * (torch.get_num_threads() != 1)})")
    assert len(device_name().split(" (")[0]) > 2
    if torch.cuda.is_available():
        assert device_name("cuda") == torch.cuda.get_device_name()


def test_a_measured_row_has_the_fields_of_sizes_json():
    """The fields and their order are a format that other files read."""
    model, batches = vit(), random_batches([3])
    size = dict(depth=2, width_ratio=1 / 3, num_components=1, stored_params=77, split="test", dataset="noise")
    row, right = measure(model, batches, **size), accuracy(model, batches)[0]
    assert row == {
        "depth": 2,
        "width_ratio": "1/3",
        "num_components": 1,
        "params": count_parameters(model),
        "stored_params": 77,
        "macs": closed_form(model.config),
        "accuracy": round(accuracy(model, batches)[0], 6),
        "images": 3,
        "standard_errors": {"accuracy": round(math.sqrt(right * (1 - right) / 3), 6)},
        "split": "test",
        "dataset": "noise",
    }
    row = measure(model, batches, **{**size, "width_ratio": "1"}, latency=True)
    assert (row["width_ratio"], row["device"]) == ("1", device_name()) and row["latency_ms"] > 0
    assert row["iqr_ms"] >= 0 and re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", row["timed"])
    assert row["timed_with"].startswith(f"torch {torch.__version__}, float32, load ")


def test_a_model_of_another_size_is_not_measured_under_a_wrong_name():
    """A row whose depth is not the model's would mislead every later choice by budget."""
    size = dict(width_ratio="1", num_components=1, stored_params=77, split="test", dataset="noise")
    with pytest.raises(ValueError, match="stock ViT of depth 3; got a vit model of depth 2"):
        measure(vit(), random_batches([1]), depth=3, **size)
    constrained = SimpleNamespace(config=SimpleNamespace(model_type="lingene", num_hidden_layers=2))
    with pytest.raises(ValueError, match="got a lingene model .* Materialise"):
        measure(constrained, random_batches([1]), depth=2, **size)


def test_latency_times_at_least_ten_passes_however_short_the_time(as_shipped):
    """A median of one or two passes is whatever happened to run beside them."""
    import time

    class Counter(nn.Module):
        config = ViTConfig(**SMALL)

        def __init__(self):
            super().__init__()
            self.weight, self.passes = nn.Parameter(torch.zeros(())), 0

        def forward(self, pixel_values):
            self.passes += 1
            time.sleep(0.002)

    model = Counter()
    latency_ms(model, min_run_time=1e-6)
    assert model.passes >= 3 + 10
