"""Who may import whom: the rules of docs/architecture.md, held against the imports in the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROLES = ("stylevar", "data", "reward", "rollout", "learner")
ROOMS = (
    "common",
    "configs",
    "run",
    "sizing",
    "rl",
    "cluster",
    "supervised",
    "dry_run",
    "stylise",
    "run_report",
    "release",
    "evaluation/baselines",
    "evaluation",
    "benchmarks",
)
"""The folders of launch/ from the lowest floor to the highest: each imports only from those before it."""
COMMANDS = {
    *("grpo", "sft", "infer", "eval", "export", "prepare", "report", "bench", "demo_app", "train_adain", "train_vqvae"),
    "merge",  # tells the new name of export
}
FOR_REWARDS = {
    "stylevar.allocator",
    "stylevar.bounds",
    "stylevar.contracts",
    "stylevar.errors",
    "stylevar.references",
    "stylevar.role_log",
}
"""All that rewards need of the model's package: none of it loads the model."""
Graph = Mapping[str, set[str]]


@cache
def modules() -> dict[str, Path]:
    """The file of every module, by its dotted name."""
    files = (file for package in (*ROLES, "launch") for file in (ROOT / package).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


@cache
def imports(module: str) -> frozenset[str]:
    """What a module imports anywhere: at its top, within functions, and for type checkers; other packages too."""
    found = set()
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{module} has a relative import"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                found.add(inside if inside in modules() else node.module)
    return frozenset(found)


def our_imports() -> dict[str, set[str]]:
    """The modules of ours that each module imports."""
    return {module: {name for name in imports(module) if name in modules()} for module in modules()}


def room(module: str) -> str:
    """The folder below launch/ that holds a module; "" for a command."""
    return "/".join(modules()[module].relative_to(ROOT / "launch").parts[:-1])


def circles(graph: Graph) -> Iterator[list[str]]:
    """Modules that import each other round about: every path that comes back to its start, once for each way in."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> Iterator[list[str]]:
        if node in path:
            yield [*path[path.index(node) :], node]
        elif node not in done:
            for other in sorted(graph[node]):
                yield from visit(other, [*path, node])
            done.add(node)

    for node in sorted(graph):
        yield from visit(node, [])


def upward(graph: Graph, floors: Mapping[str, int]) -> list[tuple[str, str]]:
    """Imports that go from a lower floor to a higher one."""
    return sorted((here, there) for here in graph for there in graph[here] if floors[there] > floors[here])


def test_circles_and_upward_imports_are_noticed() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert list(circles(graph)) == [["b", "c", "b"]]
    assert list(circles({**graph, "c": set()})) == []
    assert upward(graph, {"a": 0, "b": 0, "c": 1, "d": 2}) == [("b", "c")]


def test_the_model_imports_no_role_and_roles_import_only_the_model() -> None:
    for module, names in our_imports().items():
        package = module.partition(".")[0]
        others = {name.partition(".")[0] for name in names} - {package}
        if package != "launch":
            assert others <= ({"stylevar"} - {package}), module


def test_rewards_import_nothing_that_loads_the_model() -> None:
    taken = {name for module, names in our_imports().items() if module.startswith("reward") for name in names}
    assert {name for name in taken if not name.startswith("reward")} == FOR_REWARDS


def test_roles_know_ray_in_their_actors_only() -> None:
    with_ray = {module for module in modules() if any(name.partition(".")[0] == "ray" for name in imports(module))}
    roles = {module for module in with_ray if not module.startswith("launch.")}
    assert {module.rpartition(".")[2] for module in roles} == {"actor"}


def test_yaml_is_read_and_written_in_one_place() -> None:
    assert {module for module in modules() if "yaml" in imports(module)} == {"stylevar.yaml_files"}


def test_only_commands_lie_at_the_top_of_launch() -> None:
    assert {file.stem for file in (ROOT / "launch").glob("*.py")} == COMMANDS | {"__init__"}


def test_every_folder_of_launch_has_its_floor() -> None:
    assert {room(module) for module in modules() if module.startswith("launch")} == {*ROOMS, ""}


def test_no_module_of_launch_imports_from_a_higher_floor() -> None:
    inside = {module: names for module, names in our_imports().items() if module.startswith("launch")}
    graph = {module: {name for name in names if name in inside} for module, names in inside.items()}
    floors = {module: (*ROOMS, "").index(room(module)) for module in graph}
    assert upward(graph, floors) == []


def test_no_modules_import_each_other_round_about() -> None:
    assert list(circles(our_imports())) == []
