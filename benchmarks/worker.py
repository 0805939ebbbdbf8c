"""Contenders in a process of their own: threads that spin there do not spoil anybody else's turn.

`Worker` is the parent's side, `python -m benchmarks.worker` the child's. They exchange JSON, a line each way:

    {"make": contender, "shape": [m, n, k]}    ->  {"kernel": name}, or {"unavailable": why}
    {"run": calls, "index": i}                 ->  {"seconds": [...]}, of the i-th contender that was made
    {"drop": true}                             ->  {}, forgets them all

While a process waits for its turn it sleeps in a read. What else it prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from benchmarks.contenders import Contender, Made
from benchmarks.operands import Operands
from benchmarks.peers import Unavailable
from benchmarks.shapes import Shape

ROOT = Path(__file__).resolve().parents[1]


def quiet_threads(threads: int) -> dict[str, str]:
    """Environment for a process whose threads rest between calls. It has to be set before the libraries load."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0", **dict.fromkeys(counts, str(threads))}


# ---- the parent's side ---------------------------------------------------------------------------------------------
class Worker:
    """A child process, and the contenders that live in it. Close it, or use it in a `with`."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"], cwd=ROOT, env=os.environ | environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def make(self, contender: Contender, shape: Shape) -> str:
        """The kernel; raises `Unavailable` with what the child says."""
        answer = self._ask({"make": contender.as_dict(), "shape": shape})
        if "unavailable" in answer:
            raise Unavailable(answer["unavailable"])
        return str(answer["kernel"])

    def run(self, index: int, calls: int) -> list[float]:
        """Seconds of each of so many calls of the index-th contender made since the last `drop`."""
        return list(self._ask({"run": calls, "index": index})["seconds"])

    def drop(self) -> None:
        """Frees the memory of all contenders."""
        self._ask({"drop": True})

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._child.stdin and self._child.stdout
        with suppress(BrokenPipeError):  # the empty answer below tells the same
            self._child.stdin.write(json.dumps(question) + "\n")
            self._child.stdin.flush()
        answer = self._child.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that was asked for {question} ended with code {self._child.wait()}")
        return json.loads(answer)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        """The child ends when its input does."""
        self._child.communicate()


# ---- the child's side ----------------------------------------------------------------------------------------------
def serve(questions: IO[str], answers: IO[str]) -> None:
    """Answers until the questions end."""
    made: list[Made] = []
    for line in questions:
        answers.write(json.dumps(_answer(json.loads(line), made)) + "\n")
        answers.flush()


def _answer(question: dict[str, Any], made: list[Made]) -> dict[str, Any]:
    if "run" in question:
        return {"seconds": made[question["index"]].run(question["run"])}
    if "drop" in question:
        made.clear()
        return {}
    try:
        m, n, k = question["shape"]
        made.append(Made(Contender(**question["make"]), Operands.random((m, n, k))))
    except Unavailable as reason:
        return {"unavailable": str(reason)}
    return {"kernel": made[-1].kernel}


def main() -> None:
    """Keeps stdout for the answers alone: libraries that print would break the protocol."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
