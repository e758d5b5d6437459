"""Secrets stay out of what is shown, whatever form they take and wherever a stream is cut."""

import base64
import json
import random
from itertools import pairwise
from urllib.parse import quote, quote_plus

import pytest

from executor.ingestion.masking import Masker, MaskRegistry, StreamMasker

PASSWORD = 'p@ss "wörd"\\/$x'
KEY = "-----BEGIN KEY-----\nMIIEvQIBADANBg+kq/hkiG9w0BAQ==\n  indented line \n-----END KEY-----\n"


def streamed(masker: Masker, data: bytes, cuts: list[int]) -> bytes:
    stream = masker.stream()
    edges = [0, *cuts, len(data)]
    return b"".join(stream.feed(data[a:b]) for a, b in pairwise(edges)) + stream.flush()


@pytest.mark.parametrize(
    "form",
    [
        PASSWORD,
        json.dumps(PASSWORD)[1:-1],
        json.dumps(PASSWORD, ensure_ascii=False)[1:-1],
        json.dumps(json.dumps(PASSWORD)[1:-1])[1:-1],
        repr(PASSWORD)[1:-1],
        repr(PASSWORD.encode())[2:-1],
        quote(PASSWORD),
        quote_plus(PASSWORD),
        base64.b64encode(PASSWORD.encode()).decode(),
        base64.b64encode(PASSWORD.encode()).decode().rstrip("="),
    ],
)
def test_every_encoding_of_a_value_is_masked(form: str) -> None:
    assert Masker([PASSWORD]).mask(f"before {form} after") == "before **** after"


@pytest.mark.parametrize(
    "form",
    [
        KEY,
        KEY.replace("\n", "\r\n"),
        KEY.strip(),
        json.dumps(KEY)[1:-1],
        json.dumps(KEY.replace("\n", "\r\n"))[1:-1],
        repr(KEY)[1:-1],
        "MIIEvQIBADANBg+kq/hkiG9w0BAQ==",
        "indented line",
        quote(KEY),
    ],
)
def test_a_multi_line_value_is_masked_whole_and_line_by_line(form: str) -> None:
    masked = Masker([KEY]).mask(f"before {form} after")
    assert "MII" not in masked
    assert "indented" not in masked
    assert masked.startswith("before ****")
    assert masked.endswith(" after")


def test_short_lines_of_a_value_are_no_secrets_of_their_own() -> None:
    assert Masker(["}\nlong enough\n{"]).mask("a } b { c long enough") == "a } b { c ****"


@pytest.mark.parametrize("value", ["", "ab", "12", "true", "False", "NULL", "none", "   ", " a "])
def test_a_value_that_would_blank_the_log_is_counted_instead(value: str) -> None:
    masker = Masker([value, "hunter2"])
    text = f"12 true False NULL none   ab {value}"
    assert masker.mask(text) == text
    assert masker.unmaskable == 1


def test_a_secret_within_another_does_not_uncover_it() -> None:
    masker = Masker(["secret", "secret-and-more", "more-of-it"])
    assert masker.mask("x secret-and-more-of-it y secret z") == "x **** y **** z"


def test_overlaps_of_a_secret_with_itself_are_masked() -> None:
    assert Masker(["abcdefab"]).mask("-abcdefabcdefab-") == "-****-"


def test_values_that_an_environment_could_not_decode_are_masked_as_bytes_and_as_text() -> None:
    masker = Masker(["caf\udce9-secret"])
    assert masker.mask_bytes(b"<caf\xe9-secret>") == b"<****>"
    assert "secret" not in masker.mask("<caf\udce9-secret>")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the latest testing of my_test1", "the latest testing of my_test1"),
        ("test", "****"),
        ("user=test&x", "user=****&x"),
        (r'{"a": "line\ntest\n"}', r'{"a": "line\n****\n"}'),
        ("a%20test%20b", "a%20****%20b"),
        ("\x1b[31mtest\x1b[0m", "\x1b[31m****\x1b[0m"),
        ("Basic dGVzdA==", "Basic ****"),
    ],
)
def test_a_short_value_is_masked_where_it_stands_alone(text: str, shown: str) -> None:
    assert Masker(["test"]).mask(text) == shown
    assert streamed(Masker(["test"]), text.encode(), list(range(1, len(text)))).decode() == shown


KEYSTORE = "\n".join(base64.b64encode(random.Random(n).randbytes(57)).decode() for n in range(16_000))
WITH_PASSWORDS = "".join(f"user{n}: p{n:05d} # of {n}\n" for n in range(1000))


def test_a_very_long_value_is_masked_in_a_time_that_grows_with_its_length_alone() -> None:
    masker = Masker([KEYSTORE])
    lines = KEYSTORE.split("\n")
    for shown in (
        masker.mask(f"{lines[7]}"),
        masker.mask(f"key: {lines[8]}, {lines[9]}"),
        masker.mask(json.dumps({"key": KEYSTORE})),
        masker.mask(repr(KEYSTORE)),
        masker.mask(quote(KEYSTORE)),
        masker.mask(base64.b64encode(KEYSTORE.encode()).decode()),
    ):
        assert "****" in shown
        assert not any(line[:20] in shown or line[-20:] in shown for line in lines)
        assert len(shown) < 16_000 * 10


