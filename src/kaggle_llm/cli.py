"""kaggle-llm: the commands. Each imports inside it what it needs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kaggle_llm.base.errors import report_errors

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__, rich_markup_mode=None
)
RunName = Annotated[str, typer.Argument(help="a run: <experiment> or <experiment>--<name>")]


@app.callback()
def commands() -> None:
    """Copy an experiment, train it, bundle it, rehearse it; then upload. With --debug errors show their traceback."""


@app.command()
def new(source: str, target: str) -> None:
    """Copy exp/SOURCE to exp/TARGET and record its parent."""
    from kaggle_llm.base.folders import copy_experiment

    print(f"{copy_experiment(source, target)}: edit its train.py's first line to say the idea, then run it")


@app.command()
def fetch(competition: str) -> None:
    """Download a competition's data through the kaggle CLI into input/COMPETITION/."""
    from kaggle_llm.kaggle.client import fetch_competition

    print(fetch_competition(competition))


@app.command()
def init(
    competition: Annotated[str, typer.Argument(help="Kaggle's name of it; its files lie in input/COMPETITION")],
    metric: Annotated[str, typer.Option(help="such as map@25, qwk, auc, log_loss, rmse, rougeL, f5")] = "",
    group: Annotated[str, typer.Option(help="column whose rows stay on one side of a split; none")] = "",
    target: Annotated[str, typer.Option(help="column of train that is predicted")] = "",
    text: Annotated[str, typer.Option(metavar="COLUMN,…", help="columns that the model reads")] = "",
    experiment: Annotated[str, typer.Option(help="name of the first experiment")] = "",
) -> None:
    """Write COMPETITION's module and a first experiment, proposed from its files; it says what it assumed."""
    from kaggle_llm.competition.proposal import Answers
    from kaggle_llm.experiment.first import init_competition

    texts = tuple(name for name in text.split(",") if name)
    init_competition(competition, Answers(metric, group, target, texts), experiment)


@app.command()
def check(
    competition: Annotated[str, typer.Argument(help="its name, as in competition.name")],
    folder: Annotated[str, typer.Option("--dir", help="folder with its files; default: input/COMPETITION")] = "",
) -> None:
    """Does COMPETITION's module fit its files? Tables, cells, metric, folds, leaks, hidden test. Exit 1 if not."""
    from kaggle_llm.competition.competition import CompetitionSettings
    from kaggle_llm.rehearsal.check_competition import check_competition, print_checks

    checks = check_competition(CompetitionSettings(competition, folder))
    print_checks(competition, checks)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@app.command()
def board(as_json: Annotated[bool, typer.Option("--json", help="as JSON")] = False) -> None:
    """All runs: CV and interval, before, LB, parent, date, idea."""
    from kaggle_llm.experiment.board import print_board, read_board

    entries = read_board()
    if as_json:
        import json

        print(json.dumps(entries, indent=2, ensure_ascii=False))
    else:
        print_board(entries)


@app.command()
def compare(run: RunName, other: RunName) -> None:
    """Is RUN better than OTHER on the rows that both validated, or is it noise?"""
    from kaggle_llm.experiment.comparison import compare_runs, print_comparison

    print_comparison(run, other, compare_runs(run, other))


@app.command()
def why(
    run: RunName,
    row: Annotated[str | None, typer.Argument(help="id of a validated row; default: list the worst ones")] = None,
    prompts: Annotated[bool, typer.Option("--prompts", help="also the prompts that predict.py sends of it")] = False,
) -> None:
    """Why is ROW wrong? Its texts, its out-of-fold answer beside the right one, its metric; without ROW the worst."""
    from kaggle_llm.experiment.row_report import explain_row

    explain_row(run, row, prompts)


@app.command()
def audit(run: RunName) -> None:
    """What RUN's validation rows share with its training rows: output/RUN/leaks.json. Exit 1 above a limit."""
    from kaggle_llm.competition.audit import report_run

    report_run(run)


@app.command()
def sweep(
    experiment: str,
    grid: Annotated[list[str], typer.Argument(help="key=v1,v2,… varied; key=value for all", metavar="KEY=V1,V2…")],
    smoke: Annotated[bool, typer.Option("--smoke", help="the smallest run of each")] = False,
) -> None:
    """Train EXPERIMENT at every point of a grid as named runs, and print them by CV; resumes where it stopped."""
    from kaggle_llm.experiment.sweep import print_sweep
    from kaggle_llm.experiment.sweep import sweep as run_sweep

    points = run_sweep(experiment, grid, smoke)
    print_sweep(points)
    if any(point.error for point in points):
        raise typer.Exit(1)


