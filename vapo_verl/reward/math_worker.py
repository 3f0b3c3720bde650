r"""Symbolic comparison of two LaTeX answers with math-verify, in processes of its own.

Run as `python -m vapo_verl.reward.math_worker` by `math_verifier.py`, with a socket as stdin. The
process loads sympy once and forks a worker for every socket it is sent, which takes milliseconds.
Model text can make sympy compute for hours or fill the memory, and math-verify's own limit is a
signal, which works in the main thread only and does not interrupt a computation in C. So its
limits are off (None) here, and a worker is limited by the system: CPU time and address space.
"""

import ctypes
import gc
import json
import os
import re
import resource
import signal
import socket
import stat
import sys
from typing import Any

MEMORY_GIB = 1
"""Address space of a worker, over what it has at its start."""
READY = b"ready"

_ABSURD = re.compile(r"\d{400}|\^ ?\{? ?-?\d{5}|\^ ?\{? ?\d+ ?\^ ?\{? ?\d|\d{4} ?!|!!!")
"""Numbers whose digits alone fill the memory: `10^{99999}`, `9^{9^9}`, `9999!`."""


def symbolically_equal(answer: str, truth: str) -> bool:
    """Whether math-verify finds the two expressions equal; unreadable ones are not.

    Raises:
        MemoryError: the process is at its limit and should end.
    """
    from math_verify import verify

    if _ABSURD.search(answer) or _ABSURD.search(truth):
        return False
    try:
        gold, target = (_parsed(expression) for expression in (truth, answer))
        if not (gold and target) or _differ_at_a_point(gold[0], target[0]):
            return False
        equal = verify(gold, target, allow_set_relation_comp=True, timeout_seconds=None)
        return equal and _have_solutions(gold[0], target[0])
    except MemoryError:
        raise
    except Exception:  # the boundary to sympy: model text reaches all of its errors
        return False


_NO_VALUE = (ArithmeticError, AttributeError, NotImplementedError, TypeError, ValueError)


def _differ_at_a_point(gold: Any, target: Any) -> bool:
    """Whether the two differ at one point, which spares most of the algebra.

    Expressions are evaluated at a point of no special values, equations at roots of the other.
    """
    from mpmath.libmp import NoConvergence
    from sympy import Eq, Expr, Float, Poly, UnevaluatedExpr
    from sympy.polys.polyerrors import BasePolynomialError

    if not all(isinstance(side, Eq | Expr) for side in (gold, target)):
        return False
    symbols = sorted(gold.free_symbols | target.free_symbols, key=str)
    point = {symbol: Float(0.7321 + 0.3517 * place) for place, symbol in enumerate(symbols)}
    try:
        if isinstance(gold, Eq) and isinstance(target, Eq) and symbols:
            if gold.free_symbols != target.free_symbols:
                return False
            variable = symbols[-1]
            scale = abs(_value(target.lhs - target.rhs, point))
            others = {symbol: value for symbol, value in point.items() if symbol != variable}
            roots = Poly((gold.lhs - gold.rhs).subs(others), variable).nroots()
            at_roots = [
                abs(_value(target.lhs - target.rhs, others | {variable: root})) for root in roots
            ]
            return bool(roots) and max(at_roots) > 1e-4 * scale > 0
        if isinstance(gold, Eq) or isinstance(target, Eq) or gold.has(UnevaluatedExpr):
            return False
        if target.has(UnevaluatedExpr):  # a percentage, which may be left out
            return False
        x, y = _value(gold, point), _value(target, point)
    except (*_NO_VALUE, BasePolynomialError, NoConvergence):
        return False
    return abs(x - y) > max(1e-9, 1e-4 * max(abs(x), abs(y)))


def _value(expression: Any, point: dict[Any, Any]) -> complex:
    return complex(expression.subs(point).evalf(15))


def _have_solutions(gold: Any, target: Any) -> bool:
    """False for two different equations without solutions, which math-verify finds equal."""
    from sympy import Eq, simplify, solve

    if not (isinstance(gold, Eq) and isinstance(target, Eq)):
        return True
    differences = [equation.lhs - equation.rhs for equation in (gold, target)]
    if simplify(differences[0] - differences[1]) == 0 or simplify(sum(differences)) == 0:
        return True
    return bool(solve(gold, gold.free_symbols))


def _parsed(expression: str) -> list[Any]:
    """Parse with math-verify; units are taken off before, or it would drop variables as units."""
    from math_verify import LatexExtractionConfig, parse
    from math_verify.parser import NormalizationConfig

    reading = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
    )
    return parse(
        f"${expression}$",
        extraction_config=[LatexExtractionConfig(normalization_config=reading)],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )


def answer_questions(connection: socket.socket) -> None:
    """Reply to JSON lines `[answer, truth, cpu_seconds]`: `?` when read, then `1` or `0`.

    A question that takes more CPU time ends the process (SIGPROF), which the other end sees.
    """
    with connection, connection.makefile("r") as questions:
        for line in questions:
            connection.sendall(b"?")
            answer, truth, limit_s = json.loads(line)
            signal.setitimer(signal.ITIMER_PROF, limit_s)
            reply = symbolically_equal(answer, truth)
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.sendall(b"1" if reply else b"0")


def serve(control: socket.socket) -> None:
    """Fork a worker for every socket received, until the other end closes."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
    own_id = os.getpid()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        connection = socket.socket(fileno=descriptors[0])
        if os.fork() == 0:
            control.close()
            _limit_worker(own_id)
            answer_questions(connection)
            os._exit(0)
        connection.close()


def _limit_worker(parent_id: int) -> None:
    """Make the worker end with its parent, even while computing, and limit its memory."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent_id:
            os._exit(1)
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        limit = used + MEMORY_GIB * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Load sympy by a first comparison, report readiness, and serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end is ours
    if not symbolically_equal(r"\frac{1}{2}", "0.5") or symbolically_equal("x+1", "(x+2)^2"):
        sys.exit("math-verify is installed but does not compare: it needs its antlr4 runtime")
    if not stat.S_ISSOCK(os.fstat(0).st_mode):
        print("math-verify works; vapo_verl starts this process itself")
        return
    control = socket.socket(fileno=os.dup(0))
    gc.freeze()  # forked workers keep these pages shared
    control.sendall(READY)
    serve(control)


if __name__ == "__main__":
    main()
