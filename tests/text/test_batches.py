import itertools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recurra.config import UserError
from recurra.text import tokenizer as tokenizer_module
from recurra.text.batches import Batch, ContiguousStreams, LineBatches, TokenStream, write_tokens
from recurra.text.corpora import open_text
from recurra.text.documents import Document, Text
from recurra.text.tokenizer import KINDS, TokenizerSettings, build_tokenizer

needs_data = pytest.mark.skipif("RECURRA_DATA" not in os.environ, reason="RECURRA_DATA is not set")


def documents(*texts: str) -> Text:
    return Text(tuple(document for text in texts for document in Text.from_string(text).documents))


def words(text: Text):
    return build_tokenizer(text, TokenizerSettings(tokenizer="whitespace", min_count=1))


# ids 2.. stand for words, 1 for a line's end: lines of 0 to 5 words
ids_of_lines = st.lists(st.lists(st.integers(2, 9), max_size=5), min_size=1, max_size=40).map(
    lambda lines: [i for line in lines for i in [*line, 1]]
)


class TestTokenStream:
    TEXT = documents("a b  c\n\nb\n", "", "c <unk> d", "\n")

    @pytest.mark.parametrize("on_disk", [True, False])
    def test_what_it_knows(self, tmp_path, on_disk):
        tokenizer = words(documents("a a a a b b b c c\n"))
        encode = (
            (lambda: write_tokens(self.TEXT, tokenizer, tmp_path / "t"))
            if on_disk
            else (lambda: TokenStream.from_text(self.TEXT, tokenizer))
        )
        stream = encode()
        assert stream.tokens.tolist() == [2, 3, 4, 1, 1, 3, 1, 4, 0, 0, 1, 1]
        assert stream.document_starts.tolist() == [0, 7, 11]  # the empty document is nowhere
        assert stream.line_starts.tolist() == [0, 4, 5, 7, 11]
        assert len(stream) == 12
        assert stream.characters == len("a b  c\n\nb\nc <unk> d\n\n")
        assert stream.words == 12
        assert stream.unknown_tokens == 2
        assert stream.vocabulary == tokenizer.vocabulary.digest()

    @pytest.mark.parametrize("kind", KINDS)
    def test_file_and_memory_hold_the_same(self, tmp_path, kind, monkeypatch):
        text = documents("one two, three\n" * 3 + "four " * 30, "\n\nfive  six\n", "seven")
        tokenizer = build_tokenizer(text, TokenizerSettings(tokenizer=kind))
        memory = TokenStream.from_text(text, tokenizer)
        monkeypatch.setattr(tokenizer_module, "BLOCK", 8)  # many arrays, and lines in pieces
        write_tokens(text, tokenizer, tmp_path / "t")
        mapped = TokenStream.open(tmp_path / "t")
        for name in ("tokens", "document_starts", "line_starts"):
            assert isinstance(getattr(mapped, name), np.memmap)
            assert getattr(mapped, name).tolist() == getattr(memory, name).tolist()
        for name in ("characters", "words", "unknown_tokens", "vocabulary"):
            assert getattr(mapped, name) == getattr(memory, name)
        assert tokenizer.decode(mapped.tokens).count("\n") == len(mapped.line_starts) == 8

    @pytest.mark.parametrize(("size", "bytes_each"), [(2**16, 2), (2**16 + 1, 4)])
    def test_two_bytes_where_the_vocabulary_allows(self, tmp_path, size, bytes_each):
        text = documents(" ".join(map(str, range(size - 2))))
        stream = write_tokens(text, words(text), tmp_path / "t")
        assert stream.tokens.itemsize == bytes_each
        assert sorted(stream.tokens.tolist()) == [1, *range(2, size)]

    def test_an_empty_text_is_refused_and_leaves_no_file(self, tmp_path):
        for use in (lambda text, t: write_tokens(text, t, tmp_path / "t"), TokenStream.from_text):
            with pytest.raises(UserError, match="the text is empty: there is not a line in it"):
                use(documents("", ""), words(documents("a")))
        assert list(tmp_path.iterdir()) == []

    def test_an_error_in_the_middle_leaves_the_old_file(self, tmp_path, monkeypatch):
        text = documents("a b c\n" * 9)
        tokenizer = words(text)
        before = write_tokens(text, tokenizer, tmp_path / "t").tokens.tolist()
        monkeypatch.setattr(tokenizer_module, "BLOCK", 8)

        def failing():
            yield from text.lines()
            raise UserError("bad byte")

        with pytest.raises(UserError, match="bad byte"):
            write_tokens(Text((Document("d", failing),)), tokenizer, tmp_path / "t")
        assert TokenStream.open(tmp_path / "t").tokens.tolist() == before
        assert [file.name for file in tmp_path.iterdir()] == ["t"]

    @pytest.mark.parametrize(
        "damage", [lambda data: data[:-1], lambda data: b"", lambda data: b"not tokens at all, but text\n"]
    )
    def test_part_of_a_file_is_refused(self, tmp_path, damage):
        text = documents("a b c\n")
        write_tokens(text, words(text), tmp_path / "t")
        (tmp_path / "t").write_bytes(damage((tmp_path / "t").read_bytes()))
        with pytest.raises(UserError, match="not a token file, or only a part of one"):
            TokenStream.open(tmp_path / "t")

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(UserError, match="t: cannot be read"):
            TokenStream.open(tmp_path / "t")

    @needs_data
    def test_wikitext_has_its_published_size(self, tmp_path):
        tokenizer = words(open_text("wikitext-2:train"))
        sizes = {}
        for part in ("valid", "test"):
            stream = write_tokens(open_text(f"wikitext-2:{part}"), tokenizer, tmp_path / part)
            sizes[part] = len(stream)
            assert stream.words == len(stream)
        assert sizes == {"valid": 217_646, "test": 245_569}


