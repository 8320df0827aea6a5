"""Pages in a browser, at the width of a phone, in light and dark. Without a Chromium these tests are
skipped."""

from __future__ import annotations

import json
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from report.html_samples import HOSTILE, RECORDS, path_scores

from soupkit.report.html_page import page
from soupkit.report.sections_subject import Subject

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-extensions",
        "--hide-scrollbars",
    ),
    *("--allow-file-access-from-files", "--virtual-time-budget=3000", "--enable-logging=stderr", "--v=0"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
WIDTH = 375
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c63f8ffff3f0005fe02fea72d93a00000000049454e44ae426082"
)
FAULTY = """<!DOCTYPE html><html lang="en"><meta name="viewport" content="width=device-width"><body>
<p style="width: 900px">wide</p><img src="http://127.0.0.1:9/x.png" alt="">
<script>window.ran = true; console.error("oh")</script></body>"""
MEASURE = """<!DOCTYPE html><body><script>
const found = {};
async function measure(name) {
  const frame = document.createElement("iframe");
  frame.width = WIDTH; frame.height = 800; frame.src = name;
  const loaded = new Promise(done => frame.onload = done);
  document.body.append(frame);
  await loaded;
  const page = frame.contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach(each => each.open = true);
  const style = frame.contentWindow.getComputedStyle(page.body);
  found[name] = {
    overflow: root.scrollWidth - root.clientWidth, width: root.clientWidth,
    background: style.backgroundColor, ink: style.color,
    scripts: page.defaultView.ran === true,
    broken: [...page.images].filter(each => !each.naturalWidth).length, images: page.images.length,
    requests: frame.contentWindow.performance.getEntriesByType("resource").map(each => each.name).filter(
      each => !each.startsWith("data:")),
    hidden: [...page.querySelectorAll("circle, polyline")].filter(each => {
      const box = each.getBoundingClientRect(); return !(box.width + box.height > 0);
    }).length,
    outside: [...page.querySelectorAll("figure svg")].filter(each => {
      const box = each.getBoundingClientRect(); return box.right > WIDTH || box.left < 0;
    }).length,
  };
}
(async () => {
  for (const name of PAGES) await measure(name);
  document.body.textContent = "RESULT" + JSON.stringify(found) + "END";
})();
</script></body>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


def browse(directory: Path, *, dark: bool) -> tuple[dict[str, dict[str, Any]], str]:
    """Open every page of a directory in a frame as wide as a phone: what was measured in each, and the
    console."""
    names = sorted(path.name for path in directory.glob("*.html"))
    measure = directory / "measure.htm"
    measure.write_text(
        MEASURE.replace("WIDTH", str(WIDTH)).replace("PAGES", json.dumps(names)), encoding="utf-8"
    )
    profile = directory.with_name(f"{directory.name}-profile-{dark}")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [str(CHROMIUM), *FLAGS, scheme, f"--user-data-dir={profile}", "--dump-dom", measure.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "RESULT" in done.stdout, done.stderr[-2000:]
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(unescape(done.stdout.split("RESULT")[-1].split("END")[0])), console


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page for every kind of record, a folder of all of them, and one with hostile and endless names."""
    directory = tmp_path_factory.mktemp("pages")
    plots = {"a.png": PNG, "b.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'}
    subjects = {
        name: Subject(name=name, place=name, record=record(), plots=plots, path_scores=path_scores())
        for name, record in RECORDS.items()
    }
    endless = "no-spaces-" * 40
    text = (
        json.dumps(RECORDS["greedy"]()).replace("sweep/", endless).replace("merge greedy", f"merge {endless}")
    )
    subjects["endless"] = Subject(name=endless, record=json.loads(text))
    subjects["hostile"] = Subject(
        name=HOSTILE, record={"command": HOSTILE, "notes": {HOSTILE: [HOSTILE] * 3}}
    )
    subjects["folder"] = Subject(name="folder", parts=tuple(subjects.values()))
    for name, subject in subjects.items():
        (directory / f"{name}.html").write_text(page(subject), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def light(pages: Path) -> tuple[dict[str, dict[str, Any]], str]:
    return browse(pages, dark=False)


def test_nothing_is_wider_than_a_phone(light: tuple[dict[str, dict[str, Any]], str]) -> None:
    found, _ = light
    assert len(found) == len(RECORDS) + 3
    for name, each in found.items():
        assert (name, each["width"], each["overflow"], each["outside"]) == (name, WIDTH, 0, 0)


def test_images_are_within_the_page_and_nothing_is_asked_for(
    light: tuple[dict[str, dict[str, Any]], str],
) -> None:
    found, console = light
    assert found["greedy.html"]["images"] == 2
    for name, each in found.items():
        assert (name, each["broken"], each["requests"], each["hidden"]) == (name, 0, [], 0)
    assert console == ""


def test_dark_mode_applies(pages: Path, light: tuple[dict[str, dict[str, Any]], str]) -> None:
    dark, console = browse(pages, dark=True)
    for name in dark:
        assert light[0][name]["background"] == "rgb(255, 255, 255)"
        assert light[0][name]["ink"] == "rgb(27, 31, 36)"
        assert dark[name]["background"] == "rgb(16, 20, 24)"
        assert dark[name]["ink"] == "rgb(230, 237, 243)"
        assert dark[name]["overflow"] == 0
    assert console == ""


def test_these_measurements_see_a_faulty_page(tmp_path: Path) -> None:
    directory = tmp_path / "faulty"
    directory.mkdir()
    (directory / "faulty.html").write_text(FAULTY, encoding="utf-8")
    found, console = browse(directory, dark=False)
    each = found["faulty.html"]
    assert each["overflow"] > 500
    assert (each["broken"], each["scripts"]) == (1, True)
    assert each["requests"] == ["http://127.0.0.1:9/x.png"]
    assert "oh" in console


def test_the_policy_stops_what_escaping_would_let_through(pages: Path, tmp_path: Path) -> None:
    directory = tmp_path / "pierced"
    directory.mkdir()
    whole = (pages / "greedy.html").read_text(encoding="utf-8")
    attack = (
        '<script>window.ran = true</script><img src="http://127.0.0.1:9/x.png" alt="" '
        'onerror="window.ran = true">'
    )
    (directory / "pierced.html").write_text(whole.replace("<h1>", f"{attack}<h1>"), encoding="utf-8")
    found, console = browse(directory, dark=False)
    assert not found["pierced.html"]["scripts"]
    assert "Content Security Policy" in console
