"""What sweeps cost: against closed forms, the library's own theorem, and each other."""

from __future__ import annotations

import dataclasses
import math

import dp_accounting
import pytest

from scatterdp.privacy.accounting import epsilon_of
from scatterdp.privacy.gaussian import gaussian_epsilon
from scatterdp.privacy.tuning import NumberOfTrials
from scatterdp.sweeps.selection import best_of_random_number, composed, selection_cost, statement_of_best
from scatterdp.training.plan import TrainingPlan

GAUSSIAN = TrainingPlan(num_examples=100, batch_size=100, epochs=4, lr=1.0, input_norm="none", noise_multiplier=8.0)
SAMPLED = TrainingPlan(num_examples=10_000, batch_size=500, epochs=2, lr=1.0, input_norm="BN", noise_multiplier=2.0)
TRIALS = NumberOfTrials(mean=10.0, shape=1.0)


def cost(looked, candidates, **changed):
    arguments = {"random_mean": None, "score": "test_accuracy", "exact_on_private_data": False, "seeded": False}
    return selection_cost(looked, candidates, **(arguments | changed))


class TestComposed:
    @pytest.mark.parametrize("runs", [1, 2, 7])
    def test_gaussian_runs_compose_in_closed_form(self, runs):
        # 4 steps a run of σ = 8: together a Gaussian of σ = 8 / √(4·runs).
        found, _ = composed([dataclasses.replace(GAUSSIAN, lr=1.0 + run) for run in range(runs)])
        assert found == pytest.approx(gaussian_epsilon(8 / math.sqrt(4 * runs), delta=1e-5), rel=1e-6)

    def test_sampled_runs_compose_like_their_events_written_out(self):
        plans = [SAMPLED, SAMPLED, dataclasses.replace(SAMPLED, noise_multiplier=3.0)]
        found, accountant = composed(plans)
        together = dp_accounting.ComposedDpEvent([plan.event() for plan in plans])
        assert accountant == "pld"
        assert found == pytest.approx(epsilon_of(together, delta=1e-5), rel=2e-2)
        assert found >= epsilon_of(together, delta=1e-5) - 1e-9
        assert max(plan.epsilon() for plan in plans) < found < sum(plan.epsilon() for plan in plans)

    def test_no_run_costs_nothing_and_one_without_noise_everything(self):
        assert composed([])[0] == 0.0
        assert composed([GAUSSIAN, dataclasses.replace(GAUSSIAN, noise_multiplier=0.0)])[0] == math.inf

    def test_many_expensive_runs_are_bounded_by_divergences(self):
        plans = [dataclasses.replace(SAMPLED, noise_multiplier=0.6, input_norm="none", bn_noise_multiplier=8.0)] * 40
        found, accountant = composed(plans)
        assert accountant == "rdp"
        assert found == pytest.approx(
            epsilon_of(dp_accounting.ComposedDpEvent([p.event() for p in plans]), delta=1e-5, accountant="rdp")
        )


class TestBestOfRandomNumber:
    @pytest.mark.parametrize("plan", [GAUSSIAN, SAMPLED])
    def test_alike_candidates_cost_what_the_library_says(self, plan):
        expected = epsilon_of(TRIALS.event(plan.event()), delta=1e-5, accountant="rdp")
        alike = [plan, dataclasses.replace(plan, lr=3.0), dataclasses.replace(plan, max_grad_norm=2.0)]
        # The library lets a larger order's divergence serve a smaller order, so it may be a little below.
        found = best_of_random_number(alike, TRIALS)
        assert expected - 1e-9 <= found <= expected * 1.002

    def test_unlike_candidates_cost_at_least_the_costliest(self):
        other = dataclasses.replace(SAMPLED, num_examples=100, batch_size=100, epochs=1, noise_multiplier=3.0)
        alone = [best_of_random_number([plan], TRIALS) for plan in (SAMPLED, other)]
        together = best_of_random_number([SAMPLED, other], TRIALS)
        assert together >= max(alone) - 1e-12
        assert together <= sum(alone)

    def test_it_is_less_than_the_composition_of_that_many_and_more_than_one(self):
        best = best_of_random_number([SAMPLED], TRIALS)
        assert SAMPLED.epsilon() < best < composed([SAMPLED] * 10)[0]

    def test_a_candidate_without_noise_leaves_no_bound(self):
        assert best_of_random_number([SAMPLED, dataclasses.replace(SAMPLED, noise_multiplier=0.0)], TRIALS) == math.inf


