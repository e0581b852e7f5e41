"""Training of taggers: Recurra against flair's SequenceTagger of the same sizes, sentences a second, side by side.

    python -m venv flair-env
    flair-env/bin/pip install torch==2.13.0
    flair-env/bin/pip install flair==0.15.1 torch==2.13.0
    python benchmarks/tagger.py --flair-python flair-env/bin/python [--data ud-english-ewt] [--rounds 5] [--threads 2]

flair wants other versions than Recurra, hence an environment of its own, with the same torch; it downloads nothing else
here. Without --flair-python, Recurra runs alone. Every measurement is a process of its own that first trains on a few
sentences, unmeasured, and then a new model for one pass over all of them. The two take turns, round by round.

Both train on the same sentences, drawn at random from the training part of English EWT, to tag parts of speech:
vectors of 100 for every word as it is written, beside the last states of an LSTM that reads the word's characters both
ways (vectors of 25, 25 units a direction); 2 bidirectional layers of 128 units a direction; a softmax or a CRF. Both
drop 5% of the words and half of what goes into the stack, through it and out of it, and make updates of 32 sentences by
Adam with gradients clipped at a norm of 5. flair's reprojection of word vectors is left out, as Recurra has none. What
Recurra does besides stays in: a projection of what the characters' LSTM found, marks before and behind every word, one
symbol more among the words and four among the characters; flair has two tags more in the CRF.

Measured is what a pass takes: batches made, words and characters looked up, forward, backward, clipping, update, and
the loss read. In flair that is what its trainer does for a batch, without its log; in Recurra it is its trainer, and
the encoding of all sentences, which a run does once, before it begins. Not measured are reading, vocabularies, building
the models, evaluating and saving. Batches are those that each makes by itself: in flair, of sentences as they come when
shuffled; in Recurra, of about the same length. --sorted gives flair such batches, too, which it cannot make itself.

Run it on an idle machine: where something else holds one of the cores that the threads are for, small operations of
torch wait for it, and flair, made of many more of them, loses most. The column of cores shows whether that was so: CPU
seconds by seconds are about the number of threads, or 1 and more where most work is done by one.

Columns: sentences a second, median of the rounds; Recurra's as a multiple of flair's, median of the rounds, the lowest
and the highest; cores kept busy; parameters; training loss in nats a word over the second half of the pass, which shows
that both learn, from other first values and in other batches: it is no comparison of how well they tag.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from side_by_side import keep_memory, machine

# A worker runs where either Recurra or flair is installed: neither is imported up here.

OUTPUTS = ("softmax", "crf")
WORD, CHARACTER, CHARACTER_HIDDEN, HIDDEN, LAYERS = 100, 25, 25, 128, 2
BATCH, RATE, CLIP, WORD_DROPOUT, DROPOUT = 32, 3e-3, 5.0, 0.05, 0.5
WARM_UP = 2 * BATCH
TAG = "upos"

Tagged = list[tuple[list[str], list[str]]]  # words and tags of sentences


def train_recurra(sentences: Tagged, output: str, seed: int, by_length: bool) -> dict[str, Any]:
    """One pass with Recurra's own trainer."""
    import recurra
    from recurra.models.tagger import Tagger, TaggerCodec, TaggerSettings
    from recurra.nn.characters import CharacterLSTM
    from recurra.text.columns import Sentence
    from recurra.text.examples import ExampleBatches
    from recurra.training import ExampleTrainingSettings, Progress, Trainer

    torch.manual_seed(seed)
    examples = [Sentence(tuple(words), tuple(tags)) for words, tags in sentences]
    settings = TaggerSettings(
        word_size=WORD,
        lowercase=False,
        word_dropout=WORD_DROPOUT,
        rare_word_dropout=0,
        characters="lstm",
        character_size=CHARACTER,
        character_features=2 * CHARACTER_HIDDEN,
        hidden_size=HIDDEN,
        layers=LAYERS,
        input_dropout=DROPOUT,
        dropout=DROPOUT,
        output_dropout=DROPOUT,
        output=output,
    )
    codec = TaggerCodec.build(examples, settings)
    model = Tagger(Tagger.settle(settings, examples, codec), codec)
    # By its settings a direction has as many units as the vector has features: flair's has half as many.
    spellings = codec.words.spellings or []
    model.words.characters = CharacterLSTM(
        spellings,
        2 * CHARACTER_HIDDEN,
        character_size=CHARACTER,
        hidden_size=CHARACTER_HIDDEN,
        longest=max(map(len, spellings)) + 2,  # flair reads whole words
    )
    steps = -(-len(examples) // BATCH)
    training = ExampleTrainingSettings(
        epochs=1,
        batch_size=BATCH,
        learning_rate=RATE,
        beta2=0.999,
        schedule="constant",
        warmup=0,
        clip_norm=CLIP,
        log_every=steps // 2,
        seed=seed,
    )
    reports: list[Progress] = []
    start, start_cpu = time.perf_counter(), time.process_time()
    encoded = [codec.encode(example) for example in examples]
    trainer = Trainer(
        model,
        training,
        lambda epoch: ExampleBatches(encoded, batch_size=BATCH, seed=seed, epoch=epoch),
        carry_state=False,
        watch=reports.append,
    )
    trainer.run()
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return {
        "version": recurra.__version__,
        "seconds": seconds,
        "cpu": cpu,
        "steps": trainer.run_state.step,
        "loss": reports[1].loss,
        "parameters": model.parameters_count,
    }


def train_flair(sentences: Tagged, output: str, seed: int, by_length: bool) -> dict[str, Any]:
    """One pass over flair's batches, with what its trainer does for each of them."""
    import flair
    from flair.data import Dictionary, Sentence
    from flair.datasets import DataLoader, FlairDatapointDataset
    from flair.embeddings import CharacterEmbeddings, OneHotEmbeddings, StackedEmbeddings
    from flair.models import SequenceTagger
    from flair.training_utils import identify_dynamic_embeddings, store_embeddings

    logging.getLogger("flair").setLevel(logging.WARNING)
    torch.manual_seed(seed)
    examples = []
    for words, tags in sentences:
        example = Sentence(words)
        assert [token.text for token in example] == words
        for token, tag in zip(example, tags, strict=True):
            token.add_label(TAG, tag)
        examples.append(example)
    found = {"words": Dictionary(), "characters": Dictionary(), "tags": Dictionary(add_unk=False)}
    for words, tags in sentences:
        for name, items in (("words", words), ("characters", "".join(words)), ("tags", tags)):
            for item in items:
                found[name].add_item(item)
    model = SequenceTagger(
        StackedEmbeddings(
            [
                OneHotEmbeddings(found["words"], embedding_length=WORD),
                CharacterEmbeddings(
                    found["characters"], char_embedding_dim=CHARACTER, hidden_size_char=CHARACTER_HIDDEN
                ),
            ]
        ),
        found["tags"],
        TAG,
        hidden_size=HIDDEN,
        rnn_layers=LAYERS,  # with dropout 0.5 between them, always
        use_crf=output == "crf",
        reproject_embeddings=False,
        word_dropout=WORD_DROPOUT,
        locked_dropout=DROPOUT,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    data = FlairDatapointDataset(examples)
    batches = DataLoader(data, batch_size=BATCH, shuffle=True)
    if by_length:
        order = sorted(torch.randperm(len(examples)).tolist(), key=lambda place: len(examples[place]))
        cut = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
        random.Random(seed).shuffle(cut)
        batches = DataLoader(data, batch_sampler=cut)
    model.train()
    dynamic = None
    losses: list[tuple[float, int]] = []
    start, start_cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        model.zero_grad()
        optimizer.zero_grad()
        loss, count = model.forward_loss(batch)
        losses.append((loss.item(), count))
        loss.backward()
        if dynamic is None:
            dynamic = identify_dynamic_embeddings(batch)
        store_embeddings(batch, "cpu", dynamic)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    half = len(losses) // 2
    nats, tokens = map(sum, zip(*losses[half : 2 * half], strict=True))
    return {
        "version": flair.__version__,
        "seconds": seconds,
        "cpu": cpu,
        "steps": len(losses),
        "loss": nats / tokens,
        "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    }


TRAIN = {"Recurra": train_recurra, "flair": train_flair}


def work(options: argparse.Namespace) -> None:
    """What a worker does: prints one line of JSON, the last."""
    torch.set_num_threads(options.threads)
    keep_memory()
    sentences = json.loads(options.file.read_text(encoding="utf-8"))
    train = TRAIN[options.worker]
    train(sentences[:WARM_UP], options.output, options.seed, options.sorted)
    found = train(sentences, options.output, options.seed, options.sorted)
    print(json.dumps({**found, "torch": torch.__version__}))


def measure(python: str, name: str, output: str, file: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Have a worker train for one pass."""
    command = [python, __file__, "--worker", name, "--file", str(file), "--output", output, "--seed", str(seed)]
    command += ["--threads", str(options.threads), *(["--sorted"] if options.sorted else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "CUDA_VISIBLE_DEVICES": ""}
    if name == "flair":
        environment.pop("PYTHONPATH", None)  # it says where Recurra's packages are
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    if run.returncode:
        sys.exit(f"{name} failed:\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def read(options: argparse.Namespace) -> Tagged:
    """Some sentences of the training part, each of a word or more."""
    from recurra.tasks import TASKS, TaggerData

    if not options.data:
        sys.exit("no data: name the folder of ud-english-ewt by --data, or the one that holds it by RECURRA_DATA")
    files = sorted(map(str, Path(options.data).glob("*-train.conllu")))
    if not files:
        sys.exit(f"{options.data}: there is no *-train.conllu")
    examples = TASKS["tagger"].read(files, TaggerData())
    all_of_them = [(list(example.words), list(example.tags)) for example in examples if example.words]
    return random.Random(1).sample(all_of_them, min(options.sentences, len(all_of_them)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    home = os.environ.get("RECURRA_DATA")
    default = Path(home) / "ud-english-ewt" if home else None
    parser.add_argument(
        "--data", type=Path, default=default, help="folder of ud-english-ewt; in RECURRA_DATA if not said"
    )
    parser.add_argument("--flair-python", help="interpreter of an environment with flair")
    parser.add_argument("--sentences", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--sorted", action="store_true", help="have flair, too, read sentences of like lengths together"
    )
    parser.add_argument("--worker", choices=TRAIN, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", choices=OUTPUTS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    if options.sentences < WARM_UP:
        parser.error(f"--sentences: expected {WARM_UP} or more, got {options.sentences}")
    torch.set_num_threads(options.threads)
    sentences = read(options)
    words = sum(len(each) for each, _ in sentences)
    print(machine())
    print(f"{len(sentences):,} sentences, {words:,} words; batches of {BATCH}; {options.rounds} rounds")
    pythons = {"flair": options.flair_python, "Recurra": sys.executable}
    pythons = {name: python for name, python in pythons.items() if python}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sentences.json"
        file.write_text(json.dumps(sentences), encoding="utf-8")
        for number in range(1, options.rounds + 1):
            for output in OUTPUTS:
                for name in sorted(pythons, reverse=number % 2 == 0):
                    result = measure(pythons[name], name, output, file, number, options)
                    found.setdefault((output, name), []).append(result)
    firsts = {name: found[OUTPUTS[0], name][0] for name in pythons}
    print(", ".join(f"{name} {first['version']} (torch {first['torch']})" for name, first in firsts.items()) + "\n")
    head = f"{'':18} {'sentences/s':>11} {'x flair':>8} {'lowest':>8} {'highest':>8}"
    print(f"{head} {'cores':>6} {'parameters':>11} {'loss':>6}")
    for output in OUTPUTS:
        peer = found.get((output, "flair"))
        for name in pythons:
            runs = found[output, name]
            assert {run["steps"] for run in runs} == {-(-len(sentences) // BATCH)}
            speed = statistics.median(len(sentences) / run["seconds"] for run in runs)
            loss = statistics.median(run["loss"] for run in runs)
            ratios = [its["seconds"] / own["seconds"] for its, own in zip(peer or (), runs, strict=peer is not None)]
            parts = (statistics.median(ratios), min(ratios), max(ratios)) if name == "Recurra" and ratios else ()
            cells = " ".join(f"{part:8.2f}" for part in parts) or " " * 26
            cores = statistics.median(run["cpu"] / run["seconds"] for run in runs)
            name = f"{name}, {output}"
            print(f"{name:18} {speed:11.1f} {cells} {cores:6.2f} {runs[0]['parameters']:11,} {loss:6.3f}")


if __name__ == "__main__":
    main()
