"""Published systems: their full size is the published one, and a scale changes sizes alone."""

from __future__ import annotations

import math

import pytest
import torch

from recurra.config import UserError, resolve
from recurra.models.kinds import KINDS
from recurra.presets import PRESETS, find_preset
from recurra.recipes import sections
from recurra.text.vocabulary import SPECIAL, Vocabulary

WORDS = 793_471  # of the One Billion Word benchmark


@pytest.fixture(scope="module")
def vocabulary():
    tokens = [*SPECIAL, *(f"{number:07x}" for number in range(WORDS - len(SPECIAL)))]
    return Vocabulary(tokens, [max(1, 10**8 // rank) for rank in range(1, WORDS + 1)])


def full_size(name, vocabulary):
    """The model of a preset, without storage for its weights."""
    preset = PRESETS[name]
    settings = resolve(sections(preset.kind), base=preset.settings)["model"]
    with torch.device("meta"):
        return KINDS[preset.kind].model(settings, vocabulary)


def millions(parameters):
    return sum(parameter.numel() for parameter in parameters) / 1e6


# Jozefowicz et al. 2016, table 1: 0.83, 1.8 and 1.04 billion, and 9.4 million in the LSTM of the first (section 4.1).
@pytest.mark.parametrize(
    ("name", "everything", "recurrent"),
    [
        ("lstm-2048-512", 820, 9.4),
        ("lstm-8192-1024", 1_800, 151),
        ("lstm-8192-1024-char-cnn", 1_040, 151),
    ],
)
def test_the_full_size_is_the_published_one(name, everything, recurrent, vocabulary):
    model = full_size(name, vocabulary)
    assert millions(model.parameters()) == pytest.approx(everything, rel=0.02)
    assert millions(model.recurrent.parameters()) == pytest.approx(recurrent, rel=0.01)


@pytest.mark.parametrize(("name", "layers"), [("adaptive-lstm-2048", 1), ("adaptive-2-layer-lstm-2048", 2)])
def test_adaptive_presets_have_the_published_units(name, layers, vocabulary):
    model = full_size(name, vocabulary)
    assert model.recurrent.hidden_sizes == (2048,) * layers
    assert model.recurrent.input_size == 256
    assert model.output.head.shape[1] == 2048


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("scale", [1.0, 0.125])
def test_every_preset_has_settings_that_its_kind_knows(name, scale):
    preset = PRESETS[name]
    chosen = resolve(sections(preset.kind), base=preset.scaled(scale))
    for section, settings in chosen.items():
        for setting, value in vars(settings).items():
            if section in ("model", "training") and setting in preset.settings and scale == 1:
                assert value == preset.settings[setting]


def test_a_scale_multiplies_sizes_and_nothing_else():
    small, full = PRESETS["lstm-8192-1024-char-cnn"].scaled(0.125), PRESETS["lstm-8192-1024-char-cnn"].settings
    assert (small["hidden_size"], small["projection_size"], small["embedding_size"]) == (1024, 128, 128)
    assert small["samples"] == 1024
    assert small["filters"] == (4, 4, 8, 16, 32, 64, 128, 256)
    same = {name for name in full if small[name] == full[name]}
    assert set(full) - same == {"hidden_size", "projection_size", "embedding_size", "samples", "filters"}


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(UserError, match="number above 0"):
        PRESETS["lstm-2048-512"].scaled(scale)


def test_a_scale_beyond_all_machines_is_refused():
    with pytest.raises(UserError, match="layers of 2,048,000 units"):
        PRESETS["lstm-2048-512"].scaled(1000)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'lstm-2048-512'"):
        find_preset("lstm-2048")
    with pytest.raises(UserError, match="there are kneser-ney-5, "):
        find_preset("zzz")
