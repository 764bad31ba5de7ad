"""Pictures of a plan's page for the documentation, taken by a headless Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from shrink_png import shrink_png

from headrace.cli.plan_report import build_report, write_plan_report
from headrace.hardware.catalog import machine
from headrace.model.published import published_shape
from headrace.plan.options import PlanOptions
from headrace.plan.plan import Planner
from headrace.plan.whatif import improvements
from headrace.plan.workload import Workload

WIDTHS = (1280, 390)
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
_MEASURE = "<script>document.documentElement.dataset.tall = document.body.scrollHeight</script>"


def draw_plan_report(folder: Path) -> None:
    """Write ``plan-report-1280.png`` and ``plan-report-390.png``.

    Llama-3-8B with 64 rows of 4,096 tokens on an H200, of which 24 GiB may be used. The pictures
    depend on the fonts of the machine that draws them.
    """
    browser = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"a browser is needed for these pictures: one of {', '.join(_BROWSERS)}")
    options = PlanOptions.checked(gpu_memory_bytes=24 * 2**30)
    workload, profile = Workload(64, 4096, 128), machine("h200-141gb-pcie5")
    planner = Planner(published_shape("llama-3-8b"), workload, profile, options)
    plan = planner.plan()
    compared = {policy: planner.of(policy) for policy in planner.available()}
    report = build_report(planner, plan, compared, improvements(planner, plan))
    with tempfile.TemporaryDirectory() as place:
        page = Path(place) / "plan.html"
        write_plan_report(page, report)
        for width in WIDTHS:
            _photograph(browser, page, width, folder / f"plan-report-{width}.png")


def _photograph(browser: str, page: Path, width: int, target: Path) -> None:
    """Take a picture of a whole page at a width: how tall it is is found out first."""
    measured = page.with_name("measured.html")
    measured.write_text(page.read_text("utf-8").replace("</body>", f"{_MEASURE}</body>"), "utf-8")
    shown = _run(browser, page, f"--window-size={width},900", "--dump-dom", measured.as_uri())
    match = re.search(r'data-tall="(\d+)"', shown)
    if match is None:
        raise SystemExit(f"{browser} does not show the page")
    size = f"--window-size={width},{match[1]}"
    _run(browser, page, size, f"--screenshot={target}", page.as_uri())
    shrink_png(target)


def _run(browser: str, page: Path, *arguments: str) -> str:
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [browser, *_FLAGS, "--force-device-scale-factor=1", profile, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout
