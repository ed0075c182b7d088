"""One command for a new machine: the tests that need its device, and all benchmarks there.

Runs, each in a process of its own and in a time of its own, tests/test_device.py on the device
(the bits of resumed runs and of fleets with --deterministic, bf16, the losses against the golden
values, and that no step waits for the device) and the benchmarks of steps, data, epochs, fleets
and networks. Writes one JSON and one Markdown file; what fails or takes too long is named there,
and the others go on. `make gpu-check` runs it with --device cuda; it ends within ten minutes.
tools/reproduce.py --dry-run --speeds gpu-check.json estimates hours from what it has written.

example:
  python benchmarks/gpu_check.py --device cuda --out gpu-check
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import _common as common

from mdistiller.cli import exit_on_error
from mdistiller.device import resolve_device
from mdistiller.errors import MdistillerError

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/test_device.py", "tests/test_dataset_array.py")


@dataclass(frozen=True)
class Part:
    """A benchmark.

    Attributes:
        title: heading of its figures.
        options: on a device that is fast.
        quick: instead of them, to see that it runs at all.
        seconds: the longest that it may take; those of all, with the tests', are ten minutes.
    """

    title: str
    options: str
    quick: str
    seconds: int


TEST_SECONDS = 180
_SMALL = "--pair resnet14 resnet8 --batch-size 8"
PARTS = {
    "step": Part(
        "One step",
        "--repeats 5 --steps 10 --no-memory --variants re-creation vanilla crossbatch previous "
        "'period 10' 'vanilla cached' 'crossbatch cached' 'vanilla bf16' 'crossbatch bf16'",
        f"{_SMALL} --repeats 1 --steps 1 --no-memory --variants re-creation vanilla "
        "'crossbatch cached'",
        120,
    ),
    "data": Part("Input pipeline", "--images 12800 --repeats 3", "--images 640 --repeats 1", 30),
    "epoch": Part(
        "Whole epochs",
        "--images 6400 --repeats 2 --workers 4 --ways vanilla crossbatch",
        f"{_SMALL} --repeats 1 --images 16 --val-images 8 --workers 0 --ways vanilla",
        100,
    ),
    "fleet": Part(
        "Fleets",
        "--size 10 --repeats 3 --steps 10 --cell-repeats 1 --precisions fp32",
        f"{_SMALL} --size 2 --repeats 1 --steps 1 --cell-repeats 0 --precisions fp32",
        100,
    ),
    "networks": Part(
        "Networks",
        "",
        "--networks resnet14 resnet8 --batch-size 8 --repeats 1 --steps 1",
        60,
    ),
}


def run_tests(device: str) -> dict[str, Any]:
    """Outcome of each test on ``device``, by its name: passed, skipped, or the first line of why
    it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-n", "0", "-q", f"--junitxml={report}", *TESTS]
        environment = {**os.environ, "MDISTILLER_TEST_DEVICE": device}
        code, printed = _run([*command, "-k", "cuda or test_device"], TEST_SECONDS, environment)
        if not report.exists():
            return {"error": printed.strip().splitlines()[-1:] or [f"status {code}"]}
        cases = ElementTree.parse(report).getroot().iter("testcase")
        return {case.get("name", ""): _outcome(case) for case in cases}


def _outcome(case: ElementTree.Element) -> str:
    for kind in ("failure", "error", "skipped"):
        found = case.find(kind)
        if found is not None:
            why = (found.get("message") or "").strip().splitlines()[:1]
            # Where it was raised, of this project's lines.
            where = re.findall(r"^((?:mdistiller|tests)/\S+:\d+)", found.text or "", re.MULTILINE)
            place = f" ({where[-1]})" if where and kind != "skipped" else ""
            return f"{kind}: {''.join(why)}{place}"
    return "passed"


def run_part(name: str, part: Part, args: argparse.Namespace) -> dict[str, Any]:
    """What a benchmark has found ("json" and "markdown"), or its "error"."""
    words = shlex.split(part.quick if args.quick else part.options)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "out.json"
        command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--markdown"]
        command += ["--json", str(file), "--threads", str(args.threads)]
        command += words
        if name != "data":
            command += ["--device", args.device]
        # Small, but perhaps on a machine that is busy with other things.
        code, printed = _run(command, part.seconds * (10 if args.quick else 1))
        if code or not file.exists():
            return {"error": printed.strip().splitlines()[-1:] or [f"status {code}"]}
        return {"json": json.loads(file.read_text(encoding="utf-8")), "markdown": printed}


def _run(
    command: list[str], seconds: int, environment: dict[str, str] | None = None
) -> tuple[int, str]:
    """Exit status and output; a process that takes longer than ``seconds`` is ended."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return 1, f"not done after {seconds} s"
    return done.returncode, done.stdout


def markdown(result: dict[str, Any]) -> str:
    """The page."""
    lines = [f"# Check of {result['machine']['device']}", "", common.describe(result["machine"])]
    lines += ["", f"{result['seconds']:.0f} s, {result['began']}.", "", "## Tests", ""]
    lines += [f"- {name}: {outcome}" for name, outcome in result["tests"].items()]
    for name, part in PARTS.items():
        found = result["parts"].get(name)
        if found is not None:
            lines += ["", f"## {part.title}", ""]
            lines.append(found.get("markdown", "").strip() or f"failed: {found['error']}")
    return "\n".join(lines) + "\n"


def failures(result: dict[str, Any]) -> list[str]:
    """Names of tests and benchmarks that did not do what they should."""
    bad = [n for n, o in result["tests"].items() if n == "error" or o.startswith(("fail", "error"))]
    return bad + [name for name, found in result["parts"].items() if "error" in found]


@exit_on_error
def main() -> None:
    """Run everything and write the two files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda")
    add("--threads", type=int, default=4)
    add("--out", type=Path, default=Path("gpu-check"), metavar="NAME", help="NAME.json, NAME.md")
    add("--parts", nargs="*", choices=["tests", *PARTS], default=["tests", *PARTS])
    add("--quick", action="store_true", help="small sizes: whether it runs, not how fast")
    args = parser.parse_args()
    device = resolve_device(args.device)
    began, started = time.monotonic(), time.strftime("%Y-%m-%d %H:%M")
    result: dict[str, Any] = {
        "machine": common.machine(device),
        "began": started,
        "quick": args.quick,
        "tests": run_tests(args.device) if "tests" in args.parts else {},
        "parts": {},
    }
    for name, part in PARTS.items():
        if name in args.parts:
            print(f"{name} ...", flush=True)
            result["parts"][name] = run_part(name, part, args)
    result["seconds"] = time.monotonic() - began
    page = markdown(result)
    for kind, text in (("json", json.dumps(result, indent=1) + "\n"), ("md", page)):
        args.out.with_name(f"{args.out.name}.{kind}").write_text(text, encoding="utf-8")
    print(page)
    if bad := failures(result):
        raise MdistillerError(f"{', '.join(bad)} failed; {args.out}.md says how")
    print(f"everything is in {args.out}.json and {args.out}.md")


if __name__ == "__main__":
    main()
