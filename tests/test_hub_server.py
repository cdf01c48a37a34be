"""The local Hub behaves as the real one does for what the other tests prove with it: pushing and loading by name.

The functions that are handed to `in_new_process` run there alone, from their source, because huggingface_hub reads
HF_ENDPOINT once, when it is imported; hence their own imports.

    pytest tests/test_hub_server.py
"""

import inspect
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hub_server import HubServer


def in_new_process(function: Callable[..., Any], hub: HubServer, home: Path, *arguments: Any, **env: str) -> Any:
    """Returns `function(*arguments)` as computed by a new interpreter that knows only `hub` and the cache `home`."""
    call = f"print(json.dumps({function.__name__}(*json.loads(sys.argv[1]))))"
    code = f"from __future__ import annotations\nimport json, sys\n{inspect.getsource(function)}\n{call}"
    environment = {**os.environ, **hub.env(), "HF_HOME": str(home), **env}
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        yield server


def push_versions() -> dict[str, Any]:
    """Pushes a ViT with new weights each time: twice to main, once to a branch, once under a bare name."""
    import torch
    from huggingface_hub import HfApi
    from transformers import ViTConfig, ViTForImageClassification

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = ViTForImageClassification(ViTConfig(**size, image_size=32, patch_size=8, num_labels=3)).eval()
    pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    targets = [("org/tiny", None), ("org/tiny", "main"), ("org/tiny", "wide"), ("solo", None)]
    shas, logits = [], []
    for seed, (name, revision) in enumerate(targets):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        shas.append(model.push_to_hub(name, revision=revision, private=name == "solo").oid)
        logits.append(model(pixels).logits.tolist())
    return {"shas": shas, "logits": logits, "user": HfApi().whoami()["name"]}


def load_versions(targets: list[tuple[str, str | None]]) -> list[Any]:
    """Loads each `(name, revision)` from the Hub and returns its logits on the pixels of `push_versions`."""
    import torch
    from transformers import AutoModelForImageClassification

    pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    models = [AutoModelForImageClassification.from_pretrained(name, revision=revision) for name, revision in targets]
    return [model.eval()(pixels).logits.tolist() for model in models]


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """An author pushes, a reader loads and loads again offline; three processes, for each costs seconds of imports."""
    folder = tmp_path_factory.mktemp("trip")
    with HubServer(folder / "hub") as hub:
        pushed = in_new_process(push_versions, hub, folder / "author")
        targets = [("org/tiny", revision) for revision in (None, pushed["shas"][0], "wide")]
        targets.append((f"{pushed['user']}/solo", None))
        hub.requests.clear()
        loaded = in_new_process(load_versions, hub, folder / "reader", targets)
        downloads = hub.downloads("org/tiny")
        hub.requests.clear()
        offline = in_new_process(load_versions, hub, folder / "reader", targets, HF_HUB_OFFLINE="1")
        return SimpleNamespace(hub=hub, **pushed, loaded=loaded, downloads=downloads, offline=offline)


def test_a_pushed_model_loads_by_name_with_the_same_logits(trip: SimpleNamespace) -> None:
    """The round trip that the tests of `push` rest on, and that every push had weights of its own."""
    assert len({str(logits) for logits in trip.logits}) == 4
    assert trip.loaded[0] == trip.logits[1]
    assert set(trip.hub.snapshot("org/tiny")[1]) == {".gitattributes", "README.md", "config.json", "model.safetensors"}


def test_a_sha_and_a_branch_give_the_weights_of_their_commit(trip: SimpleNamespace) -> None:
    """A pinned revision must outlive later pushes, or it could not be tested that ours is honoured."""
    assert [trip.loaded[1], trip.loaded[2]] == [trip.logits[0], trip.logits[2]]
    assert list(trip.hub.repos["org/tiny"].commits)[1:] == trip.shas[:3]
    assert trip.hub.repos["org/tiny"].branches == {"main": trip.shas[1], "wide": trip.shas[2]}


def test_a_bare_name_is_created_under_the_user_and_private_is_recorded(trip: SimpleNamespace) -> None:
    """The Hub answers with the full name; a push that goes on with the bare one fails there, so it must fail here."""
    assert trip.loaded[3] == trip.logits[3]
    assert list(trip.hub.repos) == ["org/tiny", f"{trip.user}/solo"]
    assert [repo.private for repo in trip.hub.repos.values()] == [False, True]


def test_downloads_names_the_files_that_were_fetched_and_no_other(trip: SimpleNamespace) -> None:
    """It is what proves that four components are four files; asking with HEAD for a file is not fetching it."""
    assert sorted(set(trip.downloads)) == ["config.json", "model.safetensors"]
    assert trip.downloads.count("model.safetensors") == 3


def test_offline_loads_from_the_cache_without_a_request(trip: SimpleNamespace) -> None:
    """The cache holds all that loading needs only if the answers had the headers that it is built from."""
    assert trip.offline == trip.loaded
    assert trip.hub.requests == []


def upload(folder: str, repo_id: str, delete_patterns: str | None) -> str:
    """Uploads a folder to a repository, new or not, and returns the commit's sha."""
    from huggingface_hub import HfApi

    HfApi().create_repo(repo_id, exist_ok=True)
    return HfApi().upload_folder(repo_id=repo_id, folder_path=folder, delete_patterns=delete_patterns).oid


