"""LaTeX tables: every character prints as itself, whatever a case is called."""

from __future__ import annotations

import pytest

from sdseg_cli.report.latex import class_rows, escape, latex_table, write_latex


def test_a_table_is_plain_latex():
    table = latex_table(["case", "Dice"], [["a_1", "0.9"], ["b", "0.8"]], "Dice, 95 % interval")
    assert table == (
        "\\begin{table}\n"
        "\\centering\n"
        "\\begin{tabular}{lr}\n"
        "\\hline\n"
        "case & Dice \\\\\n"
        "\\hline\n"
        "a\\_1 & 0.9 \\\\\n"
        "b & 0.8 \\\\\n"
        "\\hline\n"
        "\\end{tabular}\n"
        "\\caption{Dice, 95 \\% interval}\n"
        "\\end{table}\n"
    )


@pytest.mark.parametrize(
    ("letter", "printed"),
    [
        *((letter, f"\\{letter}") for letter in "&_%#${}"),
        ("~", r"\textasciitilde{}"),
        ("^", r"\textasciicircum{}"),
        ("\\", r"\textbackslash{}"),
        ("<", r"\textless{}"),
        (">", r"\textgreater{}"),
        ("|", r"\textbar{}"),
        ("\n", " "),
    ],
)
def test_a_special_character_is_escaped_once(letter, printed):
    assert escape(f"a{letter}b") == f"a{printed}b"


def test_a_command_in_a_name_is_printed_not_run():
    assert escape(r"\input{/etc/passwd}") == r"\textbackslash{}input\{/etc/passwd\}"


def test_signs_of_our_own_numbers_need_no_package():
    assert escape("\u22120.5 \u00b1 1\u202f000") == r"$-$0.5 $\pm$ 1\,000"


def test_a_cell_cannot_become_the_option_of_a_line_break():
    assert "\n{[1cm]} \\\\\n{*} \\\\\n" in latex_table(["x"], [["[1cm]"], ["*"]], "")


def test_rows_must_fit_the_columns():
    with pytest.raises(ValueError, match="1 cells under 2 columns"):
        latex_table(["a", "b"], [["1"]], "")
    with pytest.raises(ValueError, match="without columns"):
        latex_table([], [], "")


def test_a_name_that_is_no_text_does_not_lose_the_table(tmp_path):
    write_latex(tmp_path / "deep" / "t.tex", ["case"], [["a\udcff"]], "c")
    assert "a? \\\\" in (tmp_path / "deep" / "t.tex").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["t.tex"]


def test_each_class_is_a_row_of_means():
    none = {"mean": None, "sd": None}
    classes = [
        {"name": "left_lung", "metrics": {"dice": {"mean": 0.5, "sd": 0.25}, "hd95_mm": none}},
        {"name": "cord", "metrics": {"dice": {"mean": 1.0, "sd": None}, "hd95_mm": none}},
    ]
    columns, rows = class_rows(classes, ["dice", "hd95_mm"])
    assert columns == ("class", "dice", "hd95_mm")
    assert rows == [("left_lung", "0.500 \u00b1 0.250", "-"), ("cord", "1.000", "-")]
    assert "left\\_lung & 0.500 $\\pm$ 0.250 & - " in latex_table(columns, rows, "")
