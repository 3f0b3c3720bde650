"""Run all checks in order: the machine first, then the recipe."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from omegaconf import DictConfig

from vapo_verl.doctor.findings import Finding, examine


def diagnose(
    config: DictConfig | None, recipe: str | None = None, overrides: Sequence[str] = ()
) -> Iterator[Finding]:
    """Every finding, in order. Without a config only the machine is checked.

    A child process composes the config again from ``recipe`` and ``overrides``.
    """
    from vapo_verl.doctor.child import check_imports

    on_cpu = config is None or config.trainer.device == "cpu"
    with ThreadPoolExecutor(1) as beside:  # its imports take as long as the other checks
        child = beside.submit(lambda: list(check_imports(recipe, overrides, on_cpu=on_cpu)))
        yield from light_findings(config)
        yield from child.result()


def light_findings(config: DictConfig | None) -> Iterator[Finding]:
    """The checks made in this process: all except imports and rows."""
    from vapo_verl.doctor.accelerator import check_accelerator
    from vapo_verl.doctor.compilation import check_compile_caches, check_compiler
    from vapo_verl.doctor.disk import check_disk
    from vapo_verl.doctor.limits import check_limits
    from vapo_verl.doctor.ray_cluster import check_ray
    from vapo_verl.doctor.registrations import check_entry_point
    from vapo_verl.doctor.versions import check_versions

    yield from examine("versions", check_versions)
    yield from examine("registrations", check_entry_point)
    yield from examine("accelerator", check_accelerator, config)
    yield from examine("compiler", check_compiler, config)
    yield from examine("compile caches", check_compile_caches, config)
    yield from examine("ray", check_ray, config)
    yield from examine("disk", check_disk, config)
    yield from examine("limits", check_limits, config)
    if config is None:
        return
    from vapo_verl.doctor.budgets import check_recipe
    from vapo_verl.doctor.disk import check_resume
    from vapo_verl.doctor.memory import check_memory

    yield from examine("memory", check_memory, config)
    yield from examine("recipe", check_recipe, config)
    yield from examine("resume", check_resume, config)
