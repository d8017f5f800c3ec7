"""The chart as Helm renders it, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.crd import crd_files
from finetune_operator.permissions import AT_HOME, CLUSTER_WIDE, IN_NAMESPACES, Permission
from finetune_operator.settings import Settings
from tests.charts import CHART, HOME, Helm, Manifest, Manifests, each_old, helm

URL = f"https://finetune-operator-progress.{HOME}.svc:8443"
ACCOUNT = {"kind": "ServiceAccount", "name": "finetune-operator", "namespace": HOME}

__all__ = ["helm"]


def only(manifests: Manifests, kind: str) -> Manifest:
    """Return the one manifest of a kind."""
    found = [manifest for (of_kind, *_), manifest in manifests.items() if of_kind == kind]
    assert len(found) == 1, f"{len(found)} of {kind}"
    return found[0]


def settings_text(manifests: Manifests) -> str:
    return only(manifests, "ConfigMap")["data"]["settings.yaml"]


def settings_of(manifests: Manifests) -> Settings:
    """Read the settings as the operator does, each key set."""
    given = yaml.safe_load(settings_text(manifests))
    settings = Settings.model_validate_json(json.dumps(given))
    assert paths(given) == paths(settings.model_dump(mode="json", by_alias=True))
    return settings


def paths(value: Any, path: str = "") -> list[str]:
    """Return the paths of all that is no map."""
    if not isinstance(value, dict):
        return [path]
    return sorted(inner for key in value for inner in paths(value[key], f"{path}.{key}"))


def pod_of(manifests: Manifests) -> Manifest:
    return only(manifests, "Deployment")["spec"]["template"]


def rules(permissions: tuple[Permission, ...]) -> list[Manifest]:
    return [permission.rule for permission in permissions]


def test_settings_are_the_operators_own(helm: Helm) -> None:
    settings = settings_of(helm.render())
    assert settings == Settings.model_validate(
        {
            "images": {"trainer": "finetune-trainer:0.1.0"},
            "lease": {"namespace": HOME, "name": "finetune-operator"},
            "progress": {"url": URL},
        }
    )


def test_every_value_reaches_the_settings(helm: Helm) -> None:
    given = {
        "images": {"trainer": "t:1", "prepare": "p:1", "pullPolicy": "Never", "pullSecrets": ["s"]},
        "namespaces": ["one", "two"],
        "work": {"className": "fast", "size": "1Gi", "accessMode": "ReadWriteMany"},
        "output": {"className": "slow", "size": "2Gi", "accessMode": "ReadWriteMany"},
        "sources": {
            "allowed": ["hub.example.com"],
            "hfEndpoint": "https://hub.example.com",
            "offline": True,
            "caBundleConfigMap": "ca",
            "proxy": {"http": "http://p:1", "https": "http://p:2", "no": ".example.com"},
        },
        "networkPolicies": False,
        "logTail": False,
        "logFormat": "text",
        "healthPort": 8081,
        "metricsPort": 9091,
        "progress": {"port": 9443, "jobsInMetrics": 7},
    }
    seen = yaml.safe_load(settings_text(helm.render(**given)))
    assert seen.pop("lease") == {"namespace": HOME, "name": "finetune-operator"}
    assert seen["progress"].pop("url") == URL.replace("8443", "9443")
    assert seen == given


def test_without_a_port_nothing_is_received(helm: Helm) -> None:
    found = helm.render(progress={"port": 0})
    assert settings_of(found).progress.url == ""
    assert not [name for _, _, name in found if name.endswith("-progress")]


def test_other_settings_are_other_pods(helm: Helm) -> None:
    checksums = {
        pod_of(helm.render(**values))["metadata"]["annotations"]["checksum/settings"]
        for values in ({}, {"healthPort": 8081}, {"replicas": 1})
    }
    assert len(checksums) == 2, "replicas are no setting"


def test_alerts_and_dashboard_if_asked(helm: Helm) -> None:
    kinds = {kind for kind, *_ in helm.render()}
    assert "PrometheusRule" not in kinds
    found = helm.render(
        prometheusRule={"enabled": True, "labels": {"release": "p"}}, dashboard={"enabled": True}
    )
    rule = only(found, "PrometheusRule")
    assert rule["metadata"]["labels"]["release"] == "p"
    assert rule["spec"]["groups"][0]["rules"]
    board = found["ConfigMap", HOME, "finetune-operator-dashboard"]
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(board["data"]["finetune-operator.json"])["panels"]


@pytest.mark.parametrize("namespaces", [[], ["one", "2024"]], ids=["all", "named"])
def test_roles_are_the_permissions(helm: Helm, namespaces: list[str]) -> None:
    found = helm.render(namespaces=namespaces)
    prefix = f"{HOME}:finetune-operator"
    expected = {
        ("ClusterRole", "", f"{prefix}:cluster"): CLUSTER_WIDE,
        ("Role", HOME, "finetune-operator-home"): AT_HOME,
        **{("Role", name, "finetune-operator"): IN_NAMESPACES for name in namespaces},
    }
    if not namespaces:
        expected["ClusterRole", "", f"{prefix}:namespaces"] = IN_NAMESPACES
    roles = {key: found[key]["rules"] for key in found if key[0] in ("Role", "ClusterRole")}
    assert roles == {key: rules(permissions) for key, permissions in expected.items()}
    for kind, home, name in roles:
        binding = found[f"{kind}Binding", home, name]
        assert binding["subjects"] == [ACCOUNT]
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == (kind, name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replicass": 3}, "additional properties 'replicass' not allowed"),
        ({"images": {"trainr": "x"}}, "at '/images': additional properties 'trainr' not allowed"),
        ({"sources": {"proxy": {"htp": "x"}}}, "at '/sources/proxy': additional properties 'htp'"),
        ({"images": {"pullPolicy": "never"}}, "must be one of 'Always', 'IfNotPresent', 'Never'"),
        ({"image": {"tag": 1.1}}, "at '/image/tag': got number, want string"),
        ({"image": {"digest": "sha256:1"}}, "at '/image/digest': 'sha256:1' does not match"),
        ({"namespaces": ["One"]}, "at '/namespaces/0': 'One' does not match pattern"),
        ({"namespaces": "one"}, "at '/namespaces': got string, want array"),
        ({"work": {"size": "lots"}}, "at '/work/size': 'lots' does not match pattern"),
        ({"output": {"accessMode": "RWX"}}, "at '/output/accessMode': value must be one of"),
        ({"healthPort": 80}, "at '/healthPort': minimum: got 80, want 1,024"),
        ({"sources": None}, "missing property 'sources'"),
        (
            {"metricsPort": 0, "serviceMonitor": {"enabled": True}},
            "serviceMonitor.enabled needs metricsPort, which is 0: set metricsPort",
        ),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused(helm: Helm, values: Manifest, message: str) -> None:
    ended = helm.run("template", "finetune-operator", str(CHART), values=values)
    assert ended.returncode != 0
    assert message in ended.stderr


def test_an_old_cluster_is_refused(helm: Helm) -> None:
    template = ("template", "finetune-operator", str(CHART), "--kube-version")
    assert "requires kubeVersion: >=1.30" in helm.run(*template, "1.29.9").stderr
    assert helm.run(*template, "v1.30.5-gke.100").returncode == 0


def test_crds_come_with_the_chart_and_stay(helm: Helm) -> None:
    found = [
        manifest
        for (kind, *_), manifest in helm.render().items()
        if kind == "CustomResourceDefinition"
    ]
    for manifest in found:
        assert manifest["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    by_name = {manifest["metadata"]["name"].split(".")[0]: manifest for manifest in found}
    assert by_name == {
        name.removesuffix(".yaml"): yaml.safe_load(text) for name, text in crd_files().items()
    }
    without = helm.render(crds={"install": False})
    assert not any(kind == "CustomResourceDefinition" for kind, *_ in without)


def test_one_replica_has_no_disruption_budget(helm: Helm) -> None:
    assert only(helm.render(), "PodDisruptionBudget")["spec"]["minAvailable"] == 1
    assert not any(kind == "PodDisruptionBudget" for kind, *_ in helm.render(replicas=1))


def test_metrics_have_a_service_and_on_wish_a_monitor(helm: Helm) -> None:
    monitored = helm.render(serviceMonitor={"enabled": True, "labels": {"release": "prometheus"}})
    service = monitored["Service", HOME, "finetune-operator-metrics"]
    monitor = only(monitored, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= service["metadata"]["labels"].items()
    assert service["spec"]["selector"].items() <= pod_of(monitored)["metadata"]["labels"].items()
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    names = {name for _, _, name in helm.render(metricsPort=0)}
    assert "finetune-operator-metrics" not in names


def test_a_digest_wins_over_a_tag(helm: Helm) -> None:
    digest = f"sha256:{'0' * 64}"
    found = helm.render(image={"repository": "r.example.com:5000/o", "tag": "2", "digest": digest})
    assert pod_of(found)["spec"]["containers"][0]["image"] == f"r.example.com:5000/o@{digest}"
    assert pod_of(helm.render())["spec"]["containers"][0]["image"] == "finetune-operator:0.1.0"


@each_old
def test_values_of_earlier_releases_go_on(helm: Helm, old: Path) -> None:
    given = yaml.safe_load(old.read_text("utf-8"))
    found = helm.render("--is-upgrade", **given)
    settings = settings_of(found).model_dump(mode="json", by_alias=True)
    for key in settings.keys() & given.keys():
        assert settings[key] == given[key], key
    spec = pod_of(found)["spec"]
    for key in ("nodeSelector", "tolerations", "affinity", "priorityClassName"):
        assert spec[key] == given[key]
    assert spec["containers"][0]["resources"] == given["resources"]
