"""What is known of datasets and mixtures from a run that was made, with nothing trained anew."""

from __future__ import annotations

from mergetomix.errors import UserError
from mergetomix.records import Mixture
from mergetomix.results import Effects, Prediction
from mergetomix.session.session import Session
from mergetomix.stages import requirements
from mergetomix.stages.checks import Checks, checked
from mergetomix.stages.conclusion import Conclusion
from mergetomix.stages.effects import effects
from mergetomix.stages.search import objective_of_selection, search_mixtures


def explain(session: Session) -> Effects:
    """Returns what each dataset adds. Raises UserError if an expert is not trained yet."""
    state = replayed(session)
    pick = Conclusion(state).pick
    return effects(state, pick, state.options.interval)


def predict(session: Session, mixture: Mixture) -> Prediction:
    """Returns what a fine-tune on a mixture is expected to score on the report part.

    Of a mixture that was not tried the proxy is scored: one evaluation, and no training.

    Raises:
        UserError: an expert is not trained yet.
    """
    state = replayed(session)
    state.consider(mixture)
    return next(each for each in Conclusion(state).predictions() if each.mixture == mixture)


def replayed(session: Session) -> Checks:
    """Returns what is known after the checks that were made; trains nothing.

    Raises UserError if an expert is not trained yet.
    """
    if requirements.lacks_experts(session):
        hint = "mergetomix run, or experts and search, come first"
        raise UserError("the experts of this recipe are not trained yet", hint=hint)
    selection = search_mixtures(session)
    objective = objective_of_selection(session, selection)
    baselines = list(requirements.baselines(session).values())
    budget = requirements.num_checks(session)
    state, _ = checked(session, selection, objective, budget, baselines, only_known=True)
    return state
