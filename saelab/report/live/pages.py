"""The report's pages as they are when live: the same template, with search, rating and label editing added."""

from jinja2 import Environment, PackageLoader

from saelab.report.build import BESIDE, COMMON, PAGES
from saelab.report.reading import Run

ADDED = {"search": "Search", "what-if": "What if", "rate": "Rate"}


def render(run: Run) -> dict[str, str]:
    """Name -> HTML of every page."""
    template = Environment(loader=PackageLoader("saelab.report", "pages"), autoescape=True).get_template("page.html")
    shown = {key: title for key, title in PAGES.items() if key != "compare" or run.comparisons} | ADDED
    found = {}
    for key, title in shown.items():
        own = f"live/page-{key}.js" if key in ADDED else f"assets/page-{key}.js"
        scripts = [*(f"assets/{name}" for name in (COMMON, *BESIDE.get(key, ()))), "live/live.js", own]
        found[key] = template.render(
            key=key, title=title, pages=shown, run=run.facts["name"], scripts=scripts, live=True
        )
    return found
