"""The grid search that the demonstration runs.

Owns the data and the parameters; where it runs is left to the caller. It is the search with which
many people meet the limits of their own computer: scikit-learn's handwritten digits, a support
vector machine, three parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sklearn.model_selection import GridSearchCV

__all__ = ["FITS", "PARAMETERS", "Digits", "build_search", "load_digits"]

PARAMETERS: dict[str, list[Any]] = {
    "C": [1e-4, 1, 1e4],
    "gamma": [1e-3, 1, 1e3],
    "class_weight": [None, "balanced"],
}
FOLDS = 3

#: Fits in all: every combination, once for each fold.
FITS = FOLDS * 3 * 3 * 2


@dataclass(frozen=True)
class Digits:
    """Handwritten digits, divided once and for all.

    Parameters
    ----------
    train : tuple of numpy.ndarray
        Pixels and digits to search with.
    test : tuple of numpy.ndarray
        Pixels and digits held out, 30 % of all.
    """

    train: tuple[Any, Any]
    test: tuple[Any, Any]


def load_digits() -> Digits:
    """Return scikit-learn's digits, 30 % of them held out, always the same ones.

    Returns
    -------
    Digits
        Training and test data.
    """
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    images, digits = datasets.load_digits(return_X_y=True)
    parts = train_test_split(images, digits, test_size=0.3, random_state=0)
    return Digits(train=(parts[0], parts[2]), test=(parts[1], parts[3]))


def build_search() -> GridSearchCV:
    """Return the grid search, not yet fitted.

    Returns
    -------
    sklearn.model_selection.GridSearchCV
        The search; with or without Dask it finds the same.
    """
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    # All fits at once, for Dask to distribute: joblib counts the workers only at the start.
    return GridSearchCV(SVC(kernel="rbf"), PARAMETERS, cv=FOLDS, pre_dispatch="all")
