"""Where pods run and what they may use: the parts of a pod that a job, or a profile, may choose.

Names and meaning are those of Kubernetes' own Pod. No raw pod spec: what is not here cannot be set.
"""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from finetune_api.base import Model, Rule, ShortText

LabelKey = Annotated[str, Field(min_length=1, max_length=316)]
LabelValue = Annotated[str, Field(max_length=63)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=32)]
Quantity = Annotated[
    str,
    Field(min_length=1, max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"),
]
Quantities = Annotated[dict[ShortText, Quantity], Field(max_length=16)]
ObjectName = Annotated[
    str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
]
Values = Annotated[list[ShortText], Field(max_length=64)]
OWN_PREFIX = "finetune.dev/"


class LocalReference(Model):
    """Another object, by its name."""

    name: ObjectName
    """Its name."""


class Toleration(Model):
    """A taint that pods tolerate, as in a Pod."""

    key: Annotated[str, Field(max_length=316)] | None = None
    """Key of the taint. Unset: all, with operator Exists."""
    operator: Annotated[str, Field(max_length=16, pattern="^(Exists|Equal)$")] | None = None
    """`Exists` or `Equal`. Unset: Equal."""
    value: LabelValue | None = None
    """Value of the taint, with operator Equal."""
    effect: (
        Annotated[str, Field(max_length=32, pattern="^(NoSchedule|PreferNoSchedule|NoExecute)$")]
        | None
    ) = None
    """`NoSchedule`, `PreferNoSchedule` or `NoExecute`. Unset: all."""
    toleration_seconds: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """How long a NoExecute taint is tolerated. Unset: for ever."""


class Operator(StrEnum):
    """How a label is compared."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"
    GREATER = "Gt"
    LESS = "Lt"


class LabelRequirement(Model):
    """What a label must be."""

    key: LabelKey
    """Key of the label."""
    operator: Operator
    """How it is compared; `Gt` and `Lt` for nodes only."""
    values: Values | None = None
    """What it is compared with; none for Exists and DoesNotExist."""


class NodeTerm(Model):
    """Requirements on a node, all of which must hold."""

    match_expressions: Annotated[list[LabelRequirement], Field(min_length=1, max_length=16)]
    """On its labels."""


class NodeTerms(Model):
    """Terms of which one must hold."""

    node_selector_terms: Annotated[list[NodeTerm], Field(min_length=1, max_length=8)]
    """The terms."""


class PreferredNodes(Model):
    """Nodes to be preferred."""

    weight: Annotated[int, Field(ge=1, le=100)]
    """How much."""
    preference: NodeTerm
    """Which."""


class NodeAffinity(Model):
    """Nodes that pods must or should run on, as in a Pod."""

    required_during_scheduling_ignored_during_execution: NodeTerms | None = None
    """Must."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredNodes], Field(max_length=8)] | None
    ) = None
    """Should."""


class LabelSelector(Model):
    """Objects by their labels."""

    match_labels: Labels | None = None
    """Labels they have."""
    match_expressions: Annotated[list[LabelRequirement], Field(max_length=16)] | None = None
    """Requirements on their labels."""


class PodTerm(Model):
    """Pods to be near to, or far from."""

    label_selector: LabelSelector
    """Which pods, in the job's namespace."""
    topology_key: LabelKey
    """Label of nodes that makes "near": `kubernetes.io/hostname`, a zone, ..."""


class PreferredPods(Model):
    """Pods to be preferred."""

    weight: Annotated[int, Field(ge=1, le=100)]
    """How much."""
    pod_affinity_term: PodTerm
    """Which."""


class PodAffinity(Model):
    """Pods that pods must or should be near to, or far from, as in a Pod."""

    required_during_scheduling_ignored_during_execution: (
        Annotated[list[PodTerm], Field(max_length=8)] | None
    ) = None
    """Must."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredPods], Field(max_length=8)] | None
    ) = None
    """Should."""


class Affinity(Model):
    """Where pods are placed, as in a Pod."""

    node_affinity: NodeAffinity | None = None
    """By nodes."""
    pod_affinity: PodAffinity | None = None
    """Near to pods."""
    pod_anti_affinity: PodAffinity | None = None
    """Far from pods."""


class Resources(Model):
    """CPU and memory of each pod, as in a Pod; GPUs come from `gpusPerNode`."""

    requests: Quantities | None = None
    """What a node must have free, e.g. `{cpu: "8", memory: 64Gi}`."""
    limits: Quantities | None = None
    """What a pod may not exceed."""


class Gpu(Model):
    """Which GPUs."""

    resource: Annotated[
        str, Field(min_length=3, max_length=128, pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")
    ] = "nvidia.com/gpu"
    """Name under which nodes offer them."""
    product: LabelValue | None = None
    """Their kind, as the label `<vendor>/gpu.product` of nodes says it, e.g. `NVIDIA-H100-80GB-HBM3`."""


class PodSettings(Model):
    """Placement and marks of a job's pods."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"!has(self.labels) || self.labels.all(k, !k.startsWith('{OWN_PREFIX}'))",
            f"`labels` beginning with {OWN_PREFIX} are the operator's own; use other keys",
        ),
        Rule(
            f"!has(self.annotations) || self.annotations.all(k, !k.startsWith('{OWN_PREFIX}'))",
            f"`annotations` beginning with {OWN_PREFIX} are the operator's own; use other keys",
        ),
    )

    node_selector: Labels | None = None
    """Labels that a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] | None = None
    """Taints of nodes that are tolerated."""
    affinity: Affinity | None = None
    """Finer rules of placement."""
    image_pull_secrets: Annotated[list[LocalReference], Field(max_length=8)] | None = None
    """Secrets of the namespace with credentials of the image's registry."""
    labels: Labels | None = None
    """Further labels of Jobs and pods."""
    annotations: Annotated[dict[LabelKey, ShortText], Field(max_length=32)] | None = None
    """Further annotations of Jobs and pods."""
