"""What the prose names exists: flags in their command, paths in the repository, pages in the README, versions everywhere."""

from __future__ import annotations

import ast
import re
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_flags import SUBCOMMANDS, commands, flags

ROOT = Path(__file__).parents[1]
PACKAGES = ("stylevar", "data", "reward", "rollout", "learner", "launch")
README = ROOT / "README.md"
README_LINES = 150
PAGES = sorted((ROOT / "docs").glob("*.md"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROSE = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / ".github" / "pull_request_template.md",
    *PAGES,
    *ROOT.glob("data/**/*.md"),
]
FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*")
OTHERS = {
    "--head": "ray start",
    "--address": "ray start",
    "--block": "ray start",
    "--object-store-memory": "ray start",
    "--working-dir": "ray job submit",
    "--logdir": "tensorboard",
    "--shm-size": "docker run",
    "--update-interface": "our pytest",
    "--help": "every command",
}
"""Flags of other programs, and one that no list of flags needs."""
EXAMPLES = re.compile(r"data/[\w-]*\*[\w-]*\.tar|data/(omnistyle|imagepulse|own|mine|set|val|train|heldout|novel)\b.*")
"""Paths that a reader has, and the repository has not."""
WRITTEN = ("summary.md", "learn.md")
"""Files that a program writes."""


def test_the_prose_is_found() -> None:
    assert len(PROSE) > 10
    assert len(commands()) > 10


@cache
def known_flags() -> frozenset[str]:
    """All flags that the programs list in their help, and those of other programs."""
    return frozenset(OTHERS).union(*flags().values())


def texts(path: Path) -> list[str]:
    """The docstrings of a module, and what its errors say."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            found += [
                part.value.value
                for part in node.body
                if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str)
            ]
        elif isinstance(node, ast.Raise) and node.exc is not None:
            strings = [part for part in ast.walk(node.exc) if isinstance(part, (ast.JoinedStr, ast.Constant))]
            found += [ast.unparse(part) for part in strings]
    return found


def unknown_flags(text: str) -> set[str]:
    named = {flag.rstrip(".") for flag in FLAG.findall(text)}
    return {flag for flag in named if not flag.endswith("-") and flag not in known_flags()}


def test_every_flag_in_the_docs_exists() -> None:
    unknown = {path.name: missing for path in PROSE if (missing := unknown_flags(path.read_text(encoding="utf-8")))}
    assert unknown == {}


def test_every_flag_in_docstrings_and_errors_exists() -> None:
    unknown = {}
    for path in (file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))):
        if missing := unknown_flags("\n".join(texts(path))):
            unknown[str(path.relative_to(ROOT))] = missing
    assert unknown == {}


def examples(text: str) -> list[tuple[str, str]]:
    """Every command line of a program that a page shows, as the program and its arguments."""
    lines = re.sub(r"\\\n\s*", "", text)
    shown = re.findall(r"(python )?launch/(\w+)\.py\b([^`|\n]*)", lines)
    return [
        (program, arguments.partition(" #")[0])
        for python, program, arguments in shown
        if python or (program,) in flags()  # else a module
    ]


def wrong_example(program: str, arguments: str) -> str | None:
    """What is wrong with a command line; None if its program has the subcommand and all flags.

    In quotes, after a name and a colon, stand flags of GRPO.
    """
    variants = re.findall(r'"[\w-]+: ([^"]*)"', arguments)
    if variants:
        found = [wrong_example("grpo", flags) for flags in variants]
        found.append(wrong_example(program, re.sub(r'"[^"]*"', "", arguments)))
        return next((fault for fault in found if fault), None)
    first = (arguments.split() or [""])[0]
    command = (program, first) if (program, first) in flags() else (program,)
    if command not in flags():
        return f"no program launch/{program}.py"
    if program in SUBCOMMANDS and first and len(command) == 1:
        return f"launch/{program}.py has no subcommand {first}"
    unknown = set(FLAG.findall(arguments)) - flags()[command] - {"--help"}
    return f"{' '.join(command)} has no {', '.join(sorted(unknown))}" if unknown else None


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_example_uses_flags_of_its_own_program(page: Path) -> None:
    wrong = [fault for example in examples(page.read_text(encoding="utf-8")) if (fault := wrong_example(*example))]
    assert wrong == []


def test_examples_are_read_across_lines_and_without_comments() -> None:
    page = "python launch/eval.py --seeds 4 \\\n    --strict   # not --this\n"
    assert examples(page) == [("eval", " --seeds 4 --strict  ")]
    assert wrong_example("eval", "--seeds 4") is None
    assert wrong_example("eval", "--group 4") == "eval has no --group"
    assert wrong_example("prepare", "cook data/x") == "launch/prepare.py has no subcommand cook"
    assert wrong_example("bench", 'learn --seeds 1 --variants "a: --lr 1" "b: --group 2"') is None
    assert wrong_example("bench", 'learn --variants "a: --lr 1" "b: --strict"') == "grpo has no --strict"
    assert wrong_example("bench", 'learn --strict "a: --lr 1"') == "bench learn has no --strict"


def expanded(path: str) -> list[str]:
    """`a/{b,c}.py` as its two paths."""
    parts = [part.split(",") for part in re.split(r"[{}]", path)]
    return ["".join(choice) for choice in product(*parts)]


def missing_paths(page: Path) -> set[str]:
    """Paths in backticks or links that are neither there nor an example."""
    text = page.read_text(encoding="utf-8")
    missing = set()
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in link and not (page.parent / link).exists():
            missing.add(link)
    named = {path for word in re.findall(r"`(?:python )?([\w./{},*-]+)[^`\n]*`", text) for path in expanded(word)}
    for path in named - set(WRITTEN):
        folder, _, rest = path.partition("/")
        if folder in (*PACKAGES, "tests", "docs") and re.search(r"/$|\.\w+$", rest or "."):  # a curve has neither
            there = any(ROOT.glob(path)) or EXAMPLES.fullmatch(path)
        elif re.fullmatch(r"[\w/]+\.(py|md)", path):  # by its name alone, or from the folder that is spoken of
            there = any(ROOT.glob(f"*/**/{path}")) or (ROOT / path).exists()
        else:
            continue
        if not there:
            missing.add(path)
    return missing


def test_every_path_in_the_docs_exists() -> None:
    assert {page.name: missing for page in PROSE if (missing := missing_paths(page))} == {}


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = README.read_text(encoding="utf-8")
    table = text.partition("## Read on")[2]
    assert len(text.splitlines()) <= README_LINES
    assert set(re.findall(r"\]\((docs/\w+\.md)\)", table)) == {f"docs/{page.name}" for page in PAGES}


def loaded(path: Path) -> Any:
    """A YAML file's content."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_all_files_name_one_version() -> None:
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    released = re.findall(r"^## \[(\d.*?)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert project is not None
    assert released[0] == loaded(ROOT / "CITATION.cff")["version"] == project.group(1)


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    rule = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert rule is not None, target
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in rule.group(1).splitlines()]


def test_the_hooks_before_a_commit_are_those_of_make_lint() -> None:
    (repository,) = loaded(ROOT / ".pre-commit-config.yaml")["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == recipe("lint")


def test_the_hosted_checks_call_make() -> None:
    (workflow,) = WORKFLOWS
    jobs = {name: " ".join(step.get("run", "") for step in job["steps"]) for name, job in loaded(workflow)["jobs"].items()}
    assert "make test " in jobs["test"]
    assert "make test-all " in jobs["nightly"]
    assert "pip_audit" in jobs["nightly"]


def test_every_make_target_that_is_named_exists() -> None:
    named = {
        target
        for page in (*PROSE, *WORKFLOWS)
        for target in re.findall(r"(?:^|`|run: )make ([a-z][\w-]*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named >= {"demo", "test", "test-all"}
    assert all(recipe(target) for target in named)


def test_issue_forms_are_complete() -> None:
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert len(forms) == 2
    for form in map(loaded, forms):
        assert {"name", "description", "body"} <= set(form)
        assert all(field["attributes"]["label"] for field in form["body"])
