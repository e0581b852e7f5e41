"""Files of arrays, read back; folders for LSTMVis, as its server reads them."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from recurra.config import UserError
from recurra.tracing import ARRAY_SUFFIXES, arrays, check_arrays, trace, write_arrays
from tracing.models import GATES, TEXT, handmade, model


@pytest.fixture
def traced():
    return trace(model(), TEXT)


def read_npz(path):
    with np.load(path) as file:
        return dict(file)


def read_hdf5(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path) as file:
        found = {name: file[name][:] for name in file}
    return found | {"tokens": np.array([token.decode() for token in found["tokens"]])}


class Project:
    """A folder as LSTMVis's server reads it (lstmdata/data_handler.py there): by what is in lstm.yml alone."""

    def __init__(self, folder):
        h5py = pytest.importorskip("h5py")
        yaml = pytest.importorskip("yaml")
        self.config = yaml.safe_load((folder / "lstm.yml").read_text(encoding="utf-8"))
        files = self.config["files"]
        self.arrays = {n: h5py.File(folder / f, "r") for n, f in files.items() if f.endswith((".h5", ".hdf5"))}
        self.words = {}
        for name, file in files.items():
            if file.endswith((".dict", ".txt")):
                pairs = [line.split() for line in (folder / file).read_text(encoding="utf-8").splitlines()]
                self.words[name] = {int(id): word for word, id in pairs}
        self.types = self.config["states"]["types"]
        for each in self.types:
            each.setdefault("file", self.config["states"]["file"])
            each.setdefault("unsigned", False)
            each.setdefault("transform", "tanh")

    def states(self, type, layer):
        (entry,) = [each for each in self.types if (each["type"], each["layer"]) == (type, layer)]
        values = self.arrays[entry["file"]][entry["path"]][:]
        assert entry["transform"] in ("tanh", "none")
        return np.tanh(values) if entry["transform"] == "tanh" else values

    def text(self):
        place = self.config["word_sequence"]
        return [self.words[place["dict_file"]][id] for id in self.arrays[place["file"]][place["path"]][:].tolist()]


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".hdf5"])
def test_one_file(suffix, traced, tmp_path):
    path = tmp_path / f"t{suffix}"
    if suffix != ".npz":
        pytest.importorskip("h5py")
    assert write_arrays(traced, path) == [path]
    found = (read_npz if suffix == ".npz" else read_hdf5)(path)
    assert found["tokens"].tolist() == traced.tokens
    assert found["words"].tolist() == traced.ids.tolist()
    np.testing.assert_array_equal(found["bits"], traced.bits)
    names = {"words", "tokens", "bits"}
    for number, layer in enumerate(traced.layers, 1):
        assert layer.keys() == GATES["lstm"] | {"hidden"}
        for name, values in layer.items():
            names.add(f"{name}{number}")
            assert found[f"{name}{number}"].dtype == np.float32
            np.testing.assert_array_equal(found[f"{name}{number}"], values)
    assert set(found) == names
    assert list(tmp_path.iterdir()) == [path]


def test_tokens_that_end_strings(tmp_path):
    pytest.importorskip("h5py")
    write_arrays(handmade(np.ones((2, 1)), tokens=["a\0b", "語"]), tmp_path / "t.h5")
    assert read_hdf5(tmp_path / "t.h5")["tokens"].tolist() == ["a␀b", "語"]


