"""A library's chatter is kept back while it is imported, its errors are not, and then it may talk again."""

from __future__ import annotations

import contextlib
import logging

import pytest

from kdzoo.api.export import quiet_logger


def test_only_errors_come_through_and_only_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("kdzoo.test.chatty")
    with contextlib.suppress(RuntimeError), quiet_logger(logger.name):
        logger.warning("chatter")
        logger.error("an error")
        raise RuntimeError
    logger.warning("afterwards")
    assert caplog.messages == ["an error", "afterwards"]
