"""The images that ship, built from their Dockerfiles and brought to the nodes."""

import os
import sys
from pathlib import Path

from tests.cluster import Access, Cluster, ClusterError, default_state
from tests.cluster.machine import why_not
from tests.cluster.tools import helm

ROOT = Path(__file__).parents[2]
OPERATOR, PREPARE, TRAINER = (
    "localhost/finetune-operator:test",
    "localhost/finetune-prepare:test",
    "localhost/finetune-trainer:test",
)


def build_all() -> None:
    """Build what is not built from these files yet."""
    from tests.cluster.images import base_image, build

    arguments = {"BASE": base_image()}
    build(ROOT / "operator/Dockerfile", context=ROOT, tag=OPERATOR, arguments=arguments)
    steps = ROOT / "trainer_image/Dockerfile"
    build(steps, context=ROOT, tag=PREPARE, target="prepare", arguments=arguments)
    extra = {**arguments, "EXTRA": "examples/requirements.txt"}
    build(steps, context=ROOT, tag=TRAINER, target="trainer", arguments=extra)


def bring_to(cluster: Access) -> None:
    """Build the images and bring them to every node of this machine's own cluster.

    Another cluster pulls them: whoever names it has pushed them there under these names. With
    FINETUNE_TEST_KEEP_IMAGES set the nodes keep those they have: for work on the operator alone.
    """
    if isinstance(cluster, Cluster) and not os.environ.get("FINETUNE_TEST_KEEP_IMAGES"):
        build_all()
        for image in (OPERATOR, PREPARE, TRAINER):
            cluster.load_image(image)


def main() -> int:
    """Build and load everything that tests with pods need, before any test's time runs."""
    if reason := why_not():
        print(f"No test cluster on this machine ({reason}); tests that need one are skipped")
        return 0
    cluster = Cluster(default_state())
    was_running = cluster.running()
    try:
        print("Bringing up the test cluster and building its images (the first time: 20 minutes)")
        helm()
        cluster.start()
        bring_to(cluster)
    except ClusterError as error:
        print(f"No test cluster on this machine; tests that need one are skipped:\n{error}")
        if os.environ.get("FINETUNE_REQUIRE_CLUSTER"):
            return 1
    finally:
        if not was_running and not os.environ.get("FINETUNE_KEEP_CLUSTER"):
            cluster.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
