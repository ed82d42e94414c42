import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scatterdp.privacy.randomness import RandomKey

SECRET = bytes(range(32))


def bytes_p_value(words: np.ndarray) -> float:
    """χ² test that all 256 byte values are equally frequent, at each of the 8 places of a word separately."""
    places = words.astype("<u8").view(np.uint8).reshape(-1, 8)
    statistic = sum(stats.chisquare(np.bincount(place, minlength=256)).statistic for place in places.T)
    return float(stats.chi2.sf(statistic, 8 * 255))


def test_the_secret_is_not_shown():
    key = RandomKey(SECRET)
    for text in (repr(key), str(key), f"{key}", repr([key]), str(key.describe())):
        assert SECRET.hex() not in text
        assert repr(SECRET)[2:-1] not in text
        assert "secret" not in text
    assert repr(RandomKey.from_seed(5)) == "RandomKey(origin='seed')"


def test_a_seed_always_makes_the_same_key():
    assert RandomKey.from_seed(7) == RandomKey.from_seed(7) == RandomKey.make(7)
    assert len({RandomKey.from_seed(seed).secret for seed in range(100)}) == 100
    assert RandomKey.from_seed(7).origin == "seed"


def test_the_system_never_makes_the_same_key():
    keys = [RandomKey.from_system() for _ in range(50)] + [RandomKey.make(None)]
    assert len({key.secret for key in keys}) == 51
    assert {key.origin for key in keys} == {"system"}
    # All 256 bits are in use: each is set in some keys and not in others.
    bits = np.unpackbits(np.array([list(key.secret) for key in keys], dtype=np.uint8), axis=1)
    assert bits.any(0).all()
    assert not bits.all(0).any()


def test_the_stream_is_frozen():
    # SHAKE-256 of secret ‖ counter (8 bytes, little-endian) ‖ purpose, from another implementation:
    # "openssl dgst -shake256 -xoflen 24" of these 45 bytes.
    expected = np.frombuffer(bytes.fromhex("dd03fd8207af15b59760892971fc601c76b9969863fea258"), dtype="<u8")
    assert (RandomKey(SECRET).words("noise", counter=3, count=3) == expected).all()


def test_words_have_the_asked_shape_and_type():
    words = RandomKey(SECRET).words("noise", counter=0, count=5)
    assert words.shape == (5,)
    assert words.dtype == np.uint64
    assert len(RandomKey(SECRET).words("noise", counter=0, count=0)) == 0


def test_words_are_uniform():
    words = RandomKey(SECRET).words("noise", counter=0, count=200_000)
    assert 1e-4 < bytes_p_value(words) < 1 - 1e-4
    # Across counters as well: the first words of many short streams.
    key = RandomKey(SECRET)
    heads = np.concatenate([key.words("noise", counter=counter, count=2) for counter in range(20_000)])
    assert 1e-4 < bytes_p_value(heads) < 1 - 1e-4


def test_the_uniformity_test_sees_faults():
    words = RandomKey(SECRET).words("noise", counter=0, count=200_000).copy()
    stuck = words | np.uint64(1 << 63)
    assert bytes_p_value(stuck) < 1e-10
    rare = words.copy()
    rare[:4000] = 0
    assert bytes_p_value(rare) < 1e-10
    counted = np.arange(200_000, dtype=np.uint64) * np.uint64(0x0101010101010101)
    assert not 1e-4 < bytes_p_value(counted) < 1 - 1e-4


def test_each_word_of_a_stream_is_different():
    key = RandomKey(SECRET)
    names = list(itertools.product(("a", "ab", "b", "", "gradient of weight", "gradient of bias"), (0, 1, 97, 2**32)))
    streams = [key.words(purpose, counter=counter, count=50) for purpose, counter in names]
    streams.append(RandomKey.from_seed(0).words("a", counter=0, count=50))
    assert len(np.unique(np.concatenate(streams))) == 50 * len(streams)