class TestSelectionCost:
    def test_a_grid_costs_its_composition(self):
        found = cost([SAMPLED] * 3, [SAMPLED] * 5)
        assert found["runs_that_looked"] == 3
        assert found["epsilon_of_best"] == found["epsilon_composed"] == composed([SAMPLED] * 3)[0]
        assert found["epsilon_if_tuning_were_free"] == SAMPLED.epsilon()
        assert "3 runs looked at the private data" in found["statement"]

    def test_a_choice_by_an_exact_private_score_has_no_guarantee(self):
        found = cost([SAMPLED] * 3, [SAMPLED] * 3, score="validation_accuracy", exact_on_private_data=True)
        assert found["epsilon_of_best"] is None
        assert found["epsilon_composed"] is not None
        assert "without any guarantee" in found["statement"]

    def test_a_random_search_counts_candidates_that_were_not_drawn(self):
        costly = dataclasses.replace(SAMPLED, noise_multiplier=1.0)
        found = cost([SAMPLED] * 3, [SAMPLED, costly], random_mean=10.0)
        assert found["epsilon_of_best"] == best_of_random_number([SAMPLED, costly], TRIALS)
        assert found["epsilon_of_best"] > best_of_random_number([SAMPLED], TRIALS)
        assert "must stay secret" in found["statement"]

    def test_what_is_published_of_the_best_does_not_tell_how_many_there_were(self):
        said = {statement_of_best(cost([SAMPLED] * runs, [SAMPLED], random_mean=10.0)) for runs in (1, 2, 13)}
        assert len(said) == 1

    def test_what_is_published_of_the_best_does_not_tell_which_candidates_were_drawn(self):
        costly = dataclasses.replace(SAMPLED, noise_multiplier=1.0)
        drawn = ([SAMPLED], [costly], [SAMPLED, costly], [])
        said = {statement_of_best(cost(looked, [SAMPLED, costly], random_mean=10.0)) for looked in drawn}
        assert len(said) == 1

    @pytest.mark.parametrize("random_mean", [None, 10.0])
    def test_the_neighbouring_data_sets_are_those_of_all_combinations(self, random_mean):
        shuffled = dataclasses.replace(SAMPLED, sampling="shuffle")
        for looked, candidates in (([SAMPLED], [SAMPLED, shuffled]), ([shuffled], [shuffled])):
            found = cost(looked, candidates, random_mean=random_mean)
            assert found["adjacency"] == shuffled.selection().adjacency
            assert "zero-out" in found["statement"]
            assert "add or remove" not in found["statement"]
        found = cost([SAMPLED], [SAMPLED], random_mean=random_mean)
        assert found["statement"].count("Neighbouring data sets: add or remove one example") == 1
        assert "zero-out" not in found["statement"]

    def test_where_nothing_was_seen_nothing_is_said_of_a_choice(self):
        assert cost([], [SAMPLED])["statement"] == "No run has looked at the private data."

    def test_seeds_are_named(self):
        assert "from seeds" in cost([SAMPLED], [SAMPLED], seeded=True)["statement"]
        assert "from seeds" not in cost([SAMPLED], [SAMPLED])["statement"]

    def test_validation_noise_is_part_of_every_run(self):
        noisy = dataclasses.replace(SAMPLED, validation_noise_multiplier=1.0)
        assert cost([noisy], [noisy])["epsilon_composed"] > cost([SAMPLED], [SAMPLED])["epsilon_composed"]
