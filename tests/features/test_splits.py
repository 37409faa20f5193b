"""The rule of the validation split: what it takes of each class, and what it never takes apart."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.errors import ArtifactInvalid, ConfigError
from featx.features.contents import HeldOut
from featx.features.splits import Published, assign_splits, require_fraction
from featx.images.sources import SPLITS

TRAIN, VAL, TEST = range(3)
ABC = ("a", "b", "c", "d")

fractions = st.floats(0, 0.5) | st.sampled_from([0.1, 0.2, 0.25, 0.5])


def digests_of(contents: Sequence[object]) -> np.ndarray:
    content = b"".join(hashlib.sha256(repr(each).encode()).digest()[:16] for each in contents)
    return np.frombuffer(content, np.uint8).reshape(-1, 16)


def assigned(
    contents: Sequence[object],
    labels: Sequence[int] | np.ndarray,
    *,
    own: Sequence[int] | None = None,
    classes: Sequence[str] = ABC,
    fraction: float = 0.2,
    groups: Sequence[int] | None = None,
    published: tuple[Sequence[object], Sequence[int]] | None = None,
) -> list[int]:
    """Return the splits of images given by any objects, one object for each content."""
    before = published and Published(digests_of(published[0]), np.array(published[1], np.uint8))
    splits = assign_splits(
        digests_of(contents),
        np.array(labels, np.int64),
        np.zeros(len(labels), np.uint8) if own is None else np.array(own, np.uint8),
        classes=classes,
        fraction=fraction,
        has_tags=any("|" in name for name in classes),
        groups=None if groups is None else np.array(groups, np.int64),
        published=before,
    )
    assert splits.dtype == np.uint8
    found: list[int] = splits.tolist()
    return found


def wanted(count: int, fraction: float) -> int:
    """Return how many of a class become validation."""
    if count < 3 or not fraction:
        return 0
    return min(max(1, round(count * fraction)), count // 2)


def split_of(items: Sequence[object], splits: Sequence[int]) -> dict[object, set[int]]:
    found: dict[object, set[int]] = {}
    for item, split in zip(items, splits, strict=True):
        found.setdefault(item, set()).add(split)
    return found


@st.composite
def images(draw: st.DrawFn, *, most: int = 60) -> tuple[list[int], list[int]]:
    """Contents, some of them several times, and labels."""
    count = draw(st.integers(1, most))
    contents = draw(st.lists(st.integers(0, 2 * most), min_size=count, max_size=count))
    labels = draw(st.lists(st.integers(-1, 3), min_size=count, max_size=count))
    return contents, labels


class TestShares:
    @given(st.lists(st.integers(0, 40), min_size=1, max_size=4), fractions)
    def test_each_class_gives_its_share(self, sizes, fraction):
        labels = np.repeat(np.arange(len(sizes)), sizes)
        splits = np.array(assigned(range(len(labels)), labels, fraction=fraction))
        found = np.bincount(labels[splits == VAL], minlength=len(sizes)).tolist()
        assert found == [wanted(size, fraction) for size in sizes]

    @pytest.mark.parametrize(("size", "share"), [(1, 0), (2, 0), (3, 1), (7, 1), (8, 2), (60, 12)])
    def test_of_one_class_at_a_fifth(self, size, share):
        assert assigned(range(size), [0] * size).count(VAL) == share

    def test_never_most_of_a_class(self):
        for size in range(1, 12):
            taken = assigned(range(size), [0] * size, fraction=0.5).count(VAL)
            assert taken <= size / 2, size

    def test_the_lowest_hashes_are_held_out(self):
        splits = np.array(assigned(range(50), [0] * 50))
        order = sorted(range(50), key=lambda i: digests_of([i]).tobytes())
        assert sorted(np.flatnonzero(splits == VAL)) == sorted(order[:10])

    def test_unlabelled_images_are_a_class_of_their_own(self):
        labels = np.repeat([-1, 0], 20)
        splits = np.array(assigned(range(40), labels))
        assert np.bincount(labels[splits == VAL] + 1).tolist() == [4, 4]
        assert assigned(range(10), [-1] * 10, classes=()).count(VAL) == 2

    def test_measured_numbers_are_one_class(self):
        classes = [f"{i}.5" for i in range(100)]
        assert assigned(range(100), range(100), classes=classes).count(VAL) == 20

    def test_no_image(self):
        assert assigned([], []) == []

    @pytest.mark.parametrize("fraction", [-0.1, 0.51, 1, float("nan"), float("inf")])
    def test_fractions_out_of_range_are_named(self, fraction):
        with pytest.raises(ConfigError, match=rf"at most 0.5.*; got {fraction}"):
            require_fraction(fraction)
        with pytest.raises(ConfigError, match="val_fraction"):
            assigned(range(3), [0] * 3, fraction=fraction)

    def test_the_assignment_stays_what_it_was(self):
        # Recorded: another rule would move users' images between train and validation.
        splits = assigned(range(20), [0, 1] * 10)
        assert np.flatnonzero(splits).tolist() == [8, 9, 10, 13]


class TestOwnSplits:
    def test_a_source_that_brings_validation_is_left_alone(self):
        own = [TRAIN] * 20 + [VAL] + [TEST] * 5
        before = (range(20), [VAL] * 20)
        assert assigned(range(26), [0] * 26, own=own, published=before) == own

    def test_only_training_images_are_split(self):
        own = [TRAIN, TEST] * 20
        splits = assigned(range(40), [0] * 40, own=own)
        assert splits[1::2] == [TEST] * 20
        assert splits[::2].count(VAL) == 4

    def test_the_sources_own_split_comes_before_the_published_one(self):
        assert assigned([1, 2], [0, 0], own=[TEST, TRAIN], published=([1, 2], [VAL, TEST])) == [
            TEST,
            TRAIN,
        ]


class TestOrderAndCopies:
    @given(images(), fractions, st.randoms(use_true_random=False))
    def test_order_does_not_matter(self, given_images, fraction, random):
        contents, labels = given_images
        order = list(range(len(contents)))
        random.shuffle(order)
        one = assigned(contents, labels, fraction=fraction)
        two = assigned([contents[i] for i in order], [labels[i] for i in order], fraction=fraction)
        assert [one[i] for i in order] == two

    @given(images(), fractions)
    def test_copies_share_their_split_and_count_once(self, given_images, fraction):
        contents, labels = given_images
        splits = assigned(contents, labels, fraction=fraction)
        assert all(len(found) == 1 for found in split_of(contents, splits).values())
        distinct = sorted(set(zip(contents, labels, strict=True)))
        once = assigned(*map(list, zip(*distinct, strict=True)), fraction=fraction)  # type: ignore[misc]
        assert split_of(contents, splits) == split_of([c for c, _ in distinct], once)

    @given(images(), fractions)
    def test_no_class_gives_most_of_its_contents(self, given_images, fraction):
        contents, labels = given_images
        splits = assigned(contents, labels, fraction=fraction)
        for label in set(labels):
            own = {c: s for c, k, s in zip(contents, labels, splits, strict=True) if k == label}
            held = Counter(own.values())[VAL]
            assert held <= (len(own) // 2 if len(own) >= 3 else 0)

    def test_contents_with_two_labels_leave_both_classes_a_training_image(self):
        splits = np.array(assigned([*range(9), *range(9)], [0] * 9 + [1] * 9, fraction=0.5))
        assert 0 < (splits[:9] == VAL).sum() < 5


class TestGroups:
    @given(images(), st.data(), fractions)
    def test_groups_are_whole(self, given_images, data, fraction):
        contents, labels = given_images
        count = len(contents)
        groups = data.draw(st.lists(st.integers(-1, 8), min_size=count, max_size=count))
        splits = assigned(contents, labels, groups=groups, fraction=fraction)
        for key, found in split_of(groups, splits).items():
            assert key == -1 or len(found) == 1
        assert all(len(found) == 1 for found in split_of(contents, splits).values())
        for label in set(labels):
            own = {c: s for c, k, s in zip(contents, labels, splits, strict=True) if k == label}
            assert Counter(own.values())[VAL] <= (len(own) // 2 if len(own) >= 3 else 0)

    @given(images(), st.data(), st.randoms(use_true_random=False))
    def test_their_numbers_and_order_do_not_matter(self, given_images, data, random):
        contents, labels = given_images
        count = len(contents)
        groups = data.draw(st.lists(st.integers(-1, 8), min_size=count, max_size=count))
        numbers = {-1: -1, **dict(enumerate(random.sample(range(100), 9)))}
        order = random.sample(range(count), count)
        one = assigned(contents, labels, groups=groups)
        two = assigned(
            [contents[i] for i in order],
            [labels[i] for i in order],
            groups=[numbers[groups[i]] for i in order],
        )
        assert [one[i] for i in order] == two

    @pytest.mark.parametrize("size", [2, 5, 10])
    def test_shares_are_about_the_fraction(self, size):
        rng = np.random.default_rng(0)
        groups = np.arange(1000) // size
        labels = rng.integers(0, 3, 1000)  # several classes in a group
        splits = np.array(assigned(range(1000), labels, groups=groups.tolist()))
        for label in range(3):
            assert (splits[labels == label] == VAL).mean() == pytest.approx(0.2, abs=0.03)

    def test_images_by_themselves_are_held_out_beside_groups(self):
        groups = [i // 10 if i < 500 else -1 for i in range(1000)]
        splits = np.array(assigned(range(1000), [0] * 1000, groups=groups))
        assert (splits[:500] == VAL).mean() == pytest.approx(0.2, abs=0.02)
        assert (splits == VAL).sum() == 200

    def test_a_class_of_few_large_groups_gives_the_smallest_that_fits(self):
        groups = [0] * 40 + [1] * 25 + [2] * 35
        splits = assigned(range(100), [0] * 100, groups=groups, fraction=0.05)
        assert split_of(groups, splits) == {0: {TRAIN}, 1: {VAL}, 2: {TRAIN}}

    def test_a_class_of_one_group_gives_none(self):
        assert set(assigned(range(30), [0] * 30, groups=[4] * 30, fraction=0.5)) == {TRAIN}

    def test_groups_that_share_a_content_are_one(self):
        contents, groups = [1, 2, 2, 3, 3, 4, *range(10, 40)], [0, 0, 1, 1, 2, 2] + [-1] * 30
        for fraction in (0.1, 0.3, 0.5):
            splits = assigned(contents, [0] * 36, groups=groups, fraction=fraction)
            assert len(set(splits[:6])) == 1

    def test_a_long_chain_of_shared_contents(self):
        order = np.random.default_rng(0).permutation(300)
        contents = [int(order[(i + 1) // 2]) for i in range(598)]
        splits = assigned(contents, [0] * 598, groups=[i // 2 for i in range(598)])
        assert len(set(splits)) == 1


class TestGrowth:
    @given(images(), images(), fractions)
    def test_published_contents_keep_their_split(self, old, new, fraction):
        before = assigned(*old, fraction=fraction)
        contents, labels = [*old[0], *new[0]], [*old[1], *new[1]]
        after = assigned(contents, labels, fraction=fraction, published=(old[0], before))
        assert after[: len(before)] == before

    @given(images(), st.data(), fractions)
    def test_so_they_do_with_other_labels_and_without_the_others(self, old, data, fraction):
        contents, labels = old
        before = assigned(contents, labels, fraction=fraction)
        some = data.draw(st.sets(st.sampled_from(range(len(contents))), min_size=1))
        others = data.draw(st.lists(st.integers(-1, 3), min_size=len(some), max_size=len(some)))
        after = assigned(
            [contents[i] for i in sorted(some)],
            others,
            fraction=fraction,
            published=(contents, before),
        )
        assert after == [before[i] for i in sorted(some)]

    @given(st.integers(0, 30), st.integers(0, 30), fractions)
    def test_a_class_gets_closer_to_its_share(self, old, new, fraction):
        before = assigned(range(old), [0] * old, fraction=fraction)
        after = assigned(
            range(old + new), [0] * (old + new), fraction=fraction, published=(range(old), before)
        )
        assert after.count(VAL) == max(before.count(VAL), wanted(old + new, fraction))

    def test_one_image_at_a_time(self):
        known: tuple[list[int], list[int]] = ([], [])
        for count in range(1, 51):
            splits = assigned(range(count), [0] * count, published=known)
            assert splits[:-1] == known[1]
            known = (list(range(count)), splits)
        assert known[1].count(VAL) == 10

    def test_a_group_that_grows_keeps_its_split(self):
        groups = [i // 5 for i in range(50)]
        before = assigned(range(50), [0] * 50, groups=groups)
        grown = [*groups, *range(10), *range(10)]
        after = assigned(range(70), [0] * 70, groups=grown, published=(range(50), before))
        assert after == [*before, *before[::5], *before[::5]]

    def test_a_group_in_two_splits_is_put_in_one(self, caplog):
        before = assigned(range(50), [0] * 50)
        groups = [i // 5 for i in range(50)]
        caplog.set_level(logging.WARNING)
        after = assigned(range(50), [0] * 50, groups=groups, published=(range(50), before))
        assert all(len(found) == 1 for found in split_of(groups, after).values())
        assert after.count(VAL) == 10
        assert "in both training and validation: each is in one of them now" in caplog.text

    def test_published_test_images_are_new_where_the_source_trains_on_them(self):
        assert assigned(range(20), [0] * 20, published=(range(20), [TEST] * 20)).count(VAL) == 4

    def test_without_a_fraction_published_splits_stay(self):
        assert assigned(range(4), [0] * 4, fraction=0, published=([1], [VAL])) == [0, 1, 0, 0]


class TestTags:
    def test_each_combination_gives_its_share(self):
        classes = ("a", "a|b", "b|a", "b | c")
        labels = np.repeat([0, 1, 2, 3], 20)
        splits = np.array(assigned(range(80), labels, classes=classes))
        held = np.bincount(labels[splits == VAL], minlength=4)
        assert (held[0], held[1] + held[2], held[3]) == (4, 8, 4)

    def test_rare_combinations_hold_the_share_together(self):
        classes = [f"t{i % 10}|u{i // 10}" for i in range(100)]
        labels = np.arange(300) // 3
        assert assigned(range(300), labels, classes=classes).count(VAL) == 60

    @given(st.data(), fractions)
    def test_no_tag_gives_most_of_its_images(self, data, fraction):
        names = st.sets(st.sampled_from("abcdefg"), max_size=4).map(lambda s: "|".join(sorted(s)))
        classes = sorted(data.draw(st.sets(names.filter(bool), min_size=1, max_size=8)) | {"|"})
        labels = data.draw(st.lists(st.integers(-1, len(classes) - 1), min_size=1, max_size=40))
        groups = data.draw(st.lists(st.integers(-1, 9), min_size=len(labels), max_size=len(labels)))
        splits = assigned(
            range(len(labels)), labels, classes=classes, fraction=fraction, groups=groups
        )
        for tag in "abcdefg":
            own = [
                split
                for split, label in zip(splits, labels, strict=True)
                if label >= 0 and tag in classes[label]
            ]
            assert len(own) < 3 or own.count(VAL) <= len(own) // 2

    def test_a_tag_of_three_in_rare_combinations_keeps_a_training_image(self):
        classes = ["rare|x", "rare|y", "rare|z", *(f"{i}|{j}" for i in range(6) for j in range(6))]
        for seed in range(30):
            contents = [(seed, i) for i in range(39)]
            splits = assigned(contents, range(39), classes=classes, fraction=0.5)
            assert splits[:3].count(VAL) <= 1

    def test_tags_of_one_image_are_rather_trained(self):
        pairs = [f"{first}|{second}" for first in "abcdefghij" for second in "uvwxyz"]
        classes = [*(f"once {i}|a" for i in range(20)), *pairs]
        splits = assigned(range(80), range(80), classes=classes)
        assert (splits[:20].count(VAL), splits.count(VAL)) == (0, 16)

    def test_where_each_image_has_such_a_tag_some_are_held_out(self):
        classes = [f"once {i}|often" for i in range(40)]
        assert assigned(range(40), range(40), classes=classes).count(VAL) == 8


class TestHeldOut:
    @given(st.sets(st.integers(0, 1000)), st.sets(st.integers(0, 1000), min_size=1))
    def test_it_knows_its_contents_and_no_others(self, inside, asked):
        text = HeldOut.of(digests_of(sorted(inside))).to_text()
        assert len(text) == 8 * len(inside)
        found = HeldOut.from_text(text, path=Path("h")).contains(digests_of(sorted(asked)))
        assert found.tolist() == [number in inside for number in sorted(asked)]

    def test_the_same_images_give_the_same_text(self):
        one, other = digests_of(range(20)), digests_of([*reversed(range(20)), 3])
        assert HeldOut.of(one).to_text() == HeldOut.of(other).to_text()

    @pytest.mark.parametrize("text", ["A", "AAAA", "ÄÄÄÄÄÄÄÄ", None, 3, ["AAAAAAAA"]])
    def test_anything_else_is_refused(self, text):
        with pytest.raises(ArtifactInvalid, match="'h' does not list the images that were held"):
            HeldOut.from_text(text, path=Path("h"))


def test_splits_are_named_as_sources_do():
    assert (SPLITS[TRAIN], SPLITS[VAL], SPLITS[TEST]) == ("train", "val", "test")
