"""Options and shapes of the pytest-benchmark suites: `python -m pytest benchmarks/bench_*.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import peers, shapes
from soniq_kernels import get_num_threads, set_num_threads


def pytest_addoption(parser: pytest.Parser) -> None:
    """--tiny: shapes that take no time, to see that everything runs."""
    parser.addoption("--tiny", action="store_true", help="tiny shapes, to see that the benchmarks run")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`shape` goes through the module's SHAPES, or TINY."""
    if "shape" in metafunc.fixturenames:
        chosen = metafunc.module.TINY if metafunc.config.getoption("--tiny") else metafunc.module.SHAPES
        metafunc.parametrize("shape", chosen, ids=[shapes.text(shape) for shape in chosen])


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """The report's suite `threads` is where more are timed."""
    before = get_num_threads()
    set_num_threads(1)
    yield
    set_num_threads(before)


@pytest.fixture
def timed(benchmark: Any, shape: tuple[int, ...]) -> Callable[..., None]:
    """timed(call, **facts): the benchmark, grouped by shape; facts go into the results file."""

    def run(call: Callable[[], Any], **facts: Any) -> None:
        benchmark.group = shapes.text(shape)
        benchmark.extra_info.update(facts)
        benchmark(call)

    return run


@pytest.fixture
def available() -> Callable[..., Any]:
    """available(make, ...): make(...), or the test is skipped with the reason."""

    def make_or_skip(make: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return make(*arguments)
        except (peers.Unavailable, ImportError) as reason:
            pytest.skip(str(reason))

    return make_or_skip
