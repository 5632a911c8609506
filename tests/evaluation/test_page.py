"""The page: everything is on it, nothing is loaded, and no name is ever more than a name."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from sdseg_cli.core.errors import DataError
from sdseg_cli.evaluation import page as html
from sdseg_cli.evaluation.page import Results, script_json, write_report
from sdseg_cli.evaluation.page_parts import evaluation_part
from sdseg_cli.report import wording
from sdseg_cli.report.panels import save_panels
from tests.report.report_folder import (
    CLASSES,
    HOSTILE,
    IDS,
    case_panels,
    evaluation,
    panel,
    stability,
    sweep,
    write_class_folder,
    write_folder,
)

LOADING = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}


class Page(HTMLParser):
    """Elements, addresses and text of a page, as a browser would take them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.sections: list[str] = []
        self.data = ""
        self._within = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value or "" for name, value in attrs if name in LOADING]
        self._within = "data" if ("id", "report-data") in attrs else tag
        if tag == "section":
            self.sections += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        if self._within == "data":
            self.data += data
        elif self._within not in ("script", "style"):
            self.text += data

    def handle_endtag(self, tag):
        self._within = ""


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "report")


def _page(folder, **options) -> Page:
    path = write_report(folder, title="set <i>run</i>", **options)
    return Page(path.read_text(encoding="utf-8"))


def test_every_part_of_the_folder_has_its_section(folder):
    page = _page(folder, config='dataset = "set"\n')
    assert page.sections == [
        "summary", "spread", "cases", "classes", "protocols", "stability", "sweep", "origin",
    ]  # fmt: skip
    assert 'dataset = "set"' in page.text
    assert "sdseg evaluate --run 'a <b>'" in page.text
    assert "ab" * 32 in page.text
    assert "Not a medical device" in page.text
    assert page.tags.count("polyline") == 1  # the sweep: one eta, one number of samples
    assert page.tags.count("circle") == 5 + 5 + 6  # one dot per defined value


def test_table_5_has_a_column_for_each_map_and_metric(folder):
    text = _page(folder).text
    for head in ("Seg PSNR", "Seg MS-SSIM", "Score SSIM"):
        assert head in text
    assert "Seg LPIPS" not in text  # nobody has a value


def test_every_name_is_text_and_no_name_is_an_element(folder):
    page = _page(folder)
    for name in (*HOSTILE, "set <i>run</i>", "runs/<b>set</b>/a&b", "missing <u>case</u>"):
        assert name in page.text
    assert "maps/<u>a</u>.nii.gz" in page.text
    assert not {"u", "b", "i"} & set(page.tags)
    assert page.tags.count("script") == 2
    assert not {name for name in page.attributes if name.startswith("on")}
    assert "49" not in re.findall(r"\d+", page.text)  # {{ 7 * 7 }} is not worked out


def test_the_page_loads_nothing_from_elsewhere(folder):
    path = write_report(folder, title="t")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.addresses
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert "@import" not in text
    assert "url(" not in text
    assert "//" not in re.sub(
        r"(base64,|sha256-)[\w+/=]+|//\s.*|http://www.w3.org/2000/svg", "", text
    )


def test_the_policy_names_exactly_the_style_and_the_script_of_the_page(folder):
    import base64
    import hashlib

    text = write_report(folder, title="t").read_text(encoding="utf-8")
    (policy,) = re.findall(r'Policy" content="([^"]*)"', text)
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src &#39;sha256-{digest}&#39;" in policy
    assert policy.startswith("default-src &#39;none&#39;;")
    assert not re.search(r"<[^>]*\sstyle=", text)  # which the policy would not let through


def test_the_scripts_data_are_the_names_and_pictures(folder):
    page = _page(folder)
    data = json.loads(page.data)
    assert data["ids"] == list(IDS)
    assert set(data["panels"]) == {str(i) for i in range(len(IDS))}
    assert data["panels"]["2"]["src"].startswith("data:image/jpeg;base64,")
    assert data["panels"]["2"]["reference"].startswith("M")
    assert "<" not in page.data


def test_json_for_a_script_cannot_end_the_script():
    text = script_json({"a": "</script><!--&"})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"a": "</script><!--&"}


