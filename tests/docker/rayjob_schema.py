"""The fields of a KubeRay RayJob that docker/kubernetes/rayjob.yaml uses, and no others.

Names and types follow KubeRay 1.6's API (ray.io/v1) and the Kubernetes core API; a field that is
not listed is a typing error or one to be added here.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti)?$"}


def record(required: str = "", **properties: Schema) -> Schema:
    """An object of these fields alone."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def items(schema: Schema) -> Schema:
    return {"type": "array", "items": schema, "minItems": 1}


def table(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


RESOURCES = record(requests=table(QUANTITY), limits=table(QUANTITY))
CONTAINER_SECURITY = record(
    allowPrivilegeEscalation=BOOLEAN, capabilities=record(drop=items(STRING))
)
POD_SECURITY = record(
    runAsNonRoot=BOOLEAN,
    runAsUser=COUNT,
    runAsGroup=COUNT,
    fsGroup=COUNT,
    fsGroupChangePolicy={"enum": ["OnRootMismatch", "Always"]},
    seccompProfile=record("type", type={"enum": ["RuntimeDefault", "Localhost", "Unconfined"]}),
)
CONTAINER = record(
    "name image securityContext resources",
    name=NAME,
    image=STRING,
    securityContext=CONTAINER_SECURITY,
    resources=RESOURCES,
    lifecycle=record(preStop=record("exec", exec=record("command", command=items(STRING)))),
    env=items(record("name value", name=STRING, value=STRING)),
    envFrom=items(record("secretRef", secretRef=record("name", name=NAME, optional=BOOLEAN))),
    volumeMounts=items(record("name mountPath", name=NAME, mountPath=STRING, readOnly=BOOLEAN)),
)
VOLUME = record(
    "name",
    name=NAME,
    persistentVolumeClaim=record("claimName", claimName=NAME),
    emptyDir=record(medium={"enum": ["", "Memory"]}, sizeLimit=QUANTITY),
)
POD = record(
    "containers securityContext",
    terminationGracePeriodSeconds=COUNT,
    securityContext=POD_SECURITY,
    automountServiceAccountToken=BOOLEAN,
    restartPolicy={"enum": ["Always", "OnFailure", "Never"]},
    tolerations=items(
        record(
            key=STRING,
            operator={"enum": ["Exists", "Equal"]},
            effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
        )
    ),
    containers=items(CONTAINER),
    volumes=items(VOLUME),
)
TEMPLATE = record("spec", spec=POD)
WORKER_GROUP = record(
    "groupName maxReplicas minReplicas template",
    groupName=NAME,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=table(STRING),
    template=TEMPLATE,
)
CLUSTER = record(
    "headGroupSpec",
    rayVersion=STRING,
    authOptions=record(mode={"enum": ["disabled", "token"]}),
    headGroupSpec=record("template", rayStartParams=table(STRING), template=TEMPLATE),
    workerGroupSpecs=items(WORKER_GROUP),
)
RAY_JOB = record(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=record("name", name=NAME),
    spec=record(
        "entrypoint rayClusterSpec",
        entrypoint=STRING,
        backoffLimit=COUNT,
        shutdownAfterJobFinishes=BOOLEAN,
        ttlSecondsAfterFinished=COUNT,
        submitterPodTemplate=TEMPLATE,
        rayClusterSpec=CLUSTER,
    ),
)
VOLUME_CLAIM = record(
    "apiVersion kind metadata spec",
    apiVersion={"const": "v1"},
    kind={"const": "PersistentVolumeClaim"},
    metadata=record("name", name=NAME),
    spec=record(
        "accessModes resources",
        accessModes=items({"enum": ["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany"]}),
        resources=record("requests", requests=table(QUANTITY)),
    ),
)
