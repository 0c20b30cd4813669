"""The notebooks: stored without outputs in the form of nbformat 4, and every cell runs."""

import json
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt

mpl.use("Agg")  # no window, whatever the machine has

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CODE = {"cell_type", "execution_count", "id", "metadata", "outputs", "source"}
MARKDOWN = {"cell_type", "id", "metadata", "source"}

every = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def read(notebook):
    return json.loads(notebook.read_text(encoding="utf-8"))


def test_the_pages_name_every_notebook():
    page = (ROOT / "docs" / "tutorials" / "first_network.md").read_text(encoding="utf-8")
    assert NOTEBOOKS
    for notebook in NOTEBOOKS:
        assert f"notebooks/{notebook.name}" in page


@every
def test_a_notebook_has_the_fields_of_its_format_and_no_outputs(notebook):
    found = read(notebook)
    assert set(found) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    assert found["metadata"]["kernelspec"]["name"] == "python3"
    for cell in found["cells"]:
        assert set(cell) == (CODE if cell["cell_type"] == "code" else MARKDOWN), cell["id"]
        assert isinstance(cell["source"], list), cell["id"]
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
    names = [cell["id"] for cell in found["cells"]]
    assert len(set(names)) == len(names)


@pytest.mark.slow
@every
def test_every_cell_of_a_notebook_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for cell in read(notebook)["cells"]:
        if cell["cell_type"] == "code":
            text = "".join(cell["source"])
            exec(compile(text, f"{notebook.name}, {cell['id']}", "exec"), namespace)
    plt.close("all")
