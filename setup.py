"""All metadata is in pyproject.toml; only the list of packages needs code."""

from setuptools import find_packages, setup

setup(
    # configs/ lies beside the package in a checkout and inside it in a wheel.
    packages=[*find_packages(include=["mdistiller", "mdistiller.*"]), "mdistiller.configs"],
    package_dir={"mdistiller.configs": "configs"},
)