def test_best_median_and_worst_are_shown_of_the_cases_with_a_score(folder):
    text = _page(folder).text
    shown = re.findall(r"(best|median|worst) (.+?) (\d\.\d{3})", text)
    assert [(heading, score) for heading, _, score in shown] == [
        ("best", "0.900"), ("median", "0.700"), ("worst", "0.500"),
    ]  # fmt: skip


def test_the_median_of_an_even_number_is_the_lower_one_as_in_median_png(folder):
    cases = [
        {"id": name, "dice": dice} for name, dice in zip("abcd", (0.1, 0.2, 0.3, 0.4), strict=True)
    ]
    found = evaluation() | {"cases": cases, "worst": []}
    assert [(one.heading, one.case_id) for one in evaluation_part(found).featured] == [
        ("best", "d"), ("median", "b"), ("worst", "a"),
    ]  # fmt: skip


def test_parts_of_different_checkpoints_are_told_apart(tmp_path):
    write_folder(tmp_path)
    assert "different checkpoints" not in _page(tmp_path).text
    for name, content, digest in (
        ("evaluate", evaluation(), "a"), ("stability", stability(), "a"), ("sweep", sweep(), "b"),
    ):  # fmt: skip
        origin = {"command": f"sdseg {name}!", "sha256": {"checkpoint": 64 * digest}}
        (tmp_path / f"{name}.json").write_text(json.dumps(content | {"provenance": origin}))
    text = _page(tmp_path).text
    assert "Evaluation, Stability and Sweep are of different checkpoints" in text
    assert "sdseg sweep!" in text


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "0.0 %"), (2.1e-5, "0.00210 %"), (0.0125, "1.25 %"), (0.5, "50.0 %"), (1.0, "100.0 %")],
)
def test_a_small_share_keeps_three_digits(share, shown):
    assert wording.percent(share) == shown


def test_undefined_values_are_dashes_and_carry_no_number(folder):
    text = write_report(folder, title="t").read_text(encoding="utf-8")
    table = text[text.index('id="case-table"') :]
    row = next(row for row in table.split("<tr")[2:] if 'data-case="5"' in row)
    dice, hd95, volume, _ = re.findall(r"<td[^>]*>", row)
    assert "data-value" not in dice + hd95
    assert 'data-value="-1.5"' in volume
    assert row.count("\u2013") == 2


def test_one_file_is_enough(tmp_path):
    (tmp_path / "stability.json").write_text(json.dumps(stability()))
    assert _page(tmp_path).sections == ["stability", "origin"]
    (tmp_path / "stability.json").unlink()
    (tmp_path / "evaluate.json").write_text(json.dumps(evaluation()))
    assert _page(tmp_path).sections[:3] == ["summary", "spread", "cases"]
    assert "stability" not in _page(tmp_path).sections


def test_an_empty_folder_is_an_error_that_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match="nothing to report") as caught:
        write_report(tmp_path, title="t")
    assert "sdseg evaluate" in caught.value.hint


TWISTED = {
    "evaluate.json": ['{"metrics": 3, "cases": "x"}', '{"metrics": {}, "cases": []}'],
    "stability.json": ['{"seg": 3}'],
    "sweep.json": ['{"sweep": []}', '{"sweep": [{"dice": 3}]}'],
    "panels.json": ['{"format_version": 1, "panels": 3}'],
}


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, text) for name in TWISTED for text in ("{", "[]", "{}", "\xff", *TWISTED[name])],
)
def test_a_damaged_file_is_left_out_and_named(folder, name, content):
    (folder / name).write_bytes(content.encode("latin-1"))
    page = _page(folder)
    lost = {"evaluate": "summary", "stability": "stability", "sweep": "sweep", "panels": ""}
    assert lost[name.removesuffix(".json")] not in page.sections
    assert f"{name} is" in page.text
    assert len(page.sections) >= 3


@pytest.mark.parametrize("key", [*evaluation()])
def test_a_value_of_another_kind_never_loses_the_page(tmp_path, key):
    for value in (7, "x", [[]]):
        (tmp_path / "evaluate.json").write_text(json.dumps(evaluation() | {key: value}))
        page = _page(tmp_path)
        assert "origin" in page.sections
        assert "summary" in page.sections or "evaluate.json is left out" in page.text


def test_a_picture_that_is_none_is_left_out(folder):
    (folder / "stability.png").write_text("<svg onload=alert(1)>")
    page = _page(folder)
    assert "stability.png is left out" in page.text
    assert page.tags.count("img") == 3 + 1  # best, median and worst; the map of the least stable


