"""Laws of the page to try bundles on, without a browser: what it computes, and what it says of wrong input.

pytest tests/app/test_page.py
"""

import re
import runpy
import shutil
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

import helpers
from modeling_lingene import LinGeneModel, cli, folders, hub
from modeling_lingene.app import looking, page, sizes, views
from modeling_lingene.app.cache import Cache
from modeling_lingene.images.batches import image_processor
from modeling_lingene.measuring.metrics import count_macs


SPACE = Path(hub.__file__).parents[1] / "hub_cards" / "space"


def rows_of(config) -> list[dict]:
    """Measured sizes with invented accuracies, better with depth, width and components."""
    found = []
    for depth, width, count in ((2, "1/2", 5), (3, "1", 2), (3, "1", 5), (6, "1", 5)):
        size = config.size(depth, width, count)
        row = {"depth": depth, "width_ratio": width, "num_components": count, "params": 1000 * depth}
        row |= {"stored_params": config.stored_params(size), "macs": count_macs(config.stock_config(size))}
        row |= {"accuracy": 0.5 + 0.05 * depth + 0.01 * count, "split": "test", "dataset": "made"}
        found.append(row)
    return found


@pytest.fixture(autouse=True)
def short_timing(monkeypatch):
    """A few passes: what is timed here is not compared."""
    monkeypatch.setattr(sizes, "TIMED_SECONDS", 0.001)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A measured bundle and one that is not, with pictures, as the page holds them; read only."""
    folder = tmp_path_factory.mktemp("app")
    bundle = helpers.bundle(folder / "measured")
    image_processor(16).save_pretrained(bundle)
    bare = shutil.copytree(bundle, folder / "bare")
    folders.write_sizes(bundle, rows_of(folders.read_config(bundle)))
    pictures = [(picture, f"picture {place}") for place, picture in enumerate(helpers.pictures(2, size=40).images)]
    names = [str(bundle), str(bare)]
    return SimpleNamespace(bundle=names[0], bare=names[1], page=page.Page(sizes.read_bundles(names), pictures))


def stock(name: str, auto_class=AutoModelForImageClassification, **asked) -> torch.nn.Module:
    return auto_class.from_pretrained(name, **asked, attn_implementation="eager").eval()


def together(*calls) -> None:
    """Run calls in threads that begin at the same moment; what one raises is raised."""
    barrier, errors = threading.Barrier(len(calls)), []

    def run(call) -> None:
        try:
            barrier.wait()
            call()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_a_value_is_made_once_also_where_many_ask_at_once():
    """Two visitors who choose the same size would load it twice."""
    made, several = [], threading.Event()

    def make(key):
        made.append(key)
        several.wait(0.2)
        return object()

    cache, found = Cache(make, lambda _: 1, 10), []
    together(*[lambda: found.append(cache("a"))] * 8)
    assert made == ["a"] and len(found) == 8 and len(set(map(id, found))) == 1


def test_the_least_recently_asked_for_goes_first_and_the_newest_stays():
    """A bound that held only counts would not hold memory."""
    made = []
    cache = Cache(lambda key: made.append(key) or key, lambda key: key, 10)
    for key in (4, 5, 4, 3):  # 12 with 3: 5 goes, since 4 was asked for after it
        cache(key)
    assert made == [4, 5, 3] and len(cache) == 2
    cache(4), cache(3), cache(5)
    assert made == [4, 5, 3, 5]
    cache(100)
    assert len(cache) == 1 and cache(100) == 100 and made[-1] == 100


def test_what_failed_is_tried_again():
    """A file that could not be fetched once would be missing for as long as the page runs."""
    answers = iter([ValueError("once"), "value"])

    def make(_):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    cache = Cache(make, lambda _: 1, 10)
    with pytest.raises(ValueError, match="once"):
        cache("a")
    assert cache("a") == "value"


def test_a_prediction_is_that_of_from_pretrained(tried):
    """What the page shows must be what the line of code below it gives."""
    bundle, picture = tried.page.bundles[tried.bundle], tried.page.samples[0][0]
    size = bundle.config.size(3, "1/2", 4)
    pixels = AutoImageProcessor.from_pretrained(tried.bundle)(picture, return_tensors="pt")["pixel_values"]
    model = stock(tried.bundle, depth=3, width_ratio="1/2", num_components=4)
    with torch.no_grad():
        shares = model(pixels).logits[0].softmax(-1)
    said = looking.answer(tried.page.sizes(bundle, size), looking.prepared(bundle.processor, picture), most=7)
    assert [name for name, _ in said.classes] == [f"LABEL_{place}" for place in shares.argsort(descending=True)]
    assert [share for _, share in said.classes] == pytest.approx(shares.sort(descending=True)[0].tolist(), abs=1e-5)


@pytest.mark.parametrize("family", ["vit", "dinov2_with_registers"])
def test_the_attention_is_that_of_the_class_token_to_the_patches(tmp_path, family):
    """Registers stand between the class token and the patches; a shift by one would still look like a picture."""
    fields = {"family": family, "num_register_tokens": 3} if family != "vit" else {}
    name = str(helpers.bundle(tmp_path / "bundle", helpers.tiny_config(**fields)))
    image_processor(16).save_pretrained(name)
    shown = page.Page(sizes.read_bundles([name]))
    bundle, pixels = shown.bundles[name], helpers.images(1)
    held = shown.sizes(bundle, bundle.full)
    with torch.no_grad():
        weights = stock(name)(pixels, output_attentions=True).attentions[-1][0].mean(0)[0]
    expected = weights[-16:].reshape(4, 4) / weights[-16:].max()
    numpy.testing.assert_allclose(looking.answer(held, pixels).attention, expected, atol=1e-5)


def test_explaining_a_model_neither_copies_nor_changes_it(tried):
    """Attention that is formed is slower and takes memory: the latency is that of the model as loaded."""
    bundle = tried.page.bundles[tried.bundle]
    held = tried.page.sizes(bundle, bundle.full)
    assert held.model.config._attn_implementation == "sdpa" and held.explained.config._attn_implementation == "eager"
    for one, other in zip(held.model.parameters(), held.explained.parameters()):
        assert one is other


def test_a_model_without_attention_says_so():
    """Of families to come, too: nothing is shown that is not there."""
    config = SimpleNamespace(patch_size=4)
    for attentions in (None, (), (None,), (torch.ones(1, 2, 5, 5),)):
        found = looking.class_attention(SimpleNamespace(attentions=attentions), config, (16, 16))
        assert found is None
    grey = numpy.zeros((16, 16, 3), dtype=numpy.uint8)
    assert "no attention" in views.answers([("this size", looking.Answer([("cat", 1.0)], None))], grey)


def test_the_brightest_patch_is_yellow_and_named():
    """Turned pictures are as plausible as right ones."""
    attention = numpy.zeros((2, 4))
    attention[1, 2] = 1
    drawn = looking.overlay(numpy.zeros((8, 16, 3), dtype=numpy.uint8), attention)
    red = drawn[..., 0].astype(int) - drawn[..., 2]
    assert (red > 80).nonzero()[0].tolist() == [4] * 4 + [5] * 4 + [6] * 4 + [7] * 4
    assert set((red > 80).nonzero()[1].tolist()) == {8, 9, 10, 11}
    said = views.brightest(looking.Answer([], attention))
    assert said == "patch 2 of 2 down, 3 of 4 across is"


def test_the_picture_shown_is_the_one_that_the_model_gets():
    """Resized, and with the numbers that it came with."""
    picture = helpers.pictures(1, size=16).images[0]
    pixels = looking.prepared(image_processor(16), picture)
    numpy.testing.assert_array_equal(looking.seen(pixels, image_processor(16)), numpy.asarray(picture))


def test_the_numbers_of_a_size_stand_beside_those_of_all_that_is_stored(tried):
    """Read off the page, against the stock model and the row."""
    facts, *_ = tried.page.show(tried.bundle, 3, "1", 2, None)
    cells = dict(re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', facts))
    model = stock(tried.bundle, depth=3, num_components=2)
    params = sum(parameter.numel() for parameter in model.parameters())
    assert cells["Parameters"] == f"{float(f'{params / 1000:.3g}'):g} k"
    assert (cells["Layers"], cells["Width"], cells["Components"]) == ("3", "1", "2")
    assert cells["Accuracy"] == "67.0 %" and float(cells["Latency here, one image"].split()[0]) > 0


def test_the_code_is_that_of_the_card_and_loads_what_is_shown(tried, tmp_path):
    """Two forms of one line would part sooner or later; of full width it says nothing."""
    bundle = tried.page.bundles[tried.bundle]
    blocks = re.findall(r"```python\n(.*?)\n```", hub.render_card(tried.bundle, "org/name"), re.DOTALL)
    for block in blocks:
        asked = dict(re.findall(r"(depth|num_components|width_ratio)='?([\d/]+)", block))
        size = bundle.config.size(int(asked["depth"]), asked.get("width_ratio"), int(asked["num_components"]))
        assert bundle.code(size).replace(tried.bundle, "org/name") == block
    assert {"width_ratio" in block for block in blocks} == {True, False}
    scope: dict = {}
    exec(bundle.code(bundle.config.size(2, "1/2", 3)), scope)
    assert scope["model"].config.num_hidden_layers == 2 and scope["model"].config.hidden_size == 24


def test_a_budget_chooses_as_from_pretrained_does(tried):
    """Half of the largest measured size's parameters, against the keyword of that budget."""
    size, why = tried.page.within(tried.bundle, "max_params", 50)
    model = AutoModelForImageClassification.from_pretrained(tried.bundle, max_params=3000)
    assert (size.depth, size.num_components) == (3, 5) and model.config.num_hidden_layers == 3
    assert "max_params" in why
    assert tried.page.within(tried.bundle, "max_macs", 1)[0] is None
    none, why = tried.page.within(tried.bundle, "max_latency_ms", 50)
    assert none is None and "lingene profile" in why
    first = tried.page.bundles[tried.bundle].first
    assert (first.depth, str(first.width_ratio)) == (2, "1/2")  # three layers have a little more than half the MACs


