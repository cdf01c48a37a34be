"""The local Hub behaves as the real one does for what the other tests prove with it: pushing and loading by name.

By huggingface_hub in this process, which takes an endpoint; models of transformers go through it in
test_remote_code.py. What reads HF_ENDPOINT, as transformers does when it is imported, needs `in_new_process`.

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

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from hub_server import HubServer


def in_new_process(function: Callable[..., Any], hub: HubServer, home: Path, *arguments: Any, **env: str) -> Any:
    """Returns `function(*arguments)` as computed by a new interpreter that knows only `hub` and the cache `home`.

    From the function's source, hence its own imports.
    """
    call = f"print(json.dumps({function.__name__}(*json.loads(sys.argv[1]))))"
    code = f"from __future__ import annotations\nimport json, sys\n{inspect.getsource(function)}\n{call}"
    environment = {**os.environ, **hub.env(), "HF_HOME": str(home), **env}
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module", autouse=True)
def direct() -> Iterator[None]:
    """No proxy between huggingface_hub and this machine, and large files as plain HTTP."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        huggingface_hub.close_session()  # of a client that may have read other variables
        yield
    huggingface_hub.close_session()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        yield server


def api(hub: HubServer) -> HfApi:
    return HfApi(endpoint=hub.url, token="hf_anything")


def push_versions(hub: HubServer, folder: Path) -> dict[str, Any]:
    """Pushes a folder with new weights each time: twice to main, once to a branch, once under a bare name."""
    targets = [("org/tiny", "main"), ("org/tiny", "main"), ("org/tiny", "wide"), ("solo", "main")]
    shas, weights = [], []
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for number, (name, revision) in enumerate(targets):
        weights.append(bytes([number, 0, number]))
        (folder / "model.safetensors").write_bytes(weights[-1])
        repo_id = api(hub).create_repo(name, private=name == "solo", exist_ok=True).repo_id
        if revision != "main":
            api(hub).create_branch(repo_id, branch=revision, exist_ok=True)
        shas.append(api(hub).upload_folder(repo_id=repo_id, folder_path=folder, revision=revision).oid)
    return {"shas": shas, "weights": weights, "user": api(hub).whoami()["name"]}


def load_versions(hub: HubServer, cache: Path, targets: list[tuple[str, str | None]], **options) -> list[bytes]:
    """The weights of each `(name, revision)`, fetched as transformers does: its configuration first."""
    found, place = [], {"cache_dir": cache, "endpoint": hub.url, **options}
    for name, revision in targets:
        hf_hub_download(name, "config.json", revision=revision, **place)
        found.append(Path(hf_hub_download(name, "model.safetensors", revision=revision, **place)).read_bytes())
    return found


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory, direct: None) -> SimpleNamespace:
    """An author pushes, a reader loads and loads again offline."""
    folder = tmp_path_factory.mktemp("trip")
    with HubServer(folder / "hub") as hub:
        pushed = push_versions(hub, folder / "author")
        targets = [("org/tiny", revision) for revision in (None, pushed["shas"][0], "wide")]
        targets.append((f"{pushed['user']}/solo", None))
        hub.requests.clear()
        loaded = load_versions(hub, folder / "reader", targets)
        downloads = hub.downloads("org/tiny")
        hub.requests.clear()
        offline = load_versions(hub, folder / "reader", targets, local_files_only=True)
        return SimpleNamespace(hub=hub, **pushed, loaded=loaded, downloads=downloads, offline=offline)


def test_what_was_pushed_loads_by_name(trip: SimpleNamespace) -> None:
    """The round trip that the tests of `push` rest on, and that every push had weights of its own."""
    assert len(set(trip.weights)) == 4
    assert trip.loaded[0] == trip.weights[1]
    assert set(trip.hub.snapshot("org/tiny")[1]) == {".gitattributes", "config.json", "model.safetensors"}


def test_a_sha_and_a_branch_give_the_weights_of_their_commit(trip: SimpleNamespace) -> None:
    """A pinned revision must outlive later pushes, or it could not be tested that ours is honoured."""
    assert [trip.loaded[1], trip.loaded[2]] == [trip.weights[0], trip.weights[2]]
    assert list(trip.hub.repos["org/tiny"].commits)[1:] == trip.shas[:3]
    assert trip.hub.repos["org/tiny"].branches == {"main": trip.shas[1], "wide": trip.shas[2]}


