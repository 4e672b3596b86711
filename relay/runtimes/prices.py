"""What tokens cost where the policy does not say it: from genai-prices, a public list that is a package.

Its import takes a third of a second and 27 MB, so it is left until a policy needs it.
"""

from __future__ import annotations

from relay.policy.compiled import Price

_TOKENS = 1000
"""Asked for at once: below every threshold at which a provider changes its price."""


def list_price(base_url: str, upstream: str) -> Price | None:
    """The list's price of a model today; None if it does not know the provider or the model.

    Args:
        base_url: of the provider.
        upstream: what that calls the model.
    """
    from genai_prices import Usage, calc_price  # noqa: PLC0415 - see above

    def usd(usage: Usage) -> float:
        return float(calc_price(usage, model_ref=upstream, provider_api_url=base_url).total_price) / _TOKENS

    try:
        return Price(
            input=usd(Usage(input_tokens=_TOKENS)),
            cached_input=usd(Usage(input_tokens=_TOKENS, cache_read_tokens=_TOKENS)),
            output=usd(Usage(output_tokens=_TOKENS)),
        )
    except LookupError:
        return None
