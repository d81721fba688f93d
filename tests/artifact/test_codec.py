"""Streams come back exactly, and take about the entropy that NumPy counts."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from hypothesis import given, strategies as st

from nnopt_jax.artifact import codec, context, file, line_coding, rans
from nnopt_jax.artifact.byte_io import ByteReader, Decoder, Encoder
from nnopt_jax.errors import ArtifactError, ValueRangeError

SHAPES = [(0,), (1,), (7,), (0, 5), (5, 0), (1, 300), (60, 1), (33, 40), (3, 3, 4, 9), (2, 500)]


def entropy(symbols: np.ndarray) -> float:
    """Bytes of an order-0 code without its table."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum()) / 8


def skewed(rng, shape, alphabet, scale):
    """Symbols around the middle of an alphabet, the more alike the smaller the scale."""
    middle = alphabet // 2
    return np.clip(np.rint(rng.normal(middle, scale * alphabet, shape)), 0, alphabet - 1).astype(
        int
    )


def image_mask(rng, inputs=28, width=64):
    """A mask as pruning leaves it before a dense layer: each output looks at one spot."""
    y, x = np.mgrid[:inputs, :inputs].reshape(2, -1, 1)
    spot = rng.uniform(5, inputs - 5, (2, width))
    near = np.exp(-((y - spot[0]) ** 2 + (x - spot[1]) ** 2) / 30)
    return rng.random(near.shape) < 0.35 * near


def round_trip(symbols, alphabet, **options):
    data = codec.encode(symbols, alphabet, **options)
    sides = options.get("sides", (None, None))
    back = codec.decode(data, symbols.shape, alphabet, sides=sides)
    np.testing.assert_array_equal(back, symbols, strict=False)
    assert back.dtype == (np.uint8 if alphabet <= 256 else np.uint16)
    return data


def encode_large(symbols, alphabet, center=0):
    """Code without contexts, as for a stream that is too long for them."""
    counts = np.bincount(symbols.ravel())
    return codec._encode_large(symbols, alphabet, center, counts, codec.Budget(0, 0, 0))


@pytest.mark.parametrize("shape", SHAPES)
@given(
    alphabet=st.sampled_from([1, 2, 3, 16, 17, 256, 257, 5000, 65536]),
    scale=st.sampled_from([0.001, 0.05, 0.5]),
    center=st.sampled_from([0, 1, 8]),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_was_encoded_is_decoded(shape, alphabet, scale, center, seed):
    symbols = skewed(np.random.default_rng(seed), shape, alphabet, scale)
    round_trip(symbols, alphabet, center=min(center, alphabet))


@pytest.mark.parametrize("way", ["table", "split", "wide"])
def test_large_streams_come_back(way):
    rng = np.random.default_rng(3)
    alphabet, scale = {"table": (200, 0.2), "split": (16, 0.01), "wide": (65536, 0.03)}[way]
    symbols = skewed(rng, 40_001, alphabet, scale)
    data = encode_large(symbols, alphabet)
    assert data[0] == {"table": codec._TABLE, "split": codec._SPLIT_OFF, "wide": codec._WIDE}[way]
    np.testing.assert_array_equal(codec.decode(data, symbols.shape, alphabet), symbols)
    assert len(data) < 1.02 * entropy(symbols) + 600  # a table costs at this length


@pytest.mark.parametrize("alphabet", [2, 3, 4, 7, 16, 17, 256, 4096])
def test_tables_reach_the_entropy_of_a_million_symbols(alphabet):
    symbols = skewed(np.random.default_rng(1), 1_000_003, alphabet, 0.2)
    data = rans.encode([symbols], alphabet)
    assert len(data) <= 1.01 * entropy(symbols) + 64
    np.testing.assert_array_equal(rans.decode(data, [len(symbols)], alphabet)[0], symbols)


@pytest.mark.parametrize("size", [rans._CHUNK - 1, rans._CHUNK, rans._CHUNK + 1])
def test_calls_end_where_streams_end(size):
    symbols = skewed(np.random.default_rng(1), size, 256, 0.1).astype(np.uint8)
    np.testing.assert_array_equal(rans.decode(rans.encode([symbols], 256), [size], 256)[0], symbols)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 400), alphabet=st.integers(17, 300))
