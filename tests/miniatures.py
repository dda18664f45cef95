"""Nine competitions in the exact layouts of Kaggle's files, with a few generated rows in words of our own.

`write_miniature(name, folder)` writes the public files. What is odd in a layout is there: Eedi's float ids and wide
rows, MAP's class named NA, WSDM's Parquet, PII's lists in JSON, LMSYS's lists as JSON, CommonLit's second tables.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl

TRAIN_ROWS, TEST_ROWS = 60, 4
SUBJECTS = ("river", "clock", "market", "garden", "bridge", "letter", "winter", "machine", "island", "school", "engine")
VERBS = ("carries", "opens", "follows", "crosses", "repairs", "describes", "measures", "forgets", "counts", "draws")
MARKS = ("slowly", "twice", "at night", "for nothing", "with care", "by hand", "in spring", "alone", "again", "early")
MISTAKES = list(zip(VERBS, MARKS, strict=True))
Rows = list[dict[str, Any]]


def write_text(rng: random.Random, sentences: int = 2) -> str:
    """Sentences that hardly ever repeat."""
    return " ".join(
        f"The {rng.choice(SUBJECTS)} {rng.choice(VERBS)} the {rng.choice(SUBJECTS)} number {rng.randrange(10**4)} "
        f"{rng.choice(MARKS)}, and the {rng.choice(SUBJECTS)} {rng.choice(VERBS)} it {rng.choice(MARKS)}."
        for _ in range(sentences)
    )


def write_csv(path: Path, rows: Rows) -> None:
    pl.DataFrame(rows, infer_schema_length=None).write_csv(path)


def write_aes(folder: Path, rng: random.Random) -> None:
    """Automated Essay Scoring 2.0."""

    def rows(count: int, first: int) -> Rows:
        return [{"essay_id": f"{first + n:07x}", "full_text": write_text(rng, 2 + n % 6)} for n in range(count)]

    train = rows(TRAIN_ROWS, 11)
    write_csv(folder / "train.csv", [{**row, "score": 1 + n % 6} for n, row in enumerate(train)])
    test = rows(TEST_ROWS, 9000)
    write_csv(folder / "test.csv", test)
    write_csv(folder / "sample_submission.csv", [{"essay_id": row["essay_id"], "score": 3} for row in test])


def write_commonlit(folder: Path, rng: random.Random) -> None:
    """CommonLit, Evaluate Student Summaries: two tables for each of train and test; the test's prompts are new."""

    def tables(part: str, names: list[str], count: int, labelled: bool) -> Rows:
        write_csv(
            folder / f"prompts_{part}.csv",
            [
                {
                    "prompt_id": name,
                    "prompt_question": f"Summarise what the text says of the {name}.",
                    "prompt_title": f"On {name}",
                    "prompt_text": write_text(rng, 6),
                }
                for name in names
            ],
        )
        rows: Rows = []
        for n in range(count):
            row = {
                "student_id": f"{part}{n:04d}",
                "prompt_id": names[n % len(names)],
                "text": write_text(rng, 1 + n % 4),
            }
            scores = {"content": round(n % 4 + rng.gauss(-1.5, 0.3), 6), "wording": round(rng.gauss(0, 1), 6)}
            rows.append({**row, **(scores if labelled else {})})
        write_csv(folder / f"summaries_{part}.csv", rows)
        return rows

    tables("train", ["3b9047", "39c16e", "814d6b", "ebad26"], TRAIN_ROWS, True)
    test = tables("test", ["abc123", "def789"], TEST_ROWS, False)
    sample = [{"student_id": row["student_id"], "content": 0.0, "wording": 0.0} for row in test]
    write_csv(folder / "sample_submission.csv", sample)


def write_eedi(folder: Path, rng: random.Random) -> None:
    """Eedi, Mining Misconceptions: a row is a question with four answers, some wrong ones with a misconception."""
    mistakes = [f"Believes that the {subject} {verb} {mark}" for subject in SUBJECTS for verb, mark in MISTAKES]
    mapping = [{"MisconceptionId": n, "MisconceptionName": name} for n, name in enumerate(mistakes)]
    write_csv(folder / "misconception_mapping.csv", mapping)

    def rows(count: int, first: int, labelled: bool) -> Rows:
        made: Rows = []
        for n in range(count):
            right = rng.choice("ABCD")
            wrong = [letter for letter in "ABCD" if letter != right]
            ids = {letter: None if rng.random() < 0.3 else float(rng.randrange(len(mistakes))) for letter in wrong}
            ids[wrong[0]] = float((7 * n) % len(mistakes))
            row = {
                "QuestionId": first + n,
                "ConstructId": 100 + n % 9,
                "ConstructName": f"Say what the {SUBJECTS[n % 9]} does",
                "SubjectId": 30 + n % 5,
                "SubjectName": f"Work of the {SUBJECTS[n % 5]}",
                "CorrectAnswer": right,
                "QuestionText": write_text(rng, 1),
            }
            names = {k: mistakes[int(v)] if v is not None else "something else" for k, v in ids.items()}
            row |= {f"Answer{letter}Text": f"{names.get(letter, 'It is so')} ({n}{letter})" for letter in "ABCD"}
            row |= {f"Misconception{letter}Id": ids.get(letter) for letter in "ABCD"} if labelled else {}
            made.append(row)
        return made

    write_csv(folder / "train.csv", rows(TRAIN_ROWS, 0, True))
    test = rows(TEST_ROWS - 1, 1869, False)
    write_csv(folder / "test.csv", test)
    asked = [(row["QuestionId"], letter) for row in test for letter in "ABCD" if letter != row["CorrectAnswer"]]
    guess = " ".join(map(str, range(25)))
    sample = [{"QuestionId_Answer": f"{question}_{letter}", "MisconceptionId": guess} for question, letter in asked]
    write_csv(folder / "sample_submission.csv", sample)


