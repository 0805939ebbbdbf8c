"""Say in one line what this machine lacks for `make`, or print nothing when it lacks nothing.

It runs with whatever `python3` the machine has before anything is installed, so it uses the standard library only and a
syntax that old interpreters read too. Exit code 0: all there; 1: something is missing.
"""

import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile

OLDEST_PYTHON = (3, 10)
PROGRAM = (
    b"#include <string>\n#include <omp.h>\nint main() { return std::string(omp_get_max_threads(), 'x').empty(); }\n"
)


def main():
    """Print the one line and return the exit code."""
    if sys.version_info < OLDEST_PYTHON:
        return fail(
            "python3 is %d.%d, but 3.10 or newer is needed" % sys.version_info[:2],
            "name another one, for example: make test PYTHON=python3.12",
        )
    if sys.maxsize <= 2**32:
        return fail("this python3 is a 32-bit program", "use a 64-bit one: make PYTHON=...")
    missing = missing_parts()
    if missing:
        names = ", ".join(what for what, package in missing)
        packages = " ".join(sorted(set(package for what, package in missing)))
        return fail("missing: " + names, "sudo apt install " + packages)
    return 0


def fail(what, remedy):
    """Print one line on stderr; returns the exit code 1."""
    sys.stderr.write("%s -> %s\n" % (what, remedy))
    return 1


def missing_parts():
    """A list of (what is missing, the Debian package that holds it)."""
    python = python_package()
    missing = []
    if not all(importable(name) for name in ("venv", "ensurepip")):
        missing.append(("the venv module of Python", python + "-venv"))
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        missing.append(("Python.h, the headers of Python", python + "-dev"))
    if not compiles():
        missing.append(("a C++17 compiler with OpenMP", "g++"))
    return missing


def python_package():
    """The stem of the Debian packages of this interpreter: python3 for the system's default, else python3.12 and so on."""
    default = shutil.which("python3", path="/usr/bin")
    if default and os.path.realpath(default) == os.path.realpath(sys.executable):
        return "python3"
    return "python%d.%d" % sys.version_info[:2]


def importable(name):
    """Debian leaves parts of the standard library out of python3-minimal and python3, so a real import is the test."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def compiles():
    """True if the compiler that CMake will pick ($CXX, else c++, g++ or clang++) builds a small C++17 program with OpenMP."""
    named = os.environ.get("CXX", "").split()
    candidates = [named] if named else [[name] for name in ("c++", "g++", "clang++") if shutil.which(name)]
    return bool(candidates) and builds(candidates[0])


def builds(compiler):
    """True if `compiler` (a list: program and flags) compiles and links PROGRAM."""
    folder = tempfile.mkdtemp()
    try:
        command = compiler + ["-std=c++17", "-fopenmp", "-x", "c++", "-", "-o", os.path.join(folder, "program")]
        run = subprocess.run(command, input=PROGRAM, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return run.returncode == 0
    except OSError:
        return False
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
