"""Images by buildah, without a registry: a base, and what is built on it from Dockerfiles."""

import configparser
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.cluster import tools
from tests.cluster.commands import ClusterError, lock, run, works
from tests.cluster.machine import cache, install_packages, require_disk

PAUSE = "localhost/finetune-pause:1"
BASE = "localhost/finetune-base:1"
SUITE = "bookworm"
BASE_PACKAGES = ("python3", "python3-venv", "ca-certificates")
PATHS = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
BUILD_GIGABYTES = 15
# From buildah's store into a node's: $1 the image, $2 containerd's socket. A file between would double the space.
IMPORT = (
    'set -o pipefail; buildah push --quiet "$1" "docker-archive:/dev/stdout:$1"'
    ' | ctr --address "$2" --namespace k8s.io images import - >/dev/null'
)


def image_id(name: str) -> str:
    """Return the id of an image in buildah's store.

    Raises:
        ClusterError: There is none of that name.
    """
    try:
        return run(
            "buildah", "inspect", "--type", "image", "--format", "{{.FromImageID}}", name
        ).strip()
    except ClusterError as error:
        raise ClusterError(f"no image {name} in buildah's store: build it first") from error


def exists(name: str) -> bool:
    """Return whether buildah's store has an image."""
    return works("buildah", "inspect", "--type", "image", name)


def pause_image() -> str:
    """Return the image that every pod's first container has; made on first use."""
    with lock(cache() / "images.lock"):
        if not exists(PAUSE):
            _from_scratch(
                PAUSE, add=tools.pause(), to="/pause", settings=["--entrypoint", '["/pause"]']
            )
    return PAUSE


def base_image() -> str:
    """Return Debian with Python; made on first use, and kept as a file for stores that lose it."""
    install_packages()
    with lock(cache() / "images.lock"):
        if not exists(BASE):
            _from_scratch(
                BASE, add=_base_files(), to="/", settings=["--env", PATHS, "--cmd", "bash"]
            )
    return BASE


def build(
    dockerfile: Path,
    *,
    context: Path,
    tag: str,
    target: str | None = None,
    arguments: Mapping[str, str] | None = None,
) -> str:
    """Build an image, unless one was built from the same files; return its tag.

    Raises:
        ClusterError: The disk has too little room, or a step failed; with its last lines.
    """
    install_packages()
    options = [f"--build-arg={key}={value}" for key, value in (arguments or {}).items()]
    options += [f"--target={target}"] if target else []
    bases = [image_id(value) for value in (arguments or {}).values() if exists_locally(value)]
    key = _key([dockerfile, *_files(context)], context=context, more=[*options, *bases])
    record = cache() / "images" / f"{hashlib.sha256(tag.encode()).hexdigest()[:16]}.json"
    with lock(record.with_suffix(".lock")):
        seen = json.loads(record.read_text()) if exists(tag) and record.exists() else None
        if seen is not None and seen == {"tag": tag, "key": key, "id": image_id(tag)}:
            return tag
        require_disk(cache(), gigabytes=BUILD_GIGABYTES, purpose=f"building {tag}")
        run(
            "buildah", "build", "--isolation=chroot", "--layers", "--force-rm", "--pull-never", *_build_mounts(),
            *options, "--file", dockerfile, "--tag", tag, context, seconds=3600,
        )  # fmt: skip
        record.write_text(json.dumps({"tag": tag, "key": key, "id": image_id(tag)}))
    return tag


def exists_locally(name: str) -> bool:
    """Return whether a build argument names an image of buildah's store."""
    return name.startswith("localhost/") and exists(name)


def _from_scratch(name: str, *, add: Path, to: str, settings: list[str]) -> None:
    container = run("buildah", "from", "scratch").strip()
    try:
        run("buildah", "add", "--quiet", container, add, to)
        run("buildah", "config", *settings, container)
        run("buildah", "commit", "--quiet", container, name)
    finally:
        works("buildah", "rm", container)


def _base_files() -> Path:
    """Return the base's files as an archive."""
    archive = cache() / f"base-{SUITE}-{platform.machine()}.tar"
    if archive.exists():
        return archive
    require_disk(cache(), gigabytes=2, purpose="the base image")
    mirror = os.environ.get("FINETUNE_TEST_DEBIAN_MIRROR", "")  # without: debootstrap's own
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        root, packed = Path(folder, "root"), Path(folder, "base.tar")
        include = f"--include={','.join(BASE_PACKAGES)}"
        run("debootstrap", "--variant=minbase", include, SUITE, root, *([mirror] if mirror else []))
        for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
            shutil.rmtree(root / waste, ignore_errors=True)
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        run("tar", "--create", "--file", packed, "--directory", root, "--exclude=./dev/*", ".")
        packed.rename(archive)
    return archive


def _files(context: Path) -> list[Path]:
    """Return the files of a context: those that git would keep, or all."""
    listing = ("git", "-C", context, "ls-files", "-co", "--exclude-standard", "-z")
    names = run(*listing).split("\0") if works(*listing) else []
    found = [context / name for name in names if name] or list(context.rglob("*"))
    return sorted(path for path in found if path.is_file())


def _key(files: list[Path], *, context: Path, more: list[str]) -> str:
    digest = hashlib.sha256("\0".join(more).encode())
    for file in files:
        digest.update(f"\0{os.path.relpath(file, context)}\0{file.stat().st_mode}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _build_mounts() -> list[str]:
    """Return mounts that let a build reach this machine's package indexes; the image keeps empty files in their place."""
    folder, downloads = cache() / "build", cache() / "downloads"
    folder.mkdir(exist_ok=True)
    downloads.mkdir(exist_ok=True)
    pip = _pip_settings()
    with (folder / "pip.conf").open("w") as file:
        pip.write(file)
    (folder / "uv.toml").write_text(_uv_settings(pip.get("global", "index-url", fallback="")))
    mounts = [f"{folder / 'pip.conf'}:/etc/pip.conf:ro", f"{folder / 'uv.toml'}:/etc/uv/uv.toml:ro"]
    mounts.append(f"{downloads}:/root/.cache/uv:rw")
    bundle = Path(os.environ.get("SSL_CERT_FILE") or BUNDLE)
    if bundle.exists():
        mounts.append(f"{bundle}:{BUNDLE}:ro")
    return [f"--volume={mount}" for mount in mounts]


def _pip_settings() -> configparser.RawConfigParser:
    settings = configparser.RawConfigParser()
    settings.read(
        ["/etc/pip.conf", Path.home() / ".config/pip/pip.conf", Path.home() / ".pip/pip.conf"]
    )
    if not settings.has_section("global"):
        settings.add_section("global")
    for name in ("index-url", "extra-index-url", "trusted-host", "timeout"):
        if value := os.environ.get("PIP_" + name.upper().replace("-", "_")):
            settings.set("global", name, value)
    settings.set("global", "cert", str(BUNDLE))
    return settings


def _uv_settings(pip_index: str) -> str:
    index = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL") or pip_index
    lines = [
        "native-tls = true",
        'link-mode = "copy"',
        *([f'index-url = "{index}"'] if index else []),
    ]
    own = [Path("/etc/uv/uv.toml"), Path.home() / ".config/uv/uv.toml"]
    text = next((path.read_text() for path in own if path.exists()), "")
    set_there = {line.split("=")[0].strip() for line in text.splitlines()}
    return (
        "\n".join([line for line in lines if line.split(" =")[0] not in set_there] + [text]) + "\n"
    )