def write_jigsaw(folder: Path, rng: random.Random) -> None:
    """Jigsaw, Agile Community Rules."""
    rules = ["No advertising: do not send people to goods.", "No legal advice: do not tell people what a court may do."]

    def rows(count: int, first: int) -> Rows:
        return [
            {
                "row_id": first + n,
                "body": write_text(rng),
                "rule": rules[n % 2],
                "subreddit": rng.choice(SUBJECTS) + "s",
                "positive_example_1": write_text(rng, 1),
                "positive_example_2": write_text(rng, 1),
                "negative_example_1": write_text(rng, 1),
                "negative_example_2": write_text(rng, 1),
            }
            for n in range(count)
        ]

    train = rows(TRAIN_ROWS, 0)
    write_csv(folder / "train.csv", [{**row, "rule_violation": (n // 2) % 2} for n, row in enumerate(train)])
    test = rows(TEST_ROWS, 2029)
    write_csv(folder / "test.csv", test)
    write_csv(folder / "sample_submission.csv", [{"row_id": row["row_id"], "rule_violation": 0.5} for row in test])


def write_toxic(folder: Path, rng: random.Random) -> None:
    """Toxic Comment Classification: six columns of 0 and 1, of which a row has any number; labels of the test set that
    came afterwards, −1 where a row was not scored."""
    labels = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")

    def rows(count: int, first: int) -> Rows:
        return [{"id": f"{first + n:016x}", "comment_text": write_text(rng)} for n in range(count)]

    def answer(n: int) -> dict[str, Any]:
        return {label: int(n % (k + 2) == 0) for k, label in enumerate(labels)}

    train, test = rows(TRAIN_ROWS, 10**12), rows(TEST_ROWS, 9 * 10**12)
    write_csv(folder / "train.csv", [{**row, **answer(n)} for n, row in enumerate(train)])
    write_csv(folder / "test.csv", test)
    write_csv(folder / "test_labels.csv", [{"id": row["id"], **dict.fromkeys(labels, -1)} for row in test])
    write_csv(folder / "sample_submission.csv", [{"id": row["id"], **dict.fromkeys(labels, 0.5)} for row in test])


def write_lmsys(folder: Path, rng: random.Random) -> None:
    """LMSYS, Chatbot Arena: turns of a chat as JSON lists in a CSV, one column a possible winner."""

    def turns(n: int) -> str:
        return json.dumps([write_text(rng, 1) for _ in range(1 + n % 2)])

    def rows(count: int, first: int) -> Rows:
        return [
            {"id": first + n, "prompt": turns(n), "response_a": turns(n), "response_b": turns(n)} for n in range(count)
        ]

    train = []
    for n, row in enumerate(rows(TRAIN_ROWS, 30000)):
        models = {"model_a": f"model-{n % 5}", "model_b": f"model-{n % 7}"}
        winners = {f"winner_{name}": int(n % 3 == place) for place, name in enumerate(("model_a", "model_b", "tie"))}
        train.append({"id": row["id"], **models, **{k: row[k] for k in list(row)[1:]}, **winners})
    write_csv(folder / "train.csv", train)
    test = rows(TEST_ROWS, 136060)
    write_csv(folder / "test.csv", test)
    third = {f"winner_{name}": 1 / 3 for name in ("model_a", "model_b", "tie")}
    write_csv(folder / "sample_submission.csv", [{"id": row["id"], **third} for row in test])


def write_map(folder: Path, rng: random.Random) -> None:
    """MAP, Charting Student Math Misunderstandings: the label is two columns, and NA is one of its words."""

    def rows(count: int, first: int) -> Rows:
        return [
            {
                "row_id": first + n,
                "QuestionId": 31772 + n % 6,
                "QuestionText": f"What does the {SUBJECTS[n % 6]} do with {n % 6} parts?",
                "MC_Answer": f"\\( {n % 4} \\)",
                "StudentExplanation": write_text(rng, 1),
            }
            for n in range(count)
        ]

    kinds = [("True_Correct", "NA"), ("False_Neither", "NA"), ("True_Neither", "NA")]
    kinds += [("False_Misconception", name) for name in ("Incomplete", "WNB", "Wrong_term", "Adding_across")]
    train = rows(TRAIN_ROWS, 0)
    for n, row in enumerate(train):
        row["Category"], row["Misconception"] = kinds[n % len(kinds)]
    write_csv(folder / "train.csv", train)
    test = rows(TEST_ROWS, 36696)
    write_csv(folder / "test.csv", test)
    guess = "True_Correct:NA False_Neither:NA False_Misconception:Incomplete"
    sample = [{"row_id": row["row_id"], "Category:Misconception": guess} for row in test]
    write_csv(folder / "sample_submission.csv", sample)


def write_pii(folder: Path, rng: random.Random) -> None:
    """PII Data Detection: documents as lists of tokens in JSON; the submission has a row for each labelled token."""

    def rows(count: int, first: int, labelled: bool) -> Rows:
        made: Rows = []
        for n in range(count):
            words = [*write_text(rng, 2).split(" "), "by", "Ada", f"Stone{n}", "\n\n", f"ada{n}@mail.example", "."]
            blanks = [word != "\n\n" and after not in (".", "\n\n") for word, after in pairwise([*words, "."])]
            labels = ["O"] * (len(words) - 5) + ["B-NAME_STUDENT", "I-NAME_STUDENT", "O", "B-EMAIL", "O"]
            labels = labels if n % 4 else ["O"] * len(words)  # most documents there hold nothing
            text = "".join(word + " " * blank for word, blank in zip(words, blanks, strict=True))
            row = {"document": first + n, "full_text": text, "tokens": words, "trailing_whitespace": blanks}
            made.append({**row, **({"labels": labels} if labelled else {})})
        return made

    (folder / "train.json").write_text(json.dumps(rows(TRAIN_ROWS, 100, True)))
    test = rows(TEST_ROWS, 7, False)
    (folder / "test.json").write_text(json.dumps(test))
    sample = [{"row_id": n, "document": row["document"], "token": 9, "label": "B-EMAIL"} for n, row in enumerate(test)]
    write_csv(folder / "sample_submission.csv", sample)


def write_wsdm(folder: Path, rng: random.Random) -> None:
    """WSDM Cup, Multilingual Chatbot Arena: Parquet, one label."""

    def rows(count: int, first: int) -> Rows:
        return [
            {
                "id": f"{first + n:064x}",
                "prompt": write_text(rng, 1),
                "response_a": write_text(rng, 1 + n % 3),
                "response_b": write_text(rng, 3 - n % 3),
            }
            for n in range(count)
        ]

    train = [
        {**row, "winner": f"model_{'ab'[n % 2]}", "model_a": f"m{n % 5}", "model_b": f"m{n % 7}", "language": "English"}
        for n, row in enumerate(rows(TRAIN_ROWS, 10**9))
    ]
    pl.DataFrame(train).write_parquet(folder / "train.parquet")
    test = rows(TEST_ROWS, 5 * 10**9)
    pl.DataFrame([{**row, "scored": True} for row in test]).write_parquet(folder / "test.parquet")
    write_csv(folder / "sample_submission.csv", [{"id": row["id"], "winner": "model_a"} for row in test])


MINIATURES: dict[str, Callable[[Path, random.Random], None]] = {
    "automated-essay-scoring-2": write_aes,
    "commonlit-evaluate-student-summaries": write_commonlit,
    "eedi-mining-misconceptions-in-mathematics": write_eedi,
    "jigsaw-agile-community-rules": write_jigsaw,
    "jigsaw-toxic-comment-classification-challenge": write_toxic,
    "lmsys-chatbot-arena": write_lmsys,
    "map-charting-student-math-misunderstandings": write_map,
    "pii-detection-removal-from-educational-data": write_pii,
    "wsdm-cup-multilingual-chatbot-arena": write_wsdm,
}


def write_miniature(name: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    MINIATURES[name](folder, random.Random(name))


FLAGS = {  # what a competitor says to `kaggle-llm init`, since the files do not
    "automated-essay-scoring-2": ["--metric", "qwk"],
    "commonlit-evaluate-student-summaries": ["--metric", "mcrmse"],
    "eedi-mining-misconceptions-in-mathematics": ["--metric", "map@25"],
    "jigsaw-agile-community-rules": ["--metric", "auc"],
    "jigsaw-toxic-comment-classification-challenge": ["--metric", "auc"],
    "lmsys-chatbot-arena": ["--metric", "log_loss"],
    "map-charting-student-math-misunderstandings": ["--metric", "map@3", "--group", "QuestionId"],
    "pii-detection-removal-from-educational-data": ["--metric", "token_f5"],
    "wsdm-cup-multilingual-chatbot-arena": ["--metric", "accuracy"],
}
