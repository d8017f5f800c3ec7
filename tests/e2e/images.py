"""The images that ship, built from their Dockerfiles and brought to the nodes."""

import os
from pathlib import Path

from tests.cluster import Access, Cluster

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
