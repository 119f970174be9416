"""Tests of app.leader."""

import subprocess
import sys
from pathlib import Path

from app.leader import LeaderLock
from loadtests.server import ROOT

HOLD = """
import sys
from pathlib import Path
from app.leader import LeaderLock
lock = LeaderLock(Path(sys.argv[1]))
print(lock.take(), flush=True)
sys.stdin.read()
"""


def test_one_at_a_time(tmp_path: Path) -> None:
    """Of two that ask one leads, as often as it asks, and the other one when the first is gone."""
    first, second = (LeaderLock(tmp_path / "a.lock") for _ in range(2))
    assert not first.is_held
    assert [first.take(), second.take(), first.take()] == [True, False, True]
    assert (first.is_held, second.is_held) == (True, False)
    first.close()
    assert [second.take(), first.take(), first.is_held] == [True, False, False]
    second.close()


def test_a_kill_lets_another_lead(tmp_path: Path) -> None:
    """A process that is killed holds nothing any more."""
    path = tmp_path / "a.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        lock = LeaderLock(path)
        assert not lock.take()
        other.kill()
        other.wait()
        assert lock.take()
        lock.close()
