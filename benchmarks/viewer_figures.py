"""Take the screenshots of the documentation: the page of ``tnet view``, light and dark, over synthetic digits.

    python benchmarks/viewer_figures.py RUN [--index 13] [--out docs/images]

RUN is a run on synthetic digits, such as ``demo_run/tnet``. Needs Chromium (``make browser``).
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from torch import Tensor

import tnet
from tnet.data.digits import MegapixelDigits

IMAGES = 24
SIZE = {"width": 1280, "height": 800}


def write_images(run: Path, folder: Path, index: int) -> str:
    """Write test images into one folder per class; return the path of the one to show."""
    data = MegapixelDigits(tnet.load_recipe(run / "recipe.yaml").data.digits, "test")
    shown = ""
    for number in range(IMAGES):
        sample = data[number]
        assert isinstance(sample.image, Tensor)
        path = folder / data.classes[int(sample.target)] / f"clutter_{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample.image[0].numpy()).save(path)
        shown = path.relative_to(folder).as_posix() if number == index else shown
    return shown


def save(page: Page, path: Path) -> None:
    """Save what the page shows."""
    page.wait_for_timeout(1500)
    with Image.open(io.BytesIO(page.screenshot())) as shot:
        shot.convert("RGB").save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Start the viewer and take the screenshots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--index", type=int, default=13, help="which test image")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "images")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "tnet"]
    with tempfile.TemporaryDirectory() as scratch:
        images, table = Path(scratch) / "digits", Path(scratch) / "predictions.csv"
        shown = write_images(arguments.run, images, arguments.index)
        subprocess.run([*command, "predict", arguments.run, images, "--out", table, "--no-progress"], check=True)
        view = [*command, "view", arguments.run, "--root", images, "--truth", images, "--predictions", table]
        with (
            subprocess.Popen([*view, "--port", "0", "--no-open"], stdout=subprocess.PIPE, text=True) as server,
            sync_playwright() as playwright,
        ):
            assert server.stdout is not None
            address = server.stdout.readline().split()[0]
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for theme in ("light", "dark"):
                page = browser.new_page(viewport=SIZE, color_scheme="dark" if theme == "dark" else "light")
                page.goto(f"{address}?drawer=canvas#path={quote(shown)}&looks=3&mode=search&score=path")
                page.wait_for_selector(".card")
                if theme == "dark":
                    page.click("#heat")
                    page.click(".card[data-row='1']")
                    page.wait_for_timeout(1000)
                    page.hover(".card[data-row='1']")
                save(page, arguments.out / f"viewer_{theme}.png")
            browser.close()
            server.terminate()


if __name__ == "__main__":
    main()
