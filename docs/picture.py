"""Take the pictures of a report that the home page and the README show, and write that run's table into the README.

Run ``python docs/picture.py`` on a quiet machine: it runs the quickstart and photographs its report with a browser,
wide and of a phone's width, light and dark. A run folder as an argument is photographed instead of a new run. It needs
the extra ``page`` and a Chromium (``CHROMIUM``, or /usr/bin/chromium).
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from kdzoo.report.compare import comparison_table

ROOT = Path(__file__).resolve().parents[1]
ASSETS, README = ROOT / "docs" / "assets", ROOT / "README.md"
RECIPE = ROOT / "recipes" / "quickstart.yaml"
#: Width and height of a picture in pixels of the page, and how many pixels of the picture one of them has.
SIZES = {"report": (1060, 1440, 1.25), "report-phone": (390, 1200, 1.5)}
SCHEMES = ("light", "dark")
#: Colours of a picture: few, because a page is flat.
COLOURS = 128
#: Characters of a line of the README, and where it shows a run.
WIDTH = 118
BEGIN = "<!-- run: written by docs/picture.py from one run of the quickstart -->"


def run_quickstart(out: Path) -> Path:
    """Run the quickstart and return its folder."""
    subprocess.run([sys.executable, "-m", "kdzoo", "run", str(RECIPE), "--out", str(out)], check=True)
    return next(out.glob("quickstart/*-seed0"))


def photograph(report: Path) -> None:
    """Write the upper part of a report as PNG files."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"],
        )
        for name, (width, height, scale) in SIZES.items():
            for scheme in SCHEMES:
                page = browser.new_page(
                    viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=scale
                )
                page.goto(report.as_uri())
                picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
                in_few_colours(picture).save(ASSETS / f"{name}-{scheme}.png", optimize=True)
                page.close()
        browser.close()


def in_few_colours(picture: Image.Image) -> Image.Image:
    """The picture in its most frequent colours, which are those of the page exactly."""
    found = sorted(picture.getcolors(maxcolors=picture.width * picture.height) or [], reverse=True)
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for _, colour in found[:COLOURS] for part in colour])
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def write_table(folder: Path) -> None:
    """Write what `kdzoo run` prints at its end into the README."""
    table, _, verdict = comparison_table(json.loads((folder / "results.json").read_text()), WIDTH).partition("\n\n")
    before, rest = README.read_text().split(f"{BEGIN}\n\n```text\n")
    after = rest.split("\n```\n", 1)[1]
    told = "\n".join([table, "", *(textwrap.fill(line, WIDTH) for line in verdict.splitlines())])
    README.write_text(f"{before}{BEGIN}\n\n```text\n{told}\n```\n{after}")


def main() -> None:
    with tempfile.TemporaryDirectory() as out:
        folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else run_quickstart(Path(out))
        photograph(folder / "report.html")
        write_table(folder)


if __name__ == "__main__":
    main()
