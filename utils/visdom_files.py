"""The scripts, styles and fonts of visdom's page, which its package does not contain.

visdom downloads them from several sites when it is first started by its own command. This module fetches them
beforehand, from the npm registry or, where there is no npm, from those sites; by hand with ``papertape page fetch``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from ..core import install

FETCH_SECONDS = 120.0

BOOTSTRAP_FONT = "fonts/glyphicons-halflings-regular"
MATHJAX = (
    "config/Safe.js",
    "config/TeX-AMS-MML_HTMLorMML.js",
    "extensions/Safe.js",
    "jax/output/SVG/fonts/TeX/fontdata.js",
    "jax/output/SVG/jax.js",
    "jax/output/SVG/fonts/TeX/Size1/Regular/Main.js",
    "jax/output/SVG/config.js",
    "MathJax.js",
)
NPM: dict[str, dict[str, str]] = {
    "jquery@3.1.1": {"dist/jquery.min.js": "js/jquery.min.js"},
    "bootstrap@3.3.7": {
        "dist/js/bootstrap.min.js": "js/bootstrap.min.js",
        "dist/css/bootstrap.min.css": "css/bootstrap.min.css",
        **{f"dist/{BOOTSTRAP_FONT}.{kind}": f"{BOOTSTRAP_FONT}.{kind}" for kind in ("eot", "woff2", "woff", "ttf")},
        # With the fragment: the name that visdom's own download gives it.
        f"dist/{BOOTSTRAP_FONT}.svg": f"{BOOTSTRAP_FONT}.svg#glyphicons_halflingsregular",
    },
    "react@16.2.0": {"umd/react.production.min.js": "js/react-react.min.js"},
    "react-dom@16.2.0": {"umd/react-dom.production.min.js": "js/react-dom.min.js"},
    "react-modal@3.1.10": {"dist/react-modal.min.js": "js/react-modal.min.js"},
    "plotly.js-dist-min@2.11.1": {"plotly.min.js": "js/plotly-plotly.min.js"},
    "sjcl@1.0.7": {"sjcl.js": "js/sjcl.js"},
    "layout-bin-packer@1.4.0": {
        "dist/layout-bin-packer.js": "js/layout_bin_packer.js",
        "dist/layout-bin-packer.js.map": "js/layout-bin-packer.js.map",
    },
    "d3@3.5.17": {"d3.min.js": "js/d3.v3.min.js"},
    "d3-selection-multi@1.0.1": {"build/d3-selection-multi.js": "js/d3-selection-multi.v1.js"},
    "save-svg-as-png@1.4.17": {"lib/saveSvgAsPng.js": "js/saveSvgAsPng.js"},
    "react-resizable@1.4.6": {"css/styles.css": "css/react-resizable-styles.css"},
    "react-grid-layout@0.16.3": {"css/styles.css": "css/react-grid-layout-styles.css"},
    "classnames@2.2.5": {"index.js": "fonts/classnames"},
    "mathjax@2.7.5": {path: f"js/mathjax/2.7.5/{path}" for path in MATHJAX},
}
"""For each npm package: its files, and where below visdom's ``static`` folder they belong (visdom/server/build.py)."""


class FilesError(RuntimeError):
    """The page's files could not be fetched."""


def package_directory() -> Path:
    """Where visdom is installed.

    Raises:
        FilesError: it is not.
    """
    spec = importlib.util.find_spec("visdom")
    if spec is None or spec.origin is None:
        raise FilesError(f"visdom is not installed; `{install.here(install.VISDOM)}` gets it")
    return Path(spec.origin).parent


def missing_files() -> list[str]:
    """Files that the page needs and that are not there."""
    static = package_directory() / "static"
    needed = [path for files in NPM.values() for path in files.values()]
    return [path for path in needed if not (static / path).is_file() or not (static / path).stat().st_size]


def _mark_complete() -> None:
    """Tell visdom's own start-up that it has nothing to download."""
    directory = package_directory()
    (directory / "static" / "version.built").write_text((directory / "VERSION").read_text().strip())


def download_page_files(timeout: float = FETCH_SECONDS) -> None:
    """Have visdom download its files from where it always does.

    Raises:
        FilesError: files are still missing afterwards; says which.
    """
    code = (
        "import sys; sys.path[:] = filter(None, sys.path)\n"  # the working directory may hold a copy.py
        "sys.modules['torch'] = None; from visdom.server.build import download_scripts; download_scripts()"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, check=False
        )
        said = done.stderr.strip().splitlines()
    except subprocess.TimeoutExpired:
        said = [f"gave up after {timeout:g} seconds"]
    missing = missing_files()
    if missing:
        # visdom would take a page without some of its files for complete.
        (package_directory() / "static" / "version.built").unlink(missing_ok=True)
        reason = said[-1] if said else "no reason given"
        raise FilesError(f"{len(missing)} files could not be downloaded, {missing[0]} among them ({reason})")


def install_page_files(timeout: float = FETCH_SECONDS) -> None:
    """Fetch the missing files from the npm registry, with npm, and put them in place.

    Raises:
        FilesError: npm is missing or fails, or visdom's folder cannot be written.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FilesError("npm is not installed")
    static = package_directory() / "static"
    missing = set(missing_files())
    wanted = [package for package, files in NPM.items() if missing & set(files.values())]
    with tempfile.TemporaryDirectory() as folder:
        if wanted:
            command = [npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", folder, *wanted]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd=folder)
            except subprocess.TimeoutExpired as error:
                raise FilesError(f"npm gave up after {timeout:g} seconds") from error
            if done.returncode:
                said = done.stderr.strip().splitlines()
                raise FilesError(f"npm failed ({said[-1] if said else f'status {done.returncode}'})")
        try:
            for package in wanted:
                name, _, version = package.rpartition("@")
                with tarfile.open(Path(folder) / f"{name}-{version}.tgz") as archive:
                    for source, target in NPM[package].items():
                        content = archive.extractfile(f"package/{source}")
                        if content is None:
                            raise FilesError(f"{package} holds no {source}")
                        _write(static / target, content.read())
            _mark_complete()
        except (OSError, KeyError, tarfile.TarError) as error:
            raise FilesError(f"{static}: {error}") from error


def _write(path: Path, content: bytes) -> None:
    """Write a file at once: a server may be serving it already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def fetch() -> None:
    """Fetch what is missing, from the first source that works.

    Raises:
        FilesError: none does; says why.
    """
    if not missing_files():
        return
    try:
        install_page_files()
    except FilesError as error:
        try:
            download_page_files()
        except FilesError as another:
            raise FilesError(f"npm: {error}; web: {another}") from another


def fetch_and_say() -> bool:
    """Fetch what is missing; print how that ended, and return whether the page has all of its files."""
    try:
        fetch()
    except FilesError as error:
        print(f"the visdom page's scripts could not be fetched: {error}", file=sys.stderr, flush=True)
        return False
    print("the visdom page has all of its scripts", flush=True)
    return True
