"""The grammar's lines: each kind follows its rule, none predicts another, and the splits differ."""

import re
from collections import Counter

import pytest
from esper_env.data.grammar import FACTS, HELD_OUT_BYTES, TRAIN_BYTES, generate_text

KINDS = {
    "agreement": re.compile(r"the \w+ (\w+) near the (\w+) (\w+)\."),
    "recall": re.compile(r"(\w+) has a (\w+) (\w+) and (\w+) has a (\w+) (\w+)\. the (\w+) is (\w+)\."),
    "fact": re.compile(r"(\w{6}) lives in (\w{6})\."),
    "refrain": re.compile(r"([a-z]{4})( \1){4}"),
    "sum": re.compile(r"(\d)\+(\d)=(\d+)\."),
}


@pytest.fixture(scope="module")
def data():
    return generate_text()


@pytest.fixture(scope="module")
def lines(data):
    """Matches of all whole lines of the training text, by kind."""
    found = {kind: [] for kind in KINDS}
    for line in bytes(data.train).decode("ascii").split("\n")[:-1]:
        matches = {kind: match for kind, pattern in KINDS.items() if (match := pattern.fullmatch(line))}
        assert len(matches) == 1, line
        ((kind, match),) = matches.items()
        found[kind].append(match)
    return found


def test_text_has_the_documented_sizes_and_shares(data, lines):
    assert (len(data.train), len(data.val), len(data.test)) == (TRAIN_BYTES, HELD_OUT_BYTES, HELD_OUT_BYTES)
    counts = {kind: len(matches) for kind, matches in lines.items()}
    total = sum(counts.values())
    shares = {kind: count / total for kind, count in counts.items()}
    expected = {"fact": 0.3, "refrain": 0.3, "agreement": 0.2, "recall": 0.1, "sum": 0.1}
    assert shares == pytest.approx(expected, abs=0.01)


def test_every_line_follows_its_rule(lines):
    assert all(int(a) + int(b) == int(c) for a, b, c in (match.groups() for match in lines["sum"]))
    for subject, _, verb in (match.groups() for match in lines["agreement"]):
        assert subject.endswith("s") != verb.endswith("s")
    for owner, colour, thing, other, tone, item, asked, answer in (match.groups() for match in lines["recall"]):
        assert len({owner, other}) == len({colour, tone}) == len({thing, item}) == 2
        assert answer == {thing: colour, item: tone}[asked]
    homes = {}
    for who, where in (match.groups() for match in lines["fact"]):
        assert homes.setdefault(who, where) == where
    assert len(homes) == FACTS
    assert len({*homes, *homes.values()}) == 2 * FACTS


def test_second_noun_does_not_predict_the_verb(lines):
    verbs = Counter((match[2].endswith("s"), match[3].endswith("s")) for match in lines["agreement"])
    total = sum(verbs.values())
    assert all(abs(count / total - 0.25) < 0.02 for count in verbs.values())
    assert len(verbs) == 4


def test_refrains_are_random(lines):
    words = Counter(match[1] for match in lines["refrain"])
    assert max(words.values()) <= 5
    letters = Counter("".join(words))
    assert len(letters) == 26
    assert max(letters.values()) < 1.2 * min(letters.values())


def test_held_out_text_has_the_same_grammar_and_different_lines(data):
    texts = [bytes(split) for split in (data.train, data.val, data.test)]
    assert texts[1] != texts[2]
    assert texts[1] not in texts[0]
    for text in texts[1:]:
        whole = text.decode("ascii").split("\n")[:-1]
        assert all(any(pattern.fullmatch(line) for pattern in KINDS.values()) for line in whole)
    facts = [set(re.findall(rb"\w{6} lives in \w{6}\.", text)) for text in texts]
    assert facts[1] <= facts[0]
    assert facts[2] <= facts[0]


def test_seed_determines_the_text():
    # A different digest makes results incomparable with earlier ones.
    digests = [generate_text(seed).digest for seed in (0, 1)]
    assert digests == ["5cb0357f1dc3a2f7ce6e4842915d3145", "0f144369112d4aefbd8f9921be5639c7"]
