"""What a person sees of a run: a real TensorBoard in a real browser."""

import os
import signal
import subprocess
import urllib.request

import pytest

from tests.programs import chromium, free_ports, until

pytestmark = pytest.mark.browser
# All text of a page, that of components with a tree of their own too.
TEXT = """
const text = node => node.nodeType === Node.TEXT_NODE ? node.textContent :
    ["SCRIPT", "STYLE"].includes(node.nodeName) ? "" :
    [...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes].map(text).join(" ");
return text(document.body).replace(/\\s+/g, " ");
"""
# The pictures that have arrived, their widths and heights.
PICTURES = """
const all = node => [node, ...[...(node.shadowRoot ? node.shadowRoot.children : []), ...node.children].flatMap(all)];
return all(document.body).filter(node => node.nodeName === "IMG" && node.complete && node.naturalWidth > 0)
    .map(node => [node.naturalWidth, node.naturalHeight]);
"""


@pytest.fixture
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def board(finished):
    """The address of a TensorBoard that shows a run."""
    (port,) = free_ports(1)
    address = f"http://localhost:{port}/"
    command = ["make", "tensorboard", f"WORKDIR={finished[0]}", f"PORT={port}"]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        until(lambda: b"validation/psnr" in urllib.request.urlopen(f"{address}data/plugin/scalars/tags").read())
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def test_scalars_pictures_and_hyperparameters_are_seen(browser, board):
    def opened(tab, *texts):
        browser.get("about:blank")
        browser.get(f"{board}#{tab}")
        return until(lambda: (page := browser.execute_script(TEXT)) and all(text in page for text in texts) and page)

    opened("scalars", "loss", "learning_rate", "gradient_norm", "images_per_second", "waiting_for_data", "validation")
    opened("images", "panel", "sample: 1 of 2", "step 42")
    assert [3 * 224, 224] in until(lambda: browser.execute_script(PICTURES))
    page = opened("hparams", "batch_size", "learning_rates", "(0.001, 0.0001)", "Trial ID")
    assert "validation/loss" in page
    assert "validation/psnr" in page
    opened("text", "config", '"width_multiplier": 0.0625')
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
