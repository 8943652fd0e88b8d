"""The study as people see it: made from a trained run, served by the real command, in a real browser."""

import signal

import pytest

from pipeline import cli
from tests.helpers import encoded, soft
from tests.programs import chromium, free_ports, serve_study, until
from trainer.study import __main__ as study
from trainer.study import answers, manifest

pytestmark = pytest.mark.browser
COUNT = 6
LEFT, RIGHT, TAB, ENTER = "\ue012", "\ue014", "\ue004", "\ue007"


@pytest.fixture
def folder(tiny_extractor, finished, tmp_path):
    """A study of a run that was trained for some steps."""
    for number in range(COUNT):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(soft(240, 320, number), "JPEG"))
    argv = ["study", "make", f"--workdir={finished[0]}", f"--output={tmp_path}/S", str(tmp_path / "*.jpg")]
    assert cli.run(study.main, argv) == 0
    return tmp_path / "S"


@pytest.fixture
def address(folder):
    """Where the real command serves it, until Ctrl-C."""
    (port,) = free_ports(1)
    process = serve_study(folder, port)
    try:
        yield f"http://127.0.0.1:{port}/"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[1] == "error: interrupted\n"
        assert process.returncode == 128 + signal.SIGINT
    finally:
        process.kill()


def kept(folder):
    return answers.Answers(str(folder), manifest.load(str(folder))).all()


def press(browser, *keys):
    """As a person does who has no mouse."""
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def title(browser, text):
    until(lambda: text in browser.title)


def text(browser):
    return browser.execute_script("return document.body.innerText")


def focus(browser):
    """The text of what has the focus, and whether it can be seen that it does."""
    return browser.execute_script("""
        const style = getComputedStyle(document.activeElement);
        return [document.activeElement.innerText, style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2];
    """)


def no_complaint(browser):
    """Nothing at all in the console."""
    assert browser.get_log("browser") == []


# Whether the picture has arrived, and all of it is seen without scrolling, and the buttons too.
SEEN = """
const inside = node => {
    const {top, left, bottom, right} = node.getBoundingClientRect();
    return top >= 0 && left >= 0 && bottom <= innerHeight && right <= innerWidth;
};
const picture = document.querySelector("img");
return picture.naturalWidth === 320 && [picture, ...document.querySelectorAll("button")].every(inside);
"""


def test_all_the_way_by_keys_alone(folder, address, capsys):
    with chromium() as browser:
        browser.get(address)
        assert f"You will see {COUNT} photographs" in text(browser)
        assert "no name and no address" in text(browser)
        press(browser, TAB)
        assert focus(browser) == ["Begin", True]
        press(browser, ENTER)
        for position, keys in enumerate([[LEFT], [RIGHT], [TAB, ENTER], [TAB, TAB, ENTER], [TAB, TAB, " "]]):
            title(browser, f"Picture {position + 1} of {COUNT}")
            until(lambda: browser.execute_script(SEEN))
            assert "Are the colors of this photograph real?" in text(browser)
            for key in keys[:-1]:
                press(browser, key)
                assert focus(browser)[1]
            press(browser, keys[-1])
        title(browser, f"Picture {COUNT} of {COUNT}")
        assert [trial.taken_for_real for trial in kept(folder)] == [True, False, True, False, False, None]
        browser.back()  # to a picture that has its answer
        browser.get(address)
        press(browser, TAB)
        assert focus(browser) == ["Go on", True]
        press(browser, ENTER)
        title(browser, f"Picture {COUNT} of {COUNT}")
        press(browser, LEFT, LEFT, LEFT)
        title(browser, "Thank you")
        assert "Your answers are saved. You were right about" in text(browser)
        no_complaint(browser)
    trials = kept(folder)
    assert [trial.taken_for_real for trial in trials] == [True, False, True, False, False, True]
    assert all(0 < trial.seconds < 60 for trial in trials)
    fooled = sum(trial.taken_for_real for trial in trials if trial.predicted)
    assert cli.run(study.main, ["study", "summarize", f"--study={folder}"]) == 0
    table = capsys.readouterr().out
    assert "1 participant, of whom 1 finished" in table
    assert f"predicted        3  {fooled / 3:.1%} (" in table


def test_keys_that_are_no_answer(folder, address):
    """One held down, and one of the browser's own; and time counts from when the picture is seen."""
    with chromium() as browser:
        browser.get(address)
        press(browser, TAB, ENTER)
        title(browser, "Picture 1")
        for options in ("repeat: true", "altKey: true", "ctrlKey: true", "metaKey: true", "shiftKey: true"):
            browser.execute_script(
                f'document.dispatchEvent(new KeyboardEvent("keydown", {{key: "ArrowLeft", {options}}}))'
            )
        press(browser, "r", "f", "x", ENTER)
        assert {trial.taken_for_real for trial in kept(folder)} == {None}
        until(
            lambda: browser.execute_script("""
            return performance.getEntriesByType("resource").filter(({name}) => name.includes("/pictures/")).length === 2
        """)
        )  # the next one is there before it is asked for
        press(browser, RIGHT)
        title(browser, "Picture 2")
        no_complaint(browser)
    first = kept(folder)[0]
    assert first.taken_for_real is False
    assert 0 < first.seconds < 60


def test_with_pictures_off_all_is_said_in_words(folder, address):
    """And on a telephone nothing is wider than the screen."""
    with chromium("--blink-settings=imagesEnabled=false") as browser:
        browser.set_window_size(500, 900)
        browser.get(address)
        press(browser, TAB, ENTER)
        for position in range(COUNT):
            title(browser, f"Picture {position + 1} of {COUNT}")
            image, width, room, shown = browser.execute_script("""
                const {alt, naturalWidth, clientHeight} = document.querySelector("img");
                return [[alt, naturalWidth, clientHeight], document.body.scrollWidth, innerWidth,
                    document.body.innerText];
            """)
            assert image[0].startswith(f"Photograph {position + 1} of {COUNT}")
            assert image[1] == 0  # it is off indeed
            assert image[2] >= 100  # room for the words
            assert width <= room
            assert "Are the colors of this photograph real?" in shown
            assert "Not real" in shown
            press(browser, RIGHT)
        title(browser, "Thank you")
        no_complaint(browser)
    assert [trial.taken_for_real for trial in kept(folder)] == [False] * COUNT


def test_without_a_script(folder, address):
    with chromium("--blink-settings=scriptEnabled=false") as browser:
        browser.get(address)
        press(browser, TAB, ENTER)
        for position in range(COUNT):
            title(browser, f"Picture {position + 1} of {COUNT}")
            press(browser, RIGHT)  # no answer here
            press(browser, TAB, ENTER)
        title(browser, "Thank you")
        no_complaint(browser)
    assert [trial.taken_for_real for trial in kept(folder)] == [True] * COUNT
