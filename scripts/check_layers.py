#!/usr/bin/env python3
"""Checks that the tree keeps its own rules: who may include whom (docs/architecture.md), no device conditionals outside
kernels/, no network in speech code, no reordered floating point, no paths that exist on one machine only, file lengths.

usage: scripts/check_layers.py [--self-test]
"""

import ast
import re
import subprocess
import sys
import unittest
from pathlib import Path

# Prefixes of what a file of a folder may include, written from the root. A folder not named here may include anything.
MAY_INCLUDE = {
    "base": ["base/"],
    "audio": ["audio/", "base/"],
    "kernels": ["kernels/", "base/"],
    "models": ["models/", "kernels/kernels.h", "kernels/batch.h", "audio/", "base/"],
    "engine": ["engine/", "models/model.h", "audio/", "base/"],
    "server": ["server/", "proto/", "engine/engine.h", "engine/stream.h", "base/"],
    "client": ["client/", "proto/", "base/"],
    "cli": ["cli/", "engine/engine.h", "engine/stream.h", "server/server.h", "client/client.h", "base/"],
}
SPEECH = {"base", "audio", "kernels", "models", "engine"}
NETWORK_HEADER = re.compile(r"(sys/socket|netinet/.*|arpa/inet|netdb|grpc/.*|libwebsockets)\.h$")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
DEVICE_CONDITION = re.compile(r"^\s*#\s*(el)?if(n?def)?\b.*(CUDA|__AVX|__SSE|__ARM_NEON)")
FAST_MATH = re.compile(r"-ffast-math|-Ofast|-funsafe-math")
OUTSIDE_PATH = re.compile(r"\.\./shared\b")
MAY_LOOK_OUTSIDE = {"scripts", "tests", "train", "bench", ".ci"}
C_FAMILY = {".c", ".h", ".cu", ".cuh", ".cpp"}
CODE = C_FAMILY | {".py"}
LINES_WARN, LINES_MAX, FUNCTION_LINES_MAX = 600, 650, 70
THIS = "scripts/check_layers.py"


def check_include(folder, kind, header):
    """What is wrong with one include, or None."""
    if kind == "<":
        if folder in SPEECH and NETWORK_HEADER.search(header):
            return f"speech code includes <{header}>"
        return None
    if "/" not in header and folder in MAY_INCLUDE:
        return f'"{header}": includes are written from the root'
    allowed = MAY_INCLUDE.get(folder)
    if allowed is not None and not any(header == a or (a.endswith("/") and header.startswith(a)) for a in allowed):
        return f'{folder}/ may not include "{header}"'
    return None


def check_c_line(folder, line):
    include = INCLUDE.match(line)
    if include:
        return check_include(folder, include.group(1), include.group(2))
    if folder != "kernels" and DEVICE_CONDITION.match(line):
        return "a device conditional outside kernels/"
    return None


