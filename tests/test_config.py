"""Settings: one declaration gives the checks, the file's keys and the flags."""

import argparse
import dataclasses
import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.config import ArgumentParser, UserError, add_flags, from_mapping, read_file, resolve, setting, to_mapping


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    hidden_size: int | tuple[int, ...] | None = setting(None, "units of each layer", minimum=1)
    cell: str = setting("lstm", "recurrence", choices=("rnn", "lstm", "gru"))
    softmax: str | None = setting(None, "output layer", choices=("full", "adaptive"))
    dropout: float = setting(0.2, "share of units left out, 20% by default", minimum=0, maximum=1)
    tied: bool = setting(True, "share the embedding's weights with the output layer")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    epochs: int = setting(3, "passes over the text", minimum=1)
    valid: str | None = setting(None, "validation text", flag="--valid-file")
    cutoffs: tuple[int, ...] = setting((2000, 10000), "cut-offs")
    betas: tuple[float, ...] | None = setting(None, "averages", minimum=0, maximum=1)
    verbose: bool | None = setting(None, "say more")


SECTIONS = {"model": ModelSettings, "training": TrainingSettings}


def parse(*words: str) -> argparse.Namespace:
    train = ArgumentParser(prog="recurra train")
    train.add_argument("corpus")
    train.add_argument("-o", "--output", required=True)
    for title, cls in SECTIONS.items():
        add_flags(train, cls, title=title)
    return train.parse_args(words)


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("recurra: ")
    assert output.err.count("\n") == 1
    assert output.err.endswith("\n")
    return output.err.strip()


def settled(*words: str) -> dict[str, object]:
    """Every setting's value after flags, in one mapping."""
    sections = resolve(SECTIONS, flags=parse("text", "-o", "out", *words))
    return {name: value for section in sections.values() for name, value in to_mapping(section).items()}


def test_defaults():
    assert resolve(SECTIONS) == {"model": ModelSettings(), "training": TrainingSettings()}


def test_a_setting_is_an_ordinary_dataclass_field():
    assert ModelSettings(cell="gru").cell == "gru"
    assert ModelSettings().dropout == 0.2
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelSettings().cell = "gru"


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"hidden_size": 5}, ModelSettings(hidden_size=5)),
        ({"hidden_size": [5, 6]}, ModelSettings(hidden_size=(5, 6))),
        ({"hidden_size": None}, ModelSettings()),
        ({"hidden_size": "auto"}, ModelSettings()),
        ({"softmax": "auto"}, ModelSettings()),
        ({"dropout": 1}, ModelSettings(dropout=1.0)),
        ({"tied": False}, ModelSettings(tied=False)),
    ],
)
def test_from_mapping_takes_what_a_file_holds(mapping, expected):
    settings = from_mapping(ModelSettings, mapping, "here")
    assert settings == expected
    assert [type(value) for value in vars(settings).values()] == [type(value) for value in vars(expected).values()]


def test_auto_is_an_ordinary_text_where_any_text_is_allowed(tmp_path):
    assert from_mapping(TrainingSettings, {"valid": "auto"}, "here").valid == "auto"
    assert from_mapping(TrainingSettings, {"valid": tmp_path}, "here").valid == str(tmp_path)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"dropout": "0.5"}, "here: `dropout`: expected a number from 0 to 1, got '0.5'"),
        ({"dropout": 1.5}, "here: `dropout`: expected a number from 0 to 1, got 1.5"),
        ({"dropout": float("nan")}, "here: `dropout`: expected a number from 0 to 1, got nan"),
        ({"dropout": True}, "here: `dropout`: expected a number from 0 to 1, got True"),
        ({"tied": 1}, "here: `tied`: expected true or false, got 1"),
        ({"cell": "lsmt"}, "here: `cell`: expected one of rnn, lstm, gru, got 'lsmt'"),
        ({"cell": "auto"}, "here: `cell`: expected one of rnn, lstm, gru, got 'auto'"),
        ({"cell": None}, "here: `cell`: expected one of rnn, lstm, gru, got None"),
        ({"softmax": 3}, "here: `softmax`: expected one of full, adaptive or auto, got 3"),
        *(
            (
                {"hidden_size": wrong},
                "here: `hidden_size`: expected a whole number or a list of whole numbers of at least 1 or auto, "
                f"got {wrong!r}",
            )
            for wrong in (0, [5, 0], 5.0, True, [5, "6"], "five", {"a": 1})
        ),
        ({"hiden_size": 5}, "here: unknown setting `hiden_size`; did you mean `hidden_size`?"),
        ({"colour": 5}, "here: unknown setting `colour`"),
    ],
)
def test_from_mapping_says_what_was_expected_and_what_came(mapping, message):
    with pytest.raises(UserError) as caught:
        from_mapping(ModelSettings, mapping, "here")
    assert str(caught.value) == message


