"""Take the screenshot of the demo page in the documentation: `python -m tests.runtime.server.screenshot BUNDLE`.

It requires fonts for all scripts of the examples: `apt-get install fonts-noto-core fonts-noto-cjk`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

from tests.runtime.server.chromium import open_browser
from tests.runtime.server.conftest import run_server, wait_until

SCREENSHOT = Path(__file__).parents[3] / "docs/images/serve.png"
WIDTH, SCALE = 1000, 1.5


def main() -> None:
    with run_server(Path(sys.argv[1])) as server, open_browser("--hide-scrollbars") as browser:
        browser.get(server.url)
        wait_until(lambda: browser.find_elements(By.TAG_NAME, "option") != [])
        browser.find_element(By.ID, "go").click()
        wait_until(lambda: " in " in browser.find_element(By.ID, "status").text)
        resize(browser, height=100)
        resize(browser, height=browser.execute_script("return document.documentElement.scrollHeight"))
        SCREENSHOT.parent.mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(SCREENSHOT))


def resize(browser: WebDriver, *, height: int) -> None:
    size = {"width": WIDTH, "height": height, "deviceScaleFactor": SCALE, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


if __name__ == "__main__":
    main()
