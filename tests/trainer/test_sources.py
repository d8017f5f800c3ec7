"""Where models and data come from: each scheme against a real server on this machine."""

import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from finetune_api.contract import Folders
from finetune_api.finetunejob import BaseModelSource
from finetune_api.storage import Location, SecretReference
from finetune_trainer import sources
from finetune_trainer.errors import UserError
from finetune_trainer.models import prepare_model
from tests.fakes.served_hub import COMMIT, Hub, serving
from tests.fakes.tiny import alpaca_rows

ROWS = "".join(json.dumps(row) + "\n" for row in alpaca_rows(5)).encode()


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    for name in ("cache", "claims", "secrets"):
        (tmp_path / name).mkdir()
    return Folders(
        cache=str(tmp_path / "cache"),
        claims=str(tmp_path / "claims"),
        secrets=str(tmp_path / "secrets"),
        base=str(tmp_path),
    )


def fetch(location: Location, folders: Folders) -> Path:
    return sources.fetch(location, folders, what="`spec.source`", patterns=sources.DATA_FILES)


@pytest.fixture
def hub(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in model_folder.iterdir()}
    repositories = {
        "models/org/tiny": {**files, "weights.bin": b"x"},
        "datasets/org/rows": {"train.jsonl": ROWS},
    }
    with serving(Hub(repositories, token="hf_secret")) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


def secret(folders: Folders, **values: str) -> SecretReference:
    for key, value in values.items():
        (Path(folders.secrets) / "creds").mkdir(exist_ok=True)
        (Path(folders.secrets) / "creds" / key).write_text(value + "\n")
    return SecretReference(name="creds")


def test_a_model_of_the_hub(hub: Hub, folders: Folders) -> None:
    source = BaseModelSource(
        uri="hf://org/tiny", credentials_secret_ref=secret(folders, HF_TOKEN="hf_secret")
    )
    found = prepare_model(source, folders)
    assert found.revision == COMMIT
    assert found.parameters > 10_000
    folder = Path(folders.cache) / found.folder
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert not (folder / "weights.bin").exists(), "pickles are not even downloaded"
    before = len(hub.downloads)
    assert prepare_model(source, folders) == found
    assert len(hub.downloads) == before, "downloaded once"


def test_data_of_the_hub(hub: Hub, folders: Folders) -> None:
    location = Location(
        uri="hf://datasets/org/rows", credentials_secret_ref=secret(folders, HF_TOKEN="hf_secret")
    )
    assert (fetch(location, folders) / "train.jsonl").read_bytes() == ROWS


def test_a_token_is_needed_and_absent(hub: Hub, folders: Folders) -> None:
    with pytest.raises(UserError, match="hf://datasets/org/rows.*credentialsSecretRef.*HF_TOKEN"):
        fetch(Location(uri="hf://datasets/org/rows"), folders)


@pytest.fixture
def https_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/to?"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to?"))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            found = self.path in ("/rows.jsonl", "/packed.jsonl")
            self.send_response(200 if found else 404)
            if self.path == "/packed.jsonl":
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(ROWS) if found else 0))
            self.end_headers()
            self.wfile.write(ROWS if found else b"")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_https(https_server: str, folders: Folders) -> None:
    assert fetch(Location(uri=f"{https_server}/rows.jsonl"), folders).read_bytes() == ROWS
    with pytest.raises(UserError, match="404"):
        fetch(Location(uri=f"{https_server}/other.jsonl"), folders)
    with pytest.raises(UserError, match=r"sent compressed \(gzip\).*unpack it there"):
        fetch(Location(uri=f"{https_server}/packed.jsonl"), folders)


