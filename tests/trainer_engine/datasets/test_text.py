"""Text of any editor is decoded, and bytes that are no text are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_engine.datasets.text import NotText, decode

WESTERN = "Übergröße, été, mañana, façade, Ærø, smörgåsbord"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_western_text_is_decoded_in_every_encoding(encoding: str) -> None:
    assert decode(WESTERN.encode(encoding)) == WESTERN


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_utf_16_is_read_in_both_byte_orders_of_its_mark(mark: bytes) -> None:
    encoding = "utf-16-le" if mark == b"\xff\xfe" else "utf-16-be"
    assert decode(mark + "кот и пёс, 猫".encode(encoding)) == "кот и пёс, 猫"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1251", "кот и собака"),
        ("koi8-r", "кот и собака"),
        ("iso8859-7", "γάτα και σκύλος"),
        ("shift-jis", "猫と犬は家の中"),
        ("gbk", "猫和狗在家里"),
        ("big5", "貓和狗在家裡"),
        ("euc-kr", "고양이와 개"),
    ],
)
def test_other_alphabets_are_not_taken_for_latin_1(encoding: str, text: str) -> None:
    with pytest.raises(NotText, match="neither UTF-8 nor Latin-1"):
        decode(text.encode(encoding))


def test_an_odd_number_of_utf_16_bytes_is_no_text() -> None:
    with pytest.raises(NotText):
        decode("猫".encode("utf-16") + b"\x01")


@given(st.binary(max_size=80))
def test_any_bytes_are_text_without_zeros_or_are_refused(content: bytes) -> None:
    try:
        text = decode(content)
    except NotText as refusal:
        assert str(refusal)
    else:
        assert "\0" not in text


@given(st.one_of(st.binary(max_size=40), st.text(st.characters(max_codepoint=127), max_size=40).map(str.encode)))
def test_text_of_ascii_alone_is_read_like_any_other_utf_8(content: bytes) -> None:
    is_plain = content.isascii() and b"\0" not in content
    if is_plain:
        assert decode(content) == content.decode("utf-8-sig") == decode(b"\xef\xbb\xbf" + content)
