"""Print the report of a rehearsal; parse its --limit."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping
from typing import Any

from kaggle_llm.base.tables import print_table


def print_report(report: Mapping[str, Any]) -> None:
    rows = [[check["name"], "ok" if check["ok"] else "FAILED", check["detail"]] for check in report["checks"]]
    title = f"rehearsal of {report['run']}: {report['rows']} rows of {report['test']}"
    print_table(title, ("check", "", "detail"), rows)
    names = ("name", "layout", "rows", "seconds", "peak_rss_mb")
    sessions = [[str(session[name]) for name in names] for session in report["sessions"]]
    print_table("sessions", ("session", "layout", "rows", "seconds", "peak MB"), sessions)
    score = "none" if report["score"] is None else f"{report['score']:.4f}"
    if report["score"] is not None and report["scored_rows"] < report["rows"]:
        score += f" of the {report['scored_rows']} rows that have a label"
    print(f"ok: {report['ok']}, private score: {score} (CV {report['cv']:.4f}), {report['seconds']} s, ", end="")
    print(f"{report['peak_rss_mb']} MB")


def describe_report(report: Mapping[str, Any]) -> str:
    """What `print_report` prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print_report(report)
    return text.getvalue()


def parse_duration(text: str) -> float:
    """Seconds of "9h", "90m", "30s" or "1h30m"."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip())
    if not text.strip() or match is None:
        raise ValueError(f"limit {text!r}: write it like 9h, 90m, 30s or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds
