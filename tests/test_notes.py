"""Signed notes: the specification's own example, what is made here, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.transparency.notes import BadKey, BadNote, SigningKey, VerifierKey, open_note, split_note

# The example of C2SP's signed-note.
VERIFIER_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
NOTE = (
    "This is an example message.\n"
    "\n"
    "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
# The example of Go's package sumdb/note, whose key signs what the verifier key of the same example checks.
GO_SIGNING_KEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_VERIFIER_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
# The same in every run: they are part of the names of tests.
ANN = SigningKey.parse("PRIVATE+KEY+example.com/ann+1b3fc9b7+Acd9A7Au7I+qc6trwr7DpyQZLm5wLSoWizoACXB4vD9l")
BOB = SigningKey.parse("PRIVATE+KEY+example.com/bob+cf7f9cf8+ARPHhAPUhK7hxIvKqNCQUmGOAbJpKIzHv7u440MH0c7M")


def test_the_example_of_the_specification_verifies() -> None:
    assert open_note(NOTE, [VerifierKey.parse(VERIFIER_KEY)]) == "This is an example message.\n"


def test_a_note_is_signed_as_go_signs_it() -> None:
    key = SigningKey.parse(GO_SIGNING_KEY)

    assert str(key.verifier_key) == GO_VERIFIER_KEY
    assert key.sign(GO_NOTE.partition("\n\n")[0] + "\n") == GO_NOTE


@given(st.text(st.characters(blacklist_categories=("Cs", "Cc"), whitelist_characters="\n")))
def test_what_a_key_signs_its_verifier_key_opens(text: str) -> None:
    assert open_note(ANN.sign(f"{text}\n"), [ANN.verifier_key]) == f"{text}\n"


def test_keys_are_read_back_from_their_texts() -> None:
    assert SigningKey.parse(f" {ANN}\n") == ANN
    assert VerifierKey.parse(f" {ANN.verifier_key}\n") == ANN.verifier_key


def test_a_signing_key_does_not_show_itself() -> None:
    assert str(ANN).split("+", 4)[4] not in repr(ANN)
    assert repr(ANN) == "SigningKey(name='example.com/ann')"


def test_a_note_may_have_signatures_of_others_too() -> None:
    note = ANN.sign("text\n") + BOB.sign("text\n").partition("\n\n")[2]

    assert open_note(note, [BOB.verifier_key]) == "text\n"
    assert [signature.name for signature in split_note(note)[1]] == [ANN.name, BOB.name]


def test_a_key_of_the_same_name_is_another_key() -> None:
    impostor = SigningKey.generate(ANN.name)

    with pytest.raises(BadNote, match="none of the known keys"):
        open_note(impostor.sign("text\n"), [ANN.verifier_key])
    both = ANN.sign("text\n") + impostor.sign("text\n").partition("\n\n")[2]
    assert open_note(both, [ANN.verifier_key]) == "text\n"


def test_one_wrong_signature_of_a_known_key_spoils_the_note() -> None:
    note = ANN.sign("text\n") + BOB.sign("another text\n").partition("\n\n")[2]

    with pytest.raises(BadNote, match=r"example\.com/bob is wrong"):
        open_note(note, [ANN.verifier_key, BOB.verifier_key])


def test_any_change_of_the_text_is_found() -> None:
    note = ANN.sign("size 12\n")
    for wrong in (note.replace("12", "13"), f"\n{note}", note.replace("12\n", "12\n\n", 1)):
        with pytest.raises(BadNote):
            open_note(wrong, [ANN.verifier_key])


@pytest.mark.parametrize(
    "note",
    [
        "",
        "text\n",
        "text\n\n",
        "— a AAAAAAA=\n",
        NOTE[:-1],
        NOTE.replace("— ", "- "),
        NOTE.replace("Uw2Q", "Uw2*"),
        NOTE.replace("aQM=", "aQN="),
        NOTE.replace("This", "This\t"),
        NOTE.replace("This", "\ud800"),
        NOTE.replace("example.com/foo", "example.com+foo"),
        NOTE.partition("\n\n")[0] + "\n\n— example.com/foo Uw2QOg==\n",
        NOTE + NOTE.partition("\n\n")[2] * 64,
    ],
)
def test_what_is_no_note_is_refused(note: str) -> None:
    with pytest.raises(BadNote):
        open_note(note, [VerifierKey.parse(VERIFIER_KEY)])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com/foo",
        VERIFIER_KEY.replace("530d903a", "530d903b"),
        VERIFIER_KEY.replace("example.com/foo", "example.com/bar"),
        VERIFIER_KEY.replace("example.com/foo", ""),
        VERIFIER_KEY.replace("example.com/foo", "example com"),
        VERIFIER_KEY.replace("example.com/foo", "example.com/\ud800"),
        VERIFIER_KEY.replace("Aeky", "Beky"),
        VERIFIER_KEY[:-4],
        str(ANN),
    ],
)
def test_what_is_no_verifier_key_is_refused(text: str) -> None:
    with pytest.raises(BadKey):
        VerifierKey.parse(text)


@pytest.mark.parametrize("text", ["", VERIFIER_KEY, str(ANN)[:-4], str(ANN).replace("/ann+", "/bob+")])
def test_what_is_no_signing_key_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(BadKey) as refused:
        SigningKey.parse(text)
    assert len(text) < 10 or text[-20:] not in str(refused.value)


@pytest.mark.parametrize("text", ["", "no line break", "a\ttab\n"])
def test_a_text_that_cannot_be_a_note_is_not_signed(text: str) -> None:
    with pytest.raises(BadNote):
        ANN.sign(text)
