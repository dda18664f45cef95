"""All generated competitions: python -m kaggle_llm_demo. Leaves input/<name>/ and output/hidden/<name>/ of each."""

from __future__ import annotations

import importlib

from kaggle_llm.base import paths

DEMOS = ("misconceptions", "dialogues", "judge", "tags", "open_book", "essays")


def main() -> None:
    for name in DEMOS:
        demo = importlib.import_module(f"kaggle_llm_demo.{name}")
        demo.build_competition(paths.root() / "input" / demo.NAME, paths.hidden_folder(demo.NAME))
        print(f"input/{demo.NAME} is ready")


if __name__ == "__main__":
    main()
