"""Laws of a push: one whole commit that loads again, nothing that is no bundle's, and nothing of a damaged folder.

The round trip runs in a process that knows only the Hub on this machine; all pushes in it share the imports.

    pytest tests/test_pushing.py
"""

import importlib
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import get_session
from transformers import ViTForImageClassification

import helpers
from helpers import ROWS, assert_table_shows, example, files, flip_a_bit, table
from hub_server import USER, HubServer
from modeling_lingene import Size, folders, hub, readme
from modeling_lingene.images.batches import image_processor
from test_hub_server import in_new_process


CONFIG, INDEX = "config.json", "model.safetensors.index.json"


@pytest.mark.parametrize(
    "ours, theirs, message",
    [
        ("[1.0, -2.0]", "[1.0, -2.0]", None),
        ("[1.0, -2.0]", "[1.0, -2.000001]", None),
        ("[1.0, -2.0]", "[1.0, -2.5]", r"org/name was pushed, but its logits differ .* 0\.5"),
        ("[1.0, -2.0]", "[1.0, NaN]", "org/name was pushed, but its logits differ"),
        (None, "[1.0]", "folder does not load.*KeyError: 'lingene'"),
        ("[1.0]", None, "org/name does not load.*KeyError: 'lingene'"),
    ],
)
def test_verifying_compares_what_a_clean_process_prints(monkeypatch, ours, theirs, message):
    """The round trip below shows that the process is clean; here, that a difference is not overlooked."""

    def run(command, **_):
        printed = list(itertools.takewhile(bool, (ours, theirs)))
        out = "".join(f"a line of somebody's\n{line}\n" for line in printed)
        return subprocess.CompletedProcess(command, len(printed) < 2, out, stderr="Traceback\nKeyError: 'lingene'")

    monkeypatch.setattr(hub.subprocess, "run", run)
    if message is None:
        hub.verify("folder", "org/name", {"revision": "main"}, Size(1, 1, 1))
    else:
        with pytest.raises(RuntimeError, match=f"(?s){message}"):
            hub.verify("folder", "org/name", {"revision": "main"}, Size(1, 1, 1))


def unreachable(*_, **__):
    """What the HTTP library under huggingface_hub raises without a network."""
    library = importlib.import_module(get_session().__class__.__module__.partition(".")[0])
    raise library.ConnectError("no route to host")


@pytest.mark.parametrize("call", ["ensure_repo", "page_on_the_hub", "push_bundle"])
def test_without_a_network_a_push_says_where_it_did_not_get(tmp_path, monkeypatch, call):
    """At each of the calls to the Hub; the command line tells an OSError in one line."""
    folder = helpers.bundle(tmp_path / "bundle")
    monkeypatch.setattr(hub, "check_loads", lambda *_: None)  # seconds
    monkeypatch.setattr(hub, "ensure_repo", lambda name, **_: name)
    monkeypatch.setattr(hub, "page_on_the_hub", lambda *_: None)
    monkeypatch.setattr(hub, call, unreachable)
    with pytest.raises(ConnectionError, match="^org/name cannot be pushed to: no route to host$"):
        hub.push(folder, "org/name")


def test_what_fails_in_rendering_the_card_is_no_fault_of_the_network(tmp_path, monkeypatch):
    """`cannot be pushed to: 'depth'` would send whoever reads it to look for a token."""
    folder = helpers.bundle(tmp_path / "bundle")
    monkeypatch.setattr(hub, "check_loads", lambda *_: None)  # seconds
    monkeypatch.setattr(hub, "ensure_repo", lambda name, **_: name)
    monkeypatch.setattr(hub, "page_on_the_hub", lambda *_: None)
    monkeypatch.setattr(hub, "made_how", lambda trained: {}["depth"])
    with pytest.raises(KeyError, match="depth"):
        hub.push(folder, "org/name")


