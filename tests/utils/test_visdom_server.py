"""A visdom server of our own, and the files that its page needs."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import socket
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from papertape.core import install
from papertape.core.options import OptionsError
from papertape.utils import factory, options, visdom_files, visdom_server
from papertape.utils.sinks import Plotter
from papertape.utils.visdom_files import NPM, FilesError
from papertape.utils.visdom_server import Server

needs_visdom = pytest.mark.skipif(importlib.util.find_spec("visdom") is None, reason="visdom is not installed")

FAKE_NPM = """#!/bin/sh
"exec" "{python}" "$0" "$@"  # for the shell; to Python a string. A path with spaces cannot stand in the first line.
import pathlib, shutil, sys
if "--fail" in {mode!r}:
    sys.exit("npm error: no network")
folder = pathlib.Path(sys.argv[sys.argv.index("--pack-destination") + 1])
for package in sys.argv[sys.argv.index("--pack-destination") + 2 :]:
    name, _, version = package.rpartition("@")
    shutil.copy(pathlib.Path({packages!r}) / f"{{name}}-{{version}}.tgz", folder)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A visdom without the page's files."""
    directory = tmp_path / "visdom"
    (directory / "static" / "js").mkdir(parents=True)
    (directory / "VERSION").write_text("0.2.4\n")
    monkeypatch.setattr(visdom_files, "package_directory", lambda: directory)
    return directory


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """What npm would fetch: packages whose files hold their own names."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for package, files in NPM.items():
        name, _, version = package.rpartition("@")
        with tarfile.open(packages / f"{name}-{version}.tgz", "w:gz") as archive:
            for source in files:
                content = f"{package} {source}".encode()
                entry = tarfile.TarInfo(f"package/{source}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return packages


@pytest.fixture
def npm(tmp_path: Path, registry: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put an npm in place that fetches from the registry, or fails."""

    def place(mode: str = "") -> None:
        script = tmp_path / "bin" / "npm"
        script.parent.mkdir(exist_ok=True)
        script.write_text(FAKE_NPM.format(python=sys.executable, packages=str(registry), mode=mode))
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(script.parent))

    return place


def test_files_from_npm_go_where_the_page_looks_for_them(package: Path, npm: Any) -> None:
    npm()
    static = package / "static"
    assert set(visdom_files.missing_files()) == {target for files in NPM.values() for target in files.values()}
    visdom_files.install_page_files()
    assert not visdom_files.missing_files()
    assert (static / "js/d3.v3.min.js").read_text() == "d3@3.5.17 d3.min.js"
    assert (static / "css/react-grid-layout-styles.css").read_text() == "react-grid-layout@0.16.3 css/styles.css"
    assert (static / "version.built").read_text() == "0.2.4"
    assert not list(static.rglob(".*"))


def test_only_what_is_missing_is_fetched(package: Path, npm: Any, registry: Path) -> None:
    npm()
    visdom_files.install_page_files()
    (package / "static/js/sjcl.js").write_text("")
    for archive in registry.iterdir():
        if not archive.name.startswith("sjcl"):
            archive.unlink()
    visdom_files.install_page_files()
    assert (package / "static/js/sjcl.js").read_text() == "sjcl@1.0.7 sjcl.js"


def test_what_is_in_the_way_is_said(
    package: Path, npm: Any, registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FilesError, match="npm is not installed"):
        visdom_files.install_page_files()
    npm("--fail")
    with pytest.raises(FilesError, match="npm failed .*no network"):
        visdom_files.install_page_files()
    npm()
    (registry / "sjcl-1.0.7.tgz").write_bytes(b"not an archive")
    with pytest.raises(FilesError, match="static"):
        visdom_files.install_page_files()
    assert not (package / "static/version.built").exists()


