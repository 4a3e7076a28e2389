"""The site in a headless browser: pages render, pictures and links are there, search finds, a phone can read it.

Needs mkdocs, selenium, Chromium and its driver (Debian: ``apt install chromium chromium-driver``; ``pip install selenium``).
"""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PHONE = 390
"""Pixels."""
DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
pytest.importorskip("mkdocs", reason="the site is not looked at: it needs mkdocs")
selenium = pytest.importorskip("selenium", reason="the site is not looked at: it needs selenium")
pytestmark = pytest.mark.skipif(
    not (DRIVER and BROWSER), reason="the site is not looked at: it needs Chromium and chromedriver"
)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # a page asks for many files at once


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    return folder


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(Quiet, directory=str(site))
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(120)
    yield driver
    driver.quit()


def pages(site: Path) -> list[str]:
    found = [str(path.parent.relative_to(site)) for path in site.rglob("index.html")]
    return sorted("/" if page == "." else f"/{page}/" for page in found)


def test_every_page_renders_on_a_screen_and_on_a_phone(site, address, browser) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    assert len(pages(site)) > 30
    wrong = []
    for width in (1280, PHONE):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE},
        )
        for page in pages(site):
            browser.get(address + page)  # which may come back before the page is there
            WebDriverWait(browser, 120).until(
                lambda driver: driver.execute_script("return document.readyState") == "complete"
            )
            seen = browser.execute_script(  # a source that unfolds has its docstring as it is written
                "for (const image of document.images) image.loading = 'eager';"
                "const code = [...document.querySelectorAll('article pre code')].filter(e => !e.closest('details'));"
                "return [document.querySelector('article h1')?.innerText, document.documentElement.scrollWidth,"
                " code.some(each => /^(>>>|\\\\$) /m.test(each.innerText))]"
            )
            images = browser.execute_async_script(
                "const done = arguments[0]; Promise.all([...document.images].map(image => image.decode().then(() => null,"
                " () => image.src))).then(broken => done(broken.filter(Boolean)))"
            )
            errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
            title, needed, prompts = seen
            if not title or needed > width or prompts or images or errors:
                wrong.append((page, width, title, needed, prompts, images, errors))
    assert not wrong


def test_links_lead_to_pages_and_places_of_the_site(site) -> None:
    wrong = []
    for page in site.rglob("index.html"):
        for link in re.findall(r'href="([^"]+)"', page.read_text("utf-8")):
            path, _, place = link.partition("#")
            if "://" in path or path.startswith(("mailto:", "data:")) or path == "":
                continue
            target = (page.parent / path).resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (place and f'id="{place}"' not in target.read_text("utf-8")):
                wrong.append((str(page.relative_to(site)), link))
    assert not wrong


def test_search_finds_and_the_copy_button_copies_what_runs(address, browser) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    browser.get(address)
    code = browser.find_element(By.CSS_SELECTOR, "#differentiate-through-minimize ~ .highlight code").get_attribute(
        "innerText"
    )
    namespace: dict[str, object] = {}
    exec(compile(code, "copied", "exec"), namespace)
    assert namespace["theta"].requires_grad
    wait = WebDriverWait(browser, 60)
    browser.execute_script("document.querySelector('#__search').click()")
    field = wait.until(lambda driver: driver.find_element(By.CSS_SELECTOR, "input.md-search__input"))
    wait.until(lambda _: field.is_displayed() and field.is_enabled())
    field.send_keys("effective elites")
    results = wait.until(lambda driver: driver.find_elements(By.CSS_SELECTOR, ".md-search-result__link"))
    assert any("guides/minimize" in result.get_attribute("href") for result in results)