@app.command()
def doctor(
    run: Annotated[str | None, typer.Argument(help="a run, trained or not")] = None,
    runtime: Annotated[str | None, typer.Option(help="a name of src/kaggle_llm/runtime/runtimes/")] = None,
    model: Annotated[Path | None, typer.Option(help="this model folder alone, with RUN's config or without")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="rows of the test set, to estimate the time")] = None,
    accelerator: Annotated[str | None, typer.Option(help="such as NvidiaL4; default: engine.accelerator")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """Will RUN's models fit and run on the runtime's GPUs? Judged from files. Exit 1 where something will not work."""
    from kaggle_llm.runtime.doctor import examine, print_diagnosis
    from kaggle_llm.runtime.pins import DEFAULT

    diagnosis = examine(run, runtime or DEFAULT, model, rows, accelerator)
    if as_json:
        import json

        print(json.dumps(diagnosis.as_json(), indent=2, ensure_ascii=False))
    else:
        print_diagnosis(diagnosis)
    if diagnosis.refused:
        raise typer.Exit(1)


@app.command()
def plan(
    run: Annotated[str | None, typer.Argument(help="a run, trained or not; none with --pretrain")] = None,
    gpu: Annotated[str, typer.Option(help="such as 4090, a100-80, h100, t4x2, or an accelerator of Kaggle")] = "t4x2",
    tokens: Annotated[int | None, typer.Option(min=1, help="of an epoch; default: training.tokens")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="of an hour of the card")] = None,
    pretrain: Annotated[
        tuple[str, str] | None, typer.Option(metavar="PARAMS TOKENS", help="such as 124M 2.5B: loss and cost")
    ] = None,
) -> None:
    """Memory, time and cost of RUN's trainings and inferences on a card, before it is rented: from configs alone."""
    from kaggle_llm.runtime.card_plans import print_plan, print_pretraining
    from kaggle_llm.training.scaling_law import Pretraining, parse_count

    if run is None and pretrain is None:
        raise typer.BadParameter("give a run, or --pretrain PARAMS TOKENS")
    if run is not None:
        print_plan(run, gpu, tokens, price)
    if pretrain is not None:
        print_pretraining(Pretraining(*map(parse_count, pretrain)), gpu, price)


@app.command()
def wheels(runtime: Annotated[str, typer.Argument(help="a name of src/kaggle_llm/runtime/runtimes/")]) -> None:
    """Lock and download the wheels of RUNTIME's packages, for its image's Python: output/wheels/RUNTIME/."""
    from kaggle_llm.kaggle.wheelhouse import make_wheelhouse, print_wheelhouse

    print_wheelhouse(make_wheelhouse(runtime))


@app.command()
def bundle(
    run: RunName,
    runtime: Annotated[str | None, typer.Option(help="the image and packages that it runs on")] = None,
    accelerator: Annotated[str | None, typer.Option(help="such as NvidiaL4; default: engine.accelerator")] = None,
) -> None:
    """Pack a run into Kaggle datasets: output/bundles/RUN/."""
    from kaggle_llm.kaggle.bundle import bundle_run, print_bundle
    from kaggle_llm.runtime.pins import DEFAULT

    print_bundle(bundle_run(run, runtime or DEFAULT, accelerator))


@app.command()
def parity(
    run: RunName, rows: Annotated[int | None, typer.Option(min=1, help="at most so many held-out rows")] = None
) -> None:
    """Compare RUN's stages, from adapter to shipped engine: output/RUN/parity.json, parity.png. Exit 0 if passed."""
    from kaggle_llm.weights.parity import check_parity, print_parity

    report = check_parity(run, rows, again=True)
    print_parity(report)
    if report["status"] != "passed":
        raise typer.Exit(1)


@app.command()
def push(
    run: RunName,
    words: Annotated[list[str] | None, typer.Argument(help="with --train: arguments of train.py")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="only time and score this many held-out rows there")] = None,
    train: Annotated[bool, typer.Option("--train", help="run train.py there; output/ comes back")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="with --train: the smallest run")] = False,
    accept_parity: Annotated[
        str, typer.Option(metavar="REASON", help="push despite a failed parity; is recorded")
    ] = "",
) -> None:
    """Upload RUN's bundle, run its notebook on Kaggle, and compare the output with the rehearsal's."""
    if train:
        from kaggle_llm.kaggle.remote import train_remotely

        print(train_remotely(run, [*(words or []), *(["--smoke"] if smoke else [])]))
        return
    if words or smoke:
        raise typer.BadParameter(f"{words or '--smoke'} goes with --train only")
    if rows:
        from kaggle_llm.kaggle.timed import push_timed

        push_timed(run, rows, accept_parity)
        return
    from kaggle_llm.kaggle.push import push_run

    if not push_run(run, accept_parity)["output"]["ok"]:
        raise typer.Exit(1)


