r"""Symbolic comparison of two LaTeX answers with math-verify, and the loop of the child process.

Run as `python -m vapo_verl.reward.math_worker` by `math_verifier.py`. Model text can make sympy
compute for hours or fill the memory; math-verify's own limit is a signal, which works in the main
thread only and does not interrupt a computation in C. So its limits are off (None) here, and
model text must be compared in a process that can be killed.
"""

import json
import os
import re
import resource
import sys
from typing import IO

MEMORY_GIB = 4

_ROOT_SIGN = re.compile(r"√\s*(?:\(([^()]*)\)|([\w.]+))")


def symbolically_equal(answer: str, truth: str) -> bool:
    """Whether math-verify finds the two expressions equal; unreadable ones are not."""
    from math_verify import parse, verify

    try:
        gold = parse(_as_maths(truth), parsing_timeout=None)
        target = parse(_as_maths(answer), parsing_timeout=None)
        return bool(
            gold
            and target
            and verify(gold, target, allow_set_relation_comp=True, timeout_seconds=None)
        )
    except Exception:  # the boundary to sympy: model text reaches all of its errors
        return False


def _as_maths(expression: str) -> str:
    """As inline maths: math-verify reads units, degrees and percents there, and not in a box."""
    with_roots = _ROOT_SIGN.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}", expression)
    return f"${with_roots}$"


def serve(questions: IO[str], replies: IO[str]) -> None:
    """Answer each JSON line `[answer, truth]` with 1 or 0, after a first line `ready`."""
    replies.write("ready\n" if symbolically_equal(r"\frac{1}{2}", "0.5") else "broken\n")
    replies.flush()
    for line in questions:
        replies.write(f"{int(symbolically_equal(*json.loads(line)))}\n")
        replies.flush()


def main() -> None:
    """Keep stdout for replies alone, cap the memory, and serve until stdin closes."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    limit = MEMORY_GIB * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
