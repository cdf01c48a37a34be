"""Laws of a pruned model's card and push: it says what its layers became, and sends what it consists of.

pytest tests/pruning/test_pruned_card.py
"""

import pruning_helpers as made

import helpers
from hub_server import HubServer
from modeling_lingene.images.batches import image_processor
from test_hub_server import in_new_process


def pushed(littered: str) -> list:
    """Pushes by the command; what is verified, and how, is tested elsewhere."""
    from modeling_lingene.cli import main
    from modeling_lingene.pruning import card

    card.check_loads = card.verify_loads = lambda *_: None
    return [main(["push", littered, "org/littered", "--quiet"])]


def test_a_push_sends_what_a_pruned_model_consists_of(tmp_path):
    """A star in a pattern of the Hub's library is also of a slash: whatever ended in .py went along."""
    folder = tmp_path / "littered"
    made.network(made.mixed_config()).save_pretrained(folder, max_shard_size="100KB")
    image_processor(16).save_pretrained(folder)
    own = set(helpers.files(folder))
    for name in (
        "notes/private.py",
        "model_old/old.safetensors.bak",
        "model-old.safetensors",
        "keys.py",
        "a/layers.png",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    with HubServer(tmp_path / "hub") as hub:
        assert in_new_process(pushed, hub, tmp_path / "home", str(folder)) == [0]
        sent = set(hub.snapshot("org/littered")[1])
    assert sent == own | {".gitattributes", "README.md"}
    assert {"lingene_vit.py", "vit_lingene.py", "model.safetensors.index.json"} <= sent