class TestLSTMVis:
    def test_an_lstm(self, traced, tmp_path):
        pytest.importorskip("h5py")
        folder = tmp_path / "my text: 1.lstmvis"
        assert write_arrays(traced, folder) == [folder / name for name in ("states.hdf5", "words.dict", "lstm.yml")]
        found = Project(folder)
        assert found.config["name"] == "my text: 1"
        assert found.text() == traced.tokens
        for number, layer in enumerate(traced.layers, 1):
            assert np.abs(layer["hidden"]).max() < 1
            np.testing.assert_array_equal(found.states("state", number), np.tanh(layer["cell"]))
            np.testing.assert_array_equal(found.states("output", number), layer["hidden"])
            np.testing.assert_array_equal(found.states("output gate", number), layer["output"])
            np.testing.assert_array_equal(found.states("candidate", number), layer["candidate"])
        unsigned = {each["type"] for each in found.types if each["unsigned"]}
        assert unsigned == {"forget gate", "input gate", "output gate"}
        assert len(found.types) == 2 * 6

    def test_names_are_those_of_the_other_files(self, traced, tmp_path):
        write_arrays(traced, tmp_path / "t.npz")
        pytest.importorskip("h5py")
        write_arrays(traced, tmp_path / "t.lstmvis")
        one, other = read_npz(tmp_path / "t.npz"), read_hdf5(tmp_path / "t.lstmvis" / "states.hdf5")
        assert set(other) == set(one) | {"states1", "states2"}  # where its interface looks by default
        for name, values in one.items():
            np.testing.assert_array_equal(other[name], values)
        np.testing.assert_array_equal(other["states2"], one["cell2"])

    @pytest.mark.parametrize("cell", ["gru", "rnn"])
    def test_without_cell_states(self, cell, tmp_path):
        pytest.importorskip("h5py")
        traced = trace(model(cell, "characters"), "the cat\nsat")
        write_arrays(traced, tmp_path / "t.lstmvis")
        found = Project(tmp_path / "t.lstmvis")
        np.testing.assert_array_equal(found.states("state", 2), traced.layers[1]["hidden"])
        assert found.text() == [*"the␣cat", "<eos>", *"sat"]
        assert {each["type"] for each in found.types} == {"state"} | (
            {"reset gate", "update gate", "candidate"} if cell == "gru" else set()
        )

    def test_what_has_no_bound_is_shown_through_tanh(self, tmp_path):
        pytest.importorskip("h5py")
        write_arrays(handmade([[0.5, -3.0]]), tmp_path / "t.lstmvis")  # as of a simple RNN with relu
        np.testing.assert_allclose(
            Project(tmp_path / "t.lstmvis").states("state", 1), np.tanh([[0.5, -3.0]]), rtol=1e-6
        )

    def test_surprisal_is_beside_it(self, traced, tmp_path):
        pytest.importorskip("h5py")
        write_arrays(traced, tmp_path / "t.lstmvis")
        found = Project(tmp_path / "t.lstmvis")
        about = found.config["meta"]["surprisal_bits"]
        np.testing.assert_array_equal(found.arrays[about["file"]][about["path"]][:], traced.bits)
        assert about["vis"]["type"] == "scalar"
        assert about["vis"]["range"] == pytest.approx([0, traced.bits.max()], abs=0.01)

    def test_is_written_again_in_place(self, traced, tmp_path):
        pytest.importorskip("h5py")
        for text in (traced, trace(model("gru"), "the cat")):
            write_arrays(text, tmp_path / "t.lstmvis")
        assert Project(tmp_path / "t.lstmvis").text() == ["the", "cat"]
        assert len(list((tmp_path / "t.lstmvis").iterdir())) == 3

    def test_tokens_of_white_space_stay_apart(self):
        tokens = [" ", "␣", "\t", "\\", "\\u0009", "\x85", "a b", "ab"]
        written = [arrays._unbroken(token) for token in tokens]
        assert all(len(name.split()) == 1 for name in written)
        assert len(set(written)) == len(tokens)


def test_what_is_missing_or_unknown(traced, tmp_path, monkeypatch):
    for function in (check_arrays, lambda path: write_arrays(traced, path)):
        with pytest.raises(UserError, match=r"unknown format; end the name in one of \.npz"):
            function(tmp_path / "t.csv")
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "h5py", None)
            for suffix in set(ARRAY_SUFFIXES) - {".npz"}:
                with pytest.raises(UserError, match=r"pip install 'recurra\[hdf5\]'"):
                    function(tmp_path / f"t{suffix}")
    assert list(tmp_path.iterdir()) == []
    pytest.importorskip("h5py")
    (tmp_path / "t.lstmvis").write_text("a file")
    with pytest.raises(UserError, match=r"t\.lstmvis: expected a folder for LSTMVis, found a file"):
        check_arrays(tmp_path / "t.lstmvis")


def test_what_fails_leaves_nothing_behind(traced, tmp_path, monkeypatch):
    pytest.importorskip("h5py")
    (tmp_path / "t.h5").write_bytes(b"old")
    monkeypatch.setitem(traced.layers[1], "cell", object())  # no array: h5py refuses it, after many others
    with pytest.raises(TypeError):
        write_arrays(traced, tmp_path / "t.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["t.h5"]
    assert (tmp_path / "t.h5").read_bytes() == b"old"
