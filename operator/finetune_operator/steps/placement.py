"""Which profile a job gets, and what its pods therefore are. Pure."""

from finetune_api.compute import DEFAULT_GRACE_SECONDS, FREE_VARIABLES, Workers
from finetune_api.finetunejob import FineTuneJob
from finetune_api.pods import LabelRequirement, LabelSelector, Operator
from finetune_api.workerprofile import WorkerProfile, WorkerProfileSpec
from finetune_operator.plan import Observed, Placement


def placement_of(job: FineTuneJob, observed: Observed) -> Placement:
    """Return where the pods of a job go and what they get."""
    spec = job.spec
    return Placement(
        workers=spec.workers or Workers(),
        scheduling=spec.scheduling,
        storage=spec.storage,
        profile=profile_of(spec.workers, observed),
    )


def default_placement(observed: Observed) -> Placement:
    """Return where the pods of an object go that chooses nothing."""
    return Placement(profile=profile_of(None, observed))


def grace_seconds(placement: Placement) -> int:
    """Return the seconds that training has to save a checkpoint."""
    given = placement.workers.termination_grace_period_seconds
    of_profile = placement.profile.termination_grace_period_seconds if placement.profile else None
    return given or of_profile or DEFAULT_GRACE_SECONDS


def profile_of(workers: Workers | None, observed: Observed) -> WorkerProfileSpec | None:
    """Return the profile that was named, or the default of the namespace."""
    named = workers.profile_ref.name if workers and workers.profile_ref else None
    usable = [p for p in observed.profiles.values() if _is_for(p, observed.namespace_labels)]
    if named is not None:
        return next((p.spec for p in usable if p.metadata.name == named), None)
    defaults = sorted(
        (p for p in usable if p.metadata.is_default),
        # One made for the namespace goes before one for all.
        key=lambda p: (p.spec.namespace_selector is None, p.metadata.name),
    )
    return defaults[0].spec if defaults else None


def missing_profile(workers: Workers | None, observed: Observed) -> str | None:
    """Return what is wrong with the profile that a job names, or None."""
    if workers is None or workers.profile_ref is None or observed.machine is not None:
        return None
    if profile_of(workers, observed) is not None:
        return None
    name = workers.profile_ref.name
    if name in observed.profiles:
        return (
            f"WorkerProfile '{name}' is not for this namespace (its `spec.namespaceSelector`); name"
            " another in `spec.workers.profileRef`, or ask whoever runs the cluster"
        )
    return f"WorkerProfile '{name}' does not exist; create it, or correct `spec.workers.profileRef`"


def refused_variables(workers: Workers | None, observed: Observed) -> list[str]:
    """Return a refusal for each variable that a job may not set."""
    profile = profile_of(workers, observed)
    allowed = set(profile.allowed_env) if profile else set()
    return [
        f"`spec.workers.env[{index}].name` {variable.name!r} is not allowed; it must begin with"
        f" {', '.join(FREE_VARIABLES)}, or stand in `spec.allowedEnv` of the WorkerProfile; remove it"
        for index, variable in enumerate((workers.env if workers else None) or [])
        if not variable.name.startswith(FREE_VARIABLES) and variable.name not in allowed
    ]


def _is_for(profile: WorkerProfile, labels: dict[str, str]) -> bool:
    selector = profile.spec.namespace_selector
    return selector is None or selects(selector, labels)


def selects(selector: LabelSelector, labels: dict[str, str]) -> bool:
    """Tell whether a selector takes an object with these labels."""
    wanted = selector.match_labels or {}
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _holds(requirement, labels) for requirement in selector.match_expressions or []
    )


def _holds(requirement: LabelRequirement, labels: dict[str, str]) -> bool:
    values, found = requirement.values or [], labels.get(requirement.key)
    match requirement.operator:
        case Operator.IN:
            return found in values
        case Operator.NOT_IN:
            return found not in values
        case Operator.EXISTS:
            return found is not None
        case Operator.DOES_NOT_EXIST:
            return found is None
        case _:  # Gt and Lt compare numbers of nodes; namespaces have none
            return False
