"""Packaging: the repository root is the import package ``tapehead``."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
ROOMS = [room for room in find_packages(str(ROOT)) if room.split(".")[0] not in ("tests", "benchmarks", "build")]

setup(
    packages=["tapehead", *(f"tapehead.{room}" for room in ROOMS)],
    package_dir={"tapehead": "."},
    package_data={"tapehead": ["py.typed", "options/*.yaml"]},
)
