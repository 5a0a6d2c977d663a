"""TLS: each store is reached through it as its URL says, and a server that can't be trusted is refused with the reason.

MongoDB and MariaDB speak TLS themselves. The Valkey that comes with the package is built without
it, so there stands a TLS end before it, as it does before many a Redis in production.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from pipeline_poc.chaos.servers import MariaDB, Mongo
from pipeline_poc.errors import PipelineError, ServiceUnavailable, SettingsError
from pipeline_poc.migration_queue import MigrationQueue
from pipeline_poc.mongo import Mongo as MongoStore
from pipeline_poc.relational_store import RelationalStore
from pipeline_poc.services import Services
from pipeline_poc.settings import Settings
from pipeline_poc_tests.posts import LONG_AGO, stored

UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority with the certificates of a server here and of one elsewhere, and a foreign authority."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    trustme.CA().cert_pem.write_to_path(folder / "other.pem")
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(folder / "cert.pem", append=number > 0)
    elsewhere = authority.issue_cert("elsewhere.example.org")
    elsewhere.private_key_and_cert_chain_pem.write_to_path(folder / "elsewhere.pem")
    (folder / "garbage.pem").write_text("no certificate", encoding="utf-8")
    return folder


class SecureMongo(Mongo):
    """SecantusDB that speaks TLS only."""

    def __init__(self, files: Path) -> None:
        super().__init__()
        self._files = files

    @property
    def url(self) -> str:
        """Where it answers, with the authority to trust."""
        return f"{super().url}&tls=true&tlsCAFile={self._files / 'ca.pem'}"

    def _command(self) -> list[str]:
        files = ["--tls-cert-file", str(self._files / "cert.pem"), "--tls-key-file", str(self._files / "key.pem")]
        return [*super()._command(), *files]


@pytest.fixture(scope="module")
def secure_mongo(files: Path) -> Iterator[SecureMongo]:
    """A MongoDB that speaks TLS only."""
    with SecureMongo(files) as server:
        yield server


@pytest.fixture(scope="module")
def secure_mariadb(files: Path) -> Iterator[MariaDB]:
    """A MariaDB whose user has to come through TLS."""
    with MariaDB(f"--ssl-cert={files / 'cert.pem'}", f"--ssl-key={files / 'key.pem'}") as server:
        yield server


@pytest.fixture
def secure_sql_url(secure_mariadb: MariaDB) -> str:
    """URL of a database, without anything about TLS."""
    url = secure_mariadb.url("secure")
    secure_mariadb.execute("ALTER USER pipeline@'%' REQUIRE SSL")
    return url


class TlsEnd:
    """Takes TLS connections and passes on what they say to a server that speaks plainly."""

    def __init__(self, certificate: Path, key: Path | None, port: int) -> None:
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificate, key)
        self._port = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._socket.accept()[0],), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            plain,
            self._context.wrap_socket(plain, server_side=True) as client,
            socket.create_connection(("127.0.0.1", self._port)) as server,
        ):
            threading.Thread(target=_pass_on, args=(server, client), daemon=True).start()
            _pass_on(client, server)

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def tls_before_redis(files: Path, redis_url: str) -> Iterator[Callable[..., str]]:
    """Puts a TLS end with a certificate before Redis; returns its URL, without the authority."""
    ends: list[TlsEnd] = []
    port = urlsplit(redis_url).port
    assert port

    def start(certificate: str = "cert.pem", key: str | None = "key.pem") -> str:
        ends.append(TlsEnd(files / certificate, files / key if key else None, port))
        return f"rediss://127.0.0.1:{ends[-1].port}/0"

    yield start
    for end in ends:
        end.close()


def refusal(store: Callable[[], MongoStore | MigrationQueue | RelationalStore]) -> str:
    """Open a store and ask it; returns the error that says why that is not possible."""
    with pytest.raises(PipelineError) as caught, contextlib.closing(store()) as opened:
        opened.ping()
    assert isinstance(caught.value, ServiceUnavailable | SettingsError)
    return str(caught.value)


def mongo(url: str) -> Callable[[], MongoStore]:
    """Return what opens a raw store."""
    return lambda: MongoStore(url, "secure", timeout_s=1.5)


def queue(url: str) -> Callable[[], MigrationQueue]:
    """Return what opens a queue."""
    return lambda: MigrationQueue(url, "secure", timeout_s=5, job_timeout_s=5)


def relational(url: str) -> Callable[[], RelationalStore]:
    """Return what opens a relational store."""
    return lambda: RelationalStore(url, timeout_s=5)


@pytest.mark.mysql
def test_the_whole_way_through_tls(
    secure_mongo: SecureMongo, tls_before_redis: Callable[..., str], secure_sql_url: str, files: Path, tmp_path: Path
) -> None:
    """Settings take the URLs of the documentation, and posts go their whole way through TLS."""
    urls = {
        "mongo_url": secure_mongo.url,
        "redis_url": f"{tls_before_redis()}?ssl_ca_certs={files / 'ca.pem'}",
        "sql_url": f"{secure_sql_url}?ssl_ca={files / 'ca.pem'}",
    }
    with Services(Settings(_env_file=None, data_dir=tmp_path / "data", **urls)) as services:  # type: ignore[arg-type]
        services.open_all()
        services.queue.enqueue(["20240102T030405678-0123abcd"])
        assert len(services.queue.snapshot().queued) == 1
        assert services.relational_store.write([stored(1)], LONG_AGO) == {}
        assert services.relational_store.count() == 1
        assert services.raw_store.counts().stored == 0
        with services.relational_store._engine.connect() as connection:
            cipher = connection.exec_driver_sql("SHOW STATUS LIKE 'Ssl_cipher'").one()[1]
        assert cipher


def test_mongo_trusts_its_own_authority_only(secure_mongo: SecureMongo, files: Path) -> None:
    """A MongoDB of a foreign authority is refused with the reason; one that wants TLS refuses who comes without."""
    url = secure_mongo.url
    for text in (refusal(mongo(url.replace("ca.pem", "other.pem"))), refusal(mongo(url.partition("&tlsCAFile")[0]))):
        assert UNTRUSTED in text
        assert "(MONGO_URL)" in text
    assert "(MONGO_URL) is not available" in refusal(mongo(url.partition("&tls=")[0]))


@pytest.mark.mysql
@pytest.mark.parametrize("name", ["missing.pem", "garbage.pem"])
def test_files_that_can_not_be_used(
    secure_mongo: SecureMongo, tls_before_redis: Callable[..., str], secure_sql_url: str, files: Path, name: str
) -> None:
    """A file that isn't there, or is no certificate, is an error of ours that names the setting."""
    path = files / name
    for opener, setting in (
        (mongo(secure_mongo.url.replace(str(files / "ca.pem"), str(path))), "MONGO_URL"),
        (queue(f"{tls_before_redis()}?ssl_ca_certs={path}"), "REDIS_URL"),
        (relational(f"{secure_sql_url}?ssl_ca={path}"), "SQL_URL"),
    ):
        text = refusal(opener)
        assert setting in text
        assert "no such file" in text.lower() or "not readable" in text or "certificate" in text.lower(), text


