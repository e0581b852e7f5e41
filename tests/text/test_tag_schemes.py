from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.text.columns import Sentence
from recurra.text.tag_schemes import REPAIRED, SCHEMES, Span, convert, detect_scheme, in_scheme, spans, tags_of

# The same chunks in each scheme.
SAME = {
    "iob1": "I-A I-A O I-B B-B I-A",
    "bio": "B-A I-A O B-B B-B B-A",
    "bioes": "B-A E-A O S-B S-B S-A",
}


@st.composite
def chunked(draw):
    """A sentence's length and chunks."""
    chunks, position = [], 0
    for gap, length, kind in draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.sampled_from("AB")))):
        chunks.append(Span(kind, position + gap, position + gap + length))
        position += gap + length
    return position + draw(st.integers(0, 2)), chunks


@pytest.mark.parametrize("given_as", SCHEMES)
@pytest.mark.parametrize("wanted", SCHEMES)
def test_each_scheme_to_each(given_as, wanted):
    assert convert(SAME[given_as].split(), wanted) == tuple(SAME[wanted].split())


@given(chunked(), st.sampled_from(SCHEMES))
def test_chunks_come_back(sentence, scheme):
    length, chunks = sentence
    assert spans(tags_of(chunks, length, scheme)) == chunks


@pytest.mark.parametrize(("scheme", "tags"), SAME.items())
def test_detected(scheme, tags):
    assert detect_scheme([["O"], tags.split()]) == scheme


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        ("DET NOUN O", None),
        ("B-A misc", None),
        ("-LRB- NN", None),
        ("O O", "bio"),
        ("I-A O", "iob1"),
        ("I-A B-A", "iob1"),
        ("I-A I-B", "iob1"),
        ("O I-A O B-A", "bio"),  # BIO with a mistake
        ("B-A L-A O U-B", "bioes"),
        ("B-A-B I-A-B", "bio"),
    ],
)
def test_what_is_detected(tags, scheme):
    assert detect_scheme([tags.split()]) == scheme


# By hand, after the rules of conlleval's startOfChunk and endOfChunk.
@pytest.mark.parametrize(
    ("tags", "chunks"),
    [
        ("O I-A I-A", [("A", 1, 3)]),
        ("B-A I-B I-B O", [("A", 0, 1), ("B", 1, 3)]),
        ("B-A B-A I-A", [("A", 0, 1), ("A", 1, 3)]),
        ("B-A I-A O E-A", [("A", 0, 2), ("A", 3, 4)]),
        ("S-A I-A E-A E-A", [("A", 0, 1), ("A", 1, 3), ("A", 3, 4)]),
        ("I-A S-A B-A", [("A", 0, 1), ("A", 1, 2), ("A", 2, 3)]),
        ("B-A E-B", [("A", 0, 1), ("B", 1, 2)]),
        ("", []),
    ],
)
def test_invalid_tags_are_read_as_conlleval_reads_them(tags, chunks):
    assert spans(tags.split()) == chunks


def test_repairs_are_counted():
    tally: Counter[str] = Counter()
    wrong = Sentence(tuple("abcd"), ("O", "I-A", "B-B", "I-A"))
    right = Sentence(("a",), ("B-A",))
    found = list(in_scheme([wrong, right], "bioes", detected="bio", tally=tally))
    assert [one.tags for one in found] == [("O", "S-A", "S-B", "S-A"), ("S-A",)]
    assert tally == {REPAIRED: 2}


def test_nothing_is_counted_where_all_is_valid():
    tally: Counter[str] = Counter()
    for scheme, tags in SAME.items():
        sentence = Sentence(tuple("abcdef"), tuple(tags.split()))
        list(in_scheme([sentence], "bio", detected=scheme, tally=tally))
    list(in_scheme([Sentence(tuple("abc"), ("B-A", "L-A", "U-A"))], "bio", detected="bioes", tally=tally))
    assert not tally


def test_programmers_mistakes():
    with pytest.raises(ValueError, match="got 'NOUN'"):
        spans(["NOUN"])
    with pytest.raises(ValueError, match="without tags"):
        list(in_scheme([Sentence(("a",))], "bio", detected="bio"))