def test_a_field_without_default_must_be_given_and_has_no_flag():
    @dataclass(frozen=True, kw_only=True)
    class Sized:
        vocabulary_size: int

    assert from_mapping(Sized, {"vocabulary_size": 7}, "here").vocabulary_size == 7
    with pytest.raises(UserError, match=r"^here: setting `vocabulary_size` is missing$"):
        from_mapping(Sized, {}, "here")
    parser = ArgumentParser()
    add_flags(parser, Sized, title="sizes")
    assert "vocabulary" not in parser.format_help()


numbers = st.floats(0, 1, allow_nan=False)


@given(
    st.builds(
        TrainingSettings,
        epochs=st.integers(1),
        valid=st.none() | st.text(),
        cutoffs=st.lists(st.integers()).map(tuple),
        betas=st.none() | st.lists(numbers).map(tuple),
        verbose=st.none() | st.booleans(),
    )
)
def test_settings_survive_json(settings):
    text = json.dumps(to_mapping(settings))
    assert from_mapping(TrainingSettings, json.loads(text), "here") == settings


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ((), {}),
        (("--hidden-size", "7"), {"hidden_size": 7}),
        (("--hidden-size=7,8",), {"hidden_size": [7, 8]}),
        (("--cutoffs", "5"), {"cutoffs": [5]}),
        (("--cutoffs", ""), {"cutoffs": []}),
        (("--betas", "0.5,1"), {"betas": [0.5, 1.0]}),
        (("--dropout", "1"), {"dropout": 1.0}),
        (("--no-tied",), {"tied": False}),
        (("--verbose",), {"verbose": True}),
        (("--softmax", "full"), {"softmax": "full"}),
        (("--valid-file", "auto"), {"valid": "auto"}),
    ],
)
def test_flags(words, changed):
    assert settled(*words) == settled() | changed


def test_only_given_flags_are_in_the_namespace():
    given_flags = vars(parse("text", "-o", "out", "--epochs", "3", "--hidden-size", "auto"))
    assert given_flags == {"corpus": "text", "output": "out", "epochs": 3, "hidden_size": None}


def test_help_shows_defaults_and_choices(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--hidden-size N|N,N,... units of each layer (default: chosen automatically)" in shown
    assert "--cell rnn|lstm|gru recurrence (default: lstm)" in shown
    assert "--dropout X share of units left out, 20% by default (default: 0.2)" in shown
    assert "--tied, --no-tied share the embedding's weights with the output layer (default: on)" in shown
    assert "--cutoffs N,N,... cut-offs (default: 2000,10000)" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # whatever else is missing, the misspelt flag is what to mend
        (("text", "--outptu", "x"), "unknown flag --outptu; did you mean --output?"),
        (("text", "-o", "x", "--hiden-size=5"), "unknown flag --hiden-size; did you mean --hidden-size?"),
        (("text", "-o", "x", "--hidden", "5"), "unknown flag --hidden; did you mean --hidden-size?"),
        (("text", "-o", "x", "--colour"), "unknown flag --colour; see `recurra train --help`"),
        (("text", "-o", "x", "-z"), "unknown flag -z; see `recurra train --help`"),
        (("text", "-o", "x", "other"), "unexpected argument 'other'; see `recurra train --help`"),
        (
            ("text", "-o", "x", "--dropout", "2"),
            "argument --dropout: expected a number from 0 to 1, got '2'; see `recurra train --help`",
        ),
        (
            ("text", "-o", "x", "--cutoffs", "2,x"),
            "argument --cutoffs: expected a list of whole numbers, got '2,x'; see `recurra train --help`",
        ),
    ],
)
def test_a_wrong_command_line_gets_one_line_and_status_2(capsys, words, message):
    assert complaint(capsys, *words) == f"recurra: {message}"


def test_words_and_flags_come_in_any_order():
    parser = ArgumentParser(prog="recurra predict")
    parser.add_argument("directory")
    parser.add_argument("data", nargs="*", default=["-"])
    parser.add_argument("--json", action="store_true")
    for words in (["m", "--json", "a", "b"], ["--json", "m", "a", "b"], ["m", "a", "--json", "b"]):
        found = parser.parse_args(words)
        assert (found.directory, found.data, found.json) == ("m", ["a", "b"], True)
    assert parser.parse_args(["--json", "m"]).data == ["-"]
    assert parser.parse_args(["m", "- Where is it?", "-5 degrees", "-5"]).data == ["- Where is it?", "-5 degrees", "-5"]
    assert parser.parse_args(["m", "--json", "--", "-x", "--json"]).data == ["-x", "--json"]