def test_a_bundle_without_measured_sizes_works_and_says_how_to_measure(tried):
    """It is what everybody's own bundle is at first."""
    facts, answers, costs, code = tried.page.show(tried.bare, 3, "1/2", 4, 0)
    assert "Parameters" in facts and "this size: LABEL_" in answers and "depth=3" in code
    assert 'class="mark"' not in costs and "<img" not in costs
    for part in (facts, tried.page.within(tried.bare, "max_macs", 50)[1]):
        assert f"lingene sweep {tried.bare} --data DATA" in part
    bundle = tried.page.bundles[tried.bare]
    assert bundle.first == bundle.full


def test_depths_of_several_stages_are_chosen_among_those_that_are_trained(tmp_path):
    """On a slider there is one number; here each stage has its own."""
    model = helpers.tiny_swin(decomposed_stages=[2, 3], trained_depths=["4-2", "2-1"])
    model.save_pretrained(tmp_path / "swin")
    image_processor(16).save_pretrained(tmp_path / "swin")
    name, pictures = str(tmp_path / "swin"), [(helpers.pictures(1, size=40).images[0], "picture")]
    shown = page.Page(sizes.read_bundles([name]), pictures)
    bundle = shown.bundles[name]
    depth, stages, _, components, _ = page.Layout._ranges(bundle)
    assert depth["maximum"] > 1 and components["visible"] and not depth["visible"]
    assert stages == {"choices": ["2-1", "4-2"], "value": "4-2", "visible": True}
    facts, answers, _, code = shown.show(name, "2-1", "1/3", 2, 0)
    assert "depth='2-1'" in code.replace('"', "'") and "this size: LABEL_" in answers
    made = AutoModelForImageClassification.from_pretrained(name, depth="2-1", width_ratio="1/3", num_components=2)
    assert views.readable(sum(parameter.numel() for parameter in made.parameters())) in facts