@app.command()
def submit(run: RunName, message: Annotated[str, typer.Option("-m", "--message", help="what is new in it")]) -> None:
    """Submit RUN's pushed kernel after all checks, and wait for its score: output/RUN/submissions.json."""
    from kaggle_llm.kaggle.submit import submit_run

    submit_run(run, message)


@app.command()
def merge(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN…", help="complete runs of one experiment")],
    method: Annotated[str, typer.Option(help="linear, slerp, ties or dare")] = "linear",
    weights: Annotated[str, typer.Option(metavar="W,W…", help="one for each run; default: equal")] = "",
    t: Annotated[float, typer.Option(help="slerp: 0 is the first run, 1 the second")] = 0.5,
    density: Annotated[float, typer.Option(help="ties, dare: the share of a run's differences that is kept")] = 0.5,
    seed: Annotated[int, typer.Option(help="dare: of the random choice")] = 0,
    dtype: Annotated[str, typer.Option(help="of the merged weights; members: that of the runs")] = "members",
    name: Annotated[str, typer.Option(help="of the new run, <experiment>--NAME; default: the method")] = "",
) -> None:
    """Merge the weights that RUNs trained into a new run, fold by fold, and score it: output/<experiment>--NAME/."""
    from kaggle_llm.base.config import build_config
    from kaggle_llm.experiment.merge_runs import merge_runs
    from kaggle_llm.weights.soup import SoupSettings

    numbers = [float(weight) for weight in weights.split(",") if weight]
    options = {"method": method, "weights": numbers, "t": t, "density": density, "seed": seed, "dtype": dtype}
    merge_runs(runs, build_config(options, SoupSettings), name or method)


@app.command()
def cache(
    older: Annotated[
        float | None, typer.Option(metavar="DAYS", help="clear entries that no run has used for so many days")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(metavar="SIZE", help="clear the least recently used above this size, such as 20GB")
    ] = None,
) -> None:
    """List or clear the model answers and embeddings that are kept for the next run."""
    from kaggle_llm.inference.cache import clear_cache, parse_size, print_cache

    for entry in clear_cache(older, parse_size(keep) if keep else None):
        print(f"cleared {entry.kind} of {entry.model}, {entry.bytes / 1e6:.1f} MB")
    print_cache()


@app.command()
def trace(
    path: Annotated[str, typer.Argument(help="a submission.csv, a folder of output/, or a run")],
    again: Annotated[bool, typer.Option("--again", help="the commands that make it again")] = False,
) -> None:
    """The ancestry of any artefact, back to the raw data."""
    from kaggle_llm.kaggle.trace import list_commands, print_trace, trace_path

    node = trace_path(path)
    if again:
        print("\n".join(list_commands(node)))
    else:
        print_trace(node)


@app.command()
def rehearse(
    run: RunName,
    rows: Annotated[int | None, typer.Option(min=0, help="rows of the hidden test, resampled")] = None,
    limit: Annotated[str | None, typer.Option(help="of a session, such as 30m; default: competition.hours")] = None,
    replay: Annotated[int | None, typer.Option(help="also replay this fold's validation rows")] = None,
    memory: Annotated[str | None, typer.Option(help="of all processes, such as 29GB; default: the runtime's")] = None,
) -> None:
    """Run the bundle's notebook offline on public, hidden and hostile rows: output/rehearsals/RUN/latest/."""
    from kaggle_llm.rehearsal.rehearse import rehearse as run_rehearsal
    from kaggle_llm.rehearsal.report import print_report

    report = run_rehearsal(run, rows, limit, replay, memory)
    print_report(report)
    if not report["ok"]:
        raise typer.Exit(1)


def main() -> None:
    report_errors("--debug" in sys.argv)
    # Not app(): Typer would replace the excepthook of report_errors.
    typer.main.get_command(app)([word for word in sys.argv[1:] if word != "--debug"])


if __name__ == "__main__":
    main()
