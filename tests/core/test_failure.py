from __future__ import annotations

import inspect
import pickle

import pytest

import kdzoo.errors
from kdzoo.contract.failure import Failure
from kdzoo.errors import Interrupted, KdzooError

CLASSES = [cls for _, cls in inspect.getmembers(kdzoo.errors, inspect.isclass) if issubclass(cls, KdzooError)]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_of_a_user_arrives_as_its_own_class(cls):
    error = cls("line 1: bad", 130) if cls is Interrupted else cls("line 1: bad")
    arrived = pickle.loads(pickle.dumps(Failure.of(error))).raised()
    assert type(arrived) is cls
    assert (str(arrived), arrived.exit_code) == (str(error), error.exit_code)


def test_any_other_error_arrives_with_its_traceback():
    class Strange(Exception):
        def __init__(self) -> None:
            super().__init__("odd")

    try:
        raise Strange
    except Strange as error:
        arrived = Failure.of(error).raised()
    assert type(arrived) is RuntimeError
    assert "a worker process failed:\nTraceback" in str(arrived)
    assert "raise Strange" in str(arrived)
