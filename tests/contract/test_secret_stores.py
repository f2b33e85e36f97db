"""The contract of all secret stores: the same questions, each put to the real server or its stand-in."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.secret_store import Memory
from tianji_mw.secrets.base import SecretError, SecretNotFound, SecretStore, field_of
from tianji_mw.secrets.env import Environment
from tianji_mw.secrets.file import Files
from tianji_mw.secrets.reference import Reference

ROOT_TOKEN = "root"


@dataclass
class Backend:
    """A store, and a way to put secrets where it reads them."""

    store: SecretStore
    put: Callable[[str, str], None]
    #: Whether the newest value has a version, and older ones can be read.
    versions: bool = True


Open = Callable[[ExitStack, Path, pytest.MonkeyPatch], Backend]


def memory(stack: ExitStack, folder: Path, env: pytest.MonkeyPatch) -> Backend:
    store = Memory(name="it")
    return Backend(store, store._values.__setitem__, versions=False)


def environment(stack: ExitStack, folder: Path, env: pytest.MonkeyPatch) -> Backend:
    store = Environment(name="it", env={})
    assert isinstance(store.env, dict)
    return Backend(store, store.env.__setitem__, versions=False)


def files(stack: ExitStack, folder: Path, env: pytest.MonkeyPatch) -> Backend:
    def put(name: str, value: str) -> None:
        (folder / name).write_text(value)

    return Backend(Files(name="it", directory=folder), put, versions=False)


def vault(stack: ExitStack, folder: Path, env: pytest.MonkeyPatch) -> Backend:
    import hvac

    from tests.integration.secret_stores.servers import bao
    from tianji_mw.redact import Secret
    from tianji_mw.secrets.vault import HashicorpVault

    running = stack.enter_context(bao(folder))
    client = hvac.Client(url=running.url, token=ROOT_TOKEN)

    def put(name: str, value: str) -> None:
        data = json.loads(value) if value.startswith("{") else {"key": value}
        client.secrets.kv.v2.create_or_update_secret(path=name, secret=data)

    return Backend(HashicorpVault(name="it", address=running.url, token=Secret(ROOT_TOKEN)), put)


def aws(stack: ExitStack, folder: Path, env: pytest.MonkeyPatch) -> Backend:
    import boto3

    from tests.integration.secret_stores.servers import moto
    from tianji_mw.redact import Secret
    from tianji_mw.secrets.aws import AwsSecretsManager

    running = stack.enter_context(moto(folder))
    login = {"aws_access_key_id": "AKIA1", "aws_secret_access_key": "s"}
    client: Any = boto3.client("secretsmanager", region_name="eu-west-1", endpoint_url=running.url, **login)

    def put(name: str, value: str) -> None:
        try:
            client.create_secret(Name=name, SecretString=value)
        except client.exceptions.ResourceExistsException:
            client.put_secret_value(SecretId=name, SecretString=value)

    store = AwsSecretsManager(
        name="it", region="eu-west-1", endpoint_url=running.url, access_key_id="AKIA1", secret_access_key=Secret("s")
    )
    return Backend(store, put)


def google(stack: ExitStack, folder: Path, env: pytest.MonkeyPatch) -> Backend:
    import trustme

    from tests.support.google_fake import GoogleFake
    from tianji_mw.redact import Secret
    from tianji_mw.secrets.google import GoogleSecretManager

    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    env.setenv("REQUESTS_CA_BUNDLE", str(folder / "ca.pem"))
    fake = stack.enter_context(GoogleFake(ca))
    key = Secret(json.dumps(fake.service_account()))
    store = GoogleSecretManager(name="it", endpoint=fake.url, credentials_json=key)
    return Backend(store, lambda name, value: fake.put(name, value.encode()))


def azure(stack: ExitStack, folder: Path, env: pytest.MonkeyPatch) -> Backend:
    import trustme

    from tests.integration.test_secrets_azure import APP, SECRET
    from tests.support.azure_fake import AzureFake
    from tianji_mw.redact import Secret
    from tianji_mw.secrets.azure import AzureKeyVault

    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    fake = stack.enter_context(AzureFake(ca))
    store = AzureKeyVault(
        name="it", vault_url=fake.url, authority_host=fake.url, verify_challenge_resource=False,
        ca_bundle=str(folder / "ca.pem"), client_secret=Secret(str(SECRET)), **APP,
    )  # fmt: skip
    return Backend(store, fake.put)


FAST: tuple[Open, ...] = (memory, environment, files)
REAL: tuple[Open, ...] = (vault, aws, google, azure)


@pytest.fixture(
    scope="module",
    params=[*FAST, *(pytest.param(open_, marks=pytest.mark.slow) for open_ in REAL)],
    ids=lambda open_: open_.__name__,
)
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with ExitStack() as stack:
        env = stack.enter_context(pytest.MonkeyPatch.context())
        yield request.param(stack, tmp_path_factory.mktemp("store"), env)


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[SecretStore]:
    yield backend.store
    await backend.store.aclose()


async def read(store: SecretStore, path: str, field: str = "") -> str:
    ref = Reference(path=path, field=field)
    return field_of(await store.get(ref), ref, path)


async def test_a_text_and_its_change(backend: Backend, store: SecretStore) -> None:
    backend.put("plain", "sk-first")
    assert await read(store, "plain") == "sk-first"
    backend.put("plain", "sk-second\n")
    assert await read(store, "plain") == "sk-second"


async def test_fields_of_a_json_secret(backend: Backend, store: SecretStore) -> None:
    backend.put("json", '{"openai": "sk-o", "port": 5432, "names": ["a"]}')
    assert await read(store, "json", "openai") == "sk-o"
    assert await read(store, "json", "port") == "5432"
    with pytest.raises(SecretNotFound, match="json: the secret has no field 'absent'"):
        await read(store, "json", "absent")


async def test_what_is_absent_names_store_and_path(store: SecretStore) -> None:
    with pytest.raises(SecretNotFound, match=r"^it: .*no-such-name"):
        await store.get(Reference(path="no-such-name"))


async def test_versions(backend: Backend, store: SecretStore) -> None:
    backend.put("counted", "sk-1")
    if not backend.versions:  # then asking for one must not give another
        with pytest.raises(SecretNotFound, match=r"^it: counted"):
            await store.get(Reference(path="counted", version="1"))
        return
    first = await store.get(Reference(path="counted"))
    backend.put("counted", "sk-2")
    second = await store.get(Reference(path="counted"))
    assert first.version
    assert first.version != second.version
    ref = Reference(path="counted", version=first.version)
    assert field_of(await store.get(ref), ref, "counted") == "sk-1"
    with pytest.raises(SecretError, match=r"^it: counted: "):
        await store.get(Reference(path="counted", version="9" * 32))


async def test_names_are_listed_by_their_beginning(backend: Backend, store: SecretStore) -> None:
    for name in ("list-a", "list-b", "other"):
        backend.put(name, "x")
    assert list(await store.list("list-")) == ["list-a", "list-b"]
    assert set(await store.list()) >= {"list-a", "list-b", "other"}


async def test_it_is_well_and_can_be_closed_and_used_again(backend: Backend, store: SecretStore) -> None:
    left = await store.health()
    assert left is None or left > 0
    backend.put("again", "x")
    await store.aclose()
    assert await read(store, "again") == "x"


async def test_nothing_shows_a_value(backend: Backend, store: SecretStore) -> None:
    backend.put("canary", "sk-canary-value")
    found = await store.get(Reference(path="canary"))
    assert "sk-canary-value" not in repr(found) + repr(store) + store.model_dump_json()
