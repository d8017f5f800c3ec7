"""Another release of the operator takes over running jobs, and the first one after it: nothing restarts."""

import shutil
from pathlib import Path

from tests.e2e.lab import Lab, result
from tests.e2e.operators import OperatorProcess

ROOT = Path(__file__).parents[2]


def another_release(folder: Path) -> str:
    """Return a copy of the operator with other defaults and other manifests."""
    for package in ("crds/finetune_api", "operator/finetune_operator"):
        shutil.copytree(ROOT / package, folder / Path(package).name)
    resolve = folder / "finetune_api/resolve.py"
    changed(resolve, "Method.LORA: 1e-4", "Method.LORA: 7e-3")
    changed(resolve, 'MICRO_BATCH_TOKENS = {"cpu": 2048', 'MICRO_BATCH_TOKENS = {"cpu": 512')
    pod = folder / "finetune_operator/manifests/pod.py"
    changed(pod, "SPARE_SECONDS = 10", "SPARE_SECONDS = 33")
    changed(pod, '"enableServiceLinks": False', '"enableServiceLinks": False, "hostname": "other"')
    return str(folder)


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new), "utf-8")


def test_up_and_down_again(lab: Lab, operator: OperatorProcess, tmp_path: Path) -> None:
    # The rate is decided by the operator, and otherwise by the other release.
    free = {"learningRate": None, "maxSteps": 800}
    lab.apply(lab.dataset(), lab.job("carried", training=free))
    lab.wait_for_checkpoint("carried")
    spec = lab.get("ftj", "carried")["spec"]
    resolved = lab.get("ftj", "carried")["status"]["resolved"]
    pod = lab.get("pod", lab.pod_of("carried", "train"))
    for packages in (another_release(tmp_path / "next"), ""):
        operator.stop()
        operator.packages = packages
        operator.name += "x"
        operator.start()
        operator.wait_until_leading()
        body = lab.get("ftj", "carried")
        assert body["spec"] == spec
        assert body["metadata"]["generation"] == 1
        assert body["status"]["resolved"] == resolved
        pods = lab.listed("pods", "finetune.dev/name=carried,finetune.dev/step=train")
        assert [p["metadata"]["uid"] for p in pods] == [pod["metadata"]["uid"]]
        if packages:
            # Killed under the other release, it goes on as it began.
            lab.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=true")
            lab.wait("ftj", "carried", second_attempt, what="at its second attempt")
            lab.wait("ftj", "carried", pods_ready, what="running again")
            pod = lab.get("pod", lab.pod_of("carried", "train"))
            assert pod["spec"].get("hostname") != "other"
    lab.succeeded("carried")
    lab.apply(lab.job("whole", training=free))
    lab.succeeded("whole")
    assert result(lab.output("carried")) == result(lab.output("whole"))


def second_attempt(body: dict) -> bool:  # type: ignore[type-arg]
    return [a["number"] for a in body["status"]["attempts"] if a["step"] == "train"] == [1, 2]


def pods_ready(body: dict) -> bool:  # type: ignore[type-arg]
    found = [c for c in body["status"]["conditions"] if c["type"] == "PodsReady"]
    return found[0]["status"] == "True"
