"""Messages of SQS: text, limits, groups, encryption."""

from __future__ import annotations

import base64
import re

import orjson
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.records import a_payload, a_record
from tianji_mw.callbacks.sqs import Sqs
from tianji_mw.callbacks.sqs_messages import Message, Rules, entry_of, message_of, packed
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime

URL = "http://127.0.0.1:9/1/logs"


@settings(max_examples=200)
@given(text=st.text(max_size=300))
def test_any_text_becomes_ascii_that_reads_the_same(text: str) -> None:
    record = a_record(error_str=text.encode("utf-8", "replace").decode())
    message = message_of(record, Rules(max_bytes=262_144))
    assert message is not None
    assert re.fullmatch(r"[\x20-\x7f]*", message.body)
    assert orjson.loads(message.body) == record.data


def test_long_parts_give_way_and_then_the_record() -> None:
    record = a_record(response={"text": "x" * 5000})
    message = message_of(record, Rules(max_bytes=4096))
    assert message is not None
    assert orjson.loads(message.body)["response"]["truncated"] is True
    assert orjson.loads(message.body)["messages"] == record.data["messages"]
    assert message_of(a_record(error_str="x" * 5000), Rules(max_bytes=4096)) is None


def test_litellms_envelope_around_aes_gcm() -> None:
    key = bytes(range(32))
    record = a_record()
    message = message_of(record, Rules(max_bytes=262_144, key=key, aad=b"tenant"))
    assert message is not None
    envelope = orjson.loads(message.body)
    assert envelope["__encrypted__"] is True
    parts = {name: base64.b64decode(value) for name, value in envelope["payload"].items()}
    assert len(parts["nonce"]) == 12
    plain = AESGCM(key).decrypt(parts["nonce"], parts["ciphertext"] + parts["tag"], b"tenant")
    assert orjson.loads(plain) == record.data


def test_files_are_taken_out() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
    record = a_record(messages=[{"role": "user", "content": [image, {"type": "text", "text": "see"}]}])
    message = message_of(record, Rules(max_bytes=262_144, no_files=True))
    assert message is not None
    assert "base64" not in message.body


def test_groups_and_deduplication_of_fifo() -> None:
    record = a_record()
    message = message_of(record, Rules(max_bytes=262_144, fifo=True))
    assert message is not None
    entry = entry_of(message, 3)
    assert (entry["Id"], entry["MessageGroupId"], entry["MessageDeduplicationId"]) == ("3", "t1", record.id)
    odd = message_of(a_record(metadata={"user_api_key_team_id": "a b/ü" + "x" * 200}), Rules(max_bytes=9999, fifo=True))
    assert odd is not None
    assert re.fullmatch(r"[!-~]{1,128}", odd.group)


@settings(max_examples=60)
@given(sizes=st.lists(st.integers(1, 1024), max_size=60))
def test_requests_keep_the_limits_and_every_message(sizes: list[int]) -> None:
    messages = [Message(a_record(**a_payload()), "x" * size, "") for size in sizes]
    requests = packed(messages, 1024)
    assert [message for request in requests for message in request] == messages
    assert all(len(request) <= 10 and sum(one.size for one in request) <= 1024 for request in requests)


@pytest.mark.parametrize("key", [None, "short", "bm90IDMyIGJ5dGVz"])
async def test_a_key_that_is_none(key: str | None) -> None:
    with pytest.raises(SetupError, match="32 bytes in base64"):
        await Sqs(queue_url=URL, encrypt=True, encryption_key=key).start(Runtime())
