"""The notebooks of examples/ run from top to bottom, and what they show is what they say."""

from pathlib import Path

import pytest

nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

# Run after a notebook's own cells: what has to be true of its variables.
CHECKS = {
    "own_model": """
labels = p.labels["neuron"].table()
assert len(labels) == 24 and set(labels["label"].dropna()) <= set(colours)
assert labels["truth_r"].median() > 0.5  # colours that a random network separates anyway
assert p.labels["sae"].show(4)._repr_html_().count("data:image/jpeg") > 4
assert p.report().is_file() and p.report().read_text().startswith("<!doctype html>")
""",
    "arrays": """
labels = p.labels["neuron"].table()
assert len(labels) == 24 and set(labels["label"].dropna()) <= set(words)
own = labels.set_index("unit")["label"].map(words.index)
assert (own == (directions.argmax(0)).numpy()).mean() > 0.8  # a unit is named after its strongest concept
assert metrics.auprc(acts, truth).mean() > 0.5
assert "SAE features" in p.comparison.verdict
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.ipynb")))
def test_notebook_runs(name, tmp_path):
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # kept without outputs
    notebook.cells.append(nbformat.v4.new_code_cell(CHECKS[name]))
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
