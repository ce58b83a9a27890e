import pytest

from mlxm.echo import Echo, Prompt
from mlxm.frames import Generate
from mlxm.types import ChoiceEnded, CompletionRequest, Ended, Event, Started, TextDelta, TokenLogprobs, Usage

PROMPT = Prompt(ids=(1, 2), text="ab")
ONE, TWO, THREE = (TokenLogprobs(n, b"t", None if n == 1 else -1.0) for n in (1, 2, 3))
END = Ended(Usage(prompt_tokens=2, completion_tokens=1))


def echo(*, max_tokens: int = 5, echoes: bool = True, num_logprobs: int | None = None) -> Echo:
    """What a request makes of its events."""
    request = CompletionRequest(
        request_id="r", model="m", prompt="ab", max_tokens=max_tokens, echoes=echoes, num_logprobs=num_logprobs
    )
    return Echo(request, PROMPT)


def told(made: Echo, *events: Event) -> list[Event]:
    """All that is told for some events."""
    return [each for event in events for each in made.see(event)]


def test_without_an_echo_nothing_changes() -> None:
    """Every event comes through as it is."""
    events: list[Event] = [Started(2), TextDelta(0, "c", (3,)), ChoiceEnded(0, "stop"), END]
    assert told(echo(echoes=False), *events) == events


def test_the_prompt_comes_first_in_each_choice() -> None:
    """Once, whatever comes then."""
    assert told(echo(), TextDelta(1, "c", (3,)), TextDelta(0, "d", (4,)), TextDelta(1, "e", (5,))) == [
        TextDelta(1, "ab"),
        TextDelta(1, "c", (3,)),
        TextDelta(0, "ab"),
        TextDelta(0, "d", (4,)),
        TextDelta(1, "e", (5,)),
    ]
    assert told(echo(), ChoiceEnded(0, "stop")) == [TextDelta(0, "ab"), ChoiceEnded(0, "stop")]


def test_answers_wait_until_the_prompt_is_scored() -> None:
    """A choice that is quicker than the one that scores does not go without."""
    made = echo(num_logprobs=0)
    assert told(made, TextDelta(0, "", logprobs=(ONE,)), TextDelta(1, "c", (3,), (THREE,))) == []
    assert told(made, TextDelta(0, "", logprobs=(TWO,))) == [
        TextDelta(1, "ab", logprobs=(ONE, TWO)),
        TextDelta(1, "c", (3,), (THREE,)),
    ]


def test_an_answer_of_no_tokens_is_the_prompt_alone() -> None:
    """What was computed for it is neither shown nor counted."""
    made = echo(max_tokens=0, num_logprobs=0)
    events = told(made, TextDelta(0, "", logprobs=(ONE, TWO)), TextDelta(0, "c", (3,)), ChoiceEnded(0, "stop"), END)
    assert events == [
        TextDelta(0, "ab", logprobs=(ONE, TWO)),
        ChoiceEnded(0, "length"),
        Ended(Usage(prompt_tokens=2, completion_tokens=0)),
    ]


@pytest.mark.parametrize(("max_tokens", "num_logprobs", "expected"), [(0, 0, (1, True)), (5, None, (5, False))])
def test_what_is_asked_of_the_model(max_tokens: int, num_logprobs: int | None, expected: tuple[int, bool]) -> None:
    """At least one token, and the prompt's logprobs only when they are shown."""
    order = Generate(request_id="r", prompt_ids=(1, 2), max_tokens=max_tokens)
    asked = echo(max_tokens=max_tokens, num_logprobs=num_logprobs).order(order)
    assert (asked.max_tokens, asked.prompt_logprobs) == expected
