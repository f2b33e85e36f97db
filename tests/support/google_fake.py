"""Google in a thread: token endpoint, STS, metadata server and Secret Manager, as strict as the real ones.

`HttpFake` below it is a server of its own for fakes of other vendors.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import jwt
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
AUDIENCE = "//iam.googleapis.com/projects/123456/locations/global/workloadIdentityPools/pool/providers/oidc"
_JWT_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
_JWT_TYPE = "urn:ietf:params:oauth:token-type:jwt"


class Asked(NamedTuple):
    """One request."""

    method: str
    path: str
    query: dict[str, str]
    headers: Any
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(self.body.decode()).items()}


class Fault(NamedTuple):
    """An answer in place of the real one, `hang` seconds late."""

    status: int
    body: Any = b""
    headers: dict[str, str] = {}
    hang: float = 0.0


class HttpFake:
    """A server on a free port of loopback; `answer` serves, unless a fault waits for the path's kind."""

    def __init__(self, ca: trustme.CA | None = None) -> None:
        self.asked: list[Asked] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                parts = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                found = Asked(self.command, unquote(parts.path), query, self.headers, body)
                fake.asked.append(found)
                status, content, headers, hang = fake.answer(found)
                time.sleep(hang)
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                try:
                    self.wfile.write(raw)
                except OSError:
                    pass  # the client has given up

            do_GET = do_POST = do_PUT = serve

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if ca is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            ca.issue_cert("127.0.0.1", "localhost").configure_cert(context)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{'https' if ca else 'http'}://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def answer(self, asked: Asked) -> Fault:
        raise NotImplementedError

    def count(self, part: str) -> int:
        """Requests whose path holds this."""
        return sum(part in asked.path for asked in self.asked)

    def __enter__(self) -> Any:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Key:
    """An RSA key: the private half as PEM, the public one to verify with."""

    def __init__(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
        self.private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none).decode()
        self.public = key.public_key()


class GoogleFake(HttpFake):
    """Secrets of the project "p" and of regions of it; `faults` and `token_faults` are popped, one per request."""

    def __init__(self, ca: trustme.CA) -> None:
        super().__init__(ca)
        self.faults: list[Fault] = []
        self.token_faults: list[Fault] = []
        self.tokens: set[str] = set()
        #: Resource name of a secret -> its versions, as data and state.
        self.secrets: dict[str, list[tuple[bytes, str]]] = {}
        self.aliases: dict[str, int] = {}
        self.denied: set[str] = set()
        self.wrong_crc = 0
        self.page_size = 1000
        self.key, self.pool_key = Key(), Key()

    def put(self, name: str, data: bytes, state: str = "ENABLED", parent: str = "projects/p") -> None:
        self.secrets.setdefault(f"{parent}/secrets/{name}", []).append((data, state))

    # --- what an operator is given

    def service_account(self, **other: str) -> dict[str, str]:
        return {
            "type": "service_account", "project_id": "p", "private_key_id": "k1", "private_key": self.key.private,
            "client_email": "x@p.iam.gserviceaccount.com", "client_id": "1", "token_uri": f"{self.url}/token", **other,
        }  # fmt: skip

    def external_account(self, subject: Path) -> dict[str, Any]:
        return {
            "type": "external_account", "audience": AUDIENCE, "subject_token_type": _JWT_TYPE,
            "token_url": f"{self.url}/sts", "credential_source": {"file": str(subject)},
        }  # fmt: skip

    def subject_token(self, **other: Any) -> str:
        claims = {"iss": "https://idp", "sub": "pod", "aud": "pool", "exp": time.time() + 600, **other}
        return jwt.encode(claims, self.pool_key.private, "RS256")

    def authorized_user(self, **other: str) -> dict[str, str]:
        login = {"client_id": "cid", "client_secret": "csec", "refresh_token": "rt"}
        return {"type": "authorized_user", **login, **other}

    # --- what it answers

    def issue(self) -> dict[str, Any]:
        token = f"ya29.{uuid.uuid4().hex}"
        self.tokens.add(token)
        return {"access_token": token, "expires_in": 3600, "token_type": "Bearer"}

    def answer(self, asked: Asked) -> Fault:
        login = asked.path in ("/token", "/sts")
        faults = self.token_faults if login else self.faults
        if faults:
            return faults.pop(0)
        if login:
            return self._token(asked.form) if asked.path == "/token" else self._exchange(asked.form)
        if asked.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
        found = re.fullmatch(r"/v1/(projects/[^/]+(?:/locations/[^/]+)?)/secrets(?:/([^/]+)/versions/([^/]+):access)?", asked.path)  # fmt: skip # noqa: E501
        if not found or asked.method != "GET":
            return error(404, "NOT_FOUND", f"{asked.method} {asked.path}")
        return self._access(found[1], found[2], found[3]) if found[2] else self._list(found[1], asked.query)

    def _token(self, form: dict[str, str]) -> Fault:
        if form.get("grant_type") == "refresh_token":
            want = {k: v for k, v in self.authorized_user().items() if k != "type"}
            good = {k: form.get(k) for k in want} == want
            return Fault(200, self.issue()) if good else Fault(400, {"error": "invalid_grant"})
        try:
            if form["grant_type"] != _JWT_GRANT or jwt.get_unverified_header(form["assertion"])["kid"] != "k1":
                return Fault(400, {"error": "unsupported_grant_type"})
            claims = jwt.decode(
                form["assertion"], self.key.public, ["RS256"], audience="https://oauth2.googleapis.com/token",
                issuer="x@p.iam.gserviceaccount.com", options={"require": ["iss", "aud", "exp", "iat"]},
            )  # fmt: skip
        except (jwt.PyJWTError, KeyError) as fault:
            return Fault(400, {"error": "invalid_grant", "error_description": f"Invalid JWT: {fault}"})
        if claims["exp"] - claims["iat"] > 3600 or claims.get("scope") != SCOPE:
            return Fault(400, {"error": "invalid_scope"})
        return Fault(200, self.issue())

    def _exchange(self, form: dict[str, str]) -> Fault:
        want = {"grant_type": _EXCHANGE, "audience": AUDIENCE, "subject_token_type": _JWT_TYPE, "scope": SCOPE}
        if {name: form.get(name) for name in want} != want:
            return Fault(400, {"error": "invalid_request"})
        try:
            jwt.decode(form["subject_token"], self.pool_key.public, ["RS256"], audience="pool", issuer="https://idp")
        except jwt.PyJWTError as fault:
            return Fault(400, {"error": "invalid_grant", "error_description": str(fault)})
        return Fault(200, {**self.issue(), "issued_token_type": "urn:ietf:params:oauth:token-type:access_token"})

    def _access(self, parent: str, name: str, version: str) -> Fault:
        full = f"{parent}/secrets/{name}"
        if name in self.denied:
            return denied("secretmanager.versions.access")
        versions = self.secrets.get(full, [])
        number = len(versions) if version == "latest" else self.aliases.get(version) or int(version)
        if not 0 < number <= len(versions):
            return error(404, "NOT_FOUND", f"Secret [{full}] not found or has no versions.")
        data, state = versions[number - 1]
        if state != "ENABLED":
            return error(400, "FAILED_PRECONDITION", f"Secret Version [{full}/versions/{number}] is in {state} state.")
        self.wrong_crc, wrong = max(0, self.wrong_crc - 1), self.wrong_crc > 0
        payload = {"data": base64.b64encode(data).decode(), "dataCrc32c": str(crc32c(data) ^ wrong)}
        return Fault(200, {"name": f"{full}/versions/{number}", "payload": payload, "newField": {"x": 1}})

    def _list(self, parent: str, query: dict[str, str]) -> Fault:
        if "*" in self.denied:
            return denied("secretmanager.secrets.list")
        names = sorted(name for name in self.secrets if name.startswith(f"{parent}/secrets/"))
        start = int(query.get("pageToken", 0))
        end = start + min(int(query["pageSize"]), self.page_size)
        page = {"secrets": [{"name": name} for name in names[start:end]], "totalSize": len(names)}
        return Fault(200, {**page, "nextPageToken": str(end)} if end < len(names) else page)


class Metadata(HttpFake):
    """The metadata server of a machine whose service account is the fake's."""

    def __init__(self, google: GoogleFake) -> None:
        super().__init__()
        self.google = google

    def answer(self, asked: Asked) -> Fault:
        if asked.headers.get("metadata-flavor") != "Google":
            return Fault(403, b"Missing Metadata-Flavor:Google header.")
        account = "/computeMetadata/v1/instance/service-accounts/default"
        answers: dict[str, Any] = {
            "/": b"computeMetadata/",
            "/computeMetadata/v1/project/project-id": b"p",
            f"{account}/": {"email": "x@p.iam.gserviceaccount.com", "scopes": [SCOPE], "aliases": ["default"]},
        }
        body = self.google.issue() if asked.path == f"{account}/token" else answers.get(asked.path)
        headers = {"Metadata-Flavor": "Google"}
        if isinstance(body, bytes):
            headers["content-type"] = "text/plain"
        return Fault(200 if body is not None else 404, body or b"", headers)


def error(status: int, word: str, text: str, *details: Any) -> Fault:
    """An error as Google writes it."""
    return Fault(status, {"error": {"code": status, "message": text, "status": word, "details": list(details)}})


def denied(right: str) -> Fault:
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "IAM_PERMISSION_DENIED"}
    return error(403, "PERMISSION_DENIED", f"Permission '{right}' denied (or it may not exist).", info)


def crc32c(data: bytes) -> int:
    """Castagnoli, by the table of its four-bit halves: another way than the code under test takes."""
    table = [0, 0x105EC76F, 0x20BD8EDE, 0x30E349B1, 0x417B1DBC, 0x5125DAD3, 0x61C69362, 0x7198540D]
    table += [0x82F63B78, 0x92A8FC17, 0xA24BB5A6, 0xB21572C9, 0xC38D26C4, 0xD3D3E1AB, 0xE330A81A, 0xF36E6F75]
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 4 ^ table[(crc ^ byte) & 15]
        crc = crc >> 4 ^ table[(crc ^ byte >> 4) & 15]
    return crc ^ 0xFFFFFFFF