def check_python_functions(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield node.lineno, f"{node.name} has {lines} lines, more than {FUNCTION_LINES_MAX}"


def check_text(path, text):
    """Yields (line, what is wrong) for the file `path`, relative to the root."""
    folder, suffix = path.parts[0], path.suffix
    if str(path) == THIS:
        return
    for number, line in enumerate(text.splitlines(), 1):
        if suffix in C_FAMILY:
            problem = check_c_line(folder, line)
            if problem:
                yield number, problem
        if FAST_MATH.search(line) and suffix != ".md":
            yield number, "reordered floating point"
        if OUTSIDE_PATH.search(line) and folder not in MAY_LOOK_OUTSIDE:
            yield number, "a path outside the project"
    if suffix in CODE and len(text.splitlines()) > LINES_MAX:
        yield LINES_MAX, f"{len(text.splitlines())} lines, more than {LINES_MAX}"
    if suffix == ".py":
        yield from check_python_functions(text)


def list_files(root):
    """Tracked files, and new ones that git does not ignore."""
    out = subprocess.run(["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                         check=True, capture_output=True).stdout
    return sorted({Path(p) for p in out.decode().split("\0") if p})


def check_tree(root):
    """Prints what is wrong; returns how many things are."""
    problems = files = 0
    for path in list_files(root):
        try:
            text = (root / path).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue
        files += 1
        lines = len(text.splitlines())
        if path.suffix in CODE and LINES_WARN < lines <= LINES_MAX:
            print(f"{path}: warning: {lines} lines; is it really one thing?")
        for line, problem in check_text(path, text):
            print(f"{path}:{line}: {problem}")
            problems += 1
    print(f"check_layers: {files} files, {problems} problems")
    return problems


class SelfTest(unittest.TestCase):
    """A planted violation of every rule is found, and what is allowed is let through."""

    BAD = [
        ("base/a.c", '#include "audio/audio.h"'),
        ("audio/a.c", '#include "kernels/kernels.h"'),
        ("kernels/cpu/a.c", '#include "models/model.h"'),
        ("models/a.c", '#include "kernels/ref/internal.h"'),
        ("models/a.c", '#include "engine/engine.h"'),
        ("engine/a.c", '#include "models/config.h"'),
        ("engine/a.c", '  #  include "kernels/kernels.h"'),
        ("server/a.c", '#include "engine/internal.h"'),
        ("server/a.c", '#include "audio/audio.h"'),
        ("client/a.h", '#include "engine/engine.h"'),
        ("cli/a.c", '#include "models/model.h"'),
        ("cli/a.c", '#include "engine/request.h"'),
        ("base/a.c", '#include "status.h"'),
        ("engine/a.c", "#include <sys/socket.h>"),
        ("models/a.c", "#ifdef TIMBRE_CUDA"),
        ("base/a.h", "#if defined(__AVX512F__)"),
        ("cmake/options.cmake", "add_compile_options(-ffast-math)"),
        ("README.md", "see ../shared/data"),
        ("cli/a.c", '"../shared/data"'),
        ("kernels/cuda/a.cu", '#include "models/model.h"'),
        ("kernels/cuda/a.cuh", '#include "engine/engine.h"'),
        ("kernels/cuda/host/a.cpp", '#include "server/server.h"'),
        ("kernels/cuda/a.cu", "#include <netinet/in.h>"),
        ("models/a.cpp", "#if defined(__CUDACC__)"),
        ("engine/a.c", "\n" * 651),
        ("kernels/cuda/a.cu", "\n" * 651),
        ("kernels/cuda/host/a.cpp", "\n" * 651),
        ("scripts/a.py", "def f():\n" + "    pass\n" * 70),
    ]
    GOOD = [
        ("base/a.c", '#include "base/status.h"\n#include <stdio.h>'),
        ("kernels/cpu/a.c", '#ifdef __AVX512F__\n#include "kernels/kernels.h"'),
        ("kernels/cuda/a.cu", '#include "kernels/cuda/cuda.cuh"\n#if defined(__CUDA_ARCH__)'),
        ("kernels/cuda/host/a.cpp", '#include "kernels/cuda/gpu.h"\n#include <sys/mman.h>'),
        ("models/a.c", '#include "kernels/batch.h"\n#include "audio/audio.h"'),
        ("engine/a.c", '#include "models/model.h"\n/* CUDA */'),
        ("server/a.c", '#include <sys/socket.h>\n#include "engine/engine.h"\n#include "proto/timbre.pb-c.h"'),
        ("cli/a.c", '#include "engine/engine.h"\n#include "base/text.h"'),
        ("tests/unit/engine/test_a.c", '#include "engine/internal.h"\n#include "kernels/ref/internal.h"'),
        ("scripts/demo.sh", "ls ../shared/data"),
        ("engine/a.c", "\n" * 650),
        ("scripts/a.py", "def f():\n" + "    pass\n" * 69),
    ]

    def test_bad(self):
        for path, text in self.BAD:
            with self.subTest(path=path, text=text[:40]):
                self.assertTrue(list(check_text(Path(path), text)))

    def test_good(self):
        for path, text in self.GOOD:
            with self.subTest(path=path, text=text[:40]):
                self.assertEqual(list(check_text(Path(path), text)), [])


def main(arguments):
    if arguments == ["--self-test"]:
        result = unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(SelfTest))
        return 0 if result.wasSuccessful() else 1
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    return 1 if check_tree(Path(__file__).resolve().parent.parent) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
