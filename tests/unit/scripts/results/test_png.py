"""PNGs say which SVG they were drawn from."""

import struct

import pytest
from scripts.results.__main__ import undrawn
from scripts.results.png import draw_png, drawn_from, hash_of
from scripts.results.quoted import ROOT

PICTURES = sorted((ROOT / "docs/img").glob("results-*.svg"))
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 20"><text y="16">{}</text></svg>'


@pytest.mark.parametrize("svg", PICTURES, ids=lambda path: path.stem)
def test_every_png_was_drawn_from_the_svg_beside_it(svg):
    png = svg.with_suffix(".png").read_bytes()
    assert drawn_from(png) == hash_of(svg.read_text("utf-8"))
    view = svg.read_text("utf-8").partition('viewBox="0 0 ')[2].partition('"')[0].split()
    width, height = struct.unpack(">II", png[16:24])
    assert width / height == pytest.approx(float(view[0]) / float(view[1]), rel=0.01)


def test_there_are_pictures():
    assert PICTURES


def test_what_is_no_png_or_has_no_hash_was_drawn_from_nothing():
    assert drawn_from(b"") == ""
    assert drawn_from(b"<svg/>") == ""
    assert drawn_from((ROOT / "docs/img/plan-report-390.png").read_bytes()) == ""


def test_a_png_of_another_svg_or_none_is_drawn_anew(tmp_path):
    for folder in ("docs", "benchmarks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "README.md").symlink_to(ROOT / "README.md")
    assert undrawn(tmp_path) == {}
    (tmp_path / "docs").unlink()
    (tmp_path / "docs").mkdir()
    missing = {path.relative_to(ROOT).with_suffix(".png") for path in PICTURES}
    assert set(undrawn(tmp_path)) == missing
    stale = min(missing)
    (tmp_path / stale).parent.mkdir()
    (tmp_path / stale).write_bytes((ROOT / max(missing)).read_bytes())
    assert set(undrawn(tmp_path)) == missing
    (tmp_path / stale).write_bytes((ROOT / stale).read_bytes())
    assert set(undrawn(tmp_path)) == missing - {stale}


def test_letters_are_drawn_and_the_hash_is_kept():
    pytest.importorskip("resvg_py")
    pytest.importorskip("font_roboto")
    text, blank = draw_png(SVG.format("×ä1")), draw_png(SVG.format(""))
    assert drawn_from(text) == hash_of(SVG.format("×ä1"))
    assert len(text) > len(blank) + 50


def test_without_the_packages_the_message_names_them(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "resvg_py", None)
    with pytest.raises(RuntimeError, match="pip install resvg-py font-roboto"):
        draw_png(SVG)