def test_a_bare_name_is_created_under_the_user_and_private_is_recorded(trip: SimpleNamespace) -> None:
    """The Hub answers with the full name; a push that goes on with the bare one fails there, so it must fail here."""
    assert trip.loaded[3] == trip.weights[3]
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


def upload(hub: HubServer, folder: Path, repo_id: str, delete_patterns: str | None = None) -> str:
    """Uploads a folder to a repository, new or not, and returns the commit's sha."""
    api(hub).create_repo(repo_id, exist_ok=True)
    return api(hub).upload_folder(repo_id=repo_id, folder_path=folder, delete_patterns=delete_patterns).oid


def test_delete_patterns_remove_stale_files_from_the_head_and_only_there(hub: HubServer, tmp_path: Path) -> None:
    """A bundle with fewer components must not leave the others behind, and a pinned revision must not change."""
    bundle = tmp_path / "bundle"
    (bundle / "notes").mkdir(parents=True)
    names = [f"component-{n:02}.safetensors" for n in range(8)] + ["config.json", "notes/a.txt"]
    for name in names:
        (bundle / name).write_bytes(name.encode() + (b"\0" if name.endswith(".safetensors") else b"\n"))
    first = upload(hub, bundle, "org/bundle")
    assert sorted(hub.snapshot("org/bundle")[1]) == [".gitattributes", *names]

    for name in names[4:8]:
        (bundle / name).unlink()
    second = upload(hub, bundle, "org/bundle", "component-*")
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
        sha = upload(hub, bundle, "bundles/growing")
        assert [method for method, _ in hub.requests].count("PUT") == 1
    assert upload(hub, bundle, "bundles/growing") == sha
    assert len(hub.repos["bundles/growing"].commits) == 4


def errors_of_missing_things(hub: HubServer, cache: Path, repo_id: str) -> list[str]:
    """`class status` of the error that each impossible call raises; `repo_id` holds config.json."""
    mine, place = api(hub), {"cache_dir": cache, "endpoint": hub.url}
    given = {"path_or_fileobj": b"{}", "path_in_repo": "config.json"}
    calls = (
        lambda: hf_hub_download(repo_id, "absent.json", **place),
        lambda: hf_hub_download(repo_id, "config.json", revision="absent", **place),
        lambda: hf_hub_download("org/absent", "config.json", **place),
        lambda: hf_hub_download("absent", "config.json", **place),
        lambda: mine.model_info("absent"),
        lambda: mine.list_repo_files(repo_id, revision="absent"),
        lambda: mine.upload_file(**given, repo_id="org/absent"),
        lambda: mine.delete_file("absent.json", repo_id),
        lambda: mine.create_repo(repo_id),
        lambda: mine.create_tag(repo_id, tag="v1"),
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
    upload(hub, tmp_path / "bundle", "org/small")
    assert errors_of_missing_things(hub, tmp_path / "home", "org/small") == [
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


def test_a_failed_commit_changes_nothing_and_the_next_one_succeeds(hub: HubServer, tmp_path: Path) -> None:
    """What a push does when the Hub breaks down half-way can be tried only if the break leaves the Hub whole."""
    (tmp_path / "bundle").mkdir()
    weights = tmp_path / "bundle" / "model.safetensors"
    weights.write_bytes(b"\0first")
    sha = upload(hub, weights.parent, "org/whole")
    weights.write_bytes(b"\0second")
    hub.fail_next_commit_of = "org/whole"
    with pytest.raises(HfHubHTTPError) as refused:
        upload(hub, weights.parent, "org/whole")
    assert refused.value.response.status_code == 500 and api(hub).model_info("org/whole").sha == sha
    assert hub.read("org/whole", "model.safetensors") == b"\0first"
    upload(hub, weights.parent, "org/whole")
    assert hub.read("org/whole", "model.safetensors") == b"\0second"


def test_a_range_request_returns_those_bytes_and_the_whole_size(hub: HubServer, tmp_path: Path) -> None:
    """Resumed downloads and readers of a safetensors header ask for ranges."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "digits.txt").write_text("0123456789")
    upload(hub, tmp_path / "bundle", "org/ranges")
    url = f"{hub.url}/org/ranges/resolve/main/digits.txt"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for wanted, content, answer in (("2-4", b"234", "bytes 2-4/10"), ("7-", b"789", "bytes 7-9/10")):
        with opener.open(urllib.request.Request(url, headers={"Range": f"bytes={wanted}"})) as response:
            assert (response.status, response.read(), response.headers["Content-Range"]) == (206, content, answer)
    assert hub.downloads("org/ranges") == ["digits.txt", "digits.txt"]
