"""Scaling laws: forms of the loss over parameters N and training tokens D, fitted to runs, with bootstrap intervals.

Chinchilla (Hoffmann et al. 2022, equation 2; approach 3)   L = E + A / N^alpha + B / D^beta
Kaplan (Kaplan et al. 2020, equation 1.5)                   L = ((Nc / N)^(alpha_N / alpha_D) + Dc / D)^alpha_D

Fits are in the logarithm of the loss, with the Huber loss, by L-BFGS from many starts, as in Hoffmann et al. 2022,
appendix D.2. Each form has its gradient beside it.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import scipy.optimize
import threadpoolctl

HUBER = 1e-3  # residuals of log L above this count linearly, so that single bad runs matter less
INTERVAL = (10.0, 90.0)  # percentiles
NUM_BEST = 5  # starts that are followed to the end
NUM_NEAR = 2  # starts of a resampled fit beside the fit itself

Values = np.ndarray  # [runs]


@dataclasses.dataclass(frozen=True)
class Form:
    """Form of a scaling law: its numbers, the log loss with its gradient, and starts of the search."""

    names: tuple[str, ...]
    log_loss: Callable[[np.ndarray, Values, Values], tuple[Values, np.ndarray]]  # theta, log N, log D -> f, [runs, p]
    starts: tuple[tuple[float, ...], ...]  # values of each number
    is_log: tuple[bool, ...]  # the search is for the logarithm of the number


def _chinchilla(theta: np.ndarray, log_n: Values, log_d: Values) -> tuple[Values, np.ndarray]:
    log_e, log_a, log_b, alpha, beta = theta
    terms = np.stack([np.full_like(log_n, log_e), log_a - alpha * log_n, log_b - beta * log_d])
    total = np.logaddexp.reduce(terms)
    e, a, b = np.exp(terms - total)  # shares of the loss
    return total, np.stack([e, a, b, -a * log_n, -b * log_d], axis=1)


def _kaplan(theta: np.ndarray, log_n: Values, log_d: Values) -> tuple[Values, np.ndarray]:
    log_nc, log_dc, alpha_n, alpha_d = theta
    ratio = alpha_n / alpha_d
    of_n, of_d = ratio * (log_nc - log_n), log_dc - log_d
    total = np.logaddexp(of_n, of_d)
    n = np.exp(of_n - total)  # share of the first term
    gradient = [n * alpha_n, (1.0 - n) * alpha_d, n * (log_nc - log_n), total - n * of_n]
    return alpha_d * total, np.stack(gradient, axis=1)


FORMS = {
    "chinchilla": Form(
        ("E", "A", "B", "alpha", "beta"),
        _chinchilla,
        ((-1.0, 0.0, 1.0), (0.0, 4.0, 8.0, 12.0), (0.0, 4.0, 8.0, 12.0), (0.2, 0.6), (0.2, 0.6)),
        (True, True, True, False, False),
    ),
    "kaplan": Form(
        ("Nc", "Dc", "alpha_N", "alpha_D"),
        _kaplan,
        ((5.0, 15.0, 30.0), (5.0, 15.0, 30.0), (0.05, 0.2, 0.6), (0.05, 0.2, 0.6)),
        (True, True, False, False),
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """Runs as arrays: parameters, training tokens, training FLOPs and loss, float64 [runs] each."""

    n: Values
    d: Values
    flops: Values
    loss: Values

    def select(self, chosen: np.ndarray) -> "Points":
        """Runs by index, or by a mask."""
        return Points(self.n[chosen], self.d[chosen], self.flops[chosen], self.loss[chosen])

    def __len__(self) -> int:
        return len(self.n)


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
    """Fitted form."""

    form: Form
    theta: np.ndarray  # as the search has it; see Form.is_log
    objective: float

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers of the law by name."""
        values = np.where(self.form.is_log, np.exp(np.minimum(self.theta, 700.0)), self.theta)
        return dict(zip(self.form.names, values.tolist(), strict=True))

    def log_loss(self, n: Values, d: Values) -> Values:
        """Logarithm of the loss of runs with n parameters and d training tokens."""
        return self.form.log_loss(self.theta, np.log(n), np.log(d))[0]

    def residuals(self, points: Points) -> Values:
        """Differences of log losses, measured less fitted."""
        return np.log(points.loss) - self.log_loss(points.n, points.d)


