"""Packaging: the repository root is the import package ``tapehead``. What is no code is said in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
ROOMS = ("agents", "circuits", "core", "envs", "utils")
ROOT_MODULES = ("__init__", "main")


class BuildPackage(build_py):
    """Leaves out the scripts that lie beside the package's own modules in the root."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Name every module of a package, as (package, module, file)."""
        modules = super().find_package_modules(package, package_dir)
        return [found for found in modules if package != "tapehead" or found[1] in ROOT_MODULES]


setup(
    packages=[
        "tapehead",
        *(f"tapehead.{room}" for room in find_packages(str(ROOT), include=[*ROOMS, *(f"{room}.*" for room in ROOMS)])),
    ],
    package_dir={"tapehead": "."},
    package_data={"tapehead": ["py.typed", "options/*.yaml"]},
    cmdclass={"build_py": BuildPackage},
)
