from importlib.resources import files

import pytest

from headrace.report.html_parts import page_html

ASSETS = files("headrace").joinpath("assets", "report")
BODIES = ("bench.html", "plan.html", "timeline.html")


def read(name):
    return ASSETS.joinpath(name).read_text("utf-8")


def test_a_page_has_its_own_words_styles_and_scripts_around_its_body():
    places = dict.fromkeys(("origin", "verdict", "prediction", "cases", "unable"), "")
    page = page_html(
        "bench.html",
        "A <b> & $title",
        styles=("bench.css",),
        scripts=("data.js", "view.js"),
        facts="<dl>$ and $facts</dl>",
        **places,
    )
    assert "<title>A &lt;b&gt; &amp; $title</title>" in page
    assert "<h1>A &lt;b&gt; &amp; $title</h1>" in page
    # What is filled in stays as it is.
    assert "<dl>$ and $facts</dl>" in page
    assert f"<style>\n{read('base.css')}{read('bench.css')}\n</style>" in page
    assert read("data.js") + "\n" + read("view.js") in page
    assert page.index("</main>") < page.index('id="tip"') < page.index("<script")


def test_a_place_that_is_not_filled_is_an_error():
    with pytest.raises(KeyError, match="origin"):
        page_html("bench.html", "A page", styles=(), scripts=())


@pytest.mark.parametrize("body", BODIES)
def test_what_pages_have_in_common_is_in_one_file(body):
    shared = [line for line in read("page.html").splitlines() if not line.startswith("$")]
    own = set(read(body).splitlines())
    assert shared[0] == "<!doctype html>"
    # Only a timeline has a script of its own: its data.
    assert own.isdisjoint(set(shared) - {"</script>"})
