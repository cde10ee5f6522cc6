"""What signals do: the first one ends the work with its state saved, the second Ctrl-C ends the program in any case."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.common.stop import STOPPED, Interrupts, StopRequest
from stylevar.processes import STOP_SIGNALS, sparing_children

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys, time
sys.path.insert(0, {root!r})
from launch.common import cli
from launch.common import stop
stop.GRACE = 0.5
def say(word):
    print(word, flush=True)
def body():
{body}
cli.exit_code(body)
say("after all")
"""
PATIENT = """
    with stop.StopRequest() as wish:
        say("working")
        while not wish.requested:
            time.sleep(0.01)
        say("saved")
    say("ready")
    {then}
"""
PLAIN = """
    try:
        say("working")
        while True:
            time.sleep(0.01)
    finally:
        say("cleaned")
        {then}
"""
HANGS = """
            while True:
                try:
                    time.sleep(0.01)
                except KeyboardInterrupt:
                    say("refused")
"""


class Program:
    """A program of ours that says what it does, line by line."""

    def __init__(self, body: str, then: str = "pass", before=None) -> None:
        text = PROGRAM.format(root=str(ROOT), body=body.format(then=then))
        self.process = subprocess.Popen(
            [sys.executable, "-c", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            preexec_fn=before,
        )

    def until(self, word: str) -> None:
        for line in self.process.stdout:
            if line.strip() == word:
                return
        raise AssertionError(f"ended without {word!r}: {self.process.wait()}")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        self.process.stdin.close()
        said = self.process.stdout.read()
        return self.process.wait(), said


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_is_a_wish(number):
    program = Program(PATIENT)
    program.until("working")
    program.send(number)
    program.until("saved")
    assert program.end() == (0, "ready\nafter all\n")


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_without_a_wish_a_signal_interrupts_and_what_is_open_is_closed(number):
    program = Program(PLAIN)
    program.until("working")
    program.send(number)
    assert program.end() == (STOPPED, "cleaned\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("body", [PATIENT, PLAIN])
def test_schedulers_and_terminals_may_repeat_themselves(number, body):
    program = Program(body, "say('closing'); sys.stdin.readline(); say('closed')")
    program.until("working")
    program.send(number)
    program.until("closing")
    for _ in range(2):
        program.send(number)
    code, said = program.end()
    assert (code, said.splitlines()[0]) == (0 if body == PATIENT else STOPPED, "closed")


@pytest.mark.parametrize("body", [PATIENT, PLAIN])
def test_the_second_ctrl_c_ends_what_hangs(body):
    program = Program(body, f"if say('hanging') is None:\n{HANGS}")
    program.until("working")
    program.send(signal.SIGINT)
    program.until("hanging")
    program.send(signal.SIGINT)
    code, said = program.end()
    assert code == STOPPED
    assert "after all" not in said


def test_the_third_ctrl_c_ends_it_at_once():
    program = Program(PATIENT, f"stop.GRACE = 600\n    if say('hanging') is None:\n{HANGS}")
    program.until("working")
    program.send(signal.SIGINT)
    program.until("hanging")
    program.send(signal.SIGINT)
    program.until("refused")
    program.send(signal.SIGINT)
    assert program.end()[0] == -signal.SIGINT


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_what_was_ignored_at_the_start_stays_ignored(number):
    """As under nohup; a shell without job control lets background jobs ignore Ctrl-C."""
    program = Program(PATIENT, before=lambda: signal.signal(number, signal.SIG_IGN))
    program.until("working")
    program.send(number)
    program.send(signal.SIGTERM if number != signal.SIGTERM else signal.SIGINT)
    program.until("saved")
    assert program.end()[0] == 0


def test_the_handlers_of_before_come_back():
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with Interrupts():
        during = [signal.getsignal(number) for number in STOP_SIGNALS]
        stop = StopRequest()
        for _ in stop.until_requested(range(3)):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert [signal.getsignal(number) for number in STOP_SIGNALS] == during
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_children_are_spared_and_handlers_of_libraries_undone():
    """Ray takes SIGTERM for itself, and its processes would end with the terminal before anything is saved."""
    handler = signal.getsignal(signal.SIGTERM)
    wait = "print(flush=True); import sys; sys.stdin.read()"
    with sparing_children(signal.SIGHUP):
        signal.signal(signal.SIGTERM, lambda *_: None)
        child = subprocess.Popen([sys.executable, "-c", wait], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    child.stdout.readline()
    child.send_signal(signal.SIGHUP)
    child.communicate()
    assert child.returncode == 0