def test_a_size_that_was_not_measured_says_how_to_measure_it(tried):
    """The command is complete but for the data."""
    facts, _, costs, _ = tried.page.show(tried.bundle, 5, "1/2", 4, None)
    assert "Depth 5 was never trained" in facts and "not measured" in facts and "mark" not in costs.split("<p>")[0]
    assert f"lingene sweep {tried.bundle} --data DATA --depths 5 --widths 1/2 --components 4" in facts


def test_the_chosen_size_is_marked_in_both_pictures(tried):
    """At the place that the figure says the row has."""
    _, _, costs, _ = tried.page.show(tried.bundle, 3, "1", 5, None)
    marks = re.findall(r'class="mark" style="left:([\d.]+)%;top:([\d.]+)%"', costs)
    places = [places[2] for _, places in tried.page._drawn[tried.bundle].values()]
    assert len(marks) == 2 and costs.count('alt="Accuracy of 4 measured sizes') == 2
    for mark, place in zip(marks, places):
        assert tuple(map(float, mark)) == pytest.approx((100 * place[0], 100 * place[1]), abs=0.01)


def test_an_encoder_shows_attention_and_says_that_it_names_no_classes(tmp_path):
    """A bundle without a classifier is a bundle."""
    name = tmp_path / "encoder"
    helpers.tiny_model(model_class=LinGeneModel).save_pretrained(name)
    image_processor(16).save_pretrained(name)
    shown = page.Page(sizes.read_bundles([str(name)]), [(helpers.pictures(1).images[0], "one")])
    _, answers, _, code = shown.show(str(name), 2, "1", 5, 0)
    assert "names no classes" in answers and "Attention of the class token" in answers
    assert code.startswith("from transformers import AutoModel\n")
    scope: dict = {}
    exec(code, scope)
    assert type(scope["model"]) is type(AutoModel.from_pretrained(name))


