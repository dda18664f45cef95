"""Execute a notebook in a kernel of its own: python execute.py IN.ipynb OUT.ipynb. Exit code 1 where a cell fails.

Cell output is printed as it comes. Started by path, inside the sandbox.
"""

import sys
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


class LoudClient(NotebookClient):
    """Prints streams as they come: a rehearsal's log is read while it runs."""

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] == "stream":
            print(msg["content"]["text"], end="", flush=True)
        return super().process_message(msg, cell, cell_index)


def main(source: str, target: str) -> int:
    notebook = nbformat.read(source, as_version=4)
    try:
        LoudClient(notebook, timeout=None, kernel_name="python3").execute()
    except CellExecutionError as error:
        print(error)
        return 1
    finally:
        nbformat.write(notebook, target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
