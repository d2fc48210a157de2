import random

from bytelm.stories import story


def test_second_parts_are_where_they_are_said_to_be_and_can_be_known() -> None:
    for seed in range(50):
        told = story(random.Random(seed))
        assert told.text.isascii()
        assert told.text.endswith("\n")
        for begin, end in told.seconds:
            second = told.text[begin:end]
            first = told.text[begin - 3 : begin]
            assert (len(first), len(second)) == (3, 3)
            assert first[0].isupper()
            assert first + second in told.text[: begin - 3]  # it has been read before


def test_names_differ_from_story_to_story_and_a_seed_gives_the_same_story() -> None:
    names = {
        told.text[begin - 3 : end] for told in map(story, map(random.Random, range(60))) for begin, end in told.seconds
    }
    assert len(names) > 100
    assert story(random.Random(1)) == story(random.Random(1))
    assert not any(name[:3] + name[3:] in "".join(names - {name}) for name in list(names)[:5])


def test_stories_are_as_long_as_they_are_asked_to_be() -> None:
    short, long = story(random.Random(0), sentences=2), story(random.Random(0), sentences=30)
    assert len(short.text) < len(long.text)
    assert len(long.seconds) > 20