def test_two_at_once_do_not_disturb_each_other(tried):
    """Each gets for its size and picture what it gets alone."""
    asked = [(3, "1", 5, 0), (3, "1/2", 4, 1), (3, "1", 5, 1)] * 2
    alone = [tried.page.show(tried.bundle, *one)[1] for one in asked]
    fresh, found = page.Page(tried.page.bundles, tried.page.samples), [None] * len(asked)

    def ask(place):
        return lambda: found.__setitem__(place, fresh.show(tried.bundle, *asked[place])[1])

    together(*map(ask, range(len(asked))))
    assert found == alone and len(set(alone)) == 3


WRONG_PICTURES = {
    "words": (b"no picture", "no picture that can be read"),
    "nothing": (b"", "no picture that can be read"),
    "cut off": (None, "cannot be read"),
    "gone": (..., "no longer here"),
}


@pytest.mark.parametrize("case", WRONG_PICTURES)
def test_a_bad_picture_gets_a_sentence_and_the_rest_stands(tried, tmp_path, case):
    """Visitors drop anything."""
    content, said = WRONG_PICTURES[case]
    path = tmp_path / "dropped.png"
    if content is None:
        Image.new("RGB", (64, 64), "red").resize((640, 640)).save(path)
        content = path.read_bytes()[:300]
    if content is not ...:
        path.write_bytes(content)
    facts, answers, costs, code = tried.page.show(tried.bundle, 3, "1", 5, str(path))
    assert 'role="status"' in answers and said in answers and "drop" in answers or "save" in answers
    assert "Parameters" in facts and "mark" in costs and "from_pretrained" in code