def fit(form: Form, points: Points, near: Law | None = None) -> Law:
    """Fit a form to runs.

    Args:
      near: a law of nearly the same runs: the search then starts from it and points near it only.
    """
    log_n, log_d, log_loss = np.log(points.n), np.log(points.d), np.log(points.loss)

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        fitted, gradient = form.log_loss(theta, log_n, log_d)
        error = fitted - log_loss
        size = np.abs(error)
        huber = np.where(size < HUBER, 0.5 * error**2, HUBER * (size - 0.5 * HUBER))
        slope = np.clip(error, -HUBER, HUBER)
        return float(huber.sum()) / HUBER, slope @ gradient / HUBER  # / HUBER: numbers that L-BFGS's tolerances suit

    def search(starts: np.ndarray, max_iterations: int) -> list[scipy.optimize.OptimizeResult]:
        options = {"maxiter": max_iterations, "ftol": 1e-10, "gtol": 1e-8}
        bounds = [(None, None) if is_log else (1e-3, 10.0) for is_log in form.is_log]
        # More threads than one would only wait for one another: the matrices have a few rows.
        with np.errstate(over="ignore", invalid="ignore"), threadpoolctl.threadpool_limits(1):
            found = [
                scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
                for start in starts
            ]
        return sorted((one for one in found if np.isfinite(one.fun)), key=lambda one: one.fun)

    if near is None:
        # Few iterations from all starts tell which are worth more.
        starts = np.array([one.x for one in search(np.array(list(itertools.product(*form.starts))), 40)[:NUM_BEST]])
    else:
        noise = np.random.default_rng(0).normal(scale=0.1, size=(NUM_NEAR, len(near.theta)))
        starts = np.concatenate([near.theta[None], near.theta * (1.0 + noise)])
    best = search(starts, 500)[0]
    return Law(form, best.x, float(best.fun))


def resampled(law: Law, points: Points, num: int, seed: int = 0) -> list[Law]:
    """Bootstrap: fits to runs that are drawn from the runs with replacement, as many as there are.

    Runs of one size and budget stay together: their seeds are no independent facts about the law.
    """
    random = np.random.default_rng(seed)
    cells = np.unique(np.stack([points.n, points.d], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    members = [np.flatnonzero(cells == cell) for cell in range(cells.max() + 1)]
    laws: list[Law] = []
    while len(laws) < num:
        drawn = random.integers(len(members), size=len(members))
        chosen = points.select(np.concatenate([members[cell] for cell in drawn]))
        if len(np.unique(chosen.n)) > 2 and len(np.unique(chosen.d)) > 2:  # else no law of both can be fitted
            laws.append(fit(law.form, chosen, near=law))
    return laws


def interval(values: Values) -> tuple[float, float]:
    """The 80 % interval of bootstrap values."""
    low, high = np.percentile(values, INTERVAL)
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predicted loss of a run, with its 80 % interval: the scatter of bootstrap laws, and of runs about the law."""

    num_params: int
    num_targets: int
    loss: float  # in nats per token
    low: float
    high: float


def predict(law: Law, laws: list[Law], points: Points, num_params: int, num_targets: int) -> Prediction:
    """Predict the loss of a run by a law of `points`, and by the laws of resampled points."""
    n, d = np.array([num_params], np.float64), np.array([num_targets], np.float64)
    scatter = np.random.default_rng(0).choice(law.residuals(points), len(laws))
    values = np.exp(np.array([one.log_loss(n, d)[0] for one in laws]) + scatter)
    return Prediction(num_params, num_targets, float(np.exp(law.log_loss(n, d)[0])), *interval(values))