def pushes(
    big: str, stages: str, codeless: str, small: str, damaged: str, littered: str, out: str, verifying: str
) -> dict[str, Any]:
    """Pushes a bundle and verifies it, and one of two stages; one without a file of its code; a smaller one over the
    first, others to a branch, into subfolders and under a bare name; between two requests of its own a damaged folder;
    then one while the Hub fails, and again; one with more in it than a bundle. Reads from the Hub what needs no
    weights.
    """
    import contextlib
    import io
    import logging
    import os
    import urllib.request
    from pathlib import Path

    from huggingface_hub import HfApi

    from modeling_lingene import hub
    from modeling_lingene.cli import main

    def lingene(*arguments):
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = main(list(arguments))
        return {"code": code, "stdout": stdout.getvalue(), "stderr": stderr.getvalue()}

    def knock(word):
        asked = f"{os.environ['HF_ENDPOINT']}/api/whoami-v2?{word}"
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked)

    home = os.environ["HF_HOME"]
    os.environ["HF_HOME"] = verifying  # of new processes; this one has read it, and its cache stays empty
    found = {"urls": [hub.push(big, "org/bundle", private=True)]}
    os.environ["HF_HOME"] = home
    found["card"] = (Path(big) / "README.md").read_text()
    HfApi().upload_file(path_or_fileobj=b"kept", path_in_repo="notes.md", repo_id="org/bundle")
    found["stages"] = lingene("push", stages, "org/stages")
    found["codeless"] = lingene("push", codeless, "org/codeless")
    found["verified"] = []  # seconds each; the first pushes were
    hub.check_loads = lambda *_: None
    hub.verify_loads = lambda auto_class, *places: found["verified"].append([auto_class, *places])
    found["several"] = hub.push(small, "org/several", subfolder="few")
    hub.push(big, "org/several", subfolder="many")
    found["urls"].append(hub.push(small, "org/bundle"))
    found["urls"].append(hub.push(big, "org/bundle", revision="wide"))
    found["urls"].append(hub.push(big, "solo"))

    knock("before")
    found["damaged"] = lingene("push", damaged, "org/damaged")
    knock("after")
    found["failed"] = lingene("push", small, "org/failing")
    found["again"] = lingene("push", small, "org/failing", "--private")
    said = io.StringIO()
    logging.getLogger("modeling_lingene.saving_lingene").addHandler(logging.StreamHandler(said))
    found["littered"] = lingene("push", littered, "org/littered") | {"said": said.getvalue()}
    found["within"] = lingene("push", littered, "org/within", "--subfolder", "few")
    HfApi().create_repo("org/theirs")
    place = {"path_or_fileobj": b"theirs", "repo_id": "org/theirs"}
    HfApi().upload_file(path_in_repo="shared by us/old.safetensors", **place)
    HfApi().upload_file(path_in_repo="component-44-0123abcd.safetensors", **place)
    lingene("push", littered, "org/theirs")
    knock("reading")
    found["info"] = lingene("info", "org/bundle", "--revision", "wide")
    size = ["--depth", "2", "--width-ratio", "1/2", "--num-components", "2"]
    found["materialise"] = lingene("materialise", "org/bundle", "--revision", "wide", *size, "--out", out)
    return found