class TestContiguousStreams:
    def test_layout(self):
        streams = ContiguousStreams(TokenStream.from_tokens(range(10, 21)), 2, 2)
        assert len(streams) == 3
        assert [batch.inputs.T.tolist() for batch in streams] == [
            [[1, 10], [14, 15]],
            [[11, 12], [16, 17]],
            [[13], [18]],
        ]
        assert [batch.targets.T.tolist() for batch in streams] == [
            [[10, 11], [15, 16]],
            [[12, 13], [17, 18]],
            [[14], [19]],
        ]
        assert all(batch.inputs.dtype == batch.targets.dtype == torch.int64 for batch in streams)
        assert all(batch.lengths is None and batch.resets is None for batch in streams)
        assert [batch.tokens for batch in streams] == [4, 4, 2]

    @given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 9))
    def test_rows_are_the_text(self, tokens, batch_size, chunk_length):
        text = np.arange(100, 100 + tokens)
        if tokens < batch_size * chunk_length:
            with pytest.raises(UserError):
                ContiguousStreams(TokenStream.from_tokens(text), batch_size, chunk_length)
            return
        batches = list(ContiguousStreams(TokenStream.from_tokens(text), batch_size, chunk_length))
        rows = torch.cat([batch.targets for batch in batches]).T
        assert rows.shape == (batch_size, tokens // batch_size)
        assert rows.flatten().tolist() == text[: rows.numel()].tolist()
        inputs = torch.cat([batch.inputs for batch in batches]).T
        assert inputs.flatten().tolist() == [1, *text[: rows.numel() - 1].tolist()]
        assert all(len(batch.inputs) == chunk_length for batch in batches[:-1])
        assert len(batches[-1].inputs) <= chunk_length

    @given(ids_of_lines, st.data())
    def test_resets_stand_where_documents_begin(self, ids, data):
        ends = [i + 1 for i, token in enumerate(ids) if token == 1][:-1]
        starts = [0, *sorted(data.draw(st.sets(st.sampled_from(ends)) if ends else st.just(set())))]
        batch_size = data.draw(st.integers(1, min(3, len(ids))))
        chunk_length = data.draw(st.integers(1, len(ids) // batch_size))
        streams = ContiguousStreams(TokenStream.from_tokens(ids, starts), batch_size, chunk_length, resets=True)
        resets = torch.cat([batch.resets for batch in streams])
        assert resets.dtype == torch.bool
        used = resets.numel()
        assert resets.T.flatten().nonzero().flatten().tolist() == [start for start in starts if start < used]
        inputs = torch.cat([batch.inputs for batch in streams])
        assert (inputs[resets] == 1).all()  # a document's first input is <eos>

    @pytest.mark.parametrize("ranks", [1, 2, 3, 5])
    def test_ranks_have_columns_of_the_same_batches(self, ranks):
        stream = TokenStream.from_tokens(range(100), [0, 7, 50])
        whole = ContiguousStreams(stream, 5, 4, resets=True)
        shares = [ContiguousStreams(stream, 5, 4, resets=True, rank=rank, ranks=ranks) for rank in range(ranks)]
        assert {len(share) for share in shares} == {len(whole)}
        for batch, *parts in zip(whole, *shares, strict=True):
            for name in ("inputs", "targets", "resets"):
                assert torch.equal(torch.cat([getattr(part, name) for part in parts], dim=1), getattr(batch, name))

    def test_any_chunk_by_its_number(self):
        streams = ContiguousStreams(TokenStream.from_tokens(range(40)), 3, 4)
        batches = list(streams)
        assert torch.equal(streams[2].inputs, batches[2].inputs)
        assert torch.equal(streams[-1].inputs, batches[-1].inputs)
        assert [torch.equal(a.inputs, b.inputs) for a, b in zip(streams[1:], batches[1:], strict=True)] == [True] * 3
        with pytest.raises(IndexError):
            streams[len(batches)]

    def test_targets_are_not_changed_through_inputs(self):
        batch = ContiguousStreams(TokenStream.from_tokens(range(40)), 3, 4)[0]
        before = batch.targets.clone()
        batch.inputs.zero_()
        assert torch.equal(batch.targets, before)

    def test_text_shorter_than_a_batch(self):
        with pytest.raises(UserError) as caught:
            ContiguousStreams(TokenStream.from_tokens(range(699)), 20, 35)
        assert str(caught.value) == (
            "the text has 699 tokens, fewer than one batch of 20 rows x 35 steps = 700;"
            " give a longer text, or a smaller --batch-size or --chunk-length"
        )
        assert len(ContiguousStreams(TokenStream.from_tokens(range(700)), 20, 35)) == 1

    def test_more_ranks_than_rows(self):
        with pytest.raises(UserError, match="2 rows cannot be shared by 3 ranks; give --batch-size 3 or more"):
            ContiguousStreams(TokenStream.from_tokens(range(9)), 2, 2, ranks=3)


def rows(batch: Batch) -> list[list[int]]:
    """The targets of a batch without padding, after checking what else a batch of lines must be."""
    assert batch.lengths is not None
    lengths = batch.lengths.tolist()
    assert lengths == sorted(lengths, reverse=True)
    assert batch.inputs.shape == batch.targets.shape == (max(1, lengths[0]), len(lengths))
    assert batch.tokens == sum(lengths)
    for column, length in enumerate(lengths):
        assert batch.inputs[0, column] == 1
        assert torch.equal(batch.inputs[1:length, column], batch.targets[: max(0, length - 1), column])
        assert (batch.inputs[length:, column] == 1).all()
        assert (batch.targets[length:, column] == 1).all()
    return [batch.targets[:length, column].tolist() for column, length in enumerate(lengths) if length]


def lines_of(ids: list[int]) -> list[list[int]]:
    lines: list[list[int]] = [[]]
    for token in ids:
        lines[-1].append(token)
        if token == 1:
            lines.append([])
    return lines[:-1]


class TestLineBatches:
    @given(ids_of_lines, st.integers(1, 8), st.integers(0, 3), st.booleans())
    def test_every_line_comes_once(self, ids, size, epoch, by_tokens):
        stream = TokenStream.from_tokens(ids)
        limit = {"tokens_per_batch": 3 * size} if by_tokens else {"batch_size": size}
        batches = list(LineBatches(stream, **limit, epoch=epoch))
        found = [rows(batch) for batch in batches]
        assert sorted(itertools.chain.from_iterable(found)) == sorted(lines_of(ids))
        if by_tokens:
            assert all(batch.inputs.numel() <= 3 * size or batch.inputs.shape[1] == 1 for batch in batches)
        else:
            assert sorted(map(len, found), reverse=True)[:-1] == [size] * (len(found) - 1)

    def test_batches_hold_as_many_lines_as_their_tokens_allow(self):
        stream = TokenStream.from_tokens([1] * 7 + [5, 5, 5, 1] * 5)
        shapes = sorted(tuple(batch.inputs.shape) for batch in LineBatches(stream, tokens_per_batch=8))
        assert shapes == [(1, 7), (4, 1), (4, 2), (4, 2)]

    def test_lines_of_like_length_lie_together(self):
        random = np.random.default_rng(0)
        ids = [i for length in random.integers(0, 30, 400) for i in [*[2] * length, 1]]
        stream = TokenStream.from_tokens(ids)
        padded = sum(batch.inputs.numel() for batch in LineBatches(stream, batch_size=10))
        assert padded < 1.05 * len(ids)

    def test_order_depends_on_seed_and_epoch_alone(self):
        stream = TokenStream.from_tokens([i for n in range(60) for i in (n + 2, 1)])

        def order(**options):
            return [row[0] for batch in LineBatches(stream, 4, **options) for row in rows(batch)]

        assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
        orders = [order(seed=seed, epoch=epoch) for seed in range(3) for epoch in range(3)]
        assert len({tuple(found) for found in orders}) == 9
        assert {tuple(sorted(found)) for found in orders} == {tuple(range(2, 62))}

    @given(ids_of_lines, st.integers(1, 4), st.integers(1, 7))
    def test_ranks_share_each_batch(self, ids, ranks, batch_size):
        stream = TokenStream.from_tokens(ids)
        whole = LineBatches(stream, batch_size)
        shares = [LineBatches(stream, batch_size, rank=rank, ranks=ranks) for rank in range(ranks)]
        assert {len(share) for share in shares} == {len(whole)}
        for batch, *parts in zip(whole, *shares, strict=True):
            together = [row for part in parts for row in rows(part)]
            assert sorted(together) == sorted(rows(batch))
            assert sum(part.tokens for part in parts) == batch.tokens
            assert all(part.inputs.shape[1] >= 1 for part in parts)

    def test_any_batch_by_its_number(self):
        stream = TokenStream.from_tokens([i for n in range(60) for i in (n + 2, 1)])
        batches = LineBatches(stream, 7)
        assert torch.equal(batches[5].targets, list(batches)[5].targets)
        with pytest.raises(IndexError):
            batches[len(batches)]

    @pytest.mark.parametrize("limits", [{}, {"batch_size": 2, "tokens_per_batch": 2}])
    def test_one_way_of_measuring(self, limits):
        with pytest.raises(ValueError, match="either batch_size or tokens_per_batch"):
            LineBatches(TokenStream.from_tokens([2, 1]), **limits)


def test_batch_moves_without_its_lengths():
    batch = LineBatches(TokenStream.from_tokens([2, 1]), 1)[0].to("meta")
    assert batch.inputs.device.type == batch.targets.device.type == "meta"
    assert batch.lengths.device.type == "cpu"
    assert batch.tokens == 2


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's peak memory")
def test_memory_does_not_grow_with_the_text(tmp_path):
    with open(tmp_path / "large.txt", "w") as file:
        random = np.random.default_rng(0)
        some = " ".join(f"word{i}" for i in random.integers(0, 20_000, 10_000))
        paragraph = "\n".join(some[i : i + 80] for i in range(0, len(some), 80)) + "\n"
        for _ in range(25_000_000 // len(paragraph)):
            file.write(paragraph)
    script = r"""
        import re, sys
        from pathlib import Path
        from recurra.text.batches import write_tokens
        from recurra.text.corpora import open_corpus
        from recurra.text.tokenizer import TokenizerSettings, build_tokenizer

        def peak():
            # not getrusage: its peak is no smaller than that of the process that started this one
            return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])

        before = peak()
        corpus = open_corpus(sys.argv[1] + "/large.txt")
        tokenizer = build_tokenizer(corpus.train, TokenizerSettings(tokenizer="words"))
        stream = write_tokens(corpus.train, tokenizer, sys.argv[1] + "/tokens")
        print(stream.characters, peak() - before)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=280)
    characters, growth = map(int, run.stdout.split())
    assert characters > 20_000_000
    assert growth < 10_000_000
