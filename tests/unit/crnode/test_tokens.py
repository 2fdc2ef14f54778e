"""Join tokens: slips of the hand are told from forgeries, and each works once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from crnode.cluster.document import Role
from crnode.cluster.tokens import (
    MAX_OPEN,
    PREFIX,
    REMEMBER_S,
    Token,
    TokenBook,
    TokenError,
    format_token,
    parse_token,
)
from crnode.errors import CrnodeError, ExitCode

NOW = 1_700_000_000
TOKEN = Token(
    b"c" * 16, bytes(range(32)), b"s" * 16, NOW, "box2", "replica", "shop1", ("shop1:7400", "10.0.0.1:7400")
)


def test_round_trip() -> None:
    assert parse_token(format_token(TOKEN)) == TOKEN


def test_what_copying_does_to_a_text_is_forgiven() -> None:
    text = format_token(TOKEN)
    broken = "\n  ".join(text[place : place + 40] for place in range(0, len(text), 40))
    assert parse_token(f"  {broken.lower()}\t\n") == TOKEN
    assert (
        parse_token(PREFIX + text[len(PREFIX) :].replace("O", "0").replace("I", "1").replace("B", "8"))
        == TOKEN
    )
    assert parse_token("CRNODE1-" + text[len(PREFIX) :]) == TOKEN


def test_each_single_slip_is_found() -> None:
    text = format_token(TOKEN)
    source = random.Random(1)
    for place in range(len(PREFIX), len(text) - 1):  # the last character has bits that belong to nothing
        other = source.choice([char for char in "ACDEFGHJKLMNPQRSTUVWXYZ234567" if char != text[place]])
        wrong = text[:place] + other + text[place + 1 :]
        with pytest.raises(TokenError) as caught:
            parse_token(wrong)
        assert caught.value.code == "token-malformed" and caught.value.exit_code is ExitCode.USAGE


def test_a_copy_that_was_cut_says_how_much_is_missing() -> None:
    text = format_token(TOKEN)
    for cut in (1, 2, 3, 5, 20, 100):
        with pytest.raises(TokenError) as caught:
            parse_token(text[:-cut])
        assert f"{cut} of its {len(text) - len(PREFIX)} characters are missing" in caught.value.why


def test_a_copy_with_more_than_the_token_says_so() -> None:
    text = format_token(TOKEN)
    for more in ("A", "AA", "QWERTYUI", "A" * 100):
        with pytest.raises(TokenError) as caught:
            parse_token(text + more)
        assert f"{len(more)} characters follow its end" in caught.value.why


@pytest.mark.parametrize(
    "text", ["", "   ", "hello", PREFIX, PREFIX + "A", PREFIX + "AA!A", PREFIX + "A" * 5000]
)
def test_other_texts_are_no_tokens(text: str) -> None:
    with pytest.raises(TokenError) as caught:
        parse_token(text)
    assert caught.value.code == "token-malformed" and caught.value.why and caught.value.hint


def test_random_bytes_with_a_right_checksum_are_no_tokens() -> None:
    import base64

    from crnode.cluster import tokens

    source = random.Random(2)
    for _ in range(200):
        body = source.randbytes(source.randrange(0, 200))
        framed = len(body).to_bytes(2, "big") + body
        text = PREFIX + base64.b32encode(framed + tokens._check(framed)).decode().rstrip("=")
        with pytest.raises(TokenError):
            parse_token(text)


@pytest.fixture
def book(tmp_path: Path) -> TokenBook:
    return TokenBook(tmp_path / "tokens.json")


def code_of(book: TokenBook, secret: bytes, key: bytes, now: int = NOW + 1) -> str:
    with pytest.raises(TokenError) as caught:
        book.redeem(secret, key, now)
    assert caught.value.exit_code is ExitCode.REFUSED and caught.value.hint
    return caught.value.code


def test_a_token_works_once_but_again_for_the_same_key(book: TokenBook, tmp_path: Path) -> None:
    secret, expires = book.create("box2", Role.REPLICA, NOW, 3600)
    assert expires == NOW + 3600
    first = book.redeem(secret, b"key one", NOW + 1)
    book.keep_certificate(first, b"certificate")
    reopened = TokenBook(tmp_path / "tokens.json")  # the master was restarted in between
    again = reopened.redeem(secret, b"key one", NOW + 2)
    assert (again.name, again.role, again.incarnation) == ("box2", Role.REPLICA, first.incarnation)
    assert again.certificate
    assert code_of(reopened, secret, b"key two") == "token-used"


def test_expired_unknown_and_withdrawn_are_told_apart(book: TokenBook) -> None:
    secret, expires = book.create("box2", Role.REPLICA, NOW, 3600)
    assert code_of(book, secret, b"key", expires) == "token-expired"
    assert code_of(book, b"x" * 16, b"key") == "token-unknown"
    newer, _ = book.create("box2", Role.REPLICA, NOW, 3600)
    assert code_of(book, secret, b"key") == "token-withdrawn"
    assert book.redeem(newer, b"key", NOW + 1).name == "box2"


def test_an_invitation_is_withdrawn_by_hand(book: TokenBook, tmp_path: Path) -> None:
    secret, _ = book.create("box2", Role.REPLICA, NOW)
    other, _ = book.create("box3", Role.REPLICA, NOW)
    assert [item.name for item in book.open(NOW)] == ["box2", "box3"]
    assert book.withdraw("box2", NOW).name == "box2"
    assert [item.name for item in book.open(NOW)] == ["box3"]
    assert code_of(TokenBook(tmp_path / "tokens.json"), secret, b"key") == "token-withdrawn"
    book.redeem(other, b"key", NOW)
    for name in ("box2", "box3", "nobody"):
        with pytest.raises(CrnodeError, match="no open invitation"):
            book.withdraw(name, NOW)
    book.create("box4", Role.REPLICA, NOW)
    assert book.open(NOW + 25 * 3600) == ()


def test_the_same_key_may_not_come_back_after_the_end(book: TokenBook) -> None:
    secret, expires = book.create("box2", Role.REPLICA, NOW, 3600)
    book.redeem(secret, b"key", NOW)
    assert code_of(book, secret, b"key", expires + 1) == "token-expired"


def test_the_secret_itself_is_not_on_the_disk(book: TokenBook, tmp_path: Path) -> None:
    secret, _ = book.create("box2", Role.REPLICA, NOW)
    stored = (tmp_path / "tokens.json").read_bytes()
    assert secret not in stored and secret.hex().encode() not in stored
    assert (tmp_path / "tokens.json").stat().st_mode & 0o777 == 0o600


def test_the_book_is_bounded_and_forgets(book: TokenBook) -> None:
    for place in range(MAX_OPEN):
        book.create(f"box{place}", Role.REPLICA, NOW)
    with pytest.raises(CrnodeError, match="open already"):
        book.create("one-more", Role.REPLICA, NOW)
    book.create("later", Role.REPLICA, NOW + REMEMBER_S + 31 * 86_400)
    assert len(book.invitations) == 1


@pytest.mark.parametrize("ttl", [0, 59, 31 * 86_400])
def test_odd_lifetimes_are_refused(book: TokenBook, ttl: int) -> None:
    with pytest.raises(CrnodeError) as caught:
        book.create("box2", Role.REPLICA, NOW, ttl)
    assert caught.value.exit_code is ExitCode.USAGE


def test_a_damaged_book_is_said_and_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    path.write_text('{"format": 1, "invitations": [5]}')
    with pytest.raises(CrnodeError, match=r"tokens\.json"):
        TokenBook(path)
    assert path.read_text() == '{"format": 1, "invitations": [5]}'
