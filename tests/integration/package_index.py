"""A package index over HTTPS with hand-made wheels, for the real uv."""

import base64
import io
import ssl
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def wheel(
    name: str,
    version: str,
    *,
    requires: Sequence[str] = (),
    extras: Sequence[str] = (),
    files: Mapping[str, str | bytes] | None = None,
    scripts: Mapping[str, str] | None = None,
) -> tuple[str, bytes]:
    """A wheel's file name and content; `scripts` are console scripts (name to `module:function`)."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    metadata = [
        "Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}",
        *(f"Provides-Extra: {extra}" for extra in extras),
        *(f"Requires-Dist: {line}" for line in requires),
    ]  # fmt: skip
    content: dict[str, str | bytes] = dict(
        files if files is not None else {f"{module}.py": f"version = {version!r}\n"}
    )
    content[f"{info}/METADATA"] = "\n".join(metadata) + "\n"
    content[f"{info}/WHEEL"] = (
        "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    entries = [f"{script} = {target}" for script, target in (scripts or {}).items()]
    content[f"{info}/entry_points.txt"] = "\n".join(["[console_scripts]", *entries]) + "\n"
    content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
    return f"{module}-{version}-py3-none-any.whl", data.getvalue()


class PackageIndex:
    """What the index serves. `url` is that of the simple API; files below `private` need `user` and `password`."""

    def __init__(self, address: str, certificates: Path) -> None:
        self.address = address
        self.certificates = certificates
        self.down = False
        self.user, self.password = "reader", "pass-w0rd-of-the-index"
        self._files: dict[str, dict[str, bytes]] = {}

    @property
    def url(self) -> str:
        return f"https://{self.address}/simple"

    def add(self, *wheels: tuple[str, bytes]) -> None:
        for filename, content in wheels:
            project = filename.partition("-")[0].replace("_", "-")
            self._files.setdefault(project, {})[filename] = content

    def answer(self, path: str, authorization: str | None) -> tuple[int, bytes]:
        """The status and the body for a GET."""
        if self.down:
            return 503, b""
        match path.strip("/").split("/"):
            case ["simple", project] if project in self._files:
                links = (f'<a href="/files/{project}/{name}">{name}</a>' for name in self._files[project])
                return 200, "".join(links).encode()
            case ["files", project, name] if name in self._files.get(project, {}):
                return 200, self._files[project][name]
            case ["private", project, name] if name in self._files.get(project, {}):
                expected = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
                return (
                    (200, self._files[project][name]) if authorization == f"Basic {expected}" else (401, b"")
                )
        return 404, b""


@contextmanager
def serve(folder: Path) -> Iterator[PackageIndex]:
    """An empty index on a free port of the loopback address; its certificates go into `folder`."""
    certificates, key = _certificates(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(key)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, body = index.answer(self.path, self.headers.get("Authorization"))
            self.send_response(status)
            kind = "text/html" if self.path.startswith("/simple") else "binary/octet-stream"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-cache")
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="index"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 the name is the standard library's

        def log_message(self, format: str, *_args: object) -> None:  # noqa: A002 so named in the base class
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        index = PackageIndex(f"127.0.0.1:{server.server_port}", certificates)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield index
        finally:
            server.shutdown()
            thread.join()


def _certificates(folder: Path) -> tuple[Path, Path]:
    """A file with the authority's certificate, and one with the server's key and certificate."""
    now = datetime.now(UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
        for text in ("tests' authority", "127.0.0.1")
    ]

    def issue(subject: int, *, authority: bool) -> x509.Certificate:
        public = keys[subject].public_key()
        alternative = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
        return (
            x509.CertificateBuilder(names[0], names[subject], public, x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(alternative, critical=False)
            .sign(keys[0], hashes.SHA256())
        )

    pem = serialization.Encoding.PEM
    ca, server = folder / "ca.pem", folder / "server.pem"
    ca.write_bytes(issue(0, authority=True).public_bytes(pem))
    private = keys[1].private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    server.write_bytes(private + issue(1, authority=False).public_bytes(pem))
    return ca, server