PICTURES = ["LICENSE", "sizes.png", "sizes_heat.png", "conversion.png"]
LITTER = [".env", "stray.safetensors", "optimizer.bin", "own.py", "checkpoints/001/model.safetensors"]
LITTER += [
    "checkpoints/more_lingene.py",
    "checkpoints/001/vit_lingene.py",
    ".small.0123abcd.1.0123abcd.partial/config.json",
    "notes/README.md",
]


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What a process pushes and is told, and what the Hub holds and was asked for."""
    work = tmp_path_factory.mktemp("hub")
    big, small = helpers.bundle(work / "big"), helpers.bundle(work / "small", helpers.tiny_config(num_components=3), 1)
    image_processor(16).save_pretrained(big)
    folders.write_sizes(big, ROWS)
    helpers.tiny_swin(decomposed_stages=[2, 3]).save_pretrained(work / "stages")
    codeless = Path(shutil.copytree(small, work / "codeless"))
    (codeless / "vit_lingene.py").unlink()
    damaged = Path(shutil.copytree(big, work / "damaged"))
    flip_a_bit(damaged / "component-01.safetensors")
    littered = Path(shutil.copytree(small, work / "littered"))
    for name in PICTURES + LITTER:
        (littered / name).parent.mkdir(parents=True, exist_ok=True)
        (littered / name).write_bytes(name.encode())
    report = {"source": "vit", "depth": 6, "num_components": 3, "fit": "exact", "condition": 2.0, "left_out": {}}
    report |= {"relative_logit_error": 1e-7, "largest_logit_error": 1e-6, "advice": None}
    (littered / "conversion.json").write_text(json.dumps(report))
    with HubServer(work / "server") as server:
        server.fail_next_commit_of = "org/failing"
        given = (big, work / "stages", codeless, small, damaged, littered, work / "vit", work / "verifying")
        given = [str(path) for path in given]
        pushed = in_new_process(pushes, server, work / "home", *given, COLUMNS="200")
        log = list(server.requests)
        server.requests = log[log.index(("GET", "/api/whoami-v2?reading")) :]
        downloads = server.downloads("org/bundle")
        places = {"hub": server, "work": work, "big": big, "small": small, "damaged": damaged}
        return SimpleNamespace(**places, pushed=pushed, log=log, downloads=downloads)


def commit_of(url: str) -> str:
    return url.rpartition("/")[2]


def on_the_hub(trip: SimpleNamespace, repo_id: str, revision: str = "main") -> dict[str, bytes]:
    return {name: trip.hub.read(repo_id, name, revision) for name in trip.hub.snapshot(repo_id, revision)[1]}


def fetches(trip: SimpleNamespace) -> list[str]:
    return [path for method, path in trip.log if method == "GET"]


def test_a_push_is_one_commit_with_every_file_and_our_card(trip):
    """Two commits would leave a time in which a reader gets weights of one and sizes of the other."""
    sha = commit_of(trip.pushed["urls"][0])
    commits = list(trip.hub.repos["org/bundle"].commits)
    assert commits.index(sha) == 1  # after the one that every repository begins with
    pushed = on_the_hub(trip, "org/bundle", sha)
    assert pushed.pop(".gitattributes") and pushed.pop("README.md").decode() == trip.pushed["card"]
    assert pushed == {name: content for name, content in files(trip.big).items() if name != "README.md"}
    assert readme.parsed(trip.pushed["card"], "").card() == hub.render_card(trip.big, "org/bundle") + "\n"
    assert example(trip.pushed["card"])[1].args[0].value == "org/bundle"


def test_a_push_is_verified_by_a_process_without_the_package(trip):
    """It fetched the code, at the very commit, and of the weights one component: nothing came from this machine."""
    sha = commit_of(trip.pushed["urls"][0])
    fetched = {match[1] for path in fetches(trip) if (match := re.match(rf"/org/bundle/resolve/{sha}/([^?]+)", path))}
    code = {path.name for path in trip.big.glob("*_lingene.py")}
    assert len(code) > 5 and code | {CONFIG, INDEX} <= fetched
    weights = {name for name in fetched if name.endswith(".safetensors")}
    assert weights == {"shared.safetensors", "component-00.safetensors"}


def test_a_bundle_of_two_stages_is_verified_at_a_depth_that_it_has(trip):
    """Its depths are one number for each stage: the depth 1 was refused once everything lay on the Hub."""
    told = trip.pushed["stages"]
    assert told["code"] == 0 and told["stdout"].startswith(f"{trip.hub.url}/org/stages/commit/"), told["stderr"]
    assert {"modeling_swin_lingene.py", "component-02.safetensors"} <= set(on_the_hub(trip, "org/stages"))


def test_a_folder_that_does_not_load_by_itself_is_not_sent(trip):
    """What is public stays public: verifying it there alone comes too late."""
    told = trip.pushed["codeless"]
    assert told["code"] != 0 and told["stdout"] == ""
    assert "codeless does not load in a clean process" in told["stderr"] and "vit_lingene.py" in told["stderr"]
    assert "org/codeless" not in trip.hub.repos


def test_bundles_in_subfolders_share_their_code_at_the_root(trip):
    """transformers looks for it there alone: `subfolder=` with trusted code found none. Verified at its place, by the
    keywords that test_remote_code.py loads with."""
    present, code = on_the_hub(trip, "org/several"), {path.name for path in trip.big.glob("*_lingene.py")}
    assert {name for name in present if name.endswith(".py")} == code
    for subfolder, folder in (("few", trip.small), ("many", trip.big)):
        expected = {name for name in files(folder) if name not in code}
        assert {name.partition("/")[2] for name in present if name.startswith(f"{subfolder}/")} == expected
    call = example(present["few/README.md"].decode())[1]
    assert call.args[0].value == "org/several"
    assert {word.arg: word.value.value for word in call.keywords}["subfolder"] == "few"
    size = {"depth": 1, "width_ratio": "1/4", "num_components": 1, "allow_untrained": True}
    place = {"revision": commit_of(trip.pushed["several"]), "subfolder": "few"}
    places = [[str(trip.small), size], ["org/several", size | place]]
    assert trip.pushed["verified"][0] == ["AutoModelForImageClassification", *places]


def test_a_second_push_deletes_what_the_smaller_bundle_lacks_and_keeps_what_is_not_ours(trip):
    """Component 3 of another bundle beside components 0 to 2, or sizes of other weights, would mislead."""
    present = on_the_hub(trip, "org/bundle")
    mine = files(trip.small)
    weights = {name for name in mine if name.endswith(".safetensors")}
    assert len(weights) == 4 and {name for name in present if name.endswith(".safetensors")} == weights
    assert all(present[name] == mine[name] for name in weights | {CONFIG, INDEX})
    assert "sizes.json" not in present and present["notes.md"] == b"kept"
    before = set(on_the_hub(trip, "org/bundle", commit_of(trip.pushed["urls"][0])))
    assert {"component-03.safetensors", "component-04.safetensors", "sizes.json"} <= before


def test_revision_private_and_bare_names_are_honoured(trip):
    """A branch is not main, a private repository is private, and the card under a bare name says whose it is."""
    repo, solo = trip.hub.repos["org/bundle"], trip.hub.repos[f"{USER}/solo"]
    shas = [commit_of(url) for url in trip.pushed["urls"]]
    assert repo.branches == {"main": shas[1], "wide": shas[2]} and solo.branches == {"main": shas[3]}
    assert len(repo.commits) == 5 and len(solo.commits) == 2
    assert (repo.private, solo.private) == (True, False)
    assert "component-04.safetensors" in on_the_hub(trip, "org/bundle", "wide")
    assert example(on_the_hub(trip, f"{USER}/solo")["README.md"].decode())[1].args[0].value == f"{USER}/solo"


def test_the_command_refuses_a_damaged_folder_without_a_request(trip):
    """Of two requests that the test makes before and after, the second follows the first."""
    told = trip.pushed["damaged"]
    assert told["code"] == 2 and told["stdout"] == ""
    assert re.fullmatch(r"lingene push: `weights_id` of .*damaged is not .*\n", told["stderr"])
    before, after = (trip.log.index(("GET", f"/api/whoami-v2?{word}")) for word in ("before", "after"))
    assert after == before + 1 and "org/damaged" not in trip.hub.repos
    assert not (trip.damaged / "README.md").exists()


def test_a_commit_that_fails_is_told_and_can_be_repeated(trip):
    """Status and one line on the way out, nothing changed on the Hub; the same command again succeeds."""
    failed, again = trip.pushed["failed"], trip.pushed["again"]
    assert failed["code"] == 2 and failed["stdout"] == ""
    assert re.fullmatch(r"lingene push: .*500.*", failed["stderr"].splitlines()[-1])  # after bars of the upload
    assert again["code"] == 0 and again["stdout"].startswith(f"{trip.hub.url}/org/failing/commit/")
    assert len(trip.hub.repos["org/failing"].commits) == 2
    assert on_the_hub(trip, "org/failing")[INDEX] == files(trip.small)[INDEX]


def test_a_push_sends_what_a_bundle_consists_of_and_names_the_rest(trip):
    """A folder of work holds training states of gigabytes, and keys: what is public once stays public."""
    told, bundle = trip.pushed["littered"], set(files(trip.small)) - {"README.md"}
    sent = on_the_hub(trip, "org/littered")
    assert set(sent) == {".gitattributes", "README.md", "conversion.json", *PICTURES, *bundle}
    assert all(sent[name] == name.encode() for name in PICTURES) and "from `vit`" in sent["README.md"].decode()
    (line,) = told["said"].splitlines()
    assert told["code"] == 0 and line.startswith("Not sent to org/littered")
    named = line.partition(": ")[2].rstrip(".").split(", ")
    assert named == sorted({re.sub("/.*", "/", name) for name in LITTER})


def test_what_lies_in_folders_is_neither_sent_nor_deleted(trip):
    """A star in a pattern of the Hub's library is also of a slash: code of training states went along."""
    sent, littered = on_the_hub(trip, "org/within"), trip.work / "littered"
    assert trip.pushed["within"]["code"] == 0
    assert {name for name in sent if "/" not in name} == {".gitattributes", *(p.name for p in littered.glob("*_lin*"))}
    assert all(name.count("/") == 1 and name.startswith("few/") for name in sent if "/" in name)
    theirs = on_the_hub(trip, "org/theirs")
    assert theirs["shared by us/old.safetensors"] == b"theirs" and "component-44-0123abcd.safetensors" not in theirs
    assert {name for name in theirs if "/" in name} == {"shared by us/old.safetensors"} and INDEX in theirs


def test_info_by_name_downloads_no_weights_and_a_size_by_name_only_its_own(trip):
    """Both read the branch that was asked for; the model folder has the preprocessing of the repository."""
    assert [trip.pushed[name]["code"] for name in ("info", "materialise")] == [0, 0]
    assert re.search(r"^num_components +5$", trip.pushed["info"]["stdout"], re.MULTILINE)
    assert_table_shows(ROWS, table(trip.pushed["info"]["stdout"]))
    weights = {name for name in trip.downloads if name.endswith(".safetensors")}
    assert weights == {"shared.safetensors", "component-00.safetensors", "component-01.safetensors"}
    assert trip.downloads.index(INDEX) < min(trip.downloads.index(name) for name in weights)
    model = ViTForImageClassification.from_pretrained(trip.work / "vit").eval()
    with torch.no_grad():
        expected = helpers.reference_vit(helpers.tiny_model(), 2, "1/2", 2)(helpers.images()).logits
        assert torch.allclose(model(helpers.images()).logits, expected, atol=1e-5)
    assert (trip.work / "vit" / "preprocessor_config.json").read_bytes() == files(trip.big)["preprocessor_config.json"]
