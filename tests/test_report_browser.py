"""report.html in a browser: sorting, names under the pointer, a phone's width."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mdistiller.report import write_report

from . import report_runs
from .report_runs import COLUMNS, rows_of, simulate

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)

# Runs in the page, as a reader's hand would.
SCRIPT = """
const told = {};
const table = document.querySelector("h2#verdict ~ .wide table");
const first = n => [...table.tBodies[0].rows].map(row => row.cells[n].textContent);
const button = [...table.querySelectorAll("button")].find(b => b.textContent === "difference");
const column = button.closest("th").cellIndex;
told.sorted = [0, 1, 2].map(() => { button.click(); return first(column); });
const series = document.querySelector("figure svg .series");
const path = series.querySelector(":scope > path:last-child");
path.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: 50, clientY: 50}));
const shown = document.getElementById("name");
told.name = shown.textContent;
told.display = getComputedStyle(shown).display;
told.faded = document.querySelectorAll("svg.pointed .series:not(.near)").length;
told.figures = [...document.querySelectorAll("figure svg")].map(
  svg => svg.getBoundingClientRect().width / svg.closest("figure").clientWidth);
const frame = document.createElement("iframe");
frame.style.width = "390px";
frame.srcdoc = PAGE;
frame.onload = () => {
  const root = frame.contentDocument.documentElement;
  told.phone = [root.clientWidth, root.scrollWidth];
  const out = document.createElement("pre");
  out.id = "told";
  out.textContent = JSON.stringify(told);
  document.body.append(out);
};
document.body.append(frame);
"""


def in_browser(page: str, folder: Path) -> dict:
    """What :data:`SCRIPT` finds in the page."""
    # A page within the page, of a phone's width.
    inner = json.dumps(page).replace("</", "<\\/")
    script = SCRIPT.replace("PAGE", inner)
    copy = folder / "page.html"
    copy.write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"]
    command += [f"--user-data-dir={folder / 'profile'}", "--window-size=1280,900", "--dump-dom"]
    done = subprocess.run(
        [*command, copy.as_uri()], capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    (told,) = re.findall(r'<pre id="told">(.*?)</pre>', done.stdout)
    return json.loads(html.unescape(told))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_the_page_works_in_a_browser(tmp_path):
    rows = rows_of("KD", "RKD", "PKT")
    simulate(tmp_path / "table1", rows, COLUMNS[:2], 2, 4)
    results = report_runs.table(tmp_path / "table1", rows, COLUMNS[:2], 2)
    page = write_report(results).read_text(encoding="utf-8")
    told = in_browser(page, tmp_path)
    up, down, back = ([float(x.replace("\u2212", "-")) for x in o] for o in told["sorted"])
    assert up == sorted(up) and down == sorted(up, reverse=True) and sorted(back) == up
    assert len(set(up)) > 1
    assert told["name"].startswith("KD · ") and told["display"] == "block" and told["faded"] > 0
    assert all(0.98 < share <= 1 for share in told["figures"])
    width, needed = told["phone"]
    assert 300 < width <= 390 and needed <= width
