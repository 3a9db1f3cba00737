"""The demo page in a browser, if one is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="selenium is not installed")

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from mtllm_edge import Classifier
from mtllm_edge.server.auth import AccessPolicy
from tests.runtime.server.chromium import MISSING, open_browser
from tests.runtime.server.conftest import BlockingModel, RunningServer, run_server, wait_until

pytestmark = pytest.mark.skipif(MISSING, reason="chromium and chromedriver are not installed")

HOSTILE = "<img src=x onerror=\"document.title='owned'\"> & <b>bold</b>"
ARABIC = "هو في البيت"


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: WebDriver, server: RunningServer) -> WebDriver:
    browser.get(server.url)
    browser.get_log("browser")
    wait_until(lambda: by_id(browser, "model").text == "tiny")
    return browser


def by_id(page: WebDriver, name: str) -> WebElement:
    return page.find_element(By.ID, name)


def write(page: WebDriver, *lines: str) -> None:
    by_id(page, "texts").clear()
    by_id(page, "texts").send_keys("\n".join(lines))


def results(page: WebDriver, count: int) -> list[WebElement]:
    def cards() -> list[WebElement]:
        return page.find_elements(By.CSS_SELECTOR, ".result")

    wait_until(lambda: len(cards()) == count and not by_id(page, "results").get_attribute("aria-busy"))
    return cards()


def test_labels_and_bars(page: WebDriver, tiny_bundle: Path) -> None:
    lines = ["the team is good", "", "не хорошо", ARABIC, HOSTILE]
    texts = [line for line in lines if line]
    Select(by_id(page, "task")).select_by_value("sentiment")
    write(page, *lines)
    by_id(page, "go").click()
    cards = results(page, 4)
    with Classifier.load(tiny_bundle, task="sentiment") as classifier:
        expected = classifier.classify(texts)
    for card, text, prediction in zip(cards, texts, expected, strict=True):
        text_element = card.find_element(By.CSS_SELECTOR, ".text")
        assert text_element.text == text
        assert card.find_element(By.CSS_SELECTOR, ".label").text == prediction.label
        bars = card.find_elements(By.CSS_SELECTOR, ".bars li")
        ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
        assert [bar.text.split() for bar in bars] == [[name, f"{100 * value:.1f}", "%"] for name, value in ranked]
        widths = [bar.find_element(By.CSS_SELECTOR, ".fill").size["width"] for bar in bars]
        assert widths == sorted(widths, reverse=True)
        assert widths[0] > 0
    directions = [card.find_element(By.CSS_SELECTOR, ".text").value_of_css_property("direction") for card in cards]
    assert directions == ["ltr", "ltr", "rtl", "ltr"]
    assert page.title == "mtllm-edge", "a text is never markup"
    assert by_id(page, "status").text.startswith("4 texts in ")
    assert page.get_log("browser") == [], "there is no policy violation or failed request"


def test_keyboard_navigation(page: WebDriver) -> None:
    assert by_id(page, "texts").get_attribute("value").count("\n") == 5, "the page starts with an example"
    page.switch_to.active_element.send_keys(Keys.TAB)
    assert page.switch_to.active_element.get_attribute("id") == "texts"
    page.switch_to.active_element.send_keys(Keys.CONTROL, Keys.ENTER)
    results(page, 6)
    order = []
    for _ in range(2):
        page.switch_to.active_element.send_keys(Keys.TAB)
        order.append(page.switch_to.active_element.get_attribute("id"))
    assert order == ["task", "go"]
    page.switch_to.active_element.send_keys(Keys.ENTER)
    results(page, 6)


def test_fields_have_accessible_names(page: WebDriver) -> None:
    for name in ("texts", "task", "go"):
        assert by_id(page, name).accessible_name
    assert by_id(page, "error").get_attribute("role") == "alert"
    assert by_id(page, "status").get_attribute("role") == "status"


def test_errors_are_shown(page: WebDriver) -> None:
    write(page, " ")
    by_id(page, "go").click()
    assert by_id(page, "error").text == "Enter at least one text."
    page.execute_script("document.getElementById('texts').value = 'fine\\n'.repeat(20) + 'x'.repeat(20001)")
    by_id(page, "go").click()
    wait_until(lambda: by_id(page, "error").text.startswith("Line 21: "))
    results(page, 16)


def test_dark_mode(page: WebDriver) -> None:
    def background() -> str:
        return page.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")

    shades = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        shades.append(background())
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert shades == ["rgba(245, 246, 244, 1)", "rgba(17, 22, 21, 1)"]


@pytest.mark.filterwarnings("ignore::mtllm_edge.languages.warnings.LanguageWarning")  # as `serve` does
def test_the_language_field(browser: WebDriver, tiny_variant: Callable[..., Path]) -> None:
    with run_server(tiny_variant(languages=("deu_Latn", "eng_Latn"))) as server:
        browser.get(server.url)
        wait_until(lambda: by_id(browser, "language").is_displayed())
        language = Select(by_id(browser, "language"))
        assert [option.text for option in language.options] == ["auto", "deu_Latn", "eng_Latn"]
        for choice, codes in (("auto", {"deu_Latn", "eng_Latn"}), ("deu_Latn", {"deu_Latn"})):
            language.select_by_value(choice)
            by_id(browser, "go").click()
            details = [card.find_element(By.CSS_SELECTOR, ".details").text for card in results(browser, 6)]
            assert {detail.split(" · ")[1] for detail in details} == codes
        browser.get("about:blank")


def test_the_token_field(browser: WebDriver, tiny_bundle: Path) -> None:
    token = "correct-horse-battery"
    model = BlockingModel()
    model.release.set()
    with run_server(tiny_bundle, policy=AccessPolicy(token, False), load=lambda: model) as server:
        browser.get(server.url)
        wait_until(lambda: by_id(browser, "token").is_displayed())
        assert by_id(browser, "error").text.startswith("a token is required")
        by_id(browser, "token").send_keys(token + Keys.ENTER)
        results(browser, 6)
        assert not by_id(browser, "error").is_displayed()
        browser.get("about:blank")
