"""The report in a real browser: on a screen, on a phone, on paper, by keys alone, and without pictures."""

import base64

import pytest
from selenium.webdriver.common.keys import Keys

from tests.programs import chromium
from trainer import report

pytestmark = pytest.mark.browser
SEEN = "return [...document.querySelectorAll('img')].filter(each => each.complete && each.naturalWidth == 672).length"
WIDER = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
FOCUS = "return [document.activeElement.tagName, document.activeElement.ariaLabel || document.activeElement.innerText]"


@pytest.fixture(scope="module")
def address(evaluated):
    report.report(str(evaluated))
    return f"file://{evaluated}/report.html"


def press(browser, *keys):
    browser.switch_to.active_element.send_keys(*keys)


def test_on_screens_and_on_paper(address):
    with chromium() as browser:
        browser.get(address)
        pictures = len(browser.find_elements("css selector", "img"))
        assert browser.execute_script(SEEN) == pictures > 10
        for width in (1600, 800, 500):
            browser.set_window_size(width, 900)
            assert browser.execute_script(WIDER) <= 0
        metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)  # narrower than a window can be
        assert browser.execute_script("return innerWidth") == 360
        assert browser.execute_script(WIDER) <= 0
        sheets = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
        assert sheets.startswith(b"%PDF")
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert not browser.find_element("css selector", "nav").is_displayed()
        assert browser.find_element("css selector", "h2").is_displayed()
        assert browser.get_log("browser") == []


def test_by_keys_alone(address):
    with chromium() as browser:
        browser.get(address)
        press(browser, Keys.TAB)
        assert browser.execute_script(FOCUS) == ["A", "To the content"]
        press(browser, Keys.ENTER)
        assert browser.current_url.endswith("#content")
        browser.get(address)
        places = []
        for _ in range(30):
            press(browser, Keys.TAB)
            places.append(tuple(browser.execute_script(FOCUS)))
        for link in ("Quality", "Pictures", "Errors", "Curves", "Configuration", "Dataset", "Do it again"):
            assert ("A", link) in places
        assert ("SUMMARY", "What the figures mean") in places
        assert ("DIV", "Quality") in places  # a wide table is moved by arrow keys
        browser.find_element("link text", "Dataset").send_keys(Keys.ENTER)
        assert browser.current_url.endswith("#dataset")
        summary = browser.find_element("css selector", "summary")
        summary.send_keys(Keys.ENTER)
        assert "mean squared error of a / 128" in browser.find_element("css selector", "dl").text
        assert browser.get_log("browser") == []


def test_without_pictures(address):
    """What a picture says in words is there in its place."""
    with chromium("--blink-settings=imagesEnabled=false") as browser:
        browser.get(address)
        assert browser.execute_script(SEEN) == 0
        for picture in browser.find_elements("css selector", "img"):
            assert "in gray, as predicted and as it was: off by " in picture.get_attribute("alt")
        text = browser.find_element("tag name", "body").text
        assert ", all gray by " in text
        assert "Loss: training: " in text
        assert "correlation" in text
