"""What one session may stage."""

from __future__ import annotations

from crnode.replicate.quota import SMALL, SPARED_MOST, SPARED_SECONDS, InFlight, Staged, most_needed

MIB, GIB = 1 << 20, 1 << 30


def test_a_quarter_of_what_was_free_when_it_began() -> None:
    staged = Staged()
    assert staged.take(60 * MIB, 400 * MIB, 0) == ""
    assert staged.take(40 * MIB, 340 * MIB, 0) == ""  # the bound does not shrink with the room it takes
    why = staged.take(1, 300 * MIB, 0)
    assert "100 MiB" in why and "quarter" in why
    assert staged.bytes == 100 * MIB
    staged.over()
    assert staged.take(75 * MIB, 300 * MIB, 0) == ""
    assert staged.take(1, 300 * MIB, 0)


def test_a_small_image_and_what_an_image_says_to_have_are_granted() -> None:
    staged = Staged()
    assert staged.take(SMALL, 0, 0) == ""
    assert staged.take(1, 0, 0)
    staged.over()
    assert staged.take(500 * MIB, 800 * MIB, 600 * MIB) == ""  # a first copy, or a file written anew
    assert staged.take(200 * MIB, 300 * MIB, 600 * MIB)
    staged.over()
    assert staged.take(700 * MIB, 800 * MIB, 1 << 60) == ""
    assert staged.take(1, 100 * MIB, 1 << 60)  # whatever an image says, an eighth is left


def test_an_image_that_is_all_new_has_room_for_its_recipes_and_entries() -> None:
    chunk = 64 << 10
    for count, size in ((1, 100 << 30), (1_000_000, 10), (0, 0)):
        recipes = count * -(-size // chunk) * 40
        assert most_needed(count * size, count) >= count * size + recipes + count * 500


def test_what_went_ahead_and_was_written_anew_makes_no_image_too_large() -> None:
    staged, free, part = Staged(), 100 * GIB, 512 << 10
    ahead = 0
    while not staged.take(
        part, free - ahead, None
    ):  # a first copy of 60 GiB: a quarter of the disk goes ahead
        ahead += part
    assert ahead == 25 * GIB
    # 2 GiB of it (a mail box, a disk image) were written anew meanwhile: of the image's 60 GiB 23 are there.
    total, coming = 60 * GIB, 37 * GIB
    needed = most_needed(total, 1000)
    while coming > 0:
        assert not staged.take(part, free - staged.bytes, needed)
        coming -= part


def test_images_begun_again_and_again_do_not_widen_what_goes_ahead() -> None:
    staged = Staged()
    assert staged.take(100 * MIB, 400 * MIB, None) == ""
    assert staged.take(1, 300 * MIB, None)
    assert staged.take(100 * MIB, 300 * MIB, 0) == ""  # an image's own
    assert staged.take(1, 200 * MIB, None)
    assert staged.take(150 * MIB, 200 * MIB, 1 << 60) == ""
    assert staged.take(1, 50 * MIB, 1 << 60)  # in all an eighth is left


def test_what_is_on_its_way_is_spared_until_it_is_over_or_long_silent() -> None:
    flight = InFlight()
    assert flight.born(5.0) is None
    flight.came(3, 10.0)
    flight.came(7, 20.0)
    assert flight.born(20.0 + SPARED_SECONDS - 1) == 3
    assert flight.born(20.0 + SPARED_SECONDS) is None  # whoever sent it is not coming back
    flight.came(9, 20.0 + SPARED_SECONDS)
    assert flight.born(20.0 + SPARED_SECONDS) == 9
    flight.over()
    assert flight.born(20.0 + SPARED_SECONDS) is None


def test_what_is_never_complete_is_not_spared_for_ever() -> None:
    flight = InFlight()
    now = 0.0
    while now < 2 * SPARED_MOST:
        flight.came(int(now), now)
        born = flight.born(now)
        assert born is not None and now - born <= SPARED_MOST
        now += SPARED_SECONDS - 600
