"""What a run shows, and what goes to its log."""

import io
import os
import subprocess
import sys
import textwrap

import pytest

from vapo_verl import console
from vapo_verl.console import LOG_FILE, Screen, marked


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("[vapo] step 1/6", ("say", "step 1/6")),
        ("(VapoTaskRunner pid=12) [vapo] step 1/6", ("say", "step 1/6")),
        (
            "\x1b[36m(VapoTaskRunner pid=12, ip=10.0.0.2)\x1b[0m [vapo end] Ray: 4 s",
            ("end", "Ray: 4 s"),
        ),
        ("(VapoHttpServer pid=3) (EngineCore_DP0 pid=4) [vapo] +1.9 %", ("say", "+1.9 %")),
        ("[vapo begin] vLLM", ("begin", "vLLM")),
        ("[vapo progress] step 2/6", ("progress", "step 2/6")),
        ("INFO 11-28 [vapo.py:12] something", None),
        ("a response said [vapo] step 1/6", None),
        ("", None),
    ],
)
def test_marked_lines_are_found_behind_the_names_of_processes(line, found):
    assert marked(line) == found


LINES = (
    "INFO loading",
    "[vapo begin] Ray",
    "[vapo end] Ray: 4 s",
    "[vapo progress] step 1/6 rollout",
    "(T pid=1) [vapo] step 1/6 | reward 1.0",
)


def shown(stream, full=False):
    screen = Screen(stream, full=full)
    for line in LINES:
        screen.line(line)
    screen.close()
    return stream.getvalue()


def test_short_shows_marked_lines_only():
    assert shown(io.StringIO()) == "Ray: 4 s\nstep 1/6 | reward 1.0\n"


def test_a_long_phase_is_named_before_it_ends(monkeypatch):
    now = iter([100.0, 100.1, 106.0, 107.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    stream = io.StringIO()
    screen = Screen(stream, full=False)
    screen.line("[vapo begin] vLLM")
    screen.tick()
    screen.tick()
    screen.line("[vapo end] vLLM: 30 s")
    assert stream.getvalue() == "vLLM ...\nvLLM: 30 s\n"


def test_full_shows_every_line():
    assert shown(io.StringIO(), full=True).splitlines() == list(LINES)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_replaces_its_last_line(monkeypatch):
    monkeypatch.setattr(Screen, "width", lambda _: 80)
    text = shown(Terminal())
    clear = "\r\x1b[K"
    assert f"{clear}Ray ... 0 s{clear}Ray: 4 s\n" in text
    assert text.endswith(
        f"{clear}step 1/6 rollout{clear}step 1/6 | reward 1.0\n{clear}step 1/6 rollout{clear}"
    )


def run(folder, mode, body):
    code = f"""
        import os, subprocess, sys
        from pathlib import Path
        from vapo_verl.console import Console, mark, phases, progress, say
        print("before")
        with Console(Path(sys.argv[1]), {mode!r}):
{textwrap.indent(textwrap.dedent(body), "            ")}
        print("after")
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


BODY = """
    print("of a library")
    print("its warning", file=sys.stderr)
    subprocess.run([sys.executable, "-c", "print('of a child'); print('[vapo] said by a child')"])
    os.write(2, (mark() + "said in a signal handler\\n").encode())
    phases.begin("Ray"); phases.begin("Ray"); phases.begin("vLLM"); phases.end(); phases.end()
    say("two\\nlines")
"""


def test_output_of_all_processes_goes_to_the_log_and_ours_to_the_console_too(tmp_path):
    done = run(tmp_path / "run", "short", BODY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "before",
        "said by a child",
        "said in a signal handler",
        "Ray: 0 s",
        "vLLM: 0 s",
        "two",
        "lines",
        "after",
    ]
    assert done.stderr == ""
    log = (tmp_path / "run" / LOG_FILE).read_text()
    for line in ("of a library", "its warning", "of a child", "[vapo] two"):
        assert log.count(f"{line}\n") == 1
    assert "before" not in log and "after" not in log


def test_the_full_console_shows_all_of_the_log(tmp_path):
    done = run(tmp_path, "full", BODY)
    shown = done.stdout.removeprefix("before\n").removesuffix("after\n")
    assert shown == (tmp_path / LOG_FILE).read_text()


def test_a_second_run_appends_and_shows_its_own_lines_only(tmp_path):
    for number in (1, 2):
        done = run(tmp_path, "short", f"say('run {number}')")
        assert done.stdout == f"before\nrun {number}\nafter\n"
    assert (tmp_path / LOG_FILE).read_text() == "[vapo] run 1\n[vapo] run 2\n"


def test_an_error_leaves_the_streams_as_they_were(tmp_path):
    done = run(tmp_path, "short", "say('one'); print('x' * 10**6); raise ValueError('bad')")
    assert done.stdout == "before\none\n"
    assert "ValueError: bad" in done.stderr
    assert len((tmp_path / LOG_FILE).read_text()) > 10**6


def test_a_full_disk_gives_the_terminal_back(monkeypatch, tmp_path):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(28, "No space left on device")

    before = [os.fstat(number) for number in (1, 2)]
    with console.Console(tmp_path, "short"):
        monkeypatch.setattr(sys, "stdout", Full())
    after = [os.fstat(number) for number in (1, 2)]
    assert all(map(os.path.samestat, before, after))
