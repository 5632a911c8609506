"""The page in a real browser: it works, it asks for nothing, and no name runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdseg_cli.evaluation.page import write_report
from tests.report.report_folder import CLASSES, HOSTILE, IDS, write_class_folder, write_folder

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1400,1000",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="chromium and its chromedriver are not installed"
    ),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, tmp_path) -> Iterator[Any]:
    """The report of a hostile folder, freshly opened; its console must stay empty."""
    report = write_report(write_folder(tmp_path), title="<img src=x onerror=alert(3)>")
    yield from _opened(browser, report)


@pytest.fixture
def class_page(browser, tmp_path) -> Iterator[Any]:
    """The report of a run of seven classes, likewise."""
    yield from _opened(browser, write_report(write_class_folder(tmp_path), title="seven"))


def _opened(browser, report: Path) -> Iterator[Any]:
    for log in ("browser", "performance"):
        browser.get_log(log)  # what went before
    browser.get(Path(report).as_uri())
    yield browser
    # A dialogue would have stopped the test: the driver refuses to go on beside one.
    assert browser.get_log("browser") == []
    assert _foreign_requests(browser.get_log("performance")) == []


def _foreign_requests(log: list[dict[str, Any]]) -> list[str]:
    """What the report asked for that is neither the file itself nor inside it."""
    events = [json.loads(entry["message"])["message"] for entry in log]
    requests = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    # The browser's own first page asks for icons of its own.
    asked = [r["request"]["url"] for r in requests if r["documentURL"].endswith("report.html")]
    assert any(url.endswith("report.html") for url in asked)
    return [url for url in asked if not url.startswith(("file:", "data:"))]


def _all(page, selector: str) -> list[Any]:
    return list(page.find_elements("css selector", selector))


def _one(page, selector: str) -> Any:
    return page.find_element("css selector", selector)


def _column(page, place: int) -> list[str]:
    return [cell.text for cell in _all(page, f"#case-table tbody tr > :nth-child({place})")]


def _heading(page, place: int) -> Any:
    return _one(page, f"#case-table thead th:nth-child({place})")


def test_every_picture_loads(page):
    widths = page.execute_script("return [...document.images].map((i) => i.naturalWidth)")
    # Best, median and worst; stability and its map; slice and map of the chosen case.
    assert len(widths) == 3 + 2 + 2
    assert min(widths) > 0


def test_a_click_on_a_heading_sorts_by_number_and_undefined_stays_last(page):
    rising = ["0.500", "0.600", "0.700", "0.800", "0.900", "\u2013"]
    heading = _heading(page, 2)
    assert heading.get_attribute("aria-sort") == "none"
    heading.find_element("tag name", "button").click()
    assert _column(page, 2) == rising
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.find_element("tag name", "button").click()
    assert _column(page, 2) == [*rising[-2::-1], "\u2013"]
    assert heading.get_attribute("aria-sort") == "descending"


def test_the_keyboard_sorts_too_and_names_sort_naturally(page):
    _heading(page, 1).find_element("tag name", "button").send_keys("\ue007")  # enter
    assert _heading(page, 1).get_attribute("aria-sort") == "ascending"
    names = _column(page, 1)
    assert names.index("case_2") < names.index("case_10")
    _heading(page, 2).find_element("tag name", "button").send_keys(" ")
    assert _heading(page, 1).get_attribute("aria-sort") == "none"
    assert _column(page, 2)[0] == "0.500"


def test_a_click_on_a_case_shows_its_picture_and_values(page):
    pictures = set()
    for case_id in IDS:
        button = next(b for b in _all(page, "#case-table .case") if b.text == case_id)
        button.click()
        assert _one(page, "#viewer-title").text == case_id
        image = _one(page, "#viewer img")
        pictures.add(image.get_attribute("src"))
        assert page.execute_script("return arguments[0].decode().then(() => true)", image)
        assert page.execute_script("return arguments[0].naturalWidth", image) > 0
        assert len(_all(page, "#viewer-picture .picture path")) == 4
        assert "slice 3 of 9 <b>bold</b>" in _one(page, "#viewer-caption").text
        assert "1\u202f234" in _one(page, "#viewer-values").text
    assert len(pictures) == len(IDS)


def test_the_worst_case_is_chosen_first_and_arrows_walk_through_the_table(page):
    assert _one(page, "#viewer-title").text == IDS[4]
    _one(page, "#next").click()
    assert _one(page, "#viewer-title").text == IDS[5]
    _one(page, "#next").click()
    assert _one(page, "#viewer-title").text == IDS[0]
    _one(page, "#previous").click()
    assert _one(page, "#viewer-title").text == IDS[5]


def test_a_dot_of_a_plot_is_a_case(page):
    # Not by the mouse: dots are small and may lie on each other.
    page.execute_script(
        "arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))",
        _one(page, "#spread circle[data-case='1']"),
    )
    assert _one(page, "#viewer-title").text == "case_10"


def test_hostile_names_are_text(page):
    assert _one(page, "h1").text == "<img src=x onerror=alert(3)>"
    assert page.title == "<img src=x onerror=alert(3)>"
    assert set(HOSTILE) <= set(_column(page, 1))
    assert _all(page, "img[src=x], img[onerror], u, body b") == []
    assert len(_all(page, "script")) == 2


def test_outlines_are_switched_on_and_off_everywhere(page):
    boxes = _all(page, "input.toggle[data-mask=reference]")
    assert len(boxes) == 2
    boxes[0].click()
    assert not boxes[1].is_selected()
    assert not any(p.is_displayed() for p in _all(page, "path.reference"))
    assert all(p.is_displayed() for p in _all(page, "path.prediction"))
    boxes[1].click()
    assert all(p.is_displayed() for p in _all(page, "path.reference"))


def test_the_table_is_narrowed_to_what_is_typed(page):
    _one(page, "#filter").send_keys("CASE_1")
    shown = [row for row in _all(page, "#case-table tbody tr") if row.is_displayed()]
    assert [row.find_element("tag name", "th").text for row in shown] == ["case_10"]
    assert _one(page, "#found").text == "1 found"


@pytest.mark.parametrize("kind", ["page", "class_page"])
@pytest.mark.parametrize("width", [360, 420, 800, 1400])
def test_the_page_is_never_wider_than_the_screen(request, kind, width):
    page = request.getfixturevalue(kind)
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    script = "const d = document.documentElement; return [d.scrollWidth, d.clientWidth]"
    needed, given = page.execute_script(script)
    assert width - 20 < given <= width  # less a scroll bar
    assert needed <= given
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_on_a_phone_a_case_opens_over_the_page_and_closes(page):
    metrics = {"width": 420, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    viewer = _one(page, "#viewer")
    assert not viewer.is_displayed()
    page.execute_script("arguments[0].click()", _one(page, "#case-table .case"))
    assert viewer.is_displayed()
    _one(page, "#close").click()
    assert not viewer.is_displayed()
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def _values(page) -> dict[str, str]:
    return dict(zip(_column(page, 1), _column(page, 2), strict=True))


def _choose(page, number: str) -> None:
    _one(page, f"#class-filter input[value='{number}']").click()


def _shown_classes(page, selector: str) -> set[str]:
    names = [p.get_attribute("class") for p in _all(page, selector) if p.is_displayed()]
    return {name for of in names for name in of.split() if name.startswith("class-")}


def test_a_class_is_chosen_and_its_values_outlines_and_dots_are_shown(class_page):
    page = class_page
    before = _values(page)
    assert before[IDS[0]] == "0.900"
    every = {f"class-{n}" for n in range(1, len(CLASSES) + 1)}
    assert _shown_classes(page, "#viewer path.of-class") == every
    _choose(page, "2")
    assert _values(page)[IDS[0]] == "0.850"
    assert _values(page)[IDS[5]] == "\u2013"
    assert _shown_classes(page, "#viewer path.of-class") == {"class-2"}
    assert _shown_classes(page, "#cases path.of-class") == {"class-2"}
    assert _one(page, "#class-shown").text == "Values: cord."
    assert _one(page, "#viewer-values dd").text == "0.450"  # of the worst case, 0.5 less 0.05
    assert "off" in _one(page, ".by-class circle.class-1").get_attribute("class")
    assert "off" not in _one(page, ".by-class circle.class-2").get_attribute("class")
    _choose(page, "7")
    assert _values(page)[IDS[0]] == "\u2013"
    _choose(page, "8")
    assert _values(page) == before  # all as one: here the same values
    assert _shown_classes(page, "#viewer path.of-class") == every
    _choose(page, "")
    assert _values(page) == before


def test_a_class_sorts_by_its_own_values_and_the_keyboard_chooses_it(class_page):
    page = class_page
    _one(page, "#class-filter input[value='']").send_keys("\ue015")  # arrow down
    assert _one(page, "#class-filter input[value='1']").is_selected()
    _choose(page, "7")
    _heading(page, 2).find_element("tag name", "button").click()
    assert _column(page, 2) == ["0.200", "0.300", "0.400", "0.500", "\u2013", "\u2013"]


def test_outlines_of_all_classes_are_switched_and_a_dot_shows_its_case(class_page):
    page = class_page
    page.execute_script(
        "arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))",
        _one(page, ".by-class circle.class-3[data-case='1']"),
    )
    assert _one(page, "#viewer-title").text == "case_10"
    assert len(_all(page, "#viewer-picture path.of-class")) == 2 * 2 * len(CLASSES)
    _all(page, "input.toggle[data-mask=reference]")[0].click()
    assert not any(p.is_displayed() for p in _all(page, "path.reference"))
    assert any(p.is_displayed() for p in _all(page, "path.prediction.class-3"))


def test_each_class_has_its_colour_everywhere(class_page):
    script = "return getComputedStyle(arguments[0]).stroke"
    colour = class_page.execute_script(
        script, _one(class_page, "path.prediction.class-3:not(.halo)")
    )
    assert colour == "rgb(255, 75, 0)"  # #ff4b00, the third
    table = _one(class_page, "#class-table tbody tr.class-3 .colour")
    assert table.value_of_css_property("background-color") == "rgba(255, 75, 0, 1)"
