"""The pages: they build as a site, every link leads somewhere, and they keep to the house's manner."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
API = sorted((DOCS / "api").glob("*.md"))
STIFF = [
    *("can be had", "can't be had", "cannot be had", "to be had", "is told", "are told", "is said", "are said"),
    *("comes out at", "come out at", "at hand", "it is said", "../shared"),
]


def prose(page: Path) -> list[tuple[int, str]]:
    """Numbered lines outside of fences and tables."""
    found, fenced = [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("|"):
            found.append((number, line))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_is_wrapped_and_in_plain_words(page):
    for number, line in prose(page):
        assert len(line) <= 120, f"{page.name}:{number} has {len(line)} columns"
    assert stiff(page.read_text(encoding="utf-8")) == []


def stiff(text: str) -> list[str]:
    """Phrases of STIFF in a text, broken over lines or not."""
    flat = re.sub(r"[\s#]+", " ", text).lower()
    return [phrase for phrase in STIFF if re.search(rf"(?<!\w){re.escape(phrase)}\b", flat)]


def test_docstrings_messages_and_configs_are_in_plain_words():
    assert stiff("Labels that can\n    # be had here; it IS TOLD in one line.") == ["can be had", "is told"]
    files = [*(ROOT / "saelab").rglob("*.py"), *(ROOT / "conf").rglob("*.yaml"), *(ROOT / "scripts").rglob("*.py")]
    found = {str(file.relative_to(ROOT)): stiff(file.read_text(encoding="utf-8")) for file in files}
    assert {name: phrases for name, phrases in found.items() if phrases} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_scripts_and_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.])(?:scripts|tests|conf|docs|examples|saelab)/[\w./-]*[\w/]", text))
    missing = [name for name in sorted(named) if not (ROOT / name).exists() and not re.search("NAME|MODULE", name)]
    assert missing == []


def test_names_that_contributing_sends_to_a_file_stand_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+)` of `([\w/]+\.py)`", text)
    assert {"FAMILIES", "RULES", "_LOADERS", "CHATS", "Chat", "FAITHFULNESS", "METRICS", "PAGES"} <= {
        n for n, _ in named
    }
    for name, file in [*named, ("Scorer", "saelab/label/scorers/scorer.py")]:
        defined = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^(class {name}\b|def {name}\b|{name}\b.* = )", defined, re.M), f"{name} in {file}"


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent == ROOT], ids=lambda page: page.stem)
def test_links_of_pages_outside_the_site_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_navigation_lists_every_page():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- ([\w/]+\.md)$", config, re.M)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in [*DOCS.glob("*.md"), *API])


def test_readme_keeps_the_commands_that_programs_read():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"<!-- (\w+) -->\n```bash\n(.+)\n```", text))
    assert blocks["tests"] == "pip install uv && uv run --extra dev pytest -n auto"
    assert blocks["quickstart"].startswith("pip install uv && uv run --extra quickstart saelab quickstart")


def test_citation_has_the_version_of_the_package():
    init = (ROOT / "saelab" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'__version__ = "(.+)"', init)[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_hosted_ci_runs_what_the_readme_runs_and_tries_the_wheel():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "bash .ci/run" in text and "uv build --wheel" in text and "secrets." not in text


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if not (importlib.util.find_spec("material") and importlib.util.find_spec("mkdocstrings_handlers")):
        pytest.skip("needs the docs extra")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return out


def test_site_builds_strictly_and_loads_nothing_from_elsewhere(site):
    start = (site / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<(?:script|img|link rel="stylesheet")[^>]+(?:src|href)="(?:https?:)?//[^"]+"', start) == []


@pytest.mark.parametrize("page", API, ids=lambda page: page.stem)
def test_api_page_lists_every_public_function_and_class(site, page):
    shown = (site / "api" / page.stem / "index.html").read_text(encoding="utf-8")
    for package in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.M):
        init = ROOT / package.replace(".", "/") / "__init__.py"
        for name in public(init) if init.is_file() else []:
            anchors = (f'id="{package}.{name}"', f'id="{package}.{name}.{name}"')  # the second: a module of its name
            assert name.isupper() or name.startswith("__") or any(a in shown for a in anchors), f"{package}.{name}"


def public(init: Path) -> list[str]:
    """`__all__` of a package, read without importing it."""
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def examples(page: Path) -> list[list[str]]:
    """Command lines of `saelab` and of scripts/ in a page's shell blocks, as words."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
        for line in block.replace("\\\n", "").splitlines() if language in ("", "bash") else []:
            if match := re.search(r"(?:^|\s)(?:saelab |python scripts/(?=\w+\.py))(\w+)(?:\.py)?(\s.*)?$", line):
                found.append([match[1], *shlex.split(match[2] or "", comments=True)])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_that_a_page_shows_have_these_settings(page):
    """Each is composed as Hydra would: a command, group, preset or setting that does not exist is an error."""
    for command, *words in examples(page):
        assert (ROOT / "conf" / f"{command}.yaml").is_file(), command
        overrides = [re.sub(r"=\.\.\.$", "=null", word) for word in words if not word.startswith("-")]
        if "-m" in words or "--multirun" in words:
            overrides = [word.split(",")[0] if "[" not in word else word for word in overrides]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            compose(command, overrides)
