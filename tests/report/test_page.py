"""The page in a real browser: nothing overflows, nothing is loaded, nothing of the data runs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bridge_ds.evaluation.__main__ import main

from .studies import write_study

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium here; apt-get install chromium"),
]

# The page in a frame of a given width, every fold open; the frame's own measures are written into the outer page.
OUTER = """<!DOCTYPE html><meta charset="utf-8"><iframe style="width:{width}px;height:900px;border:0"></iframe>
<pre>waiting</pre><script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach(part => part.open = true);
  const boxes = [...page.querySelectorAll(".scroll")];
  document.querySelector("pre").textContent = JSON.stringify({{
    title: page.title, width: root.scrollWidth, room: root.clientWidth, height: root.scrollHeight,
    outside: [...page.querySelectorAll("body *")].filter(part => !part.closest(".scroll, .skip"))
      .filter(part => part.getBoundingClientRect().right > root.clientWidth + 1)
      .map(part => part.outerHTML.slice(0, 99)),
    boxes: boxes.length, wide: boxes.filter(box => box.scrollWidth > box.clientWidth).length,
    scripts: page.scripts.length, images: page.images.length,
    loaded: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
    ground: getComputedStyle(page.body).backgroundColor,
    arabic: [...page.querySelectorAll("td.text")].filter(cell => /^[\\u0600-\\u06ff]/.test(cell.textContent))
      .map(cell => getComputedStyle(cell).direction),
    charts: [...page.querySelectorAll("td.chart > svg")].map(chart => chart.getBoundingClientRect().width),
  }});
}};
frame.src = "report.html";
</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    runs = write_study(root, layers=24)
    assert main(["report", *map(str, runs), "--output", str(root / "report")]) == 0
    return root / "report"


def _measure(report: Path, width: int, profile: Path, *options: str) -> tuple[dict[str, Any], str]:
    outer = report / f"outer-{width}.html"
    outer.write_text(OUTER.format(width=width), encoding="utf-8")
    command = [
        str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
        "--disable-background-networking", "--allow-file-access-from-files", "--enable-logging=stderr", "--log-level=0",
        f"--user-data-dir={profile}", "--window-size=1400,1000", "--virtual-time-budget=8000", *options, "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run([*command, outer.as_uri()], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    found = done.stdout.split("<pre>")[1].split("</pre>")[0]
    assert found != "waiting", done.stderr[-3000:]
    from html import unescape

    return json.loads(unescape(found)), done.stderr


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_overflows_and_nothing_is_loaded(report: Path, width: int, tmp_path: Path) -> None:
    found, log = _measure(report, width, tmp_path)
    assert found["width"] <= found["room"] and found["room"] >= width - 20
    assert found["outside"] == []
    assert found["loaded"] == [] and found["scripts"] == found["images"] == 0
    assert found["title"] == "Bridges compared: last_layer, global_softmax, transformer_softmax"
    assert "CONSOLE" not in log, [line for line in log.splitlines() if "CONSOLE" in line]
    assert found["arabic"] and set(found["arabic"]) == {"rtl"}
    assert min(found["charts"]) >= 100
    assert found["boxes"] > 20 and (width == 400) <= (found["wide"] > 0)
    assert found["ground"] == "rgb(255, 255, 255)"


def test_dark_where_the_reader_wants_it_dark(report: Path, tmp_path: Path) -> None:
    found, log = _measure(report, 1000, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert found["ground"] == "rgb(20, 24, 28)" and found["width"] <= found["room"]
    assert "CONSOLE" not in log
