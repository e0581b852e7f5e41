"""Data for transcribers: strings of spoken digits, and handwritten letters, as tables of recordings and transcripts.

    python benchmarks/recordings.py digits fsdd/recordings -o digits [--speaker jackson] [--strings 8000]
    python benchmarks/recordings.py letters strokes_background_small1.zip -o letters [--alphabet Latin]

Digits are recordings of the Free Spoken Digit Dataset, joined to strings of one to five of one speaker, with gaps of
faint noise between them and a loudness of chance. Recordings 0 to 4 of each digit and speaker are its official test
split: test strings are made of these, validation strings of 5 to 7, training strings of the others, so that no
recording is in two parts. With a speaker named, that speaker's recordings are the test part, all of them, and nobody
else's.

Letters are drawings of Omniglot; a transcript is the letter's name. The first five of the twenty drawers make the test
part, the sixth and seventh the validation part. Each drawing of the training part is there several times more, as
another hand might have drawn it: turned, slanted, stretched and bent, with lines drawn in another direction or order.

Writes ``train.tsv``, ``valid.tsv`` and ``test.tsv``, for ``recurra train transcriber``.
"""

from __future__ import annotations

import argparse
import random
import re
import wave
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recurra.text.features import read_drawings, read_wav, strokes

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LONGEST = 5  # digits of a string
GAPS = 0.03, 0.25  # seconds
LOUDNESS = 0.5, 2.0  # factor
NOISE = 0.001  # of full scale
TURN, SLANT, STRETCH, BEND = 0.25, 0.3, 1.35, 0.06  # radians, shear, factor of the width, part of the size: at most
REVERSED, REORDERED = 0.1, 0.15  # chances of a line, and of a drawing
PARTS = {"test": range(5), "valid": range(5, 8), "train": range(8, 1000)}
HELD_STRINGS = 600  # of a validation or test part


def digits(source: Path, folder: Path, speaker: str | None, strings: int, seed: int) -> None:
    """Join recordings to strings, and write them."""
    found: dict[str, dict[str, list[tuple[int, Path]]]] = {part: defaultdict(list) for part in PARTS}
    for path in sorted(source.glob("*.wav")):
        match = re.fullmatch(r"(\d)_(.+)_(\d+)", path.stem)
        if match is None:
            raise SystemExit(f"{path}: expected a name such as 7_jackson_32.wav")
        digit, who, index = int(match[1]), match[2], int(match[3])
        part = next(part for part, indices in PARTS.items() if index in indices)
        if speaker is not None:
            if who == speaker:
                part = "test"
            elif part == "test":
                part = "train"
        found[part][who].append((digit, path))
    if not all(found.values()):
        raise SystemExit(f"{source}: no recordings for {', '.join(part for part in PARTS if not found[part])}")
    for part, speakers in found.items():
        chance = random.Random(f"{seed} {part}")
        rows = []
        (folder / part).mkdir(parents=True)
        for number in range(strings if part == "train" else HELD_STRINGS):
            recordings = speakers[chance.choice(sorted(speakers))]
            chosen = [chance.choice(recordings) for _ in range(chance.randint(1, LONGEST))]
            path = folder / part / f"{number:05}.wav"
            joined([path for _, path in chosen], path, chance)
            rows.append(f"{part}/{path.name}\t{' '.join(NAMES[digit] for digit, _ in chosen)}")
        table(folder / f"{part}.tsv", rows)


def joined(paths: list[Path], target: Path, chance: random.Random) -> None:
    """Write recordings one after the other, as 16-bit samples."""
    noise = np.random.default_rng(chance.getrandbits(32))
    pieces = []
    rate = 0
    for path in paths:
        samples, rate = read_wav(path)
        pieces += [np.zeros(round(chance.uniform(*GAPS) * rate)), chance.uniform(*LOUDNESS) * samples[:, 0]]
    sound = np.concatenate([*pieces, np.zeros(round(chance.uniform(*GAPS) * rate))])
    sound = np.clip(sound + noise.normal(0, NOISE, len(sound)), -1, 1 - 2**-15)
    with wave.open(str(target), "wb") as file:
        file.setparams((1, 2, rate, len(sound), "NONE", ""))
        file.writeframes((sound * 2**15).astype("<i2").tobytes())


def letters(source: Path, folder: Path, alphabet: str, copies: int, seed: int) -> None:
    """Write drawings of an alphabet as sequences of points."""
    chance = np.random.default_rng(seed)
    rows: dict[str, list[str]] = {part: [] for part in PARTS}
    drawings = [drawing for drawing in read_drawings(source) if drawing.alphabet == alphabet]
    if not drawings:
        raise SystemExit(f"{source}: no alphabet {alphabet!r} there")
    drawers = sorted({drawing.drawer for drawing in drawings})
    folder.mkdir(parents=True)
    for drawing in drawings:
        place = drawers.index(drawing.drawer)
        part = "test" if place < 5 else "valid" if place < 7 else "train"
        name = f"{drawing.character}_{drawing.drawer}.npy"
        np.save(folder / name, drawing.features)
        rows[part].append(f"{name}\t{drawing.character}")
        for copy in range(copies if part == "train" else 0):
            name = f"{drawing.character}_{drawing.drawer}_{copy}.npy"
            np.save(folder / name, distorted(drawing.features, chance))
            rows[part].append(f"{name}\t{drawing.character}")
    for part, lines in rows.items():
        table(folder / f"{part}.tsv", lines)


def distorted(features: NDArray[np.float32], chance: np.random.Generator) -> NDArray[np.float32]:
    """The same drawing by another hand: turned, slanted, stretched and bent, lines begun elsewhere."""
    angle, slant = chance.uniform(-TURN, TURN), chance.uniform(-SLANT, SLANT)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.diag([chance.uniform(1 / STRETCH, STRETCH), 1.0])
    points = features[:, :2] @ (turn @ np.array([[1.0, slant], [0.0, 1.0]]) @ stretch).T
    waves, phases = chance.normal(0, 3, (2, 2)), chance.uniform(0, 2 * np.pi, 2)  # radians for the drawing's size
    points = points + chance.uniform(0, BEND) * np.sin(points @ waves + phases)
    lines = np.split(points, np.flatnonzero(features[:, 4])[1:])
    lines = [line[::-1] if chance.random() < REVERSED else line for line in lines]
    if chance.random() < REORDERED:
        chance.shuffle(lines)
    return strokes(lines)


def table(path: Path, rows: list[str]) -> None:
    """Write paths and transcripts."""
    path.write_text("path\ttranscript\n" + "\n".join(rows) + "\n", encoding="utf-8")
    print(f"{path}: {len(rows):,} recordings")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("digits", "letters"))
    parser.add_argument("source", type=Path)
    parser.add_argument("-o", "--folder", type=Path, required=True)
    parser.add_argument("--speaker", help="hold out this speaker instead of the official test split")
    parser.add_argument("--strings", type=int, default=8000, help="to train on")
    parser.add_argument("--alphabet", default="Latin")
    parser.add_argument("--copies", type=int, default=30, help="of each training drawing, distorted")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"{arguments.folder} is there already: name a new folder")
    if arguments.what == "digits":
        digits(arguments.source, arguments.folder, arguments.speaker, arguments.strings, arguments.seed)
    else:
        letters(arguments.source, arguments.folder, arguments.alphabet, arguments.copies, arguments.seed)