def test_a_download_that_leaves_gaps_does_not_count(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        (package / "static/version.built").write_text("0.2.4")
        return subprocess.CompletedProcess(command, 1, "", "ConnectionError: no internet\n")

    monkeypatch.setattr(subprocess, "run", half)
    with pytest.raises(FilesError, match=r"\d+ files could not be downloaded, js/jquery.min.js.*no internet"):
        visdom_files.download_page_files()
    assert not (package / "static/version.built").exists()


def test_all_sources_are_tried_in_turn(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fail(name: str) -> Any:
        def method() -> None:
            tried.append(name)
            raise FilesError(f"{name} is down")

        return method

    monkeypatch.setattr(visdom_files, "download_page_files", fail("web"))
    monkeypatch.setattr(visdom_files, "install_page_files", fail("registry"))
    with pytest.raises(FilesError, match="web: web is down; npm: registry is down"):
        visdom_files.fetch()
    assert tried == ["web", "registry"]


def test_no_visdom_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FilesError, match=re.escape(install.VISDOM)):
        visdom_files.missing_files()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server("localhost", free_port(), str(tmp_path / "data"))
    assert not server.ensure()
    yield server
    server.stop()


@needs_visdom
@pytest.mark.parametrize("path", ["", "/env/a_run"])
def test_the_page_is_served_whatever_the_version_of_tornado(server: Server, path: str) -> None:
    with urllib.request.urlopen(server.url + path, timeout=10) as answer:
        page = answer.read().decode()
    assert "user/style.css" in page
    assert "main.js" in page


@needs_visdom
def test_a_server_that_is_there_is_used(server: Server) -> None:
    second = Server("localhost", server.port)
    assert not second.ensure()
    assert second.process is None
    second.stop()
    assert server.problem() == ""


@needs_visdom
def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    server = Server("localhost", free_port(), str(tmp_path / "file" / "data"))
    assert "could not be started" in (problem := server.ensure())
    assert os.strerror(20) in problem
    assert server.process is None


def test_an_environment_has_an_address() -> None:
    assert Server("localhost", 8097).environment_url("a run_1") == "http://localhost:8097/env/a%20run_1"


LOGIN_SERVER = """
import sys, tornado.ioloop
from papertape.utils.visdom_server import import_visdom
port, data = int(sys.argv[1]), sys.argv[2]
utils = import_visdom("visdom.utils.server_utils")
credential = {"username": "me", "password": utils.hash_password(utils.hash_password("secret"))}
application = import_visdom("visdom.server.app").Application(port=port, env_path=data, user_credential=credential)
application.listen(port, address="127.0.0.1")
print("listens", flush=True)
tornado.ioloop.IOLoop.current().start()
"""


@pytest.fixture(scope="module")
def login_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a server that only lets in ``me`` with the password ``secret``."""
    home = tmp_path_factory.mktemp("home")
    (home / ".visdom").mkdir()
    (home / ".visdom" / "COOKIE_SECRET").write_text("x" * 32)
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", LOGIN_SERVER, str(port), str(home)],
        env={**os.environ, "HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None and process.stdout.readline()
    yield port
    process.kill()
    process.wait()
    process.stdout.close()


@needs_visdom
@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, r"asks for a login; the environment variables VISDOM_USERNAME and VISDOM_PASSWORD say whose"),
        ({"VISDOM_USERNAME": "me"}, r"asks for a login; the environment variables"),
        ({"VISDOM_USERNAME": "me", "VISDOM_PASSWORD": "guess"}, r"asks for a login and refuses that of .*='me'"),
        ({"VISDOM_USERNAME": "me", "VISDOM_PASSWORD": "secret"}, r"^$"),
    ],
)
def test_a_server_that_asks_for_a_login(
    login_port: int, given: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("VISDOM_USERNAME", "VISDOM_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    server = Server("localhost", login_port)
    found = server.ensure()
    assert re.search(problem, found), found
    assert "secret" not in found and "guess" not in found
    if found:
        with pytest.raises(OptionsError, match="plots: got 'visdom', but the visdom server at .* asks for a login"):
            Plotter(tmp_path, "a_run", "visdom", port=login_port)
        return
    client = server.client("a_run")
    assert client.win_exists("title") is False
    client.text("words", win="title")
    assert client.win_exists("title") is True
    with Plotter(tmp_path, "another_run", "visdom", port=login_port) as plotter:
        plotter.text("options", "seed: 1")
    assert server.client("another_run").win_exists("text options") is True


@needs_visdom
def test_a_login_is_not_told_to_a_server_that_asks_for_none(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISDOM_USERNAME", "me")
    monkeypatch.setenv("VISDOM_PASSWORD", "secret")
    asked = Server("localhost", server.port)
    monkeypatch.setattr(asked, "_log_in", lambda: pytest.fail("told"))
    assert not asked.ensure()


def test_a_machine_that_cannot_be_reached_is_named() -> None:
    problem = Server("no-such-machine.invalid", 8097).ensure()
    assert "there is no visdom server at http://no-such-machine.invalid:8097: no-such-machine.invalid cannot" in problem


def test_addresses_of_the_sixth_version_stand_in_brackets() -> None:
    assert Server("::1", 8097).url == "http://[::1]:8097"


def test_what_is_no_host_is_refused() -> None:
    values = options.load_file("ntm-copy")
    for host in ("http://elsewhere", "two words", "", "elsewhere:8097"):
        with pytest.raises(OptionsError, match=f"visdom_host: got '{host}'; allowed: the name or the address"):
            factory.parse({**values, "visdom_host": host})
    for host in ("plots.example.org", "10.0.0.7", "::1"):
        assert factory.parse({**values, "visdom_host": host}).visdom_host == host


@needs_visdom
def test_serving_what_runs_left_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(error: BaseException) -> Any:
        def serve(port: int, data: str | None) -> None:
            raise error

        return serve

    monkeypatch.setattr(sys, "argv", ["visdom_server", "--port", "8123"])
    monkeypatch.setattr(visdom_server, "serve", failing(KeyboardInterrupt()))
    visdom_server.main()
    monkeypatch.setattr(visdom_server, "serve", failing(OSError(98, os.strerror(98))))
    with pytest.raises(SystemExit, match=f"could not be started at port 8123 .{os.strerror(98)}"):
        visdom_server.main()
    assert "http://localhost:8123, until Ctrl-C" in capsys.readouterr().out
    monkeypatch.setattr(visdom_files, "fetch", lambda source: failing(KeyboardInterrupt())(0, None))
    monkeypatch.setattr(sys, "argv", ["visdom_files"])
    with pytest.raises(SystemExit, match="130"):
        visdom_files.main()
