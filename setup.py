"""Package metadata; the dependencies are those of requirements.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
REQUIREMENTS = [
    line
    for line in (HERE / "requirements.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
# Solvers of torchjd's CAGrad, NashMTL, UPGrad and DualProj.
WEIGHTINGS = ["cvxpy>=1.4", "ecos>=2.0.14", "qpsolvers>=4.0", "quadprog>=0.1.12"]
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "mdistiller/__init__.py").read_text())[1]

setup(
    name="mdistiller",
    version=VERSION,
    description="Knowledge distillation with fixed and with cross-batch loss weighting",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["mdistiller", "mdistiller.*"]),
    package_data={"mdistiller.dataset.glyphs": ["glyph_font_packages.txt"]},
    python_requires=">=3.10",
    install_requires=REQUIREMENTS,
    extras_require={
        "test": [
            *("pytest>=8", "pytest-cov>=5", "pytest-xdist>=3.5", "hypothesis>=6.100"),
            *("ray>=2.40", "ruff>=0.6"),
            *WEIGHTINGS,
        ],
        "weightings": WEIGHTINGS,
        "ray": ["ray>=2.40"],
        "export": ["onnx>=1.16", "onnxscript>=0.2", "onnxruntime>=1.18"],
    },
)
