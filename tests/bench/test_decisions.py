"""The bench of decisions measures what it says."""

from __future__ import annotations

from bench.decisions import World, prompts


def test_a_decision_is_whole() -> None:
    """The bench's world tells intents, sets budgets from what it has learned, and has a plan over three models."""
    world = World()
    request = prompts(300)[0]
    world.decide(request)
    sizing = world.sizer.size(request, world.dialect, "bench")
    assert len(world.route.candidates) == 3
    assert all(sizing.budget(model).cell for model in world.route.candidates)
    assert 200 < sizing.prompt_tokens("small") < 450
