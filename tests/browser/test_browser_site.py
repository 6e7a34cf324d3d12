"""The documentation as a browser shows it, from the folder that `make site` builds."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent
PAGES = (
    "index.html",
    "concepts.html",
    "tutorials/own-loop.html",
    "methods/fisher.html",
    "reference/datasets.html",
    "api/index.html",
    "api/Trainer.html",
    "api/TaskMasks.html",
    "results/less-is-more.html",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; any warning of the build is an error."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_opens_without_an_error_and_is_legible(
    site: Path, name: str, scheme: str, open_page: Any, low_contrast: Any
) -> None:
    page, errors, _ = open_page(site / name, scheme)
    assert page.locator("h1").count() == 1
    assert errors == []
    assert low_contrast(page) == []


def test_pages_load_nothing_from_elsewhere(site: Path, browser: Any) -> None:
    context = browser.new_context()
    page = context.new_page()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    for name in PAGES:
        page.goto((site / name).as_uri())
    context.close()
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:", "about:"))] == []


def test_the_search_finds_a_name(site: Path, open_page: Any) -> None:
    page, errors, _ = open_page(site / "index.html")
    page.locator(".md-search__input").click()
    page.locator(".md-search__input").press_sequentially("MaskedOptimizer")
    page.locator(".md-search-result__link").first.wait_for(timeout=20_000)
    assert "MaskedOptimizer" in page.locator(".md-search-result__link").first.get_attribute("href")
    assert errors == []


def test_every_link_of_the_site_leads_to_a_page(site: Path) -> None:
    broken = []
    for page in site.rglob("*.html"):
        for link in re.findall(r'href="([^"#?]+)', page.read_text(encoding="utf-8")):
            outside = re.match(r"[a-z]+:", link) or link.startswith("/") or page.name == "404.html"
            if not outside and not (page.parent / link).exists():
                broken.append((page.relative_to(site).as_posix(), link))
    assert broken == []
