"""The exact test of McNemar."""


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of the hypothesis that both are right equally often.

    Under it, each sample on which just one is right is the toss of a coin.

    Args:
        only_first: Samples on which only the first is right.
        only_second: Samples on which only the second is right.

    Example:
        >>> round(mcnemar_p(1, 7), 4)
        0.0703

    Paper: McNemar, Psychometrika 12, 1947; exact as in Fagerland, Lydersen and Laake, BMC Medical
    Research Methodology 13:91, 2013.
    """
    from scipy.stats import binomtest

    discordant = only_first + only_second
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0
