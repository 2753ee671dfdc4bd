"""docs/protocol.md says what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from linkd.core import backoff, link, liveness
from linkd.net import auth, http_head
from linkd.net.listener import MAX_POST_BYTES, MAX_POSTS
from linkd.pairing.invitations import MAX_WRONG_PROOFS
from linkd.pairing.server import CODE_SECONDS
from linkd.protocol import peer
from linkd.protocol.records import MAX_BATCH_BYTES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "protocol_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def document() -> str:
    return (ROOT / "docs" / "protocol.md").read_text()


def test_the_tables_are_current(tables: ModuleType, document: str) -> None:
    assert tables.rewritten(document) == document, "run: python -m docs.protocol_tables"


def test_every_message_and_struct_has_its_table(tables: ModuleType, document: str) -> None:
    shown = set(re.findall(r"<!-- (\w+) -->", document)) - {"end"}
    assert shown == set(tables.STRUCTS)
    assert {each.__name__ for each in get_args(peer.Message)} <= shown


def test_every_field_is_explained(tables: ModuleType) -> None:
    for struct in tables.STRUCTS.values():
        for line in tables.table(struct).splitlines()[2:]:
            assert line.split("|")[-2].strip(), line


def test_a_changed_table_is_noticed(tables: ModuleType, document: str) -> None:
    spoilt = document.replace("| 1 | version | integer", "| 1 | version | string")
    assert spoilt != document
    assert tables.rewritten(spoilt) == document


@pytest.mark.parametrize(
    "words",
    [
        f"subprotocol `{peer.SUBPROTOCOL}`",
        f"at most {peer.MAX_MESSAGE_BYTES:,} bytes",
        f"at most {MAX_BATCH_BYTES:,} bytes of records",
        f"`POST {http_head.TOKEN_PATH}`",
        f"`{http_head.LINK_PATH}`",
        f"`{http_head.NODE_HEADER}`, `{http_head.NONCE_HEADER}: NONCE`"
        f" and `{http_head.PROOF_HEADER}: PROOF`",
        f"within {auth.NONCE_LIFETIME:.0f} s",
        f"at least {auth.MIN_SECRET_CHARACTERS} characters",
        f"up to {auth.MAX_NONCE_CHARACTERS} of",
        f"body of at most {MAX_POST_BYTES // 1024} KiB",
        f"within {CODE_SECONDS / 60:.0f} min",
        f"{backoff.UNREACHABLE_DELAY:g} s ± {backoff.JITTER:.0%}".replace("%", " %"),
        f"{backoff.REJECTED_DELAY:g} s ± {backoff.JITTER:.0%}".replace("%", " %"),
        f"at most {backoff.MAX_RETRY_AFTER:g} s counts",
        f"the next URL {backoff.NEXT_URL_DELAY:g} s after",
        f"TCP is given up after {backoff.TCP_TIMEOUT:g} s",
        f"receives {liveness.FLOW_BYTES} bytes",
        f"{liveness.MIN_INTERVAL:.0f} to {liveness.MAX_INTERVAL:.0f} s",
        f"within {link.CLONE_WINDOW:g} s run on two hosts",
        f"for {link.CLONE_MEMORY:g} s",
    ],
)
def test_numbers_and_names_in_the_text(document: str, words: str) -> None:
    assert words in re.sub(r"\s+", " ", document)


def test_numbers_that_stand_as_words() -> None:
    assert MAX_POSTS == 4
    assert MAX_WRONG_PROOFS == 10
    assert link.CLONE_TAKEOVERS == 3
    assert backoff.PATIENT_EVERY == 4


def test_the_example_s_proof(document: str) -> None:
    proof = auth.prove(b"0123456789abcdef" * 2, "dialer", "edge-1", "hub", "nonce")
    assert f"`{proof}`" in document