def test_what_follows_two_dashes_is_no_flag():
    assert parse("-o", "out", "--", "--corpus").corpus == "--corpus"


@pytest.fixture
def written(tmp_path):
    """Write a settings file, TOML by default, and return its path."""

    def write(content, name="settings.toml"):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write


def test_flags_win_over_the_file_and_the_file_over_defaults(written):
    file = written('[model]\nhidden_size = [3, 4]\ncell = "gru"\n[training]\nepochs = 9\n')
    sections = resolve(SECTIONS, file=file, flags=parse("text", "-o", "out", "--cell", "rnn", "--epochs", "3"))
    assert sections["model"] == ModelSettings(hidden_size=(3, 4), cell="rnn")
    assert sections["training"] == TrainingSettings(epochs=3)


def test_a_flag_can_set_back_to_automatic_what_the_file_chose(written):
    file = written("[model]\nhidden_size = 3\n")
    assert resolve(SECTIONS, file=file, flags={"hidden_size": None})["model"].hidden_size is None


def test_a_mapping_of_flags_is_strict():
    assert resolve(SECTIONS, flags={"epochs": 5, "valid_file": "v"})["training"] == TrainingSettings(
        epochs=5, valid="v"
    )
    with pytest.raises(UserError, match=r"^unknown setting `epoch`; did you mean `epochs`\?$"):
        resolve(SECTIONS, flags={"epoch": 5})
    with pytest.raises(UserError, match=r"^`epochs`: expected a whole number of at least 1, got 0$"):
        resolve(SECTIONS, flags={"epochs": 0})


def test_saved_settings_are_a_settings_file(written):
    sections = {"model": ModelSettings(cell="gru"), "training": TrainingSettings(betas=(0.5, 0.9))}
    saved = written(json.dumps({name: to_mapping(settings) for name, settings in sections.items()}), "settings.json")
    assert resolve(SECTIONS, file=saved) == sections


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[model]\nhiden_size = 5", ": unknown setting `hiden_size` in [model]; did you mean `hidden_size`?"),
        ("[model]\nepochs = 5", ": unknown setting `epochs` in [model]; it belongs to [training]"),
        ("[model]\nhidden-size = 5", ": unknown setting `hidden-size` in [model]; did you mean `hidden_size`?"),
        ("[modle]\ncell = 5", ": unknown section [modle]; did you mean [model]?"),
        ("[training]\nepochs = 0", ": `epochs` in [training]: expected a whole number of at least 1, got 0"),
        ("epochs = 5", ": `epochs` stands outside any section; put it under one, such as [model]"),
        ("[model\n", ": not valid TOML: "),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong_in_it(written, content, message):
    file = written(content)
    with pytest.raises(UserError) as caught:
        resolve(SECTIONS, file=file)
    assert str(caught.value).startswith(f"{file}{message}")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(written, tmp_path):
    with pytest.raises(UserError, match=r"absent\.toml: cannot read the settings file: No such file"):
        read_file(tmp_path / "absent.toml")
    with pytest.raises(UserError, match=r"expected a settings file named \.toml or \.json"):
        read_file(written("model: 5", "settings.yaml"))
    with pytest.raises(UserError, match="not valid JSON"):
        read_file(written("{", "settings.json"))
    with pytest.raises(UserError, match="expected sections"):
        read_file(written("[1]", "settings.json"))
    (tmp_path / "latin.toml").write_bytes(b'[model]\ncell = "\xe9"')
    with pytest.raises(UserError, match="not valid TOML"):
        read_file(tmp_path / "latin.toml")


def test_a_base_gives_way_to_the_file_and_to_flags(tmp_path):
    (tmp_path / "s.toml").write_text("[model]\nhidden_size = 20\n")
    base = {"hidden_size": 10, "cell": "gru", "dropout": 0.5}
    model = resolve(SECTIONS, base=base, file=tmp_path / "s.toml", flags={"cell": "rnn"})["model"]
    assert (model.hidden_size, model.cell, model.dropout) == (20, "rnn", 0.5)
    with pytest.raises(UserError, match="unknown setting `hidden_sizes`; did you mean `hidden_size`"):
        resolve(SECTIONS, base={"hidden_sizes": 3})
