"""The order in which images were the newest: a catalog knows of some, the log of versions of others."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from typing import TypeAlias

from crnode.store.reader import Image

_Line: TypeAlias = tuple[bytes, int]  # incarnation and epoch: within it sequences say what followed on what


def in_order(held: Sequence[Image], logged: Sequence[Image]) -> list[Image]:
    """The images in the order in which they were the newest: those that a catalog held (oldest first) as it
    had them, and among them the ones that the log alone knows, which have no ordinal.

    Clocks are put right and then go back, so sequences say what followed on what where they can. Where they
    cannot, a catalog's newest image is only followed by one for which both clocks speak: what the log knows
    beside it was pruned long ago, or the live tree would move back to it.

    One by one, by epoch and time, they are put behind the last image that they follow, of those before the
    first one of their own line that has a greater sequence."""
    order = _Order(held)
    known = {image.id for image in held}
    alone = (image for image in logged if image.id not in known)
    for image in sorted(alone, key=lambda one: (one.epoch, one.at_ns)):
        order.put(image)
    return order.images()


def _line(image: Image) -> _Line:
    return image.incarnation, image.epoch


def _follows(image: Image, other: Image) -> bool:
    """Whether `image` follows on `other`, which is before the first one of its line that follows on it."""
    if _line(other) == _line(image) or other.epoch < image.epoch or other.id == image.parent:
        return True
    return other.at_ns < image.at_ns and (other.received_ns < image.received_ns or not other.ordinal)


class _Node:
    """A place in the order: of a held image with its number, or behind the held image before `number`."""

    __slots__ = ("after", "before", "held", "image", "number")

    def __init__(self, image: Image | None, number: int, *, held: bool) -> None:
        self.image = image
        self.number = number
        self.held = held
        self.before: _Node | None = None
        self.after: _Node | None = None


class _Order:
    """The images so far, in O(log² n) for each that is put among them, as long as not many of several lines
    are of one nanosecond."""

    def __init__(self, held: Sequence[Image]) -> None:
        self._held = [_Node(image, number, held=True) for number, image in enumerate(held)]
        self._start = self._end = _Node(None, -1, held=True)
        for node in self._held:
            self._insert(node, self._end)
        self._number = {image.id: number for number, image in enumerate(held)}
        self._clocks = _Rightmost([(image.at_ns, image.received_ns) for image in held])
        self._epochs = _Rightmost([(image.epoch, 0) for image in held])
        self._filled: list[int] = []  # numbers of held images before which others lie
        self._of_line: dict[_Line, list[int]] = defaultdict(list)  # numbers of held ones
        for number, image in enumerate(held):
            self._of_line[_line(image)].append(number)
        self._greatest = {  # sequence so far, beside each of those numbers
            line: list(accumulate((held[number].sequence for number in numbers), max))
            for line, numbers in self._of_line.items()
        }
        self._put: dict[_Line, list[_Node]] = defaultdict(list)  # those put, by sequence and by place

    def images(self) -> list[Image]:
        out = []
        node = self._start.after
        while node is not None:
            assert node.image is not None
            out.append(node.image)
            node = node.after
        return out

    def put(self, image: Image) -> None:
        line = _line(image)
        put, numbers = self._put[line], self._of_line.get(line, [])
        # The first of the line with a greater sequence: those put lie by sequence, whatever held ones do.
        at = bisect_right(put, image.sequence, key=_sequence)
        first: _Node | None = put[at] if at < len(put) else None
        found = bisect_right(self._greatest.get(line, []), image.sequence)
        if found < len(numbers) and (first is None or numbers[found] < first.number):
            first = self._held[numbers[found]]
        last = self._last_before(image, first, numbers)
        node = _Node(image, last.number + 1 if last.held else last.number, held=False)
        self._insert(node, last)
        put.insert(at, node)
        at = bisect_left(self._filled, node.number)
        if self._filled[at : at + 1] != [node.number]:
            self._filled.insert(at, node.number)

    def _last_before(self, image: Image, first: _Node | None, numbers: Sequence[int]) -> _Node:
        """The last one before `first` that `image` follows on."""
        bound = first.number if first is not None else len(self._held)
        of_line = bisect_left(numbers, bound)
        parent = self._number.get(image.parent, -1)
        held = max(
            numbers[of_line - 1] if of_line else -1,
            parent if parent < bound else -1,
            self._epochs.find(image.epoch, 1, bound),
            self._clocks.find(image.at_ns, image.received_ns, bound),
        )
        node = first.before if first is not None else self._end
        assert node is not None
        while not (node.held and node.number <= held):
            if not node.held:
                assert node.image is not None
                if _follows(image, node.image):
                    return node
                before = node.before
            else:  # past all held ones behind which there is nothing
                at = bisect_right(self._filled, node.number) - 1
                if at < 0 or self._filled[at] <= held:
                    return self._held[held] if held >= 0 else self._start
                before = self._held[self._filled[at]].before
            assert before is not None
            node = before
        return node

    def _insert(self, node: _Node, last: _Node) -> None:
        node.before, node.after, last.after = last, last.after, node
        if node.after is not None:
            node.after.before = node
        else:
            self._end = node


def _sequence(node: _Node) -> int:
    assert node.image is not None
    return node.image.sequence


class _Rightmost:
    """Finds the last of `points` with both values smaller than given ones: a tree over their numbers, each
    part of it sorted by the first value, with the smallest second one so far."""

    def __init__(self, points: Sequence[tuple[int, int]]) -> None:
        self._size = 1 << max(len(points) - 1, 0).bit_length()
        parts: list[list[tuple[int, int]]] = [[] for _ in range(2 * self._size)]
        for number, point in enumerate(points):
            parts[self._size + number] = [point]
        for at in range(self._size - 1, 0, -1):
            parts[at] = sorted(parts[2 * at] + parts[2 * at + 1])
        self._firsts = [[first for first, _ in part] for part in parts]
        self._smallest = [list(accumulate((second for _, second in part), min)) for part in parts]

    def find(self, first: int, second: int, bound: int) -> int:
        """The number of that point among those before number `bound`, -1 when there is none."""
        todo = [(1, 0, self._size)]
        while todo:
            at, low, high = todo.pop()
            count = bisect_left(self._firsts[at], first)
            if low >= bound or not count or self._smallest[at][count - 1] >= second:
                continue
            if high - low == 1:
                return low
            middle = (low + high) // 2
            todo += [(2 * at, low, middle), (2 * at + 1, middle, high)]
        return -1
