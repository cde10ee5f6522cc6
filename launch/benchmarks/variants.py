"""What `bench.py learn` compares: names, each with flags of `launch/grpo.py`."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import get_args

import tyro

from launch.configs.grpo import GrpoConfig, default_for, flag
from launch.run.run_folder import flat
from learner.credit.config import CreditKind
from stylevar.errors import UserError

EVERY = "all"
"""In place of a name: the flags that all variants share."""
SET_BY_LEARN = {
    "name": "--out",
    "runs": "--out",
    "resume": "the same --out again",
    "seed": "--seeds",
    "monitor.eval_every": "--points",
    "monitor.eval_conditions": "--eval-conditions",
    "monitor.eval_group": "--eval-group",
}
"""Settings of a run that the comparison chooses, and its own flags for them."""
SHARED = ("heldout", "novel", "reward")
"""Settings that are the same for all variants: with others, gains would not be comparable."""
EXAMPLE = '"slow: --credit gradient --lr 1e-4"'


@dataclass(frozen=True)
class Variant:
    """A name, the flags that it stands for, and the settings that they make."""

    name: str
    flags: str
    config: GrpoConfig
    has_steps: bool
    """Whether the flags say how many steps a run has."""


def read_variants(words: Sequence[str]) -> list[Variant]:
    """Variants from `METHOD` (of --credit), `NAME: FLAGS`, and `all: FLAGS` for what all of them share.

    Raises UserError for words that are none of these, repeated names, and flags that are not GRPO's.
    """
    named = [_split(word) for word in words]
    shared = " ".join(flags for name, flags in named if name == EVERY)
    own = [(name, flags) for name, flags in named if name != EVERY]
    names = [name for name, _ in own]
    if not own:
        raise UserError(f"--variants names nothing to compare: give methods of --credit, or names and flags, as {EXAMPLE}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--variants: {twice[0]} is there twice; give every variant a name of its own")
    variants = [_read(name, shared, flags) for name, flags in own]
    for setting in SHARED:
        for variant in variants[1:]:
            if getattr(variant.config, setting) != getattr(variants[0].config, setting):
                raise UserError(
                    f"--variants: {variants[0].name} and {variant.name} differ in --{setting}, so that their gains cannot "
                    f'be compared: give it to all of them, as "{EVERY}: --{setting} ..."'
                )
    return variants


def _split(word: str) -> tuple[str, str]:
    """Name and flags."""
    name, colon, flags = (part.strip() for part in word.partition(":"))
    methods = get_args(CreditKind)
    if not colon and name not in methods:
        raise UserError(
            f"--variants {word!r}: give a method of --credit ({', '.join(methods)}), or a name and flags, as {EXAMPLE}"
        )
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise UserError(f"--variants {word!r}: a name has letters, digits and . _ + - only, since it becomes a folder's")
    return name, flags if colon else f"--credit {name}"


def _read(name: str, shared: str, own: str) -> Variant:
    try:
        words, own_words = shlex.split(f"{shared} {own}"), shlex.split(own)
        # The first --preset or --config counts here, and the variant's own is to win.
        default = default_for([*own_words, *words])
        config = _parse(words, default)
    except (UserError, ValueError) as error:
        raise UserError(f"--variants, {name}: {error}") from error
    before, after = flat(asdict(default)), flat(asdict(config))
    for setting, instead in SET_BY_LEARN.items():
        if before[setting] != after[setting]:
            said = "--" + setting.rpartition(".")[2].replace("_", "-")
            raise UserError(f"--variants, {name}: {said} is the same for all variants: give bench.py learn {instead}")
    if config.plan.wanted:
        raise UserError(f"--variants, {name}: leave out --dry-run and --what-if, which are for launch/grpo.py itself")
    if config.monitor.stop_when_flat:
        raise UserError(f"--variants, {name}: --stop-when-flat would end a run before its time is up: leave it out")
    return Variant(name, shlex.join(words), config, flag(words, "--steps") is not None)


def _parse(words: Sequence[str], default: GrpoConfig) -> GrpoConfig:
    """As `launch/grpo.py` reads its flags, but with one line for what it does not take."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(tyro.conf.OmitArgPrefixes[GrpoConfig], default=default, args=words)
    except SystemExit:
        raise UserError(
            f"{_reason(said.getvalue()).rstrip('.')}; `python launch/grpo.py --help` explains its flags"
        ) from None


def _reason(said: str) -> str:
    """The middle of what tyro says: a title, the reason, and where to find help, with rules between them."""
    parts = re.split(r"[─-]{8,}", said)
    return re.sub(r"[│╭╮╰╯\s]+", " ", parts[1]).strip() if len(parts) > 2 else "these are no flags of a run"
