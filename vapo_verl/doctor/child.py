"""Checks that import what a run imports, in a separate process with a time limit.

`python -m vapo_verl.doctor.child OUT` reads {"recipe", "overrides"} from stdin and appends one JSON
line a finding to OUT, so that a crash or a hang keeps earlier findings.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from vapo_verl.doctor.findings import Finding, error, examine
from vapo_verl.platform import CPU_ENVIRONMENT

CHECK = "imports"
TIMEOUT_S = 600.0
COMMAND = (sys.executable, "-m", "vapo_verl.doctor.child")


def check_imports(
    recipe: str | None,
    overrides: Sequence[str],
    *,
    on_cpu: bool,
    command: Sequence[str] = COMMAND,
    timeout_s: float = TIMEOUT_S,
) -> Iterator[Finding]:
    """Run the child; yield its findings, and one more if it did not finish."""
    request = json.dumps({"recipe": recipe, "overrides": list(overrides)})
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "findings.jsonl"
        problem = ""
        try:
            done = subprocess.run(
                [*command, str(out)],
                input=request,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                env=child_environment(scratch, on_cpu=on_cpu),
            )
            if done.returncode:
                last = " | ".join(done.stderr.strip().splitlines()[-3:])
                problem = f"ended with {done.returncode}: {last}"
        except subprocess.TimeoutExpired:
            problem = f"was not finished after {timeout_s:.0f} s"
        lines = out.read_text().splitlines() if out.is_file() else []
        yield from (Finding(**json.loads(line)) for line in lines)
    if problem:
        after = f", after {len(lines)} findings" if lines else ""
        yield error(
            CHECK,
            f"the process that imports torch, verl and vllm {problem}{after}",
            "import them by hand: python -c 'import vapo_verl.trainer.trainer'; then make setup",
        )


def child_environment(scratch: str, *, on_cpu: bool) -> dict[str, str]:
    """This environment without network, and with the data sets' cache in a temporary folder."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": scratch}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment | CPU_ENVIRONMENT if on_cpu else environment


def main() -> None:
    request = json.loads(sys.stdin.read())
    out = Path(sys.argv[1])
    for findings in _run(request["recipe"], request["overrides"]):
        with out.open("a") as stream:
            stream.writelines(json.dumps(finding.as_dict()) + "\n" for finding in findings)


def _run(recipe: str | None, overrides: Sequence[str]) -> Iterator[list[Finding]]:
    from vapo_verl.doctor import ray_cluster
    from vapo_verl.doctor import registrations as r
    from vapo_verl.launch import composed

    config = None if recipe is None else composed(recipe, overrides)
    for look in (
        r.check_platform,  # first: did veRL find it before our modules are imported?
        r.check_estimator,
        r.check_trainer,
        r.check_agent_loop,
        r.check_replica,
        r.check_weight_sync,
        r.check_attention,
        r.check_model_runner,
    ):
        yield examine(r.CHECK, look, config)
    yield examine(ray_cluster.CHECK, ray_cluster.check_nodes, config)
    if config is not None:
        from vapo_verl.doctor.rows import CHECK as ROWS
        from vapo_verl.doctor.rows import check_rows

        yield examine("recipe", _verls_checks, config)
        yield examine(ROWS, check_rows, config)


def _verls_checks(config: object) -> Iterator[Finding]:
    from vapo_verl.doctor.findings import ok
    from vapo_verl.launch import validate_as_verl_does

    validate_as_verl_does(config)  # type: ignore[arg-type]
    yield ok("recipe", "veRL's own checks of the config")


if __name__ == "__main__":
    main()
