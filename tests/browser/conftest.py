"""A headless browser, and pages opened in it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "report"))  # for the made-up runs and studies of `synthetic`

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTH, HEIGHT = 1280, 900


class Opened(NamedTuple):
    """A page in the browser.

    Attributes:
        page: playwright's page.
        errors: errors and warnings of the console, exceptions, and requests that failed.
        milliseconds: from the start of navigation to the first frame behind the load event.
    """

    page: Any
    errors: list[str]
    milliseconds: float


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium of this machine, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Function (path, scheme="light") -> `Opened`."""
    contexts = []

    def opened(path: Path, scheme: str = "light") -> Opened:
        context = browser.new_context(
            color_scheme=scheme, viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        errors: list[str] = []
        page.on("console", lambda m: errors.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("requestfailed", lambda request: errors.append(f"not loaded: {request.url}"))
        page.goto(path.as_uri())
        milliseconds = page.evaluate(
            "() => new Promise(done => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"
        )
        return Opened(page, errors, milliseconds)

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def low_contrast() -> Any:
    """Function (page) -> texts whose contrast to their background is below 4.5, with the ratio."""
    script = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")
    return lambda page: page.evaluate(script)