def test_what_is_private_is_not_for_tenants(
    https_server: str, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_ALLOWED_HOSTS", "")
    port = https_server.rsplit(":", 1)[1]
    for host in ("localhost", "127.0.0.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "[::1]",
                 "169.254.169.254", "10.0.0.1", "100.64.0.1", "[fd00::1]"):  # fmt: skip
        with pytest.raises(UserError, match=r"private address.*sources\.allowed"):
            fetch(Location(uri=f"https://{host}:{port}/rows.jsonl"), folders)
    monkeypatch.setenv("FINETUNE_ALLOWED_HOSTS", "elsewhere,localhost")
    assert fetch(Location(uri=f"{https_server}/rows.jsonl"), folders).read_bytes() == ROWS


def test_an_endpoint_of_a_secret_is_public(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_ALLOWED_HOSTS", "")
    secret = tmp_path / "secrets" / "s3"
    secret.mkdir(parents=True)
    (secret / "AWS_ENDPOINT_URL").write_text("http://169.254.169.254")
    location = Location(uri="s3://bucket/rows.jsonl", credentials_secret_ref={"name": "s3"})
    with pytest.raises(UserError, match="private address"):
        fetch(location, folders.model_copy(update={"secrets": str(tmp_path / "secrets")}))


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("https://169.254.169.254/latest/meta-data", "private address"),
        ("https://127.0.0.1:1/x", "private address"),
        ("http://localhost:1/x", "is no address"),
        ("file:///etc/passwd", "is no address"),
    ],
)
def test_a_redirect_leads_nowhere_private(
    https_server: str, folders: Folders, monkeypatch: pytest.MonkeyPatch, target: str, why: str
) -> None:
    monkeypatch.setenv("FINETUNE_ALLOWED_HOSTS", "localhost")
    with pytest.raises(UserError, match=why):
        fetch(Location(uri=f"{https_server}/to?{target}"), folders)


def test_a_name_that_means_something_else_a_moment_later(
    https_server: str, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune_trainer import public

    monkeypatch.setenv("FINETUNE_ALLOWED_HOSTS", "")
    monkeypatch.setattr(public, "require_public", lambda *_, **__: None)
    with pytest.raises(UserError, match="private address"):
        fetch(Location(uri=f"{https_server}/rows.jsonl"), folders)


@pytest.fixture
def s3() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_s3(s3: str, folders: Folders) -> None:
    import boto3

    client: Any = boto3.client(
        "s3",
        endpoint_url=s3,
        aws_access_key_id="k",
        aws_secret_access_key="s",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="data")
    client.put_object(Bucket="data", Key="sets/train.jsonl", Body=ROWS)
    client.close()
    keys = secret(folders, AWS_ACCESS_KEY_ID="k", AWS_SECRET_ACCESS_KEY="s", AWS_ENDPOINT_URL=s3)
    one = fetch(Location(uri="s3://data/sets/train.jsonl", credentials_secret_ref=keys), folders)
    assert one.read_bytes() == ROWS
    folder = fetch(Location(uri="s3://data/sets", credentials_secret_ref=keys), folders)
    assert [path.name for path in sources.data_files(folder, subset=None, split=None)] == [
        "train.jsonl"
    ]
    with pytest.raises(UserError, match="s3://data/other.jsonl"):
        fetch(Location(uri="s3://data/other.jsonl", credentials_secret_ref=keys), folders)


def test_claims_files_and_packages(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "claims" / "data").mkdir()
    (tmp_path / "claims" / "data" / "rows.jsonl").write_bytes(ROWS)
    (tmp_path / "rows.jsonl").write_bytes(ROWS)
    for uri in ("pvc://data/rows.jsonl", "file://rows.jsonl", f"file://{tmp_path}/rows.jsonl"):
        assert fetch(Location(uri=uri), folders).read_bytes() == ROWS
    assert fetch(Location(uri="package://finetune_trainer/data/templates"), folders).is_dir()
    with pytest.raises(UserError, match="leaves its claim"):
        fetch(Location(uri="pvc://data/../../rows.jsonl"), folders)
    with pytest.raises(UserError, match="finetune local"):
        fetch(Location(uri="file://rows.jsonl"), folders.model_copy(update={"base": ""}))
