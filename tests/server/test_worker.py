"""What clients hear of an engine that takes no request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sightline.data.conversation import Conversation
from sightline.engine.errors import EngineDied, EngineStopped
from sightline.engine.sampling.params import SamplingParams
from sightline.server.errors import RequestError
from sightline.server.worker import Worker


@pytest.mark.parametrize(("error", "status"), [(EngineStopped("bye"), 503), (EngineDied("ouch"), 500)])
def test_an_engine_that_ends_is_not_one_that_failed(error: EngineStopped, status: int) -> None:
    def add(*given: Any, **options: Any) -> Any:
        raise error

    llm = SimpleNamespace(engine=SimpleNamespace(add=add))
    with pytest.raises(RequestError) as refused:
        Worker(llm).add(Conversation([]), SamplingParams())  # type: ignore[arg-type]
    assert refused.value.status == status
