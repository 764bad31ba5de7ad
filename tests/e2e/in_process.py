"""Runs commands inside the test's own process: quicker, and a fault can be put in first."""

from dataclasses import dataclass

import torch
from transformers.utils import logging

from headrace.cli import main
from headrace.runtime.paged import PagedCache


@dataclass(frozen=True)
class Done:
    """A finished command, as ``subprocess`` has it."""

    returncode: int
    stdout: str
    stderr: str


def run_here(capsys, *words) -> Done:
    """Run a command; what it does to `transformers` is undone.

    It computes with one thread: torch is imported already, and with threads that spin.
    """
    verbosity, threads = logging.get_verbosity(), torch.get_num_threads()
    torch.set_num_threads(1)
    capsys.readouterr()
    try:
        code = main([str(word) for word in words])
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
        torch.set_num_threads(threads)
    shown = capsys.readouterr()
    return Done(code, shown.out, shown.err)


def disturb_attention(monkeypatch, factor):
    """Let our attention's output be wrong by a factor."""
    attend = PagedCache.attend
    monkeypatch.setattr(PagedCache, "attend", lambda *given: attend(*given) * factor)


def assert_refused(done, parts):
    """Fail unless a command ended with exit code 2 and one line that has these parts."""
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("headrace: error: ")
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr
