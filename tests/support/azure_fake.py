"""Azure in a thread: Entra ID's token endpoint, a managed identity and a Key Vault, as strict as the real ones."""

from __future__ import annotations

import base64
import datetime
import hashlib
import time
import uuid
from pathlib import Path
from typing import Any

import jwt
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.google_fake import Asked, Fault, HttpFake

TENANT, CLIENT, SECRET, FEDERATED = "11111111-2222-3333-4444-555555555555", "app", "app-secret", "pod-token"
_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_SCOPE = "https://vault.azure.net/.default"


class Certificate:
    """A certificate of an application, signed by itself."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, CLIENT)])
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(name, name, self.key.public_key(), x509.random_serial_number())
        until = now + datetime.timedelta(days=1)
        self.cert = builder.not_valid_before(now).not_valid_after(until).sign(self.key, hashes.SHA256())

    def write(self, path: Path, password: bytes | None = None) -> str:
        pem = serialization.Encoding.PEM
        lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        key = self.key.private_bytes(pem, serialization.PrivateFormat.PKCS8, lock)
        path.write_bytes(key + self.cert.public_bytes(pem))
        return str(path)

    def thumbprints(self) -> tuple[str, ...]:
        der = self.cert.public_bytes(serialization.Encoding.DER)
        found = (hashlib.sha1(der).digest(), hashlib.sha256(der).digest())
        return tuple(base64.urlsafe_b64encode(print_).decode().rstrip("=") for print_ in found)


class AzureFake(HttpFake):
    """A vault and who may read it; `faults` and `token_faults` are popped, one per request.

    Faults of the vault hit requests with a token only, so that they do not hit its challenges.
    """

    def __init__(self, ca: trustme.CA) -> None:
        super().__init__(ca)
        self.faults: list[Fault] = []
        self.token_faults: list[Fault] = []
        self.tokens: set[str] = set()
        #: Name -> its versions: id, value and attributes.
        self.secrets: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
        #: Name -> code of the 403.
        self.denied: dict[str, str] = {}
        #: What a revoked token is answered with, and tokens are then asked for by.
        self.claims = ""
        self.challenges = 0
        self.certificate = Certificate()

    def put(self, name: str, value: str, **attributes: Any) -> str:
        version = uuid.uuid4().hex
        now = int(time.time())
        plain = {"enabled": True, "created": now, "updated": now, "recoveryLevel": "Recoverable"}
        self.secrets.setdefault(name, []).append((version, value, {**plain, **attributes}))
        return version

    def answer(self, asked: Asked) -> Fault:
        if asked.path.endswith("/v2.0/.well-known/openid-configuration"):
            return self._metadata(asked.path.split("/")[1])
        login = asked.path.endswith("/oauth2/v2.0/token")
        if login or asked.path == "/msi/token":
            if self.token_faults:
                return self.token_faults.pop(0)
            return self._token(asked) if login else self._identity(asked)
        token = asked.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            return self.challenge(
                f', error="insufficient_claims", claims="{self.claims}"' if token and self.claims else ""
            )
        if self.faults:
            return self.faults.pop(0)
        if asked.method != "GET" or asked.query.get("api-version") != "7.4":
            return error(400, "BadParameter")
        kind, _, rest = asked.path.strip("/").partition("/")
        if kind != "secrets":
            return error(404, "NotFound")
        return self._secret(*rest.partition("/")[::2]) if rest else self._list(asked.query)

    def challenge(self, more: str = "") -> Fault:
        self.challenges += 1
        text = f'Bearer authorization="{self.url}/{TENANT}", resource="https://vault.azure.net"{more}'
        body = error(401, "Unauthorized", text="AKV10000: Request is missing a Bearer or PoP token.").body
        return Fault(401, body, {"WWW-Authenticate": text})

    # --- logins

    def _metadata(self, tenant: str) -> Fault:
        base = f"{self.url}/{tenant}"
        ends = {
            "token_endpoint": f"{base}/oauth2/v2.0/token",
            "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
        }
        return Fault(200, {**ends, "issuer": f"{base}/v2.0", "jwks_uri": f"{base}/keys"})

    def issue(self, **more: Any) -> Fault:
        token = f"aad-{uuid.uuid4().hex}"
        self.tokens.add(token)
        return Fault(200, {"token_type": "Bearer", "expires_in": 3599, "access_token": token, **more})

    def _token(self, asked: Asked) -> Fault:
        form = asked.form
        want = {"grant_type": "client_credentials", "client_id": CLIENT, "scope": _SCOPE}
        if asked.path.split("/")[1] != TENANT or {name: form.get(name) for name in want} != want:
            return refused(f"AADSTS700016: Application with identifier '{form.get('client_id')}' was not found.")
        if self.claims and '"nbf"' not in form.get("claims", ""):
            return refused("AADSTS50076: claims are missing.")
        if "client_secret" in form:
            good = form["client_secret"] == SECRET
            return self.issue() if good else refused("AADSTS7000215: Invalid client secret provided.")
        if form.get("client_assertion_type") != _ASSERTION:
            return refused("AADSTS7000216: client_assertion or client_secret is required.")
        return self._assertion(form["client_assertion"], asked.path)

    def _assertion(self, assertion: str, path: str) -> Fault:
        if assertion == FEDERATED:
            return self.issue()
        try:
            head = jwt.get_unverified_header(assertion)
            claims = jwt.decode(
                assertion, self.certificate.key.public_key(), ["RS256", "PS256"], audience=f"{self.url}{path}",
                issuer=CLIENT, options={"require": ["exp", "iss", "sub", "aud", "jti"]},
            )  # fmt: skip
        except jwt.PyJWTError as fault:
            return refused(f"AADSTS700027: Client assertion failed signature validation: {fault}")
        prints = {head[name].rstrip("=") for name in ("x5t", "x5t#S256") if name in head}
        if claims["sub"] != CLIENT or not prints or not prints <= set(self.certificate.thumbprints()):
            return refused("AADSTS700027: The certificate is not registered.")
        return self.issue()

    def _identity(self, asked: Asked) -> Fault:
        """App Service's managed identity."""
        if asked.headers.get("x-identity-header") != "inside":
            return Fault(403, {"message": "X-IDENTITY-HEADER"})
        if asked.query.get("resource") != "https://vault.azure.net":
            return Fault(400, {"message": "resource"})
        return self.issue(expires_on=str(int(time.time()) + 3600), resource="https://vault.azure.net")

    # --- the vault

    def _secret(self, name: str, version: str) -> Fault:
        if name in self.denied:
            return error(403, "Forbidden", self.denied[name])
        found = [one for one in self.secrets.get(name, []) if version in ("", one[0])]
        if not found:
            text = f"A secret with (name/id) {name} was not found in this key vault."
            return error(404, "SecretNotFound", text=text)
        id_, value, attributes = found[-1]
        if not attributes["enabled"]:
            return error(403, "Forbidden", "SecretDisabled", "Operation get is not allowed on a disabled secret.")
        return Fault(200, {"value": value, "id": f"{self.url}/secrets/{name}/{id_}", "attributes": attributes})

    def _list(self, query: dict[str, str]) -> Fault:
        if "*" in self.denied:
            return error(403, "Forbidden", self.denied["*"])
        most, start = int(query.get("maxresults", 25)), int(query.get("$skiptoken", 0))
        if not 1 <= most <= 25:
            return error(400, "BadParameter")
        names = sorted(self.secrets)
        end = start + most
        page = [{"id": f"{self.url}/secrets/{name}", "attributes": {"enabled": True}} for name in names[start:end]]
        next_ = f"{self.url}/secrets?api-version=7.4&$skiptoken={end}&maxresults={most}" if end < len(names) else None
        return Fault(200, {"value": page, "nextLink": next_})


def error(status: int, code: str, inner: str = "", text: str = "no") -> Fault:
    """An error as Key Vault writes it."""
    more = {"innererror": {"code": inner}} if inner else {}
    return Fault(status, {"error": {"code": code, "message": text, **more}})


def refused(text: str) -> Fault:
    """An error as Entra ID writes it."""
    return Fault(401, {"error": "invalid_client", "error_description": text, "error_codes": [700027]})