def test_a_report_of_the_first_version_is_still_shown(tmp_path):
    found = evaluation()
    known = ("run", "split", "seed", "grid", "protocol", "metrics", "cases", "excluded", "notes")
    (tmp_path / "evaluate.json").write_text(json.dumps({key: found[key] for key in known}))
    page = _page(tmp_path)
    assert page.sections == ["summary", "spread", "cases", "origin"]
    assert re.search(r"HD95\s+mm", page.text)  # the unit is read off the column's name


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_cases_make_a_page(tmp_path, count):
    found = evaluation()
    found["cases"] = found["cases"][:count]
    (tmp_path / "evaluate.json").write_text(json.dumps(found))
    save_panels(tmp_path, [panel(case_id) for case_id in IDS[:count]])
    page = _page(tmp_path)
    assert page.tags.count("img") == count
    assert page.tags.count("circle") == 3 * count


def test_of_many_pictures_the_worst_and_the_featured_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "MOST_PANELS", 2)
    write_folder(tmp_path)
    (tmp_path / "stability.json").unlink()
    page = _page(tmp_path)
    # Dice 0.5 and 0.6 are the worst two, 0.7 the median, 0.9 the best.
    kept = {IDS[int(number)] for number in json.loads(page.data)["panels"]}
    assert kept == {IDS[4], IDS[3], IDS[2], IDS[0]}
    assert "4 of 6 pictures are kept" in page.text


def test_a_name_with_bytes_that_are_no_text_does_not_lose_the_page(tmp_path):
    found = evaluation()
    found["cases"][0]["id"] = "scan\udcff"
    (tmp_path / "evaluate.json").write_text(json.dumps(found))
    assert "scan?" in _page(tmp_path).text


def test_the_same_folder_gives_the_same_bytes_and_leaves_nothing_else(folder):
    before = sorted(path.name for path in folder.iterdir())
    first = write_report(folder, title="t").read_bytes()
    assert write_report(folder, title="t").read_bytes() == first
    assert sorted(path.name for path in folder.iterdir()) == sorted([*before, "report.html"])


def test_what_a_command_found_itself_is_not_read_from_the_folder(folder):
    """Damaged files of its own beside it change nothing."""
    expected = write_report(folder, title="t").read_bytes()
    found = Results(evaluation(), stability(), sweep(), *case_panels())
    for name in ("evaluate.json", "stability.json", "sweep.json", "panels.json", "map_panels.json"):
        (folder / name).write_text("{")
    assert write_report(folder, found, title="t").read_bytes() == expected


def test_several_classes_have_a_table_strips_and_the_union(tmp_path):
    page = _page(write_class_folder(tmp_path))
    assert page.sections[:4] == ["summary", "classes", "spread", "cases"]
    assert not {"b", "u"} & set(page.tags)
    for name in CLASSES:
        assert page.text.count(name) >= 5  # filter, table, three plots, stability
    assert "all as one" in page.text
    assert "Metric of a case: mean over its classes" in page.text
    assert "Dice of all classes as one, mean" in page.text  # of stability
    data = json.loads(page.data)
    assert len(data["values"]) == 8
    assert data["values"][1]["0"][:2] == [["case_2", None], ["0.850", pytest.approx(0.85)]]
    assert data["values"][6]["0"][1] == ["\u2013", None]
    assert len(data["panels"]["0"]["classes"]) == 7


def test_a_page_of_several_classes_keeps_to_its_policy(tmp_path):
    test_the_policy_names_exactly_the_style_and_the_script_of_the_page(write_class_folder(tmp_path))
    test_the_page_loads_nothing_from_elsewhere(tmp_path)


def test_the_page_of_one_class_has_nothing_of_several(folder):
    text = write_report(folder, title="t").read_text(encoding="utf-8")
    assert "of-class" not in text
    assert "class-filter" not in text


def test_maps_of_several_classes_have_their_colours_and_names_without_an_evaluation(tmp_path):
    (write_class_folder(tmp_path) / "evaluate.json").unlink()
    page = _page(tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ".class-7{--class:" in text
    for number in range(1, 8):
        assert f'<li class="class-{number}"><span class="colour">' in text
    assert all(page.text.count(name) >= 2 for name in CLASSES)  # here and in the table
