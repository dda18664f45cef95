"""submission/notebook.py (percent format) → notebook.ipynb, by jupytext."""

from __future__ import annotations

from pathlib import Path


def write_notebook(source: Path, target: Path) -> None:
    """Write the notebook: the same bytes for the same source."""
    import jupytext
    import nbformat

    notebook = jupytext.read(source)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # jupytext's are random
    nbformat.validate(notebook)
    nbformat.write(notebook, target)