def test_redis_trusts_its_own_authority_only(tls_before_redis: Callable[..., str], files: Path) -> None:
    """A Redis of a foreign authority, or with the certificate of another name, is refused with the reason."""
    for text in (
        refusal(queue(f"{tls_before_redis()}?ssl_ca_certs={files / 'other.pem'}")),
        refusal(queue(tls_before_redis())),
        refusal(queue(f"{tls_before_redis('elsewhere.pem', None)}?ssl_ca_certs={files / 'ca.pem'}")),
    ):
        assert UNTRUSTED in text
        assert "(REDIS_URL)" in text


@pytest.mark.mysql
def test_the_relational_store_trusts_its_own_authority_only(secure_sql_url: str, files: Path) -> None:
    """A MariaDB of a foreign authority is refused with the reason; one that wants TLS refuses who comes without."""
    text = refusal(relational(f"{secure_sql_url}?ssl_ca={files / 'other.pem'}"))
    assert UNTRUSTED in text
    assert "(SQL_URL)" in text
    assert "secret@" not in text
    assert "Access denied" in refusal(relational(f"{secure_sql_url}?ssl_disabled=true"))


@pytest.mark.mysql
def test_the_name_of_the_relational_store_is_checked(files: Path) -> None:
    """With an authority to trust, the certificate has to have the name that the URL says."""
    with MariaDB(f"--ssl-cert={files / 'elsewhere.pem'}", f"--ssl-key={files / 'elsewhere.pem'}") as server:
        url = f"{server.url('secure')}?ssl_ca={files / 'ca.pem'}"
        assert "IP address mismatch" in refusal(relational(url))
        store = relational(f"{url}&ssl_check_hostname=false")()
        store.ping()
        store.close()


@pytest.mark.parametrize("surplus", ["ssl_verify_cert", "ssl_verify_identity"])
def test_parameters_that_switch_the_check_off(surplus: str) -> None:
    """What looks like a check, but makes PyMySQL forget the authority or the name, is refused with the remedy."""
    with pytest.raises(SettingsError, match=rf"^SQL_URL .*give ssl_ca in place of {surplus}") as caught:
        RelationalStore(f"mysql://u:S3CRET@host/db?ssl_ca=/ca.pem&{surplus}=true", timeout_s=1)
    assert "S3CRET" not in str(caught.value)
