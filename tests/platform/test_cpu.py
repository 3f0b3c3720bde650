"""The CPU platform is found by veRL when it is asked for, and only then."""

import os
import subprocess
import sys

PLATFORM = "from verl.plugin.platform import get_platform; p = get_platform()\n"


def python(code: str, **environment: str) -> str:
    env = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command,
        env={**env, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_asked_for_it_is_the_platform_and_its_engine_is_registered():
    code = PLATFORM + (
        "print(type(p).__module__, p.device_name, p.current_device(), p.ray_resource_name())\n"
        "import vapo_verl.trainer.worker\n"
        "from verl.workers.engine import EngineRegistry\n"
        "print(EngineRegistry.get_engine_cls('language_model', 'fsdp2').__name__)"
    )
    first, second = python(code, VERL_PLATFORM="cpu").strip().splitlines()[-2:]
    assert first == "vapo_verl.platform.cpu cpu cpu GPU"
    assert second == "CPUFSDPEngine"


def test_not_asked_for_it_stays_away():
    assert "vapo_verl" not in python(PLATFORM + "print(type(p).__module__)").splitlines()[-1]


def test_the_device_module_answers_what_verl_asks():
    code = PLATFORM + (
        "m = p.device_module\n"
        "assert m.memory_allocated() > 0 and m.max_memory_allocated(0) > 0\n"
        "free, total = m.mem_get_info()\n"
        "assert 0 < free <= total\n"
        "m.set_rng_state(m.get_rng_state()); m.empty_cache(); m.ipc_collect()\n"
        "print(m.get_device_name())"
    )
    assert python(code, VERL_PLATFORM="cpu").splitlines()[-1] == "cpu"
