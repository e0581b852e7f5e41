"""Data for translators that do not translate: sections and their headings, remarks and replies.

    python benchmarks/pairs.py headings wikitext-2 -o headings
    python benchmarks/pairs.py replies gutenberg tiny-shakespeare -o replies

Headings: of each section of WikiText-2's articles, the text as it begins, and its heading, a summary in a few words;
those with a word that the corpus hides are left out. The three parts are those of the corpus.

Replies: in novels, where paragraphs that begin with a quotation follow each other, what is said in the first and what
is answered in the second; in plays, one speech and the next; of no more than 40 words each. One novel is the test part,
and a tenth of the pairs of each of the others, in a row, the validation part.

Writes ``train.tsv``, ``valid.tsv`` and ``test.tsv``, for ``recurra train translator``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

BEGINNING = 150  # words of a section
SHORTEST = 20
UNSAID = re.compile(r"^[\W_]*$")
QUOTED = re.compile(r'["“]([^"“”]+)["”]')
TEST_BOOK = "emma"
SPEECH = re.compile(r"[A-Z][\w' ]*:\n(.+)", re.DOTALL)
LONGEST = 40  # words of a remark


def headings(source: Path) -> dict[str, list[tuple[str, str]]]:
    """Sections of WikiText-2 with their headings."""
    found = {}
    for part in ("train", "valid", "test"):
        pairs, heading, text = [], "", []
        for line in [*(source / f"{part}.txt").read_text(encoding="utf-8").splitlines(), " = end = "]:
            match = re.fullmatch(r" ((?:= )+)(.+?) (?:= ?)+", line)
            if match is None:
                text += line.split()
                continue
            if heading and "<unk>" not in heading and len(text) >= SHORTEST:
                pairs.append((" ".join(text[:BEGINNING]), heading))
            heading, text = match[2] if len(match[1]) > 2 else "", []  # an article's own is in its first words
        found[part] = pairs
    return found


def replies(sources: list[Path]) -> dict[str, list[tuple[str, str]]]:
    """Remarks of novels and plays with what is answered to them."""
    found: dict[str, list[tuple[str, str]]] = {"train": [], "valid": [], "test": []}
    for path in sorted(path for source in sources for path in source.glob("*.txt")):
        text = path.read_text(encoding="utf-8", errors="replace").replace("\r", "")
        pairs = list(_answered(re.split(r"\n\s*\n", text)))
        if TEST_BOOK in path.name.lower():
            found["test"] += pairs
        else:
            held = len(pairs) // 10
            found["valid"] += pairs[:held]
            found["train"] += pairs[held:]
    return found


def _answered(paragraphs: Iterable[str]) -> Iterator[tuple[str, str]]:
    before = ""
    for paragraph in paragraphs:
        joined = " ".join(paragraph.split())
        said = " ".join(part.strip(" ,") for part in QUOTED.findall(joined)) if joined[:1] in '"“' else ""
        if speech := SPEECH.match(paragraph):
            said = " ".join(speech[1].split())
        if UNSAID.match(said) or len(said.split()) > LONGEST:
            said = ""
        if before and said:
            yield before, said
        before = said


def main() -> None:
    """Write the three parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("headings", "replies"))
    parser.add_argument("sources", type=Path, nargs="+", metavar="source")
    parser.add_argument("-o", "--folder", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"{arguments.folder} is there already: name a new folder")
    found = headings(arguments.sources[0]) if arguments.what == "headings" else replies(arguments.sources)
    arguments.folder.mkdir(parents=True)
    for part, pairs in found.items():
        path = arguments.folder / f"{part}.tsv"
        rows = ["source\ttarget", *("\t".join(side.replace("\t", " ") for side in pair) for pair in pairs)]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        print(f"{path}: {len(pairs):,} pairs")


if __name__ == "__main__":
    main()
