"""Current copies of all that decisions read, and which key each change wakes."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

import msgspec

from finetune_api.base import GROUP, VERSION
from finetune_api.objects import KINDS, plural
from finetune_operator.cluster.client import BATCH, ApiServer, path_of, path_of_kind
from finetune_operator.cluster.informer import Informer, R
from finetune_operator.cluster.records import (
    Custom,
    Job,
    Meta,
    Pod,
    Profile,
    decode_custom,
    decode_job,
    decode_page,
    decode_pod,
    decode_profile,
)
from finetune_operator.manifests import labels
from finetune_operator.plan import Key

JOB_NAME = "batch.kubernetes.io/job-name"
KEPT_LAST_WORDS = 2000


AnyInformer = Informer[Custom] | Informer[Job] | Informer[Pod] | Informer[Profile]


class _References(msgspec.Struct):
    """Names of other objects in a spec."""

    class Named(msgspec.Struct):
        name: str

    class Source(msgspec.Struct, rename="camel"):
        job_ref: "_References.Named | None" = None

    datasets: list[Named] = []
    eval_datasets: list[Named] = msgspec.field(default_factory=list, name="evalDatasets")
    source: Source | None = None


class Cache:
    """Informers of all resources, for one namespace or for all."""

    def __init__(self, api: ApiServer, namespaces: list[str], wake: Callable[[Key], None]) -> None:
        """Build informers; nothing is read until `run`."""
        self._wake = wake
        self._watchers: dict[Key, set[Key]] = defaultdict(set)
        self._refers_to: dict[Key, set[Key]] = {}
        self._jobs_of: dict[Key, set[tuple[str, str]]] = defaultdict(set)
        self._pods_of: dict[tuple[str, str], dict[str, Pod]] = defaultdict(dict)
        self._pods_of_owner: dict[Key, dict[str, Pod]] = defaultdict(dict)
        self._last_words: dict[tuple[str, str], Pod] = {}
        self.kinds: dict[str, list[Informer[Custom]]] = {}
        self.jobs: list[Informer[Job]] = []
        self.pods: list[Informer[Pod]] = []
        for namespace in namespaces or [""]:
            self._watch(api, namespace)
        profiles = path_of_kind("WorkerProfile", "")
        self.profiles = Informer(api, profiles, decode_profile, lambda *_: self._wake_waiting())

    def _watch(self, api: ApiServer, namespace: str) -> None:
        for kind in KINDS:
            path = path_of(plural(kind), namespace, group=f"/apis/{GROUP}/{VERSION}")
            informer = Informer(api, path, decode_custom, self._on_custom(kind))
            self.kinds.setdefault(kind, []).append(informer)
        ours = labels.UID
        jobs = path_of("jobs", namespace, group=BATCH)
        self.jobs.append(Informer(api, jobs, decode_job, self._on_job, selector=ours))
        pods = path_of("pods", namespace)
        self.pods.append(Informer(api, pods, decode_pod, self._on_pod, selector=ours))

    @property
    def informers(self) -> list[AnyInformer]:
        """All informers."""
        of_kinds = (informer for of_kind in self.kinds.values() for informer in of_kind)
        return [*of_kinds, *self.jobs, *self.pods, self.profiles]

    def _wake_waiting(self) -> None:
        """Wake what may wait for a profile: profiles are few and change seldom."""
        for key in self.all_keys():
            self._wake(key)

    async def wait_until_synced(self) -> None:
        """Return when every list was read once: nothing may be decided before."""
        await asyncio.gather(*(informer.synced.wait() for informer in self.informers))

    def custom(self, key: Key) -> Custom | None:
        """Return an object of ours."""
        name = (key.namespace, key.name)
        found = (informer.objects.get(name) for informer in self.kinds[key.kind])
        return next((record for record in found if record is not None), None)

    def all_keys(self) -> list[Key]:
        """Return all objects of ours."""
        return [
            Key(kind, *name)
            for kind, informers in self.kinds.items()
            for informer in informers
            for name in informer.objects
        ]

    def jobs_of(self, key: Key, uid: str) -> list[Job]:
        """Return the Jobs of an object."""
        found = [self._job(name) for name in self._jobs_of.get(key, ())]
        return [job for job in found if job is not None and job.metadata.labels[labels.UID] == uid]

    def _job(self, name: tuple[str, str]) -> Job | None:
        found = (informer.objects.get(name) for informer in self.jobs)
        return next((job for job in found if job is not None), None)

    def pod(self, namespace: str, name: str) -> Pod | None:
        """Return a pod of ours."""
        found = (informer.objects.get((namespace, name)) for informer in self.pods)
        return next((pod for pod in found if pod is not None), None)

    def pod_of(self, job: Job) -> Pod | None:
        """Return the newest pod of a Job, or the last state of one that is gone."""
        name = (job.metadata.namespace, job.metadata.name)
        pods = self._pods_of.get(name, {})
        newest = max(pods.values(), key=lambda pod: pod.metadata.creation_timestamp or "",
                     default=None)  # fmt: skip
        return newest or self._last_words.get(name)

    def pods_of_name(self, key: Key) -> list[Pod]:
        """Return the pods of all objects that ever had a name."""
        return list(self._pods_of_owner.get(key, {}).values())

    def learn_custom(self, kind: str, body: bytes) -> None:
        """Take the answer to a write of our own."""
        self._of_namespace(self.kinds[kind], decode_custom(body).metadata.namespace).learn(body)

    def learn_job(self, body: bytes) -> None:
        """Take the answer to a write of our own."""
        self._of_namespace(self.jobs, decode_job(body).metadata.namespace).learn(body)

    def learn_pods(self, namespace: str, page: bytes) -> None:
        """Take a list of pods that was asked for by itself."""
        for raw in decode_page(page).items:
            self._of_namespace(self.pods, namespace).learn(raw)

    @staticmethod
    def _of_namespace(informers: list[Informer[R]], namespace: str) -> Informer[R]:
        return next((i for i in informers if f"/namespaces/{namespace}/" in i.path), informers[0])

    def _on_custom(self, kind: str) -> Callable[[Custom | None, Custom | None], None]:
        def changed(old: Custom | None, new: Custom | None) -> None:
            record = new or old
            assert record is not None
            key = Key(kind, record.metadata.namespace, record.metadata.name)
            self._refer(key, new)
            self._wake(key)
            for watcher in self._watchers.get(key, ()):
                self._wake(watcher)

        return changed

    def _refer(self, key: Key, record: Custom | None) -> None:
        """Note which objects a spec names: their changes wake it."""
        for target in self._refers_to.pop(key, ()):
            self._watchers[target].discard(key)
            if not self._watchers[target]:
                del self._watchers[target]
        if record is None:
            return
        try:
            spec = msgspec.json.decode(record.spec, type=_References)
        except msgspec.ValidationError:  # another release's; whoever decides on it will say so
            return
        named = [Key("DatasetRegistration", key.namespace, d.name)
                 for d in [*spec.datasets, *spec.eval_datasets]]  # fmt: skip
        if spec.source is not None and spec.source.job_ref is not None:
            named.append(Key("FineTuneJob", key.namespace, spec.source.job_ref.name))
        self._refers_to[key] = set(named)
        for target in named:
            self._watchers[target].add(key)

    def _on_job(self, old: Job | None, new: Job | None) -> None:
        record = new or old
        assert record is not None
        meta, key = record.metadata, owner_of(record.metadata)
        name = (meta.namespace, meta.name)
        if new is None:
            self._jobs_of[key].discard(name)
            self._last_words.pop(name, None)
            if not self._jobs_of[key]:
                del self._jobs_of[key]
        else:
            self._jobs_of[key].add(name)
        if _tells(old, new):
            self._wake(key)

    def _on_pod(self, old: Pod | None, new: Pod | None) -> None:
        record = new or old
        assert record is not None
        meta = record.metadata
        name, owner = (meta.namespace, meta.labels.get(JOB_NAME, "")), owner_of(meta)
        if new is None:
            _forget(self._pods_of, name, meta.name)
            _forget(self._pods_of_owner, owner, meta.name)
            self._keep_last_word(name, record)
        else:
            self._pods_of[name][meta.name] = record
            self._pods_of_owner[owner][meta.name] = record
        if _tells(old, new):
            self._wake(owner)

    def _keep_last_word(self, name: tuple[str, str], pod: Pod) -> None:
        """Keep the end of a deleted pod while its Job is there."""
        if self._job(name) is not None:
            self._last_words[name] = pod
            while len(self._last_words) > KEPT_LAST_WORDS:
                self._last_words.pop(next(iter(self._last_words)))


C = TypeVar("C", Job, Pod)


def _tells(old: C | None, new: C | None) -> bool:
    """Tell whether a change is one of what decisions look at; most changes of a Job are not."""
    if old is None or new is None or old.metadata.uid != new.metadata.uid:
        return True
    seen = [(each.spec, each.status, each.metadata.deletion_timestamp) for each in (old, new)]
    return seen[0] != seen[1]


K = TypeVar("K")


def _forget(index: dict[K, dict[str, Pod]], key: K, name: str) -> None:
    """Take a pod out of an index, and its key with the last of them."""
    found = index.get(key, {})
    found.pop(name, None)
    if not found:
        index.pop(key, None)


def owner_of(meta: Meta) -> Key:
    """Return the object that a Job or Pod belongs to."""
    found = meta.labels
    return Key(found.get(labels.KIND, ""), meta.namespace, found.get(labels.NAME, ""))