def test_delete_patterns_remove_stale_files_from_the_head_and_only_there(hub: HubServer, tmp_path: Path) -> None:
    """A bundle with fewer components must not leave the others behind, and a pinned revision must not change."""
    bundle = tmp_path / "bundle"
    (bundle / "notes").mkdir(parents=True)
    names = [f"component-{n:02}.safetensors" for n in range(8)] + ["config.json", "notes/a.txt"]
    for name in names:
        (bundle / name).write_bytes(name.encode() + (b"\0" if name.endswith(".safetensors") else b"\n"))
    first = in_new_process(upload, hub, tmp_path / "home", str(bundle), "org/bundle", None)
    assert sorted(hub.snapshot("org/bundle")[1]) == [".gitattributes", *names]

    for name in names[4:8]:
        (bundle / name).unlink()
    second = in_new_process(upload, hub, tmp_path / "home", str(bundle), "org/bundle", "component-*")
    assert sorted(hub.snapshot("org/bundle")[1]) == [".gitattributes", *names[:4], *names[8:]]
    assert sorted(hub.snapshot("org/bundle", first)[1]) == [".gitattributes", *names]
    assert hub.snapshot("org/bundle")[0] == second
    assert hub.read("org/bundle", names[5], first) == names[5].encode() + b"\0"


def test_a_file_that_is_already_there_is_not_uploaded_again(hub: HubServer, tmp_path: Path) -> None:
    """A bundle that gains a component uploads one file; nothing new is no commit."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for n in range(3):
        (bundle / f"component-{n:02}.safetensors").write_bytes(bytes([n, 0, n]))
        hub.requests.clear()
        sha = in_new_process(upload, hub, tmp_path / "home", str(bundle), "bundles/growing", None)
        assert [method for method, _ in hub.requests].count("PUT") == 1
    assert in_new_process(upload, hub, tmp_path / "home", str(bundle), "bundles/growing", None) == sha
    assert len(hub.repos["bundles/growing"].commits) == 4


def errors_of_missing_things(repo_id: str) -> list[str]:
    """`class status` of the error that each impossible call raises; `repo_id` holds config.json."""
    from huggingface_hub import HfApi, hf_hub_download, list_repo_files, model_info

    calls = (
        lambda: hf_hub_download(repo_id, "absent.json"),
        lambda: hf_hub_download(repo_id, "config.json", revision="absent"),
        lambda: hf_hub_download("org/absent", "config.json"),
        lambda: hf_hub_download("absent", "config.json"),
        lambda: model_info("absent"),
        lambda: list_repo_files(repo_id, revision="absent"),
        lambda: HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="org/absent"),
        lambda: HfApi().delete_file("absent.json", repo_id),
        lambda: HfApi().create_repo(repo_id),
        lambda: HfApi().create_tag(repo_id, tag="v1"),
    )
    names = []
    for call in calls:
        try:
            call()
            names.append("no error")
        except Exception as error:
            names.append(f"{type(error).__name__} {error.response.status_code}")
    return names


def test_missing_things_raise_the_errors_of_the_real_hub(hub: HubServer, tmp_path: Path) -> None:
    """Code that catches `EntryNotFoundError` or `RepositoryNotFoundError` must be tried against these very classes."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "config.json").write_text("{}")
    in_new_process(upload, hub, tmp_path / "home", str(tmp_path / "bundle"), "org/small", None)
    assert in_new_process(errors_of_missing_things, hub, tmp_path / "home", "org/small") == [
        "RemoteEntryNotFoundError 404",
        "RevisionNotFoundError 404",
        "RepositoryNotFoundError 404",
        "RepositoryNotFoundError 404",
        "RepositoryNotFoundError 404",
        "RevisionNotFoundError 404",
        "RepositoryNotFoundError 404",
        "RemoteEntryNotFoundError 404",
        "HfHubHTTPError 409",
        "HfHubHTTPError 501",
    ]


def error_then_sha(folder: str, repo_id: str) -> list[Any]:
    """`[status, sha of the head]` if the upload fails, else nothing."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().upload_folder(repo_id=repo_id, folder_path=folder)
    except HfHubHTTPError as error:
        return [error.response.status_code, HfApi().model_info(repo_id).sha]
    return []


def test_a_failed_commit_changes_nothing_and_the_next_one_succeeds(hub: HubServer, tmp_path: Path) -> None:
    """What a push does when the Hub breaks down half-way can be tried only if the break leaves the Hub whole."""
    (tmp_path / "bundle").mkdir()
    weights = tmp_path / "bundle" / "model.safetensors"
    weights.write_bytes(b"\0first")
    sha = in_new_process(upload, hub, tmp_path / "home", str(weights.parent), "org/whole", None)
    weights.write_bytes(b"\0second")
    hub.fail_next_commit = True
    assert in_new_process(error_then_sha, hub, tmp_path / "home", str(weights.parent), "org/whole") == [500, sha]
    assert hub.read("org/whole", "model.safetensors") == b"\0first"
    assert in_new_process(error_then_sha, hub, tmp_path / "home", str(weights.parent), "org/whole") == []
    assert hub.read("org/whole", "model.safetensors") == b"\0second"


def test_a_range_request_returns_those_bytes_and_the_whole_size(hub: HubServer, tmp_path: Path) -> None:
    """Resumed downloads and readers of a safetensors header ask for ranges."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "digits.txt").write_text("0123456789")
    in_new_process(upload, hub, tmp_path / "home", str(tmp_path / "bundle"), "org/ranges", None)
    url = f"{hub.url}/org/ranges/resolve/main/digits.txt"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for wanted, content, answer in (("2-4", b"234", "bytes 2-4/10"), ("7-", b"789", "bytes 7-9/10")):
        with opener.open(urllib.request.Request(url, headers={"Range": f"bytes={wanted}"})) as response:
            assert (response.status, response.read(), response.headers["Content-Range"]) == (206, content, answer)
    assert hub.downloads("org/ranges") == ["digits.txt", "digits.txt"]
