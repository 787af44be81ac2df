"""What docs/cluster.md tells to type or to apply is what Ray, KubeRay and bash take."""

import copy
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from fedprune.commands.arguments import run_asked_for

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "cluster.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def an_object(required: str, more: bool = False, **properties: Any) -> dict[str, Any]:
    about = {"type": "object", "required": required.split(), "properties": properties}
    return {**about, "additionalProperties": more}


def a_list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


# KubeRay 1.1, ray-operator/apis/ray/v1/raycluster_types.go: the fields that there are, and which
# of them must be there. Of Kubernetes' own pod templates those that the page uses.
TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITY = {
    "oneOf": [{"type": "integer"}, {"type": "string", "pattern": r"^\d+(\.\d+)?(m|[KMGT]i?)?$"}]
}
AMOUNTS = {"type": "object", "additionalProperties": QUANTITY}
CONTAINER = an_object(
    "name image",
    name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
    image=TEXT,
    resources=an_object("", limits=AMOUNTS, requests=AMOUNTS),
    volumeMounts=a_list(an_object("name mountPath", name=TEXT, mountPath=TEXT)),
)
CLAIM = an_object("claimName", claimName=TEXT)
VOLUME = an_object("name persistentVolumeClaim", name=TEXT, persistentVolumeClaim=CLAIM)
POD = an_object(
    "spec", spec=an_object("containers", containers=a_list(CONTAINER), volumes=a_list(VOLUME))
)
GROUP: dict[str, Any] = {"rayStartParams": TEXTS, "template": POD}
CLUSTER = an_object(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata=an_object("name", name=TEXT),
    spec=an_object(
        "headGroupSpec",
        rayVersion={"const": ray.__version__},
        headGroupSpec=an_object("rayStartParams template", **GROUP),
        workerGroupSpecs=a_list(
            an_object(
                "groupName minReplicas maxReplicas rayStartParams template",
                **{"groupName": TEXT, "replicas": COUNT, "minReplicas": COUNT},
                **{"maxReplicas": COUNT, **GROUP},
            )
        ),
    ),
)


def test_ray_up_takes_the_file():
    given = yaml.safe_load(blocks("yaml")[0])
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(given, schema)
    validate_config(prepare_config(copy.deepcopy(given)))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**given, "worker_ips": ["10.0.0.2"]}, schema)


def test_kuberay_takes_the_manifest():
    manifest = yaml.safe_load(blocks("yaml")[1])
    jsonschema.validate(manifest, CLUSTER)
    (workers,) = manifest["spec"]["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (manifest["spec"]["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        mounted = {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", ())}
        assert mounted == {volume["name"] for volume in pod.get("volumes", ())}
    number = copy.deepcopy(manifest)
    number["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0  # it takes texts alone
    with pytest.raises(jsonschema.ValidationError, match="0 is not of type 'string'"):
        jsonschema.validate(number, CLUSTER)


def test_bash_takes_the_scripts():
    for script in blocks("bash"):
        done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_ray_takes_every_start_and_the_run_every_option():
    manifest = yaml.safe_load(blocks("yaml")[1])["spec"]["headGroupSpec"]
    options = [f"--{k}={v}" for k, v in manifest["rayStartParams"].items()]
    lines = re.findall(r"(?<!`)ray start (-[^#&\n`|]*)", PAGE)
    assert len(lines) >= 6
    for given in [*map(shlex.split, lines), options]:
        start.make_context("start", [word.replace("$", "") for word in given])
    runs = re.findall(r"python simulations/run\.py ([^#&`|]*?)\n(?! )", PAGE)
    assert len(runs) >= 2
    for line in runs:
        config, *_ = run_asked_for([w.replace("$", "") for w in shlex.split(line)])
        assert config.hosts <= config.clients
