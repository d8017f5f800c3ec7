"""Certificates of the cluster's own authority, and the kubeconfigs that hold them."""

import base64
import json
from pathlib import Path

from tests.cluster.commands import run

DAYS = "365"
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Pki:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = folder / "ca.crt"

    def make(self) -> None:
        """Make the authority and the key that signs service accounts' tokens, unless they are there."""
        if self.authority.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        key, signer = self.folder / "ca.key", self.folder / "sa.key"
        run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", signer)
        run("openssl", "ec", "-in", signer, "-pubout", "-out", self.folder / "sa.pub")
        run(
            "openssl", "req", "-x509", *_KEY, "-keyout", key, "-out", self.authority,
            "-days", DAYS, "-subj", "/CN=finetune-test",
        )  # fmt: skip

    def issue(
        self, name: str, *, user: str, groups: tuple[str, ...] = (), names: str = ""
    ) -> tuple[Path, Path]:
        """Issue a certificate for a user of groups, or a server of names; return it and its key."""
        request, certificate, key = (self.folder / f"{name}.{end}" for end in ("csr", "crt", "key"))
        if certificate.exists():
            return certificate, key
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={user}"
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(
            f"subjectAltName={names or 'DNS:' + name}\nextendedKeyUsage=serverAuth,clientAuth\n"
        )
        run("openssl", "req", *_KEY, "-keyout", key, "-out", request, "-subj", subject)
        run(
            "openssl", "x509", "-req", "-in", request, "-CA", self.authority, "-CAkey",
            self.folder / "ca.key", "-CAcreateserial", "-out", certificate, "-days", DAYS,
            "-extfile", extensions,
        )  # fmt: skip
        return certificate, key

    def kubeconfig(
        self, name: str, *, server: str, user: str, groups: tuple[str, ...] = ()
    ) -> Path:
        """Return a kubeconfig for a user of groups; it carries what it needs in itself."""
        path = self.folder / f"{name}.kubeconfig"
        certificate, key = self.issue(name, user=user, groups=groups)
        authority, shown, secret = (
            base64.b64encode(file.read_bytes()).decode()
            for file in (self.authority, certificate, key)
        )
        cluster = {"server": server, "certificate-authority-data": authority}
        credentials = {"client-certificate-data": shown, "client-key-data": secret}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "finetune-test", "cluster": cluster}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": name, "context": {"cluster": "finetune-test", "user": user}}],
            "current-context": name,
        }
        path.write_text(json.dumps(content, indent=1))
        path.chmod(0o600)
        return path
