"""axe-core on what only the live viewer shows: nothing found, a place in a picture, rating; in four looks."""

import pytest
from test_report_accessible import FOUND, RULES, axe
from test_view import made, viewer, world  # noqa: F401  (fixtures)

ASK = {
    "search.html#text=kranpitch": "details.nearest",
    "search.html#image=7&at=0.5,0.5": ".place .token",
    "rate.html": ".grades",
}


@pytest.mark.browser
def test_axe_finds_nothing_in_the_live_viewer(browser, viewer):  # noqa: F811
    context = browser.new_context(base_url=f"http://127.0.0.1:{viewer.port}/", bypass_csp=True)
    page, source = context.new_page(), axe()
    for address, there in ASK.items():
        page.goto("about:blank")
        page.goto(address)
        page.wait_for_selector("main:not([aria-busy])")
        if address == "rate.html":
            page.fill("input[name=who]", "ada")
            page.keyboard.press("Enter")
        page.wait_for_selector(there)
        page.evaluate(source)
        for size, scheme in (((1280, 900), "light"), ((390, 844), "dark")):
            page.set_viewport_size(dict(zip(("width", "height"), size)))
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(150)
            rules = RULES["light"] if scheme == "light" else {}
            assert page.evaluate(FOUND, rules) == [], (address, size, scheme)
            assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), (address, size)
    context.close()