def test_a_picture_that_is_too_large_gets_a_sentence(tried, tmp_path, monkeypatch):
    """One that claims a billion pixels would fill the memory of everyone's page."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (64, 64)).save(tmp_path / "bomb.png")
    assert "too large" in tried.page.show(tried.bundle, 3, "1", 5, str(tmp_path / "bomb.png"))[1]


def test_names_are_shown_and_are_no_markup(tmp_path):
    """Whoever made the bundle wrote them."""
    label = "<script>alert(1)</script>"
    config = helpers.tiny_config(id2label={place: f"{label}{place}" for place in range(7)})
    name = str(helpers.bundle(tmp_path / "a bundle", config))
    image_processor(16).save_pretrained(name)
    shown = page.Page(sizes.read_bundles([name]), [(helpers.pictures(1).images[0], "one")])
    facts, answers, _, _ = shown.show(name, 3, "1", 5, 0)
    assert "<script" not in answers and "&lt;script&gt;" in answers
    assert f"lingene sweep &#x27;{name}&#x27; --data" in facts  # quoted for a shell


def told(capfd, *arguments: str) -> tuple[int, str]:
    capfd.readouterr()
    status = cli.main(["app", *arguments])
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return status, lines[0]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_a_port_in_use_is_one_line_before_any_work(capfd, monkeypatch):
    """Not after a bundle was fetched and Gradio imported: the bundle is not looked at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        status, line = told(capfd, "/absent/bundle", "--port", port)
    assert status == 2 and line.startswith("lingene app: `--port`") and f"{port} is in use" in line


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["B", "--port", "0"], "`--port`"),
        (["B", "--port", "70000"], "`--port`"),
        (["B", "--host", "no.such.host.invalid"], "`--host`"),
        (["B", "--host", "192.0.2.1"], "`--host`"),
        (["/absent/bundle"], "`BUNDLE`"),
        (["B", "/absent/bundle"], "`BUNDLE`"),
        (["B", "--data", "/absent/images"], "/absent/images"),
    ],
)
def test_wrong_input_is_one_line_that_names_it(tried, capfd, arguments, named):
    """Told before the page is built."""
    words = [tried.bundle if word == "B" else word for word in arguments]
    if "--port" not in words:
        words += ["--port", free_port()]
    status, line = told(capfd, *words)
    assert status == 2 and named in line


def test_without_gradio_one_line_says_what_brings_it(tried, capfd, monkeypatch):
    """It is an extra, and its own message names no extra."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    status, line = told(capfd, tried.bundle, "--port", free_port())
    assert status == 2 and "modeling_lingene[app]" in line


def test_samples_lie_evenly_over_a_set_and_bear_their_names(tmp_path):
    """Of ten thousand pictures the first eight are of one class; what does not decode is left out."""
    for place in range(20):
        Image.new("RGB", (4, 4), (place, 0, 0)).save(tmp_path / f"p{place:02}.png")
    (tmp_path / "p02.png").write_bytes(b"none")
    found = page.samples(str(tmp_path), most=10)
    assert [name for _, name in found] == [f"p{place:02}" for place in range(0, 20, 2) if place != 2]
    assert [picture.getpixel((0, 0))[0] for picture, _ in found] == [0, *range(4, 20, 2)]


def test_the_space_is_complete_and_shows_what_it_says(monkeypatch):
    """Its header is all that the Hub knows of it; its code is the page that is tested here."""
    _, header, _ = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    said = yaml.safe_load(header)
    assert said["sdk"] == "gradio" and (SPACE / said["app_file"]).is_file() and len(said["short_description"]) <= 60
    assert said["license"] == "apache-2.0"
    setup = (SPACE.parents[1] / "setup.cfg").read_text()
    assert f"gradio>={said['sdk_version'].rpartition('.')[0]}" in setup
    assert (SPACE / "requirements.txt").read_text().split() == ["modeling_lingene[app]"]
    served = []
    monkeypatch.setattr(page, "serve", lambda *given, **how: served.append((*given, how)))
    monkeypatch.chdir(SPACE)
    for bundles, names in ((None, said["models"]), ("a/b, c/d", ["a/b", "c/d"])):
        monkeypatch.setenv("BUNDLES", bundles) if bundles else monkeypatch.delenv("BUNDLES", raising=False)
        runpy.run_path("app.py", run_name="__main__")
        assert served[-1] == (names, {"data": "samples", "host": "0.0.0.0"})
    assert len(page.samples("samples")) == 8