def test_the_compiled_loop_writes_what_the_definition_says(seed, size, alphabet):
    rng = np.random.default_rng(seed)
    symbols = skewed(rng, size, alphabet, rng.choice([0.02, 0.3]))
    table = rans._frequencies(np.bincount(symbols))
    if table.max() == 1 << 15:
        return
    below = np.cumsum(table) - table
    state, words = 1 << 16, []
    for symbol in symbols[::-1].tolist():  # Duda 2014, with words of 16 bits
        part, start = int(table[symbol]), int(below[symbol])
        if state >= part << 17:
            words.append(state & 0xFFFF)
            state >>= 16
        state = (state // part << 15) + state % part + start
    coded = rans._push([symbols.astype(np.uint16)], [table])
    assert (coded[0], coded[1].tolist()) == (state, words[::-1])


def test_without_a_processor_jax_codes_elsewhere_and_says_so(monkeypatch):
    def refuse(**_):
        raise RuntimeError("Unknown backend cpu")

    symbols = skewed(np.random.default_rng(0), 5000, 200, 0.1)
    data = rans.encode([symbols], 200)
    monkeypatch.setattr("jax.local_devices", refuse)
    with pytest.warns(UserWarning, match="JAX_PLATFORMS"):
        assert rans.encode([symbols], 200) == data


def test_parts_with_tables_of_their_own_come_back():
    rng = np.random.default_rng(0)
    kinds = [(30_001, [0.2] * 5), (1, [1, 0, 0, 0, 0]), (5000, [0, 0, 0, 0, 1]),
             (777, [0.9, 0.1, 0, 0, 0])]  # fmt: skip
    parts = [rng.choice(5, size, p=shares) for size, shares in kinds]
    data = rans.encode(parts, 5)
    assert len(data) < 1.02 * sum(map(entropy, parts)) + 200
    for part, back in zip(parts, rans.decode(data, list(map(len, parts)), 5), strict=True):
        np.testing.assert_array_equal(back, part)


@pytest.mark.parametrize("share", [0.0056, 0.11, 0.5])
def test_contexts_cost_nothing_where_there_are_none(share):
    symbols = (np.random.default_rng(2).random((300, 500)) < share).astype(int)
    lines = line_coding.fit(symbols, np.bincount(symbols.ravel()), 2, 0)
    assert len(line_coding.encode(lines, (None, None))) <= 1.01 * entropy(symbols) + 64


def test_neighbors_make_a_mask_smaller():
    mask = image_mask(np.random.default_rng(0)).astype(int)
    assert line_coding.find_lags(mask > 0, np.zeros(mask.shape))[1] in [(1, 28), (28, 1)]
    assert len(round_trip(mask, 2)) < 0.8 * entropy(mask)
    assert len(round_trip(mask.T.copy(), 2)) < 0.8 * entropy(mask)


def test_signs_of_neighbors_count():
    rng = np.random.default_rng(0)
    mask = image_mask(rng)
    sign = np.where(np.arange(28 * 28)[:, None] // 28 < 14, 8, 0)
    symbols = np.where(mask, 1 + sign + rng.integers(0, 8, mask.shape), 0)
    told = len(round_trip(symbols, 17, center=9))
    coded = len(round_trip(mask.astype(int), 2)) + mask.sum() * 3 / 8
    assert told < coded + 0.04 * mask.sum()  # of a bit each


@pytest.mark.parametrize("axis", [0, 1])
def test_classes_of_rows_and_columns_make_a_mask_smaller(axis):
    rng = np.random.default_rng(0)
    side = rng.integers(0, 2, (200, 50)[axis])
    density = np.where(side, 0.3, 0.01)
    mask = (rng.random((200, 50)) < np.expand_dims(density, 1 - axis)).astype(int)
    told = round_trip(mask, 2, sides=(side, None) if axis == 0 else (None, side))
    parts = [np.compress(side == kind, mask, axis) for kind in (0, 1)]
    assert len(told) < 1.06 * sum(map(entropy, parts))


def test_logarithms_round_alike_everywhere():
    values = 256 * np.log2(np.arange(1, 2**20))
    assert np.abs(values % 1 - 0.5).min() > 1e-9
    chances = 2**16 / (1 + 2.0 ** (-np.arange(-4096, 4096) / 256))
    assert np.abs(chances % 1 - 0.5).min() > 1e-9
    assert context._logarithms().max() == 20 * 256


@given(seed=st.integers(0, 2**32 - 1), count=st.sampled_from([0, 1, 17, 3000]))
def test_arithmetic_code_is_exact_and_tight(seed, count):
    rng = np.random.default_rng(seed)
    odds = rng.choice([1, 2, 300, 32768, 65534, 65535], count)
    bits = (rng.random(count) * 65536 < odds).astype(int)
    writer = Encoder()
    for part in np.array_split(np.arange(count), 5):
        writer.code(odds[part], bits[part])
    data = writer.finish()
    ideal = -np.log2(np.where(bits, odds, 65536 - odds) / 65536).sum() / 8
    assert len(data) <= ideal + 2.01
    reader = Decoder(data)
    np.testing.assert_array_equal(reader.code(odds), bits)
    reader.finish()


def test_counts_never_leave_the_table_of_logarithms():
    mixer, writer = context.Mixer([1], prior=0), Encoder()
    contexts = np.zeros((1, 4096), int)
    for _ in range(40):
        mixer.code(writer, contexts, contexts[0])
    assert mixer._counts.max() < context._MOST


@pytest.mark.parametrize(("symbols", "alphabet"), [([3], 3), ([-1], 3), ([0], 0), ([0], 65537)])
def test_what_does_not_fit_is_refused(symbols, alphabet):
    with pytest.raises(ValueRangeError):
        codec.encode(np.array(symbols), alphabet)


@pytest.mark.parametrize("alphabet", [2, 255])
def test_busy_rows_and_columns_of_large_arrays_are_told_apart(alphabet):
    rng = np.random.default_rng(0)
    busy = np.exp(rng.normal(size=(400, 1)) + rng.normal(size=(1, 300)))
    if alphabet == 2:
        symbols = (rng.random(busy.shape) < 0.05 * busy).astype(int)
    else:
        symbols = np.clip(np.rint(rng.normal(size=busy.shape) * 8 * busy), -127, 127) + 127
    symbols = symbols.astype(np.uint8).reshape(20, 20, 300)
    data = encode_large(symbols, alphabet, alphabet // 2)
    assert data[0] == codec._CLASSED
    assert len(data) < 0.93 * entropy(symbols)
    np.testing.assert_array_equal(codec.decode(data, symbols.shape, alphabet), symbols)
    plain = rng.permutation(symbols.ravel()).reshape(symbols.shape)
    assert encode_large(plain, alphabet, alphabet // 2)[0] == codec._TABLE


CASES = {
    "constant": (np.full((4, 5), 3), 7),
    "raw": (np.array([[5, 1]]), 9),
    "planes": (skewed(np.random.default_rng(0), (20, 30), 16, 0.1), 16),
    "table": (skewed(np.random.default_rng(0), 5000, 16, 0.2), 16),
    "classes": (np.add.outer(np.arange(70) > 60, np.arange(90) > 80).astype(int), 3),
    "split": (skewed(np.random.default_rng(0), 5000, 16, 0.01), 16),
    "wide": (skewed(np.random.default_rng(0), 5000, 65536, 0.03), 65536),
}
METHODS = [*range(9), 32, 33]


def case(name):
    symbols, alphabet = CASES[name]
    if name in ("constant", "raw", "planes"):
        return codec.encode(symbols, alphabet), symbols.shape, alphabet
    return encode_large(symbols, alphabet), symbols.shape, alphabet


@pytest.mark.parametrize("name", CASES)
def test_damage_gives_our_error_or_symbols_in_range(name):
    data, shape, alphabet = case(name)
    rng = np.random.default_rng(0)
    damaged = [data[:cut] for cut in {0, 1, 2, 3, len(data) // 2, len(data) - 1}]
    damaged += [data + b"\1" * 5]
    for place in [*range(min(len(data), 24)), *rng.integers(0, len(data), 20)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(flipped))
    damaged += [bytes([method]) + rng.bytes(40) for method in METHODS for _ in range(5)]
    for bad in damaged:
        try:
            symbols = codec.decode(bad, shape, alphabet)
        except ArtifactError:
            continue
        assert symbols.shape == shape
        assert symbols.max() < alphabet


@pytest.mark.parametrize("method", METHODS)
def test_a_short_lie_about_a_large_array_is_found_at_once(method):
    with pytest.raises(ArtifactError):
        codec.decode(bytes([method]) + b"\1" * 12, (1 << 32, 2), 2)


def former_stream(name):
    """A stream that an earlier version coded with tables, from a file of it."""
    golden = pathlib.Path(__file__).parent.parent / "golden/files/coded"
    found = file.contents(golden / f"{name}.nnopt", 1 << 30)
    stream, data = found.plan.coded[0], found.coded[0][1:]  # the first byte names a profile
    if data[0] != codec._SPLIT_OFF:
        return data, stream.shape, stream.alphabet
    reader = ByteReader(data[2:])
    return reader.part(), stream.shape, 2  # the positions of the other symbols


@pytest.mark.parametrize(
    ("name", "way"), [("tables", codec._FORMER_TABLE), ("large", codec._FORMER_CLASSED)]
)
def test_former_tables_are_read_and_their_damage_is_found(name, way):
    data, shape, alphabet = former_stream(name)
    rng = np.random.default_rng(0)
    assert data[0] == way
    symbols = codec.decode(data, shape, alphabet)
    again = codec.decode(encode_large(symbols, alphabet), shape, alphabet)
    np.testing.assert_array_equal(again, symbols)
    for place in rng.integers(1, len(data), 5):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(ArtifactError):
            codec.decode(bytes(flipped), shape, alphabet)


def test_a_codec_of_a_later_version_is_named():
    with pytest.raises(
        ArtifactError, match=r"codec 34, this library reads 0 to 33\. Read the file"
    ):
        codec.decode(bytes([34]) + b"\1" * 12, (50, 2), 2)


def test_efforts_trade_time_for_size():
    mask = image_mask(np.random.default_rng(0)).astype(np.uint8)
    sizes = []
    for effort in codec.EFFORTS:
        data = codec.encode(mask, 2, budget=codec.Budget.of(effort))
        np.testing.assert_array_equal(codec.decode(data, mask.shape, 2), mask)
        sizes.append(len(data))
    fast, default, smallest = sizes
    assert fast < 1.01 * entropy(mask) + 64
    assert default == smallest < 0.8 * fast


def test_contexts_are_tried_only_where_neighbors_agree():
    rng = np.random.default_rng(0)
    noise = skewed(rng, (400, 300), 256, 0.1)
    budget = codec.Budget.of("default")
    codec.encode(noise, 256, budget=budget)
    assert budget == codec.Budget.of("default")
    smooth = np.clip(noise // 4 + 96 + 20 * np.sin(np.arange(400) / 3)[:, None], 0, 255)
    codec.encode(smooth.astype(int), 256, budget=budget)
    assert budget.promising < codec.Budget.of("default").promising