def test_a_line_of_a_very_long_value_is_masked_where_it_stands_alone() -> None:
    assert Masker([WITH_PASSWORDS]).mask("x\n  user7: p00007 # of 7\r\ny") == "x\n  ****\r\ny"


@pytest.mark.parametrize("value", [KEYSTORE, WITH_PASSWORDS])
def test_a_very_long_value_stays_masked_however_a_stream_is_cut(value: str) -> None:
    rng = random.Random(5)
    masker, lines = Masker([value]), value.split("\n")
    for _ in range(200):
        parts = [rng.choice(lines), "\n", "an ordinary line\n", json.dumps("\n".join(lines[5:8])), " ", "\n"]
        data = ("\n" + "".join(rng.choices(parts, k=12)) + ".").encode()
        cuts = sorted(rng.choices(range(len(data) + 1), k=rng.randint(0, 12)))
        assert streamed(masker, data, cuts) == streamed(masker, data, []), (data, cuts)


def test_a_stream_that_ends_without_a_line_end_shows_its_last_line_unless_it_begins_a_secret() -> None:
    masker = Masker([KEYSTORE])
    assert streamed(masker, b"one\nlast words", [5]) == b"one\nlast words"
    assert streamed(masker, b"one\n" + KEYSTORE[:30].encode(), [5]) == b"one\n****"
    assert streamed(masker, b"one\nkey: " + KEYSTORE[:30].encode(), [5]) == b"one\nkey: ****"


def test_without_a_secret_in_it_the_data_comes_back_itself() -> None:
    data = b"nothing to see"
    assert Masker(["hunter2"]).mask_bytes(data) is data


def test_a_union_masks_the_values_of_both() -> None:
    both = Masker(["alpha-1", "x"]) | Masker(["beta-22"])
    assert both.mask("alpha-1 beta-22") == "**** ****"
    assert both.unmaskable == 1
    assert both.with_values(["gamma-3"]).mask("alpha-1 gamma-3") == "**** ****"


def test_the_repr_tells_no_secret() -> None:
    assert "hunter2" not in repr(Masker(["hunter2"]))


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_secret_across_two_chunks_is_masked(cut: int) -> None:
    stream = Masker(["hunter2"]).stream()
    first = stream.feed(b"pw=" + b"hunter2"[:cut])
    assert first in (b"pw=", b"pw=****")
    assert first + stream.feed(b"hunter2"[cut:] + b"!") + stream.flush() == b"pw=****!"


def test_a_stream_holds_back_only_what_may_begin_a_secret() -> None:
    stream = Masker(["hunter2"]).stream()
    assert stream.feed(b"a prompt> ") == b"a prompt> "
    assert stream.feed(b"the hunt") == b"the "
    assert stream.feed(b" goes on") == b"hunt goes on"


def test_a_stream_broken_off_inside_a_secret_does_not_show_its_beginning() -> None:
    stream = Masker(["correct horse battery staple"]).stream()
    assert stream.feed(b"pw=correct horse batt") + stream.flush() == b"pw=****"
    assert stream.feed(b"more co") + stream.flush() == b"more co"


def test_however_a_stream_is_cut_it_shows_what_the_whole_would() -> None:
    rng = random.Random(7)
    for _ in range(3000):
        sizes = [rng.choice([3, 4, 5, 8, 9]) for _ in range(rng.randint(1, 4))]  # words, and what is none
        values = ["".join(rng.choices("ab*", k=size)) for size in sizes]
        data = "".join(rng.choices("aab*-", k=rng.randint(0, 50))).encode() + b"."
        cuts = sorted(rng.choices(range(len(data) + 1), k=rng.randint(0, 8)))
        masker = Masker(values)
        whole = streamed(masker, data, [])
        assert streamed(masker, data, cuts) == whole, (values, data, cuts)


def test_no_secret_leaves_any_stream() -> None:
    rng = random.Random(11)
    for _ in range(2000):
        values = ["".join(rng.choices("ab", k=rng.randint(8, 10))) for _ in range(rng.randint(1, 3))]
        data = "".join(rng.choices([*"ab-", *values], k=30)).encode()
        shown = streamed(Masker(values), data, sorted(rng.choices(range(41), k=6)))
        assert not any(value.encode() in shown for value in values), (values, data, shown)


def test_an_endless_repetition_of_a_secret_is_not_held_back() -> None:
    stream = Masker(["aaaaaaaa"]).stream()
    shown = b"".join(stream.feed(b"a" * 1000) for _ in range(10)) + stream.feed(b"b") + stream.flush()
    assert shown == b"****b"


def test_a_stream_without_secrets_hands_on_what_it_gets() -> None:
    stream: StreamMasker = Masker().stream()
    chunk = b"\x00\xff anything"
    assert stream.feed(chunk) == chunk
    assert stream.flush() == b""


def test_the_registry_masks_what_is_active_and_counts_those_who_share() -> None:
    registry, masker = MaskRegistry(), Masker(["hunter2"])
    with registry.add(masker):
        registry.add(masker)
        registry.add(Masker(["hunter2-long"]))
        assert registry.mask("hunter2 hunter2-long") == "**** ****"
    assert registry.mask("hunter2") == "****"
    registry.remove(masker)
    assert registry.mask("hunter2") == "hunter2"
    assert registry.mask("hunter2-long") == "****"
