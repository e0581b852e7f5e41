"""How far back gradients reach: in trained models, and in fresh layers."""

from __future__ import annotations

import argparse
import bisect
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from recurra.commands.command import (
    PICTURES,
    Command,
    check_outputs,
    complain,
    how_read,
    numbers,
    output_flag,
    positive,
    print_json,
    reading_flags,
)
from recurra.commands.predict import is_predictor, refuse
from recurra.commands.reporter import Reporter
from recurra.config import ArgumentParser, UserError
from recurra.files import finite

if TYPE_CHECKING:
    from recurra.gradients import Clipping, Decay, GradientReport, Unrolled
    from recurra.language_model import LanguageModel
    from recurra.text.batches import TokenStream

__all__ = ["COMMANDS"]

LENGTH = 200
JACOBIANS = 8
SHOWN = ("map", "decay", "jacobians", "weights", "clipping")
FRESH = ("hidden_size", "layers", "seed", "nonlinearity", "recurrent_scale", "forget_bias")  # for fresh layers alone
READ = ("encoding", "errors")  # for texts alone
PATIENCE = 5  # seconds of silence


def _flags(parser: ArgumentParser) -> None:
    parser.add_argument("directory", nargs="?", metavar="DIR", help="folder of a recurrent language model")
    parser.add_argument(
        "text",
        nargs="*",
        metavar="TEXT",
        help="file, folder, glob, .gz, - or CORPUS:SPLIT (default: what the model was validated on)",
    )
    parser.add_argument("--compare", action="append", metavar="DIR", help="another model beside it; may be repeated")
    parser.add_argument("--length", type=positive, metavar="N", help=f"tokens from the beginning (default: {LENGTH})")
    parser.add_argument("--layer", type=positive, metavar="N", help="from 1, which reads the words (default: the last)")
    parser.add_argument(
        "--state", choices=("hidden", "cell"), help="gradients with respect to h, or to c of an LSTM (default: hidden)"
    )
    parser.add_argument("--stride", type=positive, default=1, metavar="N", help="follow every Nth loss only")
    parser.add_argument(
        "--target", type=int, metavar="T", help="split ∂J(T)/∂W_h by step, from 0 (default: of the sum of all losses)"
    )
    parser.add_argument(
        "--jacobians",
        type=int,
        default=JACOBIANS,
        metavar="N",
        help=f"steps whose Jacobians are taken apart (default: {JACOBIANS}; 0 for none)",
    )
    parser.add_argument(
        "--dtype", choices=("float64", "float32"), default="float64", help="float32 is faster (default: float64)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: cpu)")
    reading_flags(parser)
    output_flag(parser, ".json")
    parser.add_argument(
        "--show", choices=SHOWN, help="what a picture is of (default: map; decay where there are several models)"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    group = parser.add_argument_group("fresh layers that read noise, in place of DIR")
    group.add_argument("--cell", metavar="A,B,...", help="some of rnn, lstm and gru")
    group.add_argument("--hidden-size", type=positive, metavar="N", help="units of a layer (default: 128)")
    group.add_argument("--layers", type=positive, metavar="N", help="of the stack (default: 1)")
    group.add_argument("--seed", type=int, metavar="N", help="of weights and noise (default: 1)")
    group.add_argument("--nonlinearity", choices=("tanh", "relu", "sigmoid"), help="of the rnn (default: tanh)")
    group.add_argument("--recurrent-scale", type=float, metavar="X", help="multiply W_h by it (default: 1)")
    group.add_argument(
        "--forget-bias",
        type=numbers,
        metavar="X,Y,...",
        help="of the lstm's forget gates, an lstm for each (default: drawn as all others)",
    )


class _Subject(NamedTuple):
    """What is looked at: its names, how it reads its text, and what is known of its training."""

    name: str
    short: str
    unroll: Callable[[], Unrolled]
    known: dict[str, Any]  # of measure


def _run(arguments: argparse.Namespace) -> int:
    from recurra.gradients import find_layer, measure

    _check(arguments)
    with Reporter(arguments.json) as reporter:
        subjects = list(_fresh(arguments) if arguments.cell else _trained(arguments))
        found: list[GradientReport] = []
        labels = _labels(subjects)
        while subjects:
            subject = subjects.pop(0)
            say = _patient(reporter, subject.name)
            say("reading the text")
            unrolled = subject.unroll()
            report = measure(
                unrolled,
                find_layer(unrolled, arguments.layer),
                name=subject.name,
                stride=arguments.stride,
                target=arguments.target,
                jacobians=arguments.jacobians,
                progress=say,
                **subject.known,
            )
            found.append(report if len(labels) == 1 else report.without_map())
            del subject, unrolled, report  # before the next one takes its memory
    _write(found, labels, arguments)
    if arguments.json:
        print_json([each.to_mapping() for each in found])
    else:
        print("\n\n".join(each.text() for each in found))
    return 0


def _patient(reporter: Reporter, name: str) -> Callable[[str], None]:
    """Says what is at hand, but not more often than somebody who waits wants to know."""
    last = time.monotonic()

    def say(text: str) -> None:
        nonlocal last
        if time.monotonic() - last > PATIENCE:
            last = time.monotonic()
            reporter.say(f"{name}: {text}")

    return say


def _check(arguments: argparse.Namespace) -> None:
    """Refuse flags that do not go together, and files that cannot be written."""
    if not (arguments.directory or arguments.cell):
        raise UserError("expected the folder of a recurrent language model, or --cell for fresh layers")
    if arguments.directory and arguments.cell:
        raise UserError("give either the folder of a model or --cell for fresh layers, not both")
    if arguments.cell:
        refuse(arguments, ("compare", *READ), "fresh layer")
        cells = _cells(arguments)
        _check_state(arguments, cells)
        for flag, cell in (("nonlinearity", "rnn"), ("forget_bias", "lstm")):
            if cell not in cells:
                refuse(arguments, (flag,), f"fresh {' or '.join(cells)}")
        many = len(cells) + cells.count("lstm") * (len(arguments.forget_bias or (None,)) - 1)
    else:
        refuse(arguments, FRESH, "trained model")
        if not arguments.text:
            refuse(arguments, READ, "model without a TEXT")
        many = 1 + len(arguments.compare or ())
        if many > 1 and "-" in arguments.text:
            raise UserError("standard input can be read only once: give a file as TEXT to compare models on it")
    check_outputs(arguments.output, ".json")
    drawn = any(path.suffix in PICTURES for path in arguments.output)
    if arguments.show and not drawn:
        raise UserError(f"--show {arguments.show}: give -o FILE too, a picture in which it is shown")
    if many > 1 and arguments.show not in (None, "decay"):
        raise UserError(f"--show {arguments.show}: shows one model, got several; give one, or show decay")
    if arguments.jacobians < 0:
        raise UserError(f"--jacobians: expected 0 or more steps, got {arguments.jacobians}")
    if arguments.show == "jacobians" and not arguments.jacobians:
        raise UserError("--show jacobians: there are none to draw; give --jacobians 1 or more")
    if arguments.show == "clipping" and arguments.cell:
        raise UserError("--show clipping: fresh layers were not trained; give the folder of a model")
    if arguments.dtype == "float64" and arguments.device.startswith("mps"):
        raise UserError(f"--device {arguments.device}: has no float64; give --dtype float32")


def _check_state(arguments: argparse.Namespace, cells: Collection[str]) -> None:
    if arguments.state == "cell" and "lstm" not in cells:
        raise UserError(f"--state cell: only an lstm has a cell state, got {' and '.join(sorted(cells))}")


def _check_size(stack: tuple[str, Sequence[int], int], steps: int, arguments: argparse.Namespace, **more: Any) -> None:
    """Refuse more pairs of steps than there is memory for; of a stack its cell, sizes and layers."""
    from recurra.gradients import check_size
    from recurra.planning import available_memory

    cell, sizes, layers = stack
    parts = 1 + (cell == "lstm")
    check_size(
        layers,
        steps,
        arguments.stride,
        available_memory(),
        parts=parts,
        features=parts * sum(sizes),
        itemsize=8 if arguments.dtype == "float64" else 4,
        **more,
    )


def _uses(arguments: argparse.Namespace, *, many: bool) -> dict[str, bool]:
    """Whether all pairs are drawn, and become JSON: of a model alone."""
    if many:
        return {}
    forms = {path.suffix for path in arguments.output}
    drawn = arguments.show in (None, "map") and not forms.isdisjoint(PICTURES)
    return {"drawn": drawn, "listed": arguments.json or ".json" in forms}


# ---- fresh layers ----------------------------------------------------------------------------------------------------


def _cells(arguments: argparse.Namespace) -> list[str]:
    cells: list[str] = arguments.cell.split(",")
    for cell in cells:
        if cell not in ("rnn", "lstm", "gru"):
            raise UserError(f"--cell: expected some of rnn, lstm and gru, got {cell!r}")
    return cells


def _fresh(arguments: argparse.Namespace) -> Iterator[_Subject]:
    from functools import partial

    import torch

    from recurra.distributed import choose_device
    from recurra.gradients import fresh

    own = {"rnn": ("nonlinearity",), "lstm": ("forget_bias",), "gru": ()}
    length = arguments.length or LENGTH
    given = {name: getattr(arguments, name) for name in FRESH if getattr(arguments, name) is not None}
    biases = given.pop("forget_bias", [None])
    nonlinearity = {"nonlinearity": given.pop("nonlinearity")} if "nonlinearity" in given else {}
    given |= {"length": length, "dtype": getattr(torch, arguments.dtype), "device": choose_device(arguments.device)}
    cells = _cells(arguments)
    layers, size = arguments.layers or 1, arguments.hidden_size or 128
    if arguments.layer is not None and arguments.layer > layers:
        raise UserError(f"--layer {arguments.layer}: expected 1 to {layers}; give --layers too for more")
    for cell in cells:
        for bias in biases if "forget_bias" in own[cell] else [None]:
            options = given | (nonlinearity if cell == "rnn" else {})
            name = cell
            if bias is not None:
                options, name = options | {"forget_bias": bias}, f"{cell}, forget bias {bias:g}"
            uses = _uses(arguments, many=len(cells) * len(biases) > 1)
            _check_size((cell, [size] * layers, layers), length, arguments, **uses)
            yield _Subject(name, name, partial(fresh, cell, **options), {})


# ---- trained models --------------------------------------------------------------------------------------------------


def _trained(arguments: argparse.Namespace) -> Iterator[_Subject]:
    from recurra.language_model import load
    from recurra.models.recurrent_lm import RecurrentLM

    directories = (arguments.directory, *(arguments.compare or ()))
    digests, cells = {}, set()
    for directory in directories:
        if is_predictor(directory):
            raise UserError(f"{directory}: gradients through time are of recurrent language models (train lm)")
        lm = load(directory, device=arguments.device)
        if not isinstance(lm.model, RecurrentLM):
            raise UserError(
                f"{directory}: a model of kind {lm.kind!r} has no gradients through time: give a recurrent language"
                " model (train lm)"
            )
        digests[directory] = lm.tokenizer.vocabulary.digest()
        if len(digests) > 1 and digests[directory] != digests[arguments.directory]:
            complain(
                f"{directory} has other tokens than {arguments.directory}: a distance of k tokens is not the same piece"
                " of text in both",
                0,
            )
        cells.add(lm.model.settings.cell)
        yield _subject(lm, directory, arguments, many=len(directories) > 1)
    _check_state(arguments, cells)


def _subject(lm: LanguageModel, directory: str, arguments: argparse.Namespace, *, many: bool) -> _Subject:
    """A model that is loaded, its text and its log; what is wrong with them is told now."""
    from recurra.evaluation import row_starts
    from recurra.gradients import unroll_model

    model: Any = lm.model
    settings, stack = model.settings, model.recurrent
    if arguments.layer is not None and arguments.layer > stack.num_layers:
        raise UserError(
            f"{directory}: layer {arguments.layer}: the model has {stack.num_layers}, numbered from 1, which reads the"
            " words"
        )
    if arguments.state == "cell" and stack.has_zoneout:
        raise UserError(f"--state cell: {directory} has zoneout, so that h(t) is made of another c(t) than goes on")
    length = arguments.length or LENGTH
    stream = _stream(lm, directory, arguments, length)
    starts = row_starts(settings.reset, stream.document_starts, stream.line_starts)
    tokens = stream.tokens[:length]
    if arguments.stride > len(tokens):
        raise UserError(f"--stride {arguments.stride} is longer than the text of {len(tokens)} tokens: give less")
    copied = 8 * sum(parameter.numel() for parameter in model.parameters()) if arguments.dtype == "float64" else 0
    shape = (settings.cell, stack.hidden_sizes, stack.num_layers)
    _check_size(shape, len(tokens), arguments, held=copied, **_uses(arguments, many=many))
    begun = [int(start) for start in starts[: bisect.bisect_left(starts, len(tokens))]]

    def unroll() -> Unrolled:
        return unroll_model(model.double() if arguments.dtype == "float64" else model, tokens, starts=begun)

    folder = Path(directory)
    clipping, log_error = _clipping(folder)
    if arguments.show == "clipping":
        if clipping is None:
            raise UserError(log_error or f"{directory}: has no log of training, so no clipping to draw")
        if not len(clipping.steps):
            raise UserError(f"{folder / 'log.jsonl'}: has no norms of gradients, so no clipping to draw")
    chunk = (lm.settings.get("training") or {}).get("chunk_length") if settings.reset != "lines" else None
    known = {"clipping": clipping, "log_error": log_error, "chunk_length": chunk}
    return _Subject(directory, folder.resolve().name, unroll, known)


def _clipping(folder: Path) -> tuple[Clipping | None, str]:
    """What the log of a training run says, or why it does not; neither where there is none."""
    from recurra.gradients import read_clipping

    if not (folder / "log.jsonl").exists():
        return None, ""
    try:
        return read_clipping(folder), ""
    except UserError as error:  # what is asked for are gradients, which need no log
        return None, str(error)


def _stream(lm: LanguageModel, directory: str, arguments: argparse.Namespace, length: int) -> TokenStream:
    """The first tokens of the text, or of the one that stayed in the model's folder."""
    from recurra.text.batches import TokenStream
    from recurra.text.corpora import open_text
    from recurra.text.documents import Document, Text

    if arguments.text:
        text = open_text(arguments.text, **how_read(arguments))

        def beginning(document: Document) -> Document:
            # Every line is a token at least, so that no more of them are needed.
            return Document(document.name, lambda: itertools.islice(document.lines(), length))

        return TokenStream.from_text(Text(tuple(map(beginning, text.documents))), lm.tokenizer)
    path = Path(directory) / "training" / "valid"
    if not path.exists():
        raise UserError(f"{directory}: the text it was validated on is not there any more: give a TEXT")
    return TokenStream.open(path)


# ---- what comes of it ------------------------------------------------------------------------------------------------


def _write(found: list[GradientReport], labels: list[str], arguments: argparse.Namespace) -> None:
    from recurra.checkpoint import write_json

    for path in arguments.output:
        if path.suffix == ".json":
            write_json(path, finite([each.to_mapping() for each in found]))
        else:
            _draw(path, found, labels, arguments)


def _draw(path: Path, found: list[GradientReport], labels: list[str], arguments: argparse.Namespace) -> None:
    from recurra.gradients import draw_clipping, draw_contributions, draw_decay, draw_jacobians, draw_map

    show = arguments.show or ("map" if len(found) == 1 else "decay")
    state = arguments.state or "hidden"
    first, chunks = found[0], [each.chunk_length for each in found if each.chunk_length is not None]
    title = f"{labels[0]}, layer {first.layer + 1}"
    if show == "decay":
        curves: dict[str, Decay] = {}
        for label, each in zip(labels, found, strict=True):
            certain = each.is_highest and each.verdict.certain
            label += " (h)" if state == "cell" and "cell" not in each.decays else ""
            curves[label + (f" (they {each.verdict.says})" if certain else "")] = each.decay(state)
        draw_decay(curves, path, state=state, chunk_lengths=chunks)
    elif show == "map":
        assert first.map is not None
        # Through the layers above gradients may well do something else.
        certain = first.is_highest and first.verdict.certain
        said = f": gradients {first.verdict.says}" if certain else ""
        draw_map(first.map, first.layer, path, state=state, title=title + said)
    elif show == "jacobians":
        of_lstm = first.cell == "lstm"
        draw_jacobians(
            [each.singular_values for each in first.jacobians],
            path,
            state=first.state,
            remembered=[each.remembered for each in first.jacobians if each.remembered is not None and of_lstm],
            gate=first.gate,
            opened=[each.gate for each in first.jacobians if each.gate is not None],
            title=f"{title}'s own recurrence: gradients {first.verdict.says}" if first.verdict.certain else title,
        )
    elif show == "weights":
        what = "all losses" if first.target is None else f"J({first.target})"
        draw_contributions(first.contributions, path, title=f"{title}: gradient of {what}")
    else:
        assert first.clipping is not None
        draw_clipping(first.clipping, path, title=labels[0])


def _labels(subjects: list[_Subject]) -> list[str]:
    """A name for each: of its folder where these differ, and two of one name are told apart by their number."""
    short = len({each.short for each in subjects}) == len(subjects)
    labels: list[str] = []
    for each in subjects:
        name = each.short if short else each.name
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        labels.append(next(label for label in itertools.chain((name,), numbered) if label not in labels))
    return labels


COMMANDS = {
    "gradients": Command("how far back gradients reach, and why", _flags, _run),
}