@given(
    first=st.tuples(st.text(max_size=12), st.integers(0, 2**64 - 1)),
    second=st.tuples(st.text(max_size=12), st.integers(0, 2**64 - 1)),
)
def test_streams_are_the_same_only_for_the_same_name(first, second):
    key = RandomKey(SECRET)
    a, b = (key.words(purpose, counter=counter, count=2) for purpose, counter in (first, second))
    assert (a == b).all() == (first == second)


def test_no_counter_reads_as_part_of_a_purpose():
    # 0x61 is "a": were counters written without a fixed length, ("", 0x61) and ("a", 0) would meet.
    key = RandomKey(SECRET)
    streams = [
        key.words(purpose, counter=counter, count=2)
        for purpose, counter in (("", 0x61), ("a", 0), ("\0", 0x61), ("a\0", 0), ("a", 0x61), ("aa", 0))
    ]
    assert len(np.unique(np.concatenate(streams))) == 12


def test_a_longer_draw_begins_with_the_shorter():
    key = RandomKey(SECRET)
    assert (key.words("a", counter=0, count=9)[:4] == key.words("a", counter=0, count=4)).all()


@pytest.mark.parametrize("counter", [-1, 2**64])
def test_a_counter_out_of_range_does_not_wrap_around(counter):
    with pytest.raises(OverflowError):
        RandomKey(SECRET).words("a", counter=counter, count=1)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_secret_of_another_size(size):
    with pytest.raises(ValueError, match=f"secret has {size} bytes: expected 32"):
        RandomKey(b"x" * size)


def test_a_bound_key_is_another_key():
    key = RandomKey(SECRET)
    contexts = ["", "plan A", "plan B", "plan A "]
    bound = [key.bound_to(context) for context in contexts]
    assert len({k.secret for k in [key, *bound, key.bound_to("plan A").bound_to("plan A")]}) == 6
    assert key.bound_to("plan A") == RandomKey(SECRET).bound_to("plan A")
    assert key.bound_to("plan A") != RandomKey.from_seed(1).bound_to("plan A")
    first, second = (k.words("noise", counter=0, count=20_000) for k in (key, bound[1]))
    # Bit for bit unrelated: half of 1 280 000 bits agree.
    agreeing = stats.binomtest(int(np.bitwise_count(~(first ^ second)).sum()), 64 * 20_000, 0.5)
    assert agreeing.pvalue > 1e-4


def test_a_bound_key_keeps_its_origin():
    assert RandomKey.from_seed(5).bound_to("plan").describe() == RandomKey.from_seed(5).describe()
    assert RandomKey.from_system().bound_to("plan").describe()["cryptographic"] is True
    assert repr(RandomKey.from_seed(5).bound_to("plan")) == "RandomKey(origin='seed')"


def test_a_key_that_the_caller_brings_is_said_to_be_theirs():
    words = str(RandomKey(SECRET).describe()["key"])
    assert "calling program" in words
    assert words not in (RandomKey.from_system().describe()["key"], RandomKey.from_seed(5).describe()["key"])
    with pytest.raises(ValueError, match="origin='dice'"):
        RandomKey(SECRET, "dice")  # pyright: ignore[reportArgumentType]


def test_generators_are_functions_of_the_key_too():
    key = RandomKey(SECRET)
    assert (key.generator("shuffle", counter=1).random(5) == key.generator("shuffle", counter=1).random(5)).all()
    draws = [key.generator("shuffle", counter=counter).random(5) for counter in (0, 1)]
    draws += [key.generator("augmentation").random(5), RandomKey.from_seed(1).generator("shuffle").random(5)]
    assert len(np.unique(np.concatenate(draws))) == 20
    assert (key.generator("shuffle").random(5) == draws[0]).all()


def test_the_description_says_when_the_noise_is_not_secret():
    secret, seeded = RandomKey.from_system().describe(), RandomKey.from_seed(3).describe()
    assert secret["cryptographic"] is True
    assert secret["key"] == "256 bits from the operating system"
    assert "floating-point" in str(secret["caveat"])
    assert seeded["cryptographic"] is False
    assert seeded["key"] == "derived from a seed that the user gave"
    assert "can subtract the noise" in str(seeded["caveat"])
    assert secret["stream"] == seeded["stream"]
