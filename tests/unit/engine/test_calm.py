import gc
import weakref

import pytest

from headrace.engine.calm import calm_collector


class Node:
    pass


def cycle():
    node = Node()
    node.itself = node
    return weakref.ref(node)


def test_what_exists_is_left_alone_meanwhile_and_not_after():
    before = gc.get_freeze_count()
    with calm_collector():
        assert gc.get_freeze_count() > before
    assert gc.get_freeze_count() == 0


def test_what_was_garbage_before_is_collected_first():
    garbage = cycle()
    with calm_collector():
        assert garbage() is None


def test_what_becomes_garbage_meanwhile_is_collected():
    with calm_collector():
        garbage = cycle()
        gc.collect()
        assert garbage() is None


def test_an_error_passes_and_the_collector_is_itself_again():
    with pytest.raises(KeyError), calm_collector():
        raise KeyError
    assert gc.get_freeze_count() == 0
    assert gc.isenabled()
