"""Vault against a real OpenBao: logins and their ends, versions, policies, seals, restarts; scripted answers beside."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import hvac
import jwt
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.integration.secret_stores.servers import (
    ROOT_TOKEN,
    Answer,
    Asked,
    bao,
    bao_on_disk,
    opened,
    scripted,
    unsealed,
)
from tests.support.processes import Running, free_port
from tianji_mw.errors import MissingExtra
from tianji_mw.redact import Secret
from tianji_mw.secrets.base import (
    SecretDenied,
    SecretError,
    SecretMalformed,
    SecretNotFound,
    SecretValue,
    StoreMisconfigured,
    StoreUnreachable,
    field_of,
)
from tianji_mw.secrets.configure import store_of
from tianji_mw.secrets.reference import parse
from tianji_mw.secrets.vault import HashicorpVault

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("secrets-vault")]

Make = Callable[..., HashicorpVault]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with bao(tmp_path_factory.mktemp("bao")) as running:
        yield running


@pytest.fixture(scope="module")
def root(server: Running) -> hvac.Client:
    client = hvac.Client(url=server.url, token=ROOT_TOKEN)
    client.sys.create_or_update_policy("llm", 'path "secret/data/llm/*" { capabilities = ["read"] }')
    client.sys.enable_auth_method("approle")
    put(client, "llm/openai", api_key="sk-1")
    put(client, "other/openai", api_key="sk-2")
    return client


def put(client: hvac.Client, path: str, **secret: Any) -> int:
    return int(client.secrets.kv.v2.create_or_update_secret(path=path, secret=secret)["data"]["version"])


@pytest.fixture
async def make(server: Running) -> AsyncIterator[Make]:
    """Stores on the server of this module, or where the arguments say, closed when the test ends."""
    made: list[HashicorpVault] = []

    def build(**settings: Any) -> HashicorpVault:
        store = HashicorpVault(**{"address": server.url, **settings})
        made.append(store)
        return store

    yield build
    for store in made:
        await store.aclose()


def approle(root: hvac.Client, name: str, *, uses: int = 0, **role: Any) -> dict[str, str]:
    """A role and the settings to log in as it; `uses` logins, 0 for any number."""
    root.auth.approle.create_or_update_approle(name, token_policies=["llm"], secret_id_num_uses=uses, **role)
    return {
        "approle_role_id": root.auth.approle.read_role_id(name)["data"]["role_id"],
        "approle_secret_id": root.auth.approle.generate_secret_id(name)["data"]["secret_id"],
    }


def text(found: SecretValue, ref: str = "vault://x") -> str:
    return field_of(found, parse(ref), "here")


async def fails(store: HashicorpVault, ref: str, kind: type[SecretError], *words: str) -> SecretError:
    with pytest.raises(SecretError) as caught:
        await store.get(parse(ref))
    assert isinstance(caught.value, kind), repr(caught.value)
    assert caught.value.message.startswith(f"vault: {parse(ref).path}: ")
    assert all(word in caught.value.message for word in words), caught.value.message
    return caught.value


async def is_denied(store: HashicorpVault, ref: str) -> bool:
    try:
        await store.get(parse(ref))
    except SecretDenied:
        return True
    return False


# --- values


async def test_fields_and_versions(make: Make, root: hvac.Client) -> None:
    first, second = put(root, "v/turned", key="old", n=1), put(root, "v/turned", key="new", n=2)
    store = make(token=ROOT_TOKEN)
    found = await store.get(parse("vault://v/turned"))
    assert (text(found), text(found, "vault://x#n"), found.version, found.mapping) == ("new", "2", str(second), True)
    pinned = await store.get(parse(f"vault://v/turned?version={first}"))
    assert (text(pinned), pinned.version) == ("old", str(first))
    await fails(store, "vault://v/turned?version=99", SecretNotFound)
    await fails(store, "vault://v/turned?version=latest", SecretMalformed, "number")


async def test_bare_names(make: Make, root: hvac.Client) -> None:
    put(root, "gw/OPENAI_API_KEY", token="sk-3", key="other")
    store = make(token=ROOT_TOKEN, path_prefix="/gw/", field_name="token")
    ref = store.path_of("OPENAI_API_KEY")
    assert field_of(await store.get(ref), ref, "here") == "sk-3"
    assert text(await make(token=ROOT_TOKEN, path_prefix="gw").get(parse("vault://OPENAI_API_KEY"))) == "other"


async def test_version_1_of_the_engine(make: Make, root: hvac.Client) -> None:
    root.sys.enable_secrets_engine("kv", path="old/kv", options={"version": "1"})
    root.secrets.kv.v1.create_or_update_secret("a/b", {"value": "sk-4"}, mount_point="old/kv")
    store = make(token=ROOT_TOKEN, mount="old/kv", kv_version=1)
    found = await store.get(parse("vault://a/b"))
    assert (text(found), found.version) == ("sk-4", "")
    assert await store.list("a") == ["a/b"]
    await fails(store, "vault://a/b?version=1", SecretMalformed, "no versions")
    await fails(store, "vault://a/none", SecretNotFound)
    await fails(make(token=ROOT_TOKEN, kv_version=1), "vault://llm/openai", SecretNotFound, "kv_version")


async def test_deleted_and_destroyed(make: Make, root: hvac.Client) -> None:
    put(root, "v/gone", key="x")
    root.secrets.kv.v2.delete_latest_version_of_secret("v/gone")
    await fails(make(token=ROOT_TOKEN), "vault://v/gone", SecretNotFound, "version 1", "deleted")
    put(root, "v/gone", key="y")
    root.secrets.kv.v2.destroy_secret_versions("v/gone", [1])
    await fails(make(token=ROOT_TOKEN), "vault://v/gone?version=1", SecretNotFound, "destroyed")
    await fails(make(token=ROOT_TOKEN), "vault://v/never", SecretNotFound, "no such secret")
    await fails(make(token=ROOT_TOKEN, mount="nowhere"), "vault://v/never", SecretNotFound)


@pytest.mark.parametrize("path", ["odd/a b/ü&x=1+2", "odd/%2e%2e/x", "odd/ä:@;,$'(x)!~"])
async def test_odd_paths(make: Make, root: hvac.Client, path: str) -> None:
    put(root, path, key=path)
    assert text(await make(token=ROOT_TOKEN).get(parse(f"vault://{path}"))) == path


async def test_names(make: Make, root: hvac.Client) -> None:
    for name in ("one", "two", "sub/three", "sub/deep/four"):
        put(root, f"names/{name}", key="x")
    store = make(token=ROOT_TOKEN)
    everything = ["names/one", "names/sub/deep/four", "names/sub/three", "names/two"]
    assert await store.list("names/") == everything
    assert [n for n in await store.list() if n.startswith("names/")] == everything
    assert await store.list("names/t") == ["names/two"]
    assert await store.list("names/sub") == ["names/sub/deep/four", "names/sub/three"]
    assert await make(token=ROOT_TOKEN, path_prefix="names").list("sub/d") == ["sub/deep/four"]
    assert await store.list("nothing/") == []


# --- who we are


async def test_no_login(make: Make, monkeypatch: pytest.MonkeyPatch, root: hvac.Client) -> None:
    monkeypatch.setenv("VAULT_TOKEN", ROOT_TOKEN)  # taken by the config's loader, and not behind its back
    await fails(make(), "vault://llm/openai", StoreMisconfigured, "token", "approle_role_id")


async def test_without_the_sdk(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("hvac", "hvac.adapters"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"tianji-mw\[vault\]"):
        await make(token="t").get(parse("vault://x"))


async def test_a_token(make: Make, root: hvac.Client) -> None:
    assert await make(token=ROOT_TOKEN).health() is None
    token = root.auth.token.create(policies=["llm"], ttl="1h")["auth"]["client_token"]
    store = make(token=token)
    assert text(await store.get(parse("vault://llm/openai"))) == "sk-1"
    assert 3500 < (await store.health() or 0) <= 3600
    error = await fails(store, "vault://other/openai", SecretDenied, "permission denied")
    assert token not in error.message


async def test_a_token_that_is_not_valid(make: Make, root: hvac.Client) -> None:
    store = make(token="s.wrong-token")
    error = await fails(store, "vault://llm/openai", SecretDenied)
    with pytest.raises(SecretDenied, match="not valid") as caught:
        await store.health()
    assert "wrong-token" not in error.message + caught.value.message


async def test_a_token_that_may_not_look_at_itself(make: Make, root: hvac.Client) -> None:
    token = root.auth.token.create(policies=["llm"], no_default_policy=True)["auth"]["client_token"]
    store = make(token=token)
    assert text(await store.get(parse("vault://llm/openai"))) == "sk-1"
    assert await store.health() is None
    store = make(**approle(root, "blind", uses=1, token_ttl="1h", token_no_default_policy=True))
    for _ in range(2):
        assert 3500 < (await store.health() or 0) <= 3600


async def test_a_token_of_the_config_is_renewed_to_its_end(make: Make, root: hvac.Client) -> None:
    token = root.auth.token.create(policies=["llm"], ttl="3s", explicit_max_ttl="6s")["auth"]["client_token"]
    store, start = make(token=token), time.monotonic()
    while time.monotonic() - start < 4.5:
        assert text(await store.get(parse("vault://llm/openai"))) == "sk-1"
        await asyncio.sleep(0.1)
    while not (ended := await is_denied(store, "vault://llm/openai")) and time.monotonic() - start < 12:
        await asyncio.sleep(0.2)
    assert ended
    assert time.monotonic() - start > 5


async def test_approle_is_renewed_and_logs_in_again_at_the_end(make: Make, root: hvac.Client) -> None:
    store = make(**approle(root, "short", uses=2, token_ttl="3s", token_max_ttl="6s"))
    tokens, start = list[str](), time.monotonic()
    while len(tokens) < 2 and time.monotonic() - start < 8:
        found = await asyncio.gather(*(store.get(parse("vault://llm/openai")) for _ in range(8)))
        assert {text(f) for f in found} == {"sk-1"}
        assert store._login
        if (token := store._login.token.reveal()) not in tokens:
            tokens.append(token)
        await asyncio.sleep(0.1)
    # Renewed after two seconds; the second renewal, after four, is cut short, and a login takes its place.
    assert 3.5 < time.monotonic() - start < 6
    assert len(tokens) == 2


async def test_readers_share_the_login_that_follows_a_revoked_token(make: Make, root: hvac.Client) -> None:
    store = make(**approle(root, "revoked", uses=2, token_ttl="1h"))
    await store.get(parse("vault://llm/openai"))
    assert store._login
    root.auth.token.revoke(store._login.token.reveal())
    found = await asyncio.gather(*(store.get(parse("vault://llm/openai")) for _ in range(20)))
    assert {text(f) for f in found} == {"sk-1"}
    assert 3500 < (await store.health() or 0) <= 3600


async def test_approle_refused_and_denied(make: Make, root: hvac.Client) -> None:
    login = approle(root, "denied", token_ttl="1h")
    await fails(make(**login), "vault://other/openai", SecretDenied, "permission denied")
    error = await fails(
        make(**login | {"approle_secret_id": "no-secret-id"}), "vault://llm/openai", SecretDenied, "approle"
    )
    assert "no-secret-id" not in error.message
    await fails(make(**login, approle_mount="elsewhere"), "vault://llm/openai", SecretDenied, "approle")


async def test_kubernetes(make: Make, root: hvac.Client, tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    claims = {
        "iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:apps:gw",
        "iat": int(time.time()) - 60, "nbf": int(time.time()) - 60, "exp": int(time.time()) + 600,
        "kubernetes.io": {"namespace": "apps", "serviceaccount": {"name": "gw", "uid": "uid-1"}},
    }  # fmt: skip
    file = tmp_path / "token"

    def review(asked: Asked) -> Answer:
        token = json.loads(asked.body)["spec"]["token"]
        user = {"username": "system:serviceaccount:apps:gw", "uid": "uid-1", "groups": ["system:serviceaccounts"]}
        status = {"authenticated": True, "user": user} if token == good else {"authenticated": False, "error": "no"}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status}
        return 201, json.dumps(body), {"content-type": "application/json"}

    good = jwt.encode(claims, key, "RS256")
    with scripted((200, ""), by_request=review) as cluster:
        root.sys.enable_auth_method("kubernetes", path="k8s")
        root.auth.kubernetes.configure(
            cluster.url,
            token_reviewer_jwt=good,
            disable_local_ca_jwt=True,
            mount_point="k8s",
            kubernetes_ca_cert=trustme.CA().cert_pem.bytes().decode().strip(),
        )
        root.auth.kubernetes.create_role(
            "gw", ["gw"], ["apps"], policies=["llm"], ttl="1h", mount_point="k8s", token_type=""
        )
        store = make(kubernetes_role="gw", kubernetes_jwt_file=file, kubernetes_mount="k8s")
        await fails(store, "vault://llm/openai", StoreMisconfigured, "token file")
        file.write_text(jwt.encode(claims | {"exp": claims["exp"] + 1}, key, "RS256"))  # the cluster knows it not
        await fails(store, "vault://llm/openai", SecretDenied, "kubernetes")
        assert cluster.asked
        file.write_text(good + "\n")
        assert text(await store.get(parse("vault://llm/openai"))) == "sk-1"
        assert 3500 < (await store.health() or 0) <= 3600


async def test_namespaces(make: Make, root: hvac.Client, server: Running) -> None:
    root.write_data("sys/namespaces/team", data={})
    inside = hvac.Client(url=server.url, token=ROOT_TOKEN, namespace="team")
    inside.sys.enable_secrets_engine("kv", path="secret", options={"version": "2"})
    put(inside, "llm/openai", key="sk-team")
    inside.sys.create_or_update_policy("llm", 'path "secret/data/llm/*" { capabilities = ["read"] }')
    inside.sys.enable_auth_method("approle")
    assert text(await make(token=ROOT_TOKEN, namespace="team").get(parse("vault://llm/openai"))) == "sk-team"
    store = make(**approle(inside, "gw", token_ttl="1h"), namespace="team/")
    assert text(await store.get(parse("vault://llm/openai"))) == "sk-team"
    assert 3500 < (await store.health() or 0) <= 3600
    # The login of the root namespace, reading in another.
    root.sys.create_or_update_policy("team", 'path "team/secret/data/llm/*" { capabilities = ["read"] }')
    login = approle(root, "outside", token_ttl="1h")
    root.auth.approle.create_or_update_approle("outside", token_policies=["team"])
    store = make(**login, namespace="team", login_namespace="")
    assert text(await store.get(parse("vault://llm/openai"))) == "sk-team"
    await fails(make(**login, namespace="team"), "vault://llm/openai", SecretDenied, "approle")


async def test_the_settings_of_litellm() -> None:
    env = {
        "HCP_VAULT_ADDR": "https://vault.corp", "HCP_VAULT_TOKEN": "t-env", "HCP_VAULT_NAMESPACE": "a",
        "HCP_VAULT_LOGIN_NAMESPACE": "b", "HCP_VAULT_MOUNT_NAME": "kv", "HCP_VAULT_PATH_PREFIX": "gw",
        "HCP_VAULT_CLIENT_CERT": "/c", "VAULT_CACERT": "/ca", "VAULT_ADDR": "https://second",
    }  # fmt: skip
    store = store_of("hashicorp_vault", "vault", {"data": "token"}, env)
    assert isinstance(store, HashicorpVault)
    assert (store.address, store.namespace, store.login_namespace) == ("https://vault.corp", "a", "b")
    assert (store.mount, store.path_prefix, store.field_name) == ("kv", "gw", "token")
    assert (store.client_cert, store.ca_bundle) == (Path("/c"), Path("/ca"))
    assert "t-env" not in repr(store) + str(store) + store.model_dump_json()
    store = store_of("openbao", "bao", {"vault_url": "http://x"}, {"VAULT_TOKEN": "t"})
    assert isinstance(store, HashicorpVault)
    assert store.token == Secret("t")


async def test_nothing_of_it_is_logged(make: Make, root: hvac.Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    login = approle(root, "logged", token_ttl="1h")
    store = make(**login)
    await store.get(parse("vault://llm/openai"))
    await fails(store, "vault://other/openai", SecretDenied)
    assert store._login
    for secret in ("sk-1", login["approle_secret_id"], store._login.token.reveal()):
        assert secret not in caplog.text


# --- a server with TLS that comes and goes


async def test_seals_restarts_and_certificates(make: Make, tmp_path: Path) -> None:
    ca, port = trustme.CA(), free_port()
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key", "client", "client-key", "alien")}
    ca.cert_pem.write_to_path(str(files["ca"]))
    ours = ca.issue_cert("127.0.0.1")
    ours.cert_chain_pems[0].write_to_path(str(files["cert"]))
    ours.private_key_pem.write_to_path(str(files["key"]))
    client = ca.issue_cert("gw.corp", common_name="gw.corp")
    client.private_key_and_cert_chain_pem.write_to_path(str(files["alien"]))
    client.cert_chain_pems[0].write_to_path(str(files["client"]))
    client.private_key_pem.write_to_path(str(files["client-key"]))
    address, tls = f"https://127.0.0.1:{port}", (files["cert"], files["key"])
    admin = hvac.Client(url=address, verify=str(files["ca"]))
    settings = {"address": address, "ca_bundle": files["ca"]}
    with bao_on_disk(tmp_path, port, tls=tls):
        store = make(**settings, token="early")
        with pytest.raises(StoreUnreachable, match="not initialised"):
            await store.health()
        key = opened(admin)
        _fill(admin, files["client"])
        store = make(**settings, client_cert=files["client"], client_key=files["client-key"], cert_role="gw")
        assert text(await store.get(parse("vault://llm/openai"))) == "sk-tls"
        assert 3500 < (await store.health() or 0) <= 3600
        no_ca = await fails(
            make(address=address, token=admin.token), "vault://llm/openai", StoreUnreachable, "ca_bundle"
        )
        assert no_ca.passing
        await fails(
            make(**settings | {"ca_bundle": tmp_path / "no"}, token="t"), "vault://x", StoreMisconfigured, "no file"
        )
        await fails(
            make(**settings, client_cert=files["cert"], client_key=files["key"]),
            "vault://x",
            SecretDenied,
            "cert login",
        )
        admin.sys.seal()
        await fails(store, "vault://llm/openai", StoreUnreachable, "sealed")
        with pytest.raises(StoreUnreachable, match="sealed"):
            await store.health()
        unsealed(admin, key)
        assert text(await store.get(parse("vault://llm/openai"))) == "sk-tls"
    await fails(store, "vault://llm/openai", StoreUnreachable, "cannot be reached")
    with pytest.raises(StoreUnreachable):
        await store.health()
    with bao_on_disk(tmp_path, port, tls=tls):
        await fails(store, "vault://llm/openai", StoreUnreachable, "sealed")
        unsealed(admin, key)
        assert text(await store.get(parse("vault://llm/openai"))) == "sk-tls"
        assert 3000 < (await store.health() or 0) <= 3600


def _fill(admin: hvac.Client, certificate: Path) -> None:
    admin.sys.enable_secrets_engine("kv", path="secret", options={"version": "2"})
    admin.sys.create_or_update_policy("llm", 'path "secret/data/llm/*" { capabilities = ["read"] }')
    for _ in range(50):
        try:  # a new mount is being upgraded for a moment
            put(admin, "llm/openai", key="sk-tls")
            break
        except hvac.exceptions.InvalidRequest:
            time.sleep(0.1)
    admin.sys.enable_auth_method("cert")
    pem = certificate.read_text()
    admin.write_data(
        "auth/cert/certs/gw",
        data={"certificate": pem, "token_policies": "llm", "token_ttl": "1h", "display_name": "gw"},
    )


# --- a server in trouble


def json_answer(status: int, **body: object) -> Answer:
    return status, json.dumps(body), {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("answer", "kind", "word"),
    [
        *((json_answer(status, errors=[]), StoreUnreachable, str(status)) for status in (412, 429, 472, 473, 500, 502)),
        (json_answer(503, errors=["Vault is sealed"]), StoreUnreachable, "sealed"),
        (json_answer(501, errors=[]), StoreUnreachable, "initialised"),
        (json_answer(400, errors=["sk-leaked"]), StoreMisconfigured, "400"),
        (json_answer(404, errors=[]), SecretNotFound, "no such"),
        ((404, "<html>"), SecretNotFound, "no such"),
        ((503, "<html>sk-leaked"), StoreUnreachable, "503"),
        ((200, "{sk-leaked"), SecretMalformed, "JSON"),
        ((200, "[]"), SecretMalformed, "JSON"),
        (json_answer(200, data=None), SecretMalformed, "no secret"),
        (json_answer(200, data={"data": "sk-leaked"}), SecretMalformed, "no secret"),
        (json_answer(200, data={"value": "sk-leaked"}), SecretMalformed, "kv_version"),
    ],
)
async def test_answers(make: Make, answer: Answer, kind: type[SecretError], word: str) -> None:
    def by_request(asked: Asked) -> Answer:
        assert asked.headers["X-Vault-Request"] == "true"
        return answer if asked.path == "/v1/secret/data/x" else json_answer(200, data={"ttl": 0})

    with scripted(answer, by_request=by_request) as fake:
        error = await fails(make(address=fake.url, token="t"), "vault://x", kind, word)
        assert "sk-leaked" not in repr(error) + error.message


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((200, "<html>"), SecretMalformed),
        (json_answer(200, auth={"client_token": ""}), SecretMalformed),
        (json_answer(503, errors=["Vault is sealed"]), StoreUnreachable),
        (json_answer(403, errors=["permission denied"]), SecretDenied),
    ],
)
async def test_answers_to_a_login(make: Make, answer: Answer, kind: type[SecretError]) -> None:
    with scripted(answer) as fake:
        await fails(make(address=fake.url, approle_role_id="r", approle_secret_id="s"), "vault://x", kind)


async def test_a_good_token_outlives_a_renewal_that_fails(make: Make) -> None:
    broken = False

    def by_request(asked: Asked) -> Answer:
        if asked.path == "/v1/secret/data/x":
            return json_answer(200, data={"data": {"key": "sk-5"}, "metadata": {"version": 1}})
        return (
            json_answer(503) if broken else json_answer(200, data={"ttl": 100, "creation_ttl": 400, "renewable": True})
        )

    with scripted((200, ""), by_request=by_request) as fake:
        store = make(address=fake.url, token="t")
        await store.get(parse("vault://x"))
        broken = True
        assert text(await store.get(parse("vault://x"))) == "sk-5"
        assert sum(asked.path.endswith("renew-self") for asked in fake.asked) == 1


async def test_a_token_that_could_not_be_looked_up_at_first_is_renewed_all_the_same(make: Make) -> None:
    lease: dict[str, Any] = {"client_token": "t", "lease_duration": 400, "renewable": True}
    answers = [
        json_answer(503, errors=["sealed"]),
        json_answer(200, data={"ttl": 9, "creation_ttl": 400, "renewable": True}),
    ]

    def by_request(asked: Asked) -> Answer:
        if asked.path.endswith("lookup-self"):
            return answers.pop(0)
        if asked.path.endswith("renew-self"):
            return json_answer(200, auth=lease)
        return json_answer(200, data={"data": {"key": "sk-6"}, "metadata": {"version": 1}})

    with scripted((200, ""), by_request=by_request) as fake:
        store = make(address=fake.url, token="t")
        await fails(store, "vault://x", StoreUnreachable, "sealed")
        for _ in range(3):
            assert text(await store.get(parse("vault://x"))) == "sk-6"
        assert [asked.path for asked in fake.asked if asked.method == "POST"] == ["/v1/auth/token/renew-self"]


async def test_health_of_the_server(make: Make) -> None:
    for status, well in ((200, True), (429, True), (473, True), (472, False), (501, False), (503, False)):

        def by_request(asked: Asked, status: int = status) -> Answer:
            if asked.path != "/v1/sys/health":
                return json_answer(200, data={"ttl": 60})
            assert "X-Vault-Token" not in asked.headers
            assert "X-Vault-Namespace" not in asked.headers
            return json_answer(status, sealed=status == 503)

        with scripted((200, ""), by_request=by_request) as fake:
            store = make(address=fake.url, token="t", namespace="n")
            if well:
                assert 50 < (await store.health() or 0) <= 60
            else:
                with pytest.raises(StoreUnreachable):
                    await store.health()


async def test_no_answer_in_time_and_none_at_all(make: Make) -> None:
    def slow(asked: Asked) -> Answer:
        time.sleep(1.0)
        return json_answer(200)

    with scripted((200, ""), by_request=slow) as fake:
        await fails(make(address=fake.url, token="t", timeout_s=0.1), "vault://x", StoreUnreachable, "ReadTimeout")
    await fails(make(address=f"http://127.0.0.1:{free_port()}", token="t"), "vault://x", StoreUnreachable)


@pytest.mark.parametrize("settings", [{"address": "vault.corp:8200"}, {"address": "http://[bad"}, {"token": "a\nb"}])
async def test_wrong_settings(make: Make, settings: dict[str, Any]) -> None:
    error = await fails(make(**{"token": "t", **settings}), "vault://x", StoreMisconfigured)
    assert "a\nb" not in error.message
