"""The picture of the page in the README: `python -m tests.runtime.server.screenshot BUNDLE`."""

from __future__ import annotations

import sys
from pathlib import Path

from selenium.webdriver.common.by import By

from tests.runtime.server.chromium import browsing
from tests.runtime.server.conftest import serving, until

PICTURE = Path(__file__).parents[3] / "docs/images/serve.png"
WIDTH = 1000


def main() -> None:
    with serving(Path(sys.argv[1])) as served, browsing("--force-device-scale-factor=1.5") as browser:
        browser.get(served.url)
        until(lambda: browser.find_elements(By.TAG_NAME, "option") != [])
        browser.find_element(By.ID, "go").click()
        until(lambda: " in " in browser.find_element(By.ID, "status").text)
        height = browser.execute_script("return document.body.scrollHeight")
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": WIDTH, "height": height, "deviceScaleFactor": 1.5, "mobile": False},
        )
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(PICTURE))


if __name__ == "__main__":
    main()
