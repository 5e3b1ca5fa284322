import pytest
import torch

from unclip_hub.evaluation.intervals import bootstrap, ratio, share


ALONE = torch.arange(400)


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)) + 3
    found = ratio(values, groups=ALONE)
    assert found is not None and found.n == 400
    error = values.double().std() / 20
    wanted = torch.stack([values.double().mean(), *(values.double().mean() + sign * 1.96 * error for sign in (-1, 1))])
    torch.testing.assert_close(torch.tensor(found[:3], dtype=torch.float64), wanted, atol=0.012, rtol=0)


def test_copies_of_a_case_are_no_evidence():
    values = torch.randn(100, generator=torch.Generator().manual_seed(0))
    once = ratio(values, groups=torch.arange(100))
    copied = ratio(values.repeat(4), groups=torch.arange(100).repeat(4))
    assert once is not None and copied is not None
    torch.testing.assert_close(torch.tensor(copied[:3]), torch.tensor(once[:3]))
    deceived = ratio(values.repeat(4), groups=torch.arange(400))
    assert deceived is not None and deceived.high - deceived.low < 0.6 * (once.high - once.low)


def test_a_ratio_is_that_of_the_means():
    found = ratio(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([2.0, 2.0, 2.0]), groups=torch.arange(3))
    assert found is not None and found.value == 1.5 and found.low < 1.5 < found.high
    assert ratio(torch.ones(3), torch.zeros(3), groups=torch.arange(3)) is None


def test_a_seed_is_an_interval():
    values = torch.linspace(0, 1, 50)
    first, again, other = (ratio(values, groups=torch.arange(50), seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_share_of_all_or_none_is_not_certain():
    every, none = share(torch.ones(96), groups=ALONE[:96]), share(torch.zeros(96), groups=ALONE[:96])
    assert every is not None and none is not None
    torch.testing.assert_close(every.low, 0.96153, atol=1e-4, rtol=0)  # Wilson's: n / (n + 1.96^2)
    torch.testing.assert_close(none.high, 0.03847, atol=1e-4, rtol=0)
    assert (every.value, every.high, none.value, none.low) == (1, 1, 0, 0)


def test_what_is_not_defined_or_has_no_cases():
    assert bootstrap(lambda w: w.sum(1) * torch.nan, torch.arange(3)) is None
    with pytest.raises(ValueError, match="at least 1 case"):
        bootstrap(lambda w: w.sum(1), torch.arange(0))
