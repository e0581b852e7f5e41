import itertools
import math
import os
import struct
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest

from recurra.config import UserError
from recurra.text.features import (
    FeatureSettings,
    load_array,
    log_mel,
    mel_filters,
    read_drawings,
    read_features,
    read_wav,
    resample,
    stacked,
    strokes,
)

needs_data = pytest.mark.skipif("RECURRA_DATA" not in os.environ, reason="RECURRA_DATA is not set")

PLAIN = FeatureSettings(mels=5, preemphasis=0, normalize=False)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.9, 0.9, shape)


def riff(
    path: Path, data: bytes, code: int, channels: int, rate: int, bits: int, *, extra: bytes = b"", **sizes
) -> Path:
    """Write a .wav file by hand, with a chunk of odd length before the sound."""
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", code, channels, rate, rate * block, block, bits) + extra
    chunks = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + chunks
    chunks += b"data" + struct.pack("<I", sizes.get("data_size", len(data))) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    return path


def wav(path: Path, samples: np.ndarray, rate: int = 8000) -> Path:
    channels = samples.shape[1] if samples.ndim == 2 else 1
    return riff(path, samples.astype("<f8").tobytes(), 3, channels, rate, 64)


class TestWav:
    def test_what_the_standard_library_writes(self, tmp_path):
        with wave.open(str(tmp_path / "t.wav"), "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(2)
            file.setframerate(44100)
            file.writeframes(struct.pack("<4h", 0, 16384, -32768, 1))
        samples, rate = read_wav(tmp_path / "t.wav")
        assert rate == 44100
        assert samples.tolist() == [[0, 0.5], [-1, 1 / 32768]]

    @pytest.mark.parametrize("bits", [8, 16, 24, 32])
    @pytest.mark.parametrize("extensible", [False, True])
    def test_whole_numbers(self, tmp_path, bits, extensible):
        wanted = [0, 1, -1, 100, -128, 127]
        signed = [value << (bits - 8) for value in wanted]
        if bits == 8:
            data = bytes(value + 128 for value in wanted)
        else:
            data = b"".join(value.to_bytes(bits // 8, "little", signed=True) for value in signed)
        extra = struct.pack("<HHIH14x", 22, bits, 0, 1) if extensible else b""
        path = riff(tmp_path / "t.wav", data, 0xFFFE if extensible else 1, 1, 8000, bits, extra=extra)
        assert read_wav(path)[0][:, 0].tolist() == [value / 128 for value in wanted]

    @pytest.mark.parametrize(("bits", "letter"), [(32, "f"), (64, "d")])
    def test_floating_point(self, tmp_path, bits, letter):
        path = riff(tmp_path / "t.wav", struct.pack(f"<4{letter}", 0.5, -1, 0.25, 2), 3, 2, 16000, bits)
        assert read_wav(path)[0].tolist() == [[0.5, -1], [0.25, 2]]

    def test_a_size_that_the_writer_did_not_know(self, tmp_path):
        path = riff(tmp_path / "t.wav", b"\0\0" * 5, 1, 1, 8000, 16, data_size=0xFFFFFFFF)
        assert len(read_wav(path)[0]) == 5

    def test_mistakes(self, tmp_path):
        path = tmp_path / "t.wav"
        with pytest.raises(UserError, match=r"t\.wav: cannot be read: No such file"):
            read_wav(path)
        path.write_bytes(b"ID3" + bytes(50))
        with pytest.raises(UserError, match=r"t\.wav: not a \.wav file"):
            read_wav(path)
        with pytest.raises(UserError, match="got format 85 of 0 bits; convert it"):
            read_wav(riff(path, b"", 0x55, 1, 8000, 0))
        with pytest.raises(UserError, match="cut off: expected 100 bytes of sound, got 4"):
            read_wav(riff(path, b"abcd", 1, 1, 8000, 16, data_size=100))
        path.write_bytes(riff(path, b"abcd", 1, 1, 8000, 16).read_bytes()[:-12])
        with pytest.raises(UserError, match="no sound in it"):
            read_wav(path)


def dft_mel(samples: np.ndarray, rate: int, mels: int, window: int, hop: int, bins: int) -> np.ndarray:
    """Log-mel features by the sums that define them."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    width = mel(rate / 2) / (mels + 1)
    edges = [700 * (10 ** (width * i / 2595) - 1) for i in range(mels + 2)]
    result = []
    for start in range(0, len(samples) - window + 1, hop):
        frame = [samples[start + n] * math.sin(math.pi * n / window) ** 2 for n in range(window)]
        power = []
        for k in range(bins // 2 + 1):
            angles = 2 * np.pi * k * np.arange(window) / bins
            power.append((frame @ np.cos(angles)) ** 2 + (frame @ np.sin(angles)) ** 2)
        row = []
        for low, tip, high in zip(edges, edges[1:], edges[2:], strict=False):
            total = 0.0
            for k, value in enumerate(power):
                hertz = k * rate / bins
                if low < hertz <= tip:
                    total += value * (hertz - low) / (tip - low)
                elif tip < hertz < high:
                    total += value * (high - hertz) / (high - tip)
            row.append(math.log(max(total, 1e-7)))
        result.append(row)
    return np.array(result)


class TestLogMel:
    def test_against_the_sums(self):
        samples = noise(1000)
        samples[:300] = 0  # silence, at the floor
        found = log_mel(samples, 8000, PLAIN)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, dft_mel(samples, 8000, 5, 200, 80, 256), rtol=1e-5)

    def test_preemphasis_and_normalisation(self):
        samples = noise(1000)
        settings = FeatureSettings(mels=5, preemphasis=0.5)
        emphasised = [samples[0] / 2] + [now - before / 2 for before, now in itertools.pairwise(samples)]
        plain = dft_mel(np.array(emphasised), 8000, 5, 200, 80, 256)
        wanted = (plain - plain.mean(axis=0)) / plain.std(axis=0)
        np.testing.assert_allclose(log_mel(samples, 8000, settings), wanted, atol=1e-4)

    def test_a_tone_is_loudest_in_its_filter(self):
        tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)
        settings = FeatureSettings(preemphasis=0, normalize=False)
        tips = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), 42)[1:-1] / 2595) - 1)
        assert (log_mel(tone, 8000, settings).argmax(axis=1) == np.abs(tips - 1000).argmin()).all()

    def test_filters_add_up_to_one_between_the_outer_tips(self):
        filters = mel_filters(10, 512, 8000)
        assert filters.shape == (10, 257)
        inside = slice(filters[0].argmax() + 1, filters[-1].argmax())
        np.testing.assert_allclose(filters.sum(axis=0)[inside], 1)

    def test_silence_is_silence_whether_or_not_its_last_bit_flickers(self):
        rng = np.random.default_rng(0)
        speech = [rng.normal(0, 0.05, 4000) * np.sin(np.arange(4000) / 600) ** 2 for _ in range(2)]
        found = []
        for silence in (np.zeros(8000), np.round(rng.uniform(-1, 1, 8000)) / 2**15):
            samples = np.round(np.concatenate([speech[0], silence, speech[1]]) * 2**15) / 2**15
            found.append(log_mel(samples, 8000, FeatureSettings(mels=20))[:48])
        assert found[0].std() > 0.4  # they differ from each other, though there is more silence than speech
        assert np.abs(found[0] - found[1]).mean() < 0.03

    def test_silence_is_finite(self):
        np.testing.assert_allclose(log_mel(np.zeros(1000), 8000, FeatureSettings(mels=5)), 0, atol=1e-6)

    def test_a_sound_shorter_than_a_frame_is_one(self):
        samples = noise(50)
        found = log_mel(samples, 8000, PLAIN)
        np.testing.assert_allclose(found, log_mel(np.pad(samples, (0, 150)), 8000, PLAIN))
        assert found.shape == (1, 5)

    @pytest.mark.parametrize(("samples", "frames"), [(200, 1), (279, 1), (280, 2), (8000, 98)])
    def test_number_of_frames(self, samples, frames):
        settings = FeatureSettings(mels=4, stack=3, skip=2)
        assert log_mel(noise(samples), 8000, PLAIN).shape == (frames, 5)
        assert log_mel(noise(samples), 8000, settings).shape == (math.ceil(frames / 2), settings.size)

    def test_files_of_another_rate_or_more_channels(self, tmp_path):
        path = wav(tmp_path / "t.wav", noise(1000, 2), 16000)
        with pytest.raises(UserError, match=r"t\.wav: expected one channel, got 2; convert it, or give --mix-down"):
            read_features(path, PLAIN)
        with pytest.raises(
            UserError, match=r"expected 8000 samples a second, got 16000; convert it, or give --resample"
        ):
            read_features(path, FeatureSettings(rate=8000, mix_down=True))
        settings = FeatureSettings(rate=8000, mix_down=True, resample=True, mels=5)
        mean = resample(noise(1000, 2).mean(axis=1), 16000, 8000)
        np.testing.assert_allclose(read_features(path, settings), log_mel(mean, 8000, settings), atol=1e-5)

    def test_mistakes(self, tmp_path):
        with pytest.raises(UserError, match=r"t\.wav: expected a sound, got shape \[0, 1\]; is it empty\?"):
            read_features(wav(tmp_path / "t.wav", np.zeros(0)), PLAIN)
        with pytest.raises(UserError, match=r"t\.wav: expected finite numbers, got nan at \[1\]"):
            read_features(wav(tmp_path / "t.wav", np.array([0, np.nan])), PLAIN)
        with pytest.raises(UserError, match="200 mel filters are too many for 256 samples at 8000 a second"):
            log_mel(noise(1000), 8000, FeatureSettings(mels=200))


class TestStacked:
    def test_frames_join_and_the_last_is_repeated(self):
        frames = np.arange(10, dtype=np.float32).reshape(5, 2)
        assert stacked(frames, 2, 3).tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]
        assert stacked(frames, 3, 2).tolist() == [[0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 8, 9], [8, 9, 8, 9, 8, 9]]
        assert stacked(frames, 1, 1) is frames


class TestResample:
    @pytest.mark.parametrize(("rate", "new_rate"), [(8000, 16000), (16000, 8000), (44100, 16000), (8000, 11025)])
    def test_a_tone_keeps_its_frequency_size_and_place(self, rate, new_rate):
        def tone(samples_a_second):
            return np.sin(2 * np.pi * 1000 * np.arange(samples_a_second // 10) / samples_a_second + 0.3)

        found = resample(tone(rate), rate, new_rate)
        wanted = tone(new_rate)
        assert len(found) == math.ceil(rate // 10 * new_rate / rate)
        inside = slice(len(found) // 4, -len(found) // 4)
        np.testing.assert_allclose(found[: len(wanted)][inside], wanted[inside], atol=5e-3)

    def test_what_the_new_rate_cannot_hold_is_gone(self):
        tone = np.sin(2 * np.pi * 6000 * np.arange(1600) / 16000)
        assert np.abs(resample(tone, 16000, 8000)[200:-200]).max() < 5e-3

    def test_one_sample(self):
        assert resample(np.ones(1), 8000, 16000).shape == (2,)


class TestArrays:
    def test_an_array_comes_as_it_is(self, tmp_path):
        np.save(tmp_path / "t.npy", np.array([[1, 2], [3, 4]], ">f8"))
        found = read_features(tmp_path / "t.npy", PLAIN)
        assert found.dtype == np.float32
        assert found.tolist() == [[1, 2], [3, 4]]

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros(3), r"expected an array \[time, features\], got shape \[3\]"),
            (np.zeros((0, 3)), r"expected an array \[time, features\], got shape \[0, 3\]"),
            (np.array([[0, 1], [2, np.inf]]), r"expected finite numbers, got inf at \[1, 1\]"),
            (np.array([[1e300]]), r"expected finite numbers, got inf at \[0, 0\]"),
            (np.array([["a"]]), r"expected one array of real numbers, got <U1"),
            (np.array([[1j]]), r"expected one array of real numbers, got complex128"),
            (np.array([[None]]), r"not an array of numbers in \.npy format"),
        ],
    )
    def test_mistakes(self, tmp_path, array, message):
        np.save(tmp_path / "t.npy", array)
        with pytest.raises(UserError, match=r"t\.npy: " + message):
            load_array(tmp_path / "t.npy")

    def test_files_that_are_none(self, tmp_path):
        with pytest.raises(UserError, match=r"t\.npy: cannot be read"):
            load_array(tmp_path / "t.npy")
        for content in (b"", b"no array", b"\x93NUMPY\x01\x00"):
            (tmp_path / "t.npy").write_bytes(content)
            with pytest.raises(UserError, match=r"t\.npy: not an array of numbers"):
                load_array(tmp_path / "t.npy")


class TestStrokes:
    def test_an_l_and_a_dot(self):
        # down 4 and right 2, then a dot above the end: the box is 2 wide and 4 high, so its longer side is 4
        line = np.array([[10.0, 5, 0], [10, 1, 7], [12, 1, 9]])
        found = strokes([line, np.array([[12.0, 5, 20]])], step=0.25)
        left, right = -0.25, 0.25
        wanted = [
            [left, 0.5, 0, 0, 1],
            [left, 0.25, 0, -1, 0],
            [left, 0, 0, -1, 0],
            [left, -0.25, 0, -1, 0],
            [left, -0.5, 0, -1, 0],
            [0, -0.5, 1, 0, 0],
            [right, -0.5, 1, 0, 0],
            [right, 0.5, 0, 1, 1],
        ]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-6)

    def test_place_size_and_sampling_of_the_pen_do_not_matter(self):
        angles = np.linspace(0, 5, 400)
        spiral = np.stack([angles * np.cos(angles), angles * np.sin(angles)], axis=1)
        rng = np.random.default_rng(0)
        some = np.sort(np.concatenate([[0, 399], rng.choice(np.arange(1, 399), 250, replace=False)]))
        found = strokes([spiral])
        np.testing.assert_allclose(strokes([spiral * 30 - 7]), found, atol=1e-5)
        np.testing.assert_allclose(strokes([spiral[some]])[:, :2], found[:, :2], atol=2e-3)
        lengths = np.linalg.norm(np.diff(found[:, :2], axis=0), axis=1)
        np.testing.assert_allclose(lengths, 0.05, rtol=0.03)

    def test_only_a_dot(self):
        assert strokes([np.ones((3, 2))]).tolist() == [[0, 0, 0, 0, 1]]

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ([], "expected a drawing, got no line"),
            ([np.zeros((2, 2)), np.zeros((0, 2))], r"line 2: expected points with x and y, got shape \[0, 2\]"),
            ([np.zeros(4)], r"line 1: expected points with x and y, got shape \[4\]"),
            ([np.array([[0, np.nan]])], r"line 1: expected finite numbers, got nan at \[0, 1\]"),
        ],
    )
    def test_mistakes(self, lines, message):
        with pytest.raises(UserError, match=message):
            strokes(lines)


class TestDrawings:
    def zipped(self, path: Path, **files: str) -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path

    def test_omniglot(self, tmp_path):
        one = "START\n0,0,0\n4,0,9\nBREAK\n4,-4,20\n0,-4,30\nBREAK\n"
        files = {"s/Greek/character02/0102_01.txt": one, "s/Greek/character01/0101_12.txt": one}
        files |= {"s/Greek/character01/0101_02.txt": one, "s/.DS_Store": "", "__MACOSX/s/A/b/1_1.txt": ""}
        found = list(read_drawings(self.zipped(tmp_path / "t.zip", **files)))
        assert [drawing[:3] for drawing in found] == [
            ("Greek", "character01", 2),
            ("Greek", "character01", 12),
            ("Greek", "character02", 1),
        ]
        lines = [np.array([[0, 0], [4, 0]]), np.array([[4, -4], [0, -4]])]
        np.testing.assert_array_equal(found[0].features, strokes(lines))

    def test_a_file_by_itself(self, tmp_path):
        (tmp_path / "a.txt").write_text("START\n0,0,0\n4,0,9\nBREAK\n4,-4,20\n0,-4,30\nBREAK\n")
        lines = [np.array([[0, 0], [4, 0]]), np.array([[4, -4], [0, -4]])]
        np.testing.assert_array_equal(read_features(tmp_path / "a.txt", FeatureSettings()), strokes(lines))
        (tmp_path / "b.txt").write_text("one two\n")
        with pytest.raises(UserError, match=r"b\.txt, line 1: expected `x,y,time`, START or BREAK, got 'one two'"):
            read_features(tmp_path / "b.txt", FeatureSettings())
        with pytest.raises(UserError, match=r"c\.txt: cannot be read"):
            read_features(tmp_path / "c.txt", FeatureSettings())

    def test_mistakes(self, tmp_path):
        path = tmp_path / "t.zip"
        with pytest.raises(UserError, match=r"t\.zip: cannot be read"):
            list(read_drawings(path))
        with pytest.raises(UserError, match=r"expected drawings named ALPHABET/CHARACTER/NUMBER_DRAWER\.txt, got none"):
            list(read_drawings(self.zipped(path, **{"readme.txt": ""})))
        with pytest.raises(UserError, match=r"a/b/1_1\.txt, line 2: expected `x,y,time`, START or BREAK, got '1,2'"):
            list(read_drawings(self.zipped(path, **{"a/b/1_1.txt": "START\n1,2\n"})))
        with pytest.raises(UserError, match=r"a/b/1_1\.txt: expected a drawing, got no line"):
            list(read_drawings(self.zipped(path, **{"a/b/1_1.txt": "START\nBREAK\n"})))
        path.write_bytes(b"no zip")
        with pytest.raises(UserError, match=r"t\.zip: not a \.zip file"):
            list(read_drawings(path))


@needs_data
def test_real_recordings_and_drawings():
    folder = Path(os.environ["RECURRA_DATA"])
    sound, drawings = folder / "fsdd" / "recordings" / "7_jackson_32.wav", folder / "omniglot-strokes"
    if not sound.exists() or not drawings.exists():
        pytest.skip("fsdd and omniglot-strokes are not there")
    found = read_features(sound, FeatureSettings(rate=8000))
    with wave.open(str(sound)) as file:
        assert len(found) == 1 + (file.getnframes() - 200) // 80
    np.testing.assert_allclose(found.std(axis=0), 1, atol=1e-3)
    first = next(read_drawings(drawings / "strokes_background_small1.zip"))
    assert first[:3] == ("Balinese", "character01", 1)
    assert first.features[:, 4].sum() == 1
