"""One evaluation, from the first check to the table of results."""

from __future__ import annotations

import logging
import sys

from launch.common.stop import STOPPED
from launch.evaluation.columns import Column, choose_columns
from launch.evaluation.conditions import open_conditions
from launch.evaluation.config import EvalConfig
from launch.evaluation.fid import ART_INCEPTION
from launch.evaluation.pictures import draw_best_worst
from launch.evaluation.runner import ResultsFolder, Stopped, make_tasks, run_all
from launch.evaluation.stylizer import image_size, parse_methods
from launch.evaluation.summary import headings, markdown, summarise, write
from launch.evaluation.sweep import at_best_temperatures
from reward.base import MissingWeights
from stylevar.allocator import keep_freed_memory


def evaluate(config: EvalConfig) -> None:
    """Run the evaluation, from the first check to the table of results. Exits with 130 if a signal ended it early."""
    keep_freed_memory()
    methods = parse_methods(config)
    if config.methods is None and config.checkpoint is None:
        print("evaluating " + ", ".join(f"{method.name} ({method.source})" for method in methods))
    size = 0 if config.content is None else config.size or image_size(methods, config)
    conditions = open_conditions(config, size)
    targets = conditions.has_targets
    reward = config.reward_key(targets)
    columns, left_out = choose_columns(config, targets)
    artfid = _has_artfid(config, left_out)
    methods = at_best_temperatures(config, methods)
    tasks = make_tasks(methods, len(conditions), config.batch)
    folder = ResultsFolder(config, methods, columns, conditions.keys)
    todo = folder.missing(tasks)
    if len(todo) < len(tasks):
        print(f"{len(tasks) - len(todo)} of {len(tasks)} batches were already done")
    try:
        run_all(config, conditions, columns, artfid, todo, folder.save)
    except Stopped:
        print(f"stopped; the results so far are in {folder.path}: run the same command to continue")
        sys.exit(STOPPED)
    rows = folder.rows(tasks)
    of_method = {m.name: [task for task in tasks if task.method == m] for m in methods}
    features = {name: folder.features(own, "samples") for name, own in of_method.items()} if artfid else {}
    styles = folder.features(of_method[methods[0].name], "styles") if artfid else None
    shown = headings(columns, reward, targets, artfid)
    summary = summarise(rows, shown, features, styles, config.compare, left_out)
    write(summary, folder.path)
    if config.images:
        column, higher = _rank_by(reward, columns)
        for method in methods:
            print(f"picture  {draw_best_worst(folder.path, method.name, rows, conditions, column, higher)}")
    folder.finish(rows)
    print(f"results  {folder.path}\n\n{markdown(summary)}", end="")


def _has_artfid(config: EvalConfig, left_out: dict[str, str]) -> bool:
    """Whether ArtFID's Inception weights are available. If not, ArtFID is added to `left_out` and a warning is logged."""
    try:
        ART_INCEPTION.find(config.reward.metric_weights, "ArtFID")
    except MissingWeights as error:
        if config.strict:
            raise MissingWeights(f"--strict: {error}") from error
        left_out["artfid"] = str(error)
        logging.getLogger(__name__).warning("left out: %s", error)
        return False
    return True


def _rank_by(reward: str | None, columns: tuple[Column, ...]) -> tuple[str, bool]:
    """The column that ranks results, and whether higher is better: the reward, or without one the match in style."""
    if reward is not None:
        return reward, True
    keys = [column.key for column in columns]
    return ("clip/style", True) if "clip/style" in keys else ("color/style", False)
