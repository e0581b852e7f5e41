import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.text.tag_schemes import SCHEMES, Span, convert, detect_scheme, parse_tag, spans, tags_of

# The same chunks in each scheme.
SAME = {
    "iob1": "I-A I-A O I-B B-B I-A",
    "bio": "B-A I-A O B-B B-B B-A",
    "bioes": "B-A E-A O S-B S-B S-A",
    "bilou": "B-A L-A O U-B U-B U-A",
}


@st.composite
def chunked(draw):
    """A sentence's length and chunks, without a type among them."""
    chunks, position = [], 0
    kinds = st.sampled_from(["A", "B", ""])
    for gap, length, kind in draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), kinds))):
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
        ("B-A L-A O U-B", "bilou"),
        ("B-A L-A O S-B", "bioes"),
        ("B I O", "bio"),
        ("I O I B", "iob1"),
        ("B E S", "bioes"),
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


def test_one_mistyped_tag_counts_as_outside():
    right = [["O", "B-A", "I-A"]] * 10
    assert detect_scheme([*right[:9], ["B_A", "I-A"]]) == "bio"  # one of twenty that are not O
    assert detect_scheme([*right[:8], ["B_A", "I-A"]]) is None
    assert detect_scheme([["O"] * 100, ["PER", "O"]]) is None  # however much is O
    assert spans(["B_A", "B-A", "x", "I-A"]) == [("A", 1, 2), ("A", 3, 4)]
    assert convert(["B_A", "I-A"], "bio") == ("O", "B-A")


def test_tags_are_a_letter_and_a_type():
    tags = {"O": ("O", ""), "B-A-B": ("B", "A-B"), "L-A": ("E", "A"), "U": ("S", ""), "I": ("I", "")}
    assert {tag: parse_tag(tag) for tag in tags} == tags
    assert [parse_tag(tag) for tag in ("O-A", "B-", "B_A", "DET", "", "-LRB-", "BI")] == [None] * 7
