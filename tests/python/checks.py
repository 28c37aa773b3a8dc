"""What the scripts for the clients share: names, the cluster's models, and checks of answers and errors."""

from concurrent.futures import ThreadPoolExecutor

CHAT = "smollm2-135m-instruct"
"""A model that chats."""
BASE = "gemma3-270m"
"""A base model without a chat template."""
BUSY = "busy"
"""A model whose only worker is taken; one request may wait for it, for a moment."""

SYSTEM = "You answer in one short sentence."
QUESTION = "Why is the sky blue?"


def refused(kind, call, **about):
    """Calls, and returns the error of this class with these attributes that must be raised."""
    try:
        call()
    except Exception as error:
        assert isinstance(error, kind), f"{type(error).__name__} instead of {kind.__name__}: {error}"
        for name, value in about.items():
            found = getattr(error, name)
            assert found == value, f"{name} is {found!r}, not {value!r}: {error}"
        return error
    raise AssertionError(f"nothing was raised where {kind.__name__} should be")


def strict(answer, kind=None):
    """The clients take what they get; this proves that every field has the type that the client promises."""
    (kind or type(answer)).model_validate(answer.model_dump(warnings="error"), strict=True)
    return answer


def crowd(ask):
    """Asks twice at once for the busy model. Returns both errors by status: one request finds the line full, the other
    waits in it until it hears that nobody became free. Both are told when to come back."""

    def error_of(_):
        try:
            ask()
        except Exception as error:
            return error
        raise AssertionError("a busy worker answered")

    with ThreadPoolExecutor(2) as pool:
        errors = {error.status_code: error for error in pool.map(error_of, range(2))}
    assert set(errors) == {429, 503}, errors
    for error in errors.values():
        assert int(error.response.headers["retry-after"]) >= 1, error.response.headers
    return errors
