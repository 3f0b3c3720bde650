"""The RayJob manifest: fields that exist, in a form that fits the image and the package."""

from __future__ import annotations

import os
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.docker.rayjob_schema import RAY_JOB, VOLUME_CLAIM
from tests.paths import ROOT
from vapo_verl.hydra_config import compose_recipe

MANIFEST = ROOT / "docker/kubernetes/rayjob.yaml"
VOLUMES = ROOT / "docker/kubernetes/volumes.yaml"
CRD_VARIABLE = "KUBERAY_RAYJOB_CRD"


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFEST.read_text()))


@pytest.fixture(scope="module")
def spec(documents) -> dict[str, Any]:
    return documents[0]["spec"]


@pytest.fixture(scope="module")
def pods(spec) -> list[dict[str, Any]]:
    cluster = spec["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.fixture(scope="module")
def volumes() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(VOLUMES.read_text()))


def test_every_field_is_known(documents, volumes):
    [job] = documents
    jsonschema.validate(job, RAY_JOB)
    *claims, _ = volumes
    for claim in claims:
        jsonschema.validate(claim, VOLUME_CLAIM)


def test_the_volumes_are_those_of_the_job_and_the_data_can_be_written(pods, volumes):
    *claims, pod = volumes
    used = [v["persistentVolumeClaim"]["claimName"]
            for v in pods[0]["volumes"] if "persistentVolumeClaim" in v]  # fmt: skip
    assert [claim["metadata"]["name"] for claim in claims] == used
    [shell] = pod["spec"]["containers"]
    assert shell["image"] == pods[0]["containers"][0]["image"]
    assert pod["spec"]["securityContext"] == pods[0]["securityContext"]
    assert shell["volumeMounts"] == [{"name": "data", "mountPath": "/data"}]


def test_an_unknown_field_is_refused(documents):
    wrong = {**documents[0], "spec": {**documents[0]["spec"], "backoffLimits": 3}}
    with pytest.raises(jsonschema.ValidationError, match="backoffLimits"):
        jsonschema.validate(wrong, RAY_JOB)


@pytest.mark.skipif(
    CRD_VARIABLE not in os.environ,
    reason=f"{CRD_VARIABLE}: path of KubeRay's ray.io_rayjobs.yaml, to check against all of it",
)
def test_kuberays_own_definition_has_every_field(documents):
    definition = yaml.load(Path(os.environ[CRD_VARIABLE]).read_text(), yaml.CSafeLoader)
    versions = {version["name"]: version["schema"] for version in definition["spec"]["versions"]}
    jsonschema.validate(documents[0], closed(versions["v1"]["openAPIV3Schema"]))


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The same schema, in which a field that is not listed is an error, as for kubectl --validate.

    ``metadata`` is open in KubeRay's definition; Kubernetes checks it.
    """
    inner = {
        name: closed(value) if isinstance(value, dict) and name == "items" else value
        for name, value in schema.items()
    }
    if schema.get("x-kubernetes-int-or-string"):
        inner["type"] = ["integer", "string"]
    if "properties" in schema:
        inner["properties"] = {n: closed(value) for n, value in schema["properties"].items()}
        inner["additionalProperties"] = False
    return inner


def test_the_cluster_has_what_the_run_asks_for(spec, pods):
    words = dict(word.split("=", 1) for word in shlex.split(spec["entrypoint"]) if "=" in word)
    cluster = spec["rayClusterSpec"]
    workers = sum(group["replicas"] for group in cluster["workerGroupSpecs"])
    assert int(words["trainer.nnodes"]) == 1 + workers
    for pod in pods:
        limits = pod["containers"][0]["resources"]["limits"]
        assert limits["nvidia.com/gpu"] == words["trainer.n_gpus_per_node"]
    assert cluster["rayVersion"] == metadata.version("ray")


def test_its_command_composes(spec):
    words = shlex.split(spec["entrypoint"])
    assert words[:3] == ["python", "-m", "vapo_verl.main"]
    recipe = next(word.removeprefix("+recipe=") for word in words if word.startswith("+recipe="))
    overrides = [word for word in words[3:] if not word.startswith("+recipe=")]
    config = compose_recipe(recipe, overrides)
    assert config.trainer.default_local_dir.startswith("/runs/")


def test_a_failed_run_is_tried_again_in_the_folder_it_left(spec, pods):
    assert spec["backoffLimit"] > 0
    for pod in pods:
        claims = {v["name"]: v["persistentVolumeClaim"]["claimName"]
                  for v in pod["volumes"] if "persistentVolumeClaim" in v}  # fmt: skip
        mounts = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}
        assert claims[mounts["/runs"]] == "vapo-runs"


def test_a_pod_that_ends_has_time_to_save(pods):
    for pod in pods:
        script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
        assert (ROOT / script.removeprefix("/opt/vapo_verl/")).is_file()
        assert pod["terminationGracePeriodSeconds"] >= 600
        env = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
        # when the job is deleted: after it Ray kills the driver
        assert 600 <= int(env["RAY_JOB_STOP_WAIT_TIME_S"]) < pod["terminationGracePeriodSeconds"]


def test_no_pod_runs_as_root_and_no_secret_is_written_down(spec, pods):
    user = (ROOT / "docker/Dockerfile").read_text().partition("USER ")[2].split(":")[0]
    for pod in [*pods, spec["submitterPodTemplate"]["spec"]]:
        assert pod["securityContext"]["runAsNonRoot"]
        assert str(pod["securityContext"]["runAsUser"]) == user
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert all("TOKEN" not in v["name"] and "KEY" not in v["name"]
                       for v in container.get("env", []))  # fmt: skip
