"""The NumPy functions: what a user types, documented; no arithmetic.

All of them share some conventions.

* Floating input keeps its dtype in the result: float16, bfloat16 (of ml_dtypes), float32, float64. Half precision is
  computed in float32. Integers, booleans and lists become float64.
* Any memory layout will do: C and Fortran order, slices, reversed axes, read-only, byte-swapped and memory-mapped
  arrays. A copy is made only where no kernel can walk the layout, and of weights that are the same within
  rows of less than 32 elements.
* No input is modified, unless it is also given as `out`. A call that raises has written nothing to `out`; only one that
  is interrupted (KeyboardInterrupt) or runs out of memory (MemoryError) can have.
* Arguments that another thread changes during a call make its result undefined, but never lead to memory outside the
  arrays: a class index is checked again wherever it is part of an address.
* The result is the same bits on any number of threads.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fastloss import _checks, _engine, _reduction

Reduction = Literal["mean", "sum", "none"]


def cross_entropy(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    return_grad: bool = False,
    out: np.ndarray | None = None,
) -> Any:
    """Return the cross-entropy between logits and a target, in nats, and with `return_grad` its gradient too.

    For a row x of C logits with the class index y, or the class probabilities t, the loss is::

        -weight[y] log(softmax(x)[y])    or    -sum over c of weight[c] t[c] log(softmax(x)[c])

    Parameters
    ----------
    input : array_like, shape (C,) or (N, C) or (N, C, d1, ..., dK)
        Logits.
    target : array_like
        Class indices of any integer dtype and of the input's shape without the axis of C; or class probabilities, of
        the input's shape, which need not sum to one.
    weight : array_like, shape (C,), optional
        A factor for each class.
    ignore_index : int, default -100
        Rows with this class index have loss and gradient 0 and are left out of the mean. Their logits are not read.
    label_smoothing : float in [0, 1], default 0.0
        With e > 0, the target becomes (1 - e) t + e / C, an index counting as its one-hot t.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over class indices divides by the sum of weight[y] over the rows that are not ignored; the mean over
        class probabilities by the number of rows.
    return_grad : bool, default False
        Whether to return the gradient of the reduced loss with respect to `input`; with `reduction="none"`, that of the
        sum of the losses.
    out : ndarray, optional
        Receives the gradient: of the input's shape and dtype, with `return_grad=True` alone. It may be `input`.

    Returns
    -------
    loss : scalar or ndarray
        In the input's dtype; an array of the target's shape (that of class indices) with `reduction="none"`.
    grad : ndarray, if `return_grad`
        Of the input's shape and dtype; `out` if that is given.

    Raises
    ------
    TypeError
        If a dtype is wrong: class indices that are not integers, say.
    ValueError
        If a shape or an option is wrong, or `ignore_index` is not negative with class probabilities.
    IndexError
        If a class index is neither in [0, C) nor `ignore_index`; the message has its value and position.

    Notes
    -----
    One pass over the logits gives loss and gradient, with no memory beside the gradient; without it, the call needs
    O(N) bytes at most. Sums over rows are float64. With class indices, neither the loss nor the gradient cancels where
    the label is all but certain. Class indices are read twice, since their range is checked first; but once for the
    loss alone of up to 16 classes (8 in float64) side by side, or of 2 anywhere without label smoothing. If every row
    is ignored the mean is nan and the gradient 0.

    A logit of -inf has probability 0. A row with nan, with inf, or of -inf alone, has loss and gradient nan.

    References
    ----------
    `torch.nn.functional.cross_entropy
    <https://pytorch.org/docs/stable/generated/torch.nn.functional.cross_entropy.html>`_; label smoothing: C. Szegedy
    et al., "Rethinking the Inception Architecture for Computer Vision" (2016), section 7. Unlike torch, every integer
    dtype is a class index and `label_smoothing` below 0 is an error.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> logits = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> loss, grad = fl.cross_entropy(logits, [0, 2], return_grad=True)
    >>> print(f"{loss:.6f}")
    0.753109
    >>> grad.round(4)
    array([[-0.1674,  0.1224,  0.045 ],
           [ 0.1667,  0.1667, -0.3333]])
    """
    return _class_loss(input, target, weight, ignore_index, label_smoothing, reduction, return_grad, out, True)


def nll_loss(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    return_grad: bool = False,
    out: np.ndarray | None = None,
) -> Any:
    """Return the negative log-likelihood of class indices, in nats, and with `return_grad` its gradient too.

    For a row x of C log-probabilities with the class index y the loss is ``-weight[y] x[y]``.

    Parameters
    ----------
    input : array_like, shape (C,) or (N, C) or (N, C, d1, ..., dK)
        Log-probabilities, such as `log_softmax` gives.
    target : array_like
        Class indices of any integer dtype and of the input's shape without the axis of C.
    weight : array_like, shape (C,), optional
        A factor for each class.
    ignore_index : int, default -100
        Rows with this class index have loss and gradient 0 and are left out of the mean.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean divides by the sum of weight[y] over the rows that are not ignored.
    return_grad : bool, default False
        Whether to return the gradient of the reduced loss with respect to `input`; with `reduction="none"`, that of the
        sum of the losses.
    out : ndarray, optional
        Receives the gradient: of the input's shape and dtype, with `return_grad=True` alone. It may be `input`.

    Returns
    -------
    loss : scalar or ndarray
        In the input's dtype; an array of the target's shape with `reduction="none"`.
    grad : ndarray, if `return_grad`
        Of the input's shape and dtype; `out` if that is given.

    Raises
    ------
    TypeError
        If a dtype is wrong.
    ValueError
        If a shape or an option is wrong.
    IndexError
        If a class index is neither in [0, C) nor `ignore_index`; the message has its value and position.

    Notes
    -----
    It reads one element of each row; the gradient is written once. `cross_entropy` of logits is faster than
    `log_softmax` and `nll_loss`.

    References
    ----------
    `torch.nn.functional.nll_loss
    <https://pytorch.org/docs/stable/generated/torch.nn.functional.nll_loss.html>`_. Unlike torch, every integer dtype
    is a class index.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> log_probabilities = np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    >>> print(f"{fl.nll_loss(log_probabilities, [0, 1]):.6f}")
    0.458145
    """
    return _class_loss(input, target, weight, ignore_index, 0.0, reduction, return_grad, out, False)


_MOST_REMEMBERED = 256

_remembered: dict[tuple[Any, ...], _engine.ClassLoss] = {}
"""What computed the losses of classes of earlier calls, by all of their arguments that are checked."""


def _class_loss(
    input: Any,
    target: Any,
    weight: Any,
    ignore_index: int,
    label_smoothing: float,
    reduction: Reduction,
    return_grad: bool,
    out: np.ndarray | None,
    of_logits: bool,
) -> Any:
    """Return the loss, or (loss, gradient), after the checks unless arguments like these have passed them before.

    That halves the time of a small call. Alike are options that are equal, and arrays of the same dtype, shape, strides
    and flags. Options of unusual types, and arrays that have to be converted, are checked each time.
    """
    key = evaluate = None
    if (
        (type(input) is type(target) is np.ndarray)
        and (weight is None or type(weight) is np.ndarray)
        and (out is None or type(out) is np.ndarray)
        and (type(ignore_index) is int and type(label_smoothing) is float and type(reduction) is str)
    ):
        key = (
            input.dtype, input.shape, input.strides, input.flags.num,
            target.dtype, target.shape, target.strides, target.flags.num,
            None if weight is None else (weight.dtype, weight.shape, weight.strides, weight.flags.num),
            None if out is None else (out.dtype, out.shape, out.strides, out.flags.num),
            ignore_index, label_smoothing, reduction, not return_grad, of_logits,
        )  # fmt: skip
        evaluate = _remembered.get(key)
    if evaluate is None:
        given = input, target, weight
        _checks.reduction_option(reduction)
        label_smoothing = _checks.smoothing_option(label_smoothing)
        ignore_index = _checks.index_option("ignore_index", ignore_index)
        input = _checks.float_array("input", input)
        axis = _checks.class_axis(input)
        weight = _checks.class_weights(weight, input.shape[axis], input.dtype)
        indices, probabilities = _checks.class_target(target, input, axis, of_logits)
        if probabilities is not None and ignore_index >= 0:
            raise ValueError(
                f"ignore_index is {ignore_index}; it must be negative with class probabilities as the target"
            )
        target = probabilities if indices is None else indices
        out = _checks.gradient_output(out, return_grad, input)
        evaluate = _engine.class_loss(
            input, indices, probabilities, ignore_index, label_smoothing, reduction, bool(return_grad), out, of_logits
        )
        if key is not None and input is given[0] and target is given[1] and weight is given[2]:
            if len(_remembered) >= _MOST_REMEMBERED:
                _remembered.clear()
            _remembered[key] = evaluate
    loss, grad = evaluate(input, target, weight, out)
    loss = _reduction.in_dtype(loss, input.dtype)
    return (loss, grad) if return_grad else loss


def binary_cross_entropy(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    reduction: Reduction = "mean",
    return_grad: bool = False,
    out: np.ndarray | None = None,
) -> Any:
    """Return the binary cross-entropy of probabilities, in nats, and with `return_grad` its gradient too.

    For a probability x with the target t the loss is ``-weight (t log(x) + (1 - t) log(1 - x))``, the logarithms being
    at least -100, and its derivative ``weight (x - t) / max(x (1 - x), 1e-12)``.

    Parameters
    ----------
    input : array_like
        Probabilities in [0, 1].
    target : array_like
        Probabilities in [0, 1], of the input's shape. Another dtype than the input's is converted, in a copy.
    weight : array_like, optional
        A factor for each element, or what broadcasts to that.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean divides by the number of elements, whatever their weights.
    return_grad : bool, default False
        Whether to return the gradient of the reduced loss with respect to `input`; with `reduction="none"`, that of the
        sum of the losses.
    out : ndarray, optional
        Receives the gradient: of the input's shape and dtype, with `return_grad=True` alone. It may be `input`.

    Returns
    -------
    loss : scalar or ndarray
        In the input's dtype; an array of the input's shape with `reduction="none"`.
    grad : ndarray, if `return_grad`
        Of the input's shape and dtype; `out` if that is given.

    Raises
    ------
    TypeError
        If a dtype is wrong.
    ValueError
        If a shape or an option is wrong, or an element of `input` or `target` is not in [0, 1], nan included.

    Notes
    -----
    One pass over input and target, with no memory beside the outputs; `out` takes another one ahead, to check their
    range before anything is written to it. `binary_cross_entropy_with_logits` is faster and more accurate.

    References
    ----------
    `torch.nn.functional.binary_cross_entropy
    <https://pytorch.org/docs/stable/generated/torch.nn.functional.binary_cross_entropy.html>`_, whose clamps these are.

    Examples
    --------
    >>> import fastloss as fl
    >>> print(f"{fl.binary_cross_entropy([0.9, 0.2], [1, 0]):.6f}")
    0.164252
    """
    _checks.reduction_option(reduction)
    probabilities = _checks.float_array("input", input)
    targets = _checks.element_target(target, probabilities)
    weights = _checks.broadcast_weights("weight", weight, probabilities)
    gradient = _checks.gradient_output(out, return_grad, probabilities)
    loss, grad = _engine.element_loss(
        "binary_cross_entropy", probabilities, targets, weights, None, reduction, return_grad, gradient
    )
    loss = _reduction.in_dtype(loss, probabilities.dtype)
    return (loss, grad) if return_grad else loss


def binary_cross_entropy_with_logits(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    pos_weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
    return_grad: bool = False,
    out: np.ndarray | None = None,
) -> Any:
    """Return the binary cross-entropy of logits, in nats, and with `return_grad` its gradient too.

    For a logit x with the target t, p being `pos_weight`, the loss is::

        weight ((1 - t) x + (1 + (p - 1) t) log(1 + exp(-x)))

    Parameters
    ----------
    input : array_like
        Logits.
    target : array_like
        Probabilities, of the input's shape; their range is not checked. Another dtype than the input's is converted, in
        a copy.
    weight : array_like, optional
        A factor for each element, or what broadcasts to that.
    pos_weight : array_like, optional
        A factor for the positive part of each element's target, or what broadcasts to that.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean divides by the number of elements, whatever their weights.
    return_grad : bool, default False
        Whether to return the gradient of the reduced loss with respect to `input`; with `reduction="none"`, that of the
        sum of the losses.
    out : ndarray, optional
        Receives the gradient: of the input's shape and dtype, with `return_grad=True` alone. It may be `input`.

    Returns
    -------
    loss : scalar or ndarray
        In the input's dtype; an array of the input's shape with `reduction="none"`.
    grad : ndarray, if `return_grad`
        Of the input's shape and dtype; `out` if that is given.

    Raises
    ------
    TypeError
        If a dtype is wrong.
    ValueError
        If a shape or an option is wrong.

    Notes
    -----
    One pass over input and target, with no memory beside the outputs. Neither the loss nor the gradient overflows, or
    cancels where the target is all but certain. Infinite logits give what torch gives, which is nan where the formula's
    terms are opposite infinities or 0 times infinity.

    References
    ----------
    `torch.nn.functional.binary_cross_entropy_with_logits
    <https://pytorch.org/docs/stable/generated/torch.nn.functional.binary_cross_entropy_with_logits.html>`_.

    Examples
    --------
    >>> import fastloss as fl
    >>> loss, grad = fl.binary_cross_entropy_with_logits([0.0, 3.0], [1, 0], return_grad=True)
    >>> print(f"{loss:.6f}")
    1.870867
    >>> grad.round(4)
    array([-0.25  ,  0.4763])
    """
    _checks.reduction_option(reduction)
    logits = _checks.float_array("input", input)
    targets = _checks.element_target(target, logits)
    weights = _checks.broadcast_weights("weight", weight, logits)
    pos_weights = _checks.broadcast_weights("pos_weight", pos_weight, logits)
    gradient = _checks.gradient_output(out, return_grad, logits)
    loss, grad = _engine.element_loss(
        "binary_cross_entropy_with_logits", logits, targets, weights, pos_weights, reduction, return_grad, gradient
    )
    loss = _reduction.in_dtype(loss, logits.dtype)
    return (loss, grad) if return_grad else loss


def mse_loss(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    reduction: Reduction = "mean",
    return_grad: bool = False,
    out: np.ndarray | None = None,
) -> Any:
    """Return the squared error, and with `return_grad` its gradient too.

    For x with the target t the loss is ``weight (x - t)**2``.

    Parameters
    ----------
    input : array_like
        Predictions.
    target : array_like
        Of the input's shape. Another dtype than the input's is converted, in a copy.
    weight : array_like, optional
        A factor for each element, or what broadcasts to that.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean divides by the sum of the weights or, without them, by the number of elements.
    return_grad : bool, default False
        Whether to return the gradient of the reduced loss with respect to `input`; with `reduction="none"`, that of the
        sum of the losses.
    out : ndarray, optional
        Receives the gradient: of the input's shape and dtype, with `return_grad=True` alone. It may be `input`.

    Returns
    -------
    loss : scalar or ndarray
        In the input's dtype; an array of the input's shape with `reduction="none"`.
    grad : ndarray, if `return_grad`
        Of the input's shape and dtype; `out` if that is given.

    Raises
    ------
    TypeError
        If a dtype is wrong.
    ValueError
        If a shape or an option is wrong.

    Notes
    -----
    One pass over input and target, with no memory beside the outputs.

    References
    ----------
    `torch.nn.functional.mse_loss
    <https://pytorch.org/docs/stable/generated/torch.nn.functional.mse_loss.html>`_. Unlike torch, a target of another
    shape is an error.

    Examples
    --------
    >>> import fastloss as fl
    >>> loss, grad = fl.mse_loss([1.0, 2.0], [1.5, 2.0], return_grad=True)
    >>> print(loss, grad)
    0.125 [-0.5  0. ]
    """
    _checks.reduction_option(reduction)
    predictions = _checks.float_array("input", input)
    targets = _checks.element_target(target, predictions)
    weights = _checks.broadcast_weights("weight", weight, predictions)
    gradient = _checks.gradient_output(out, return_grad, predictions)
    loss, grad = _engine.element_loss("mse_loss", predictions, targets, weights, None, reduction, return_grad, gradient)
    loss = _reduction.in_dtype(loss, predictions.dtype)
    return (loss, grad) if return_grad else loss


def kl_div(
    input: ArrayLike,
    target: ArrayLike,
    *,
    log_target: bool = False,
    reduction: Reduction | Literal["batchmean"] = "mean",
    return_grad: bool = False,
    out: np.ndarray | None = None,
) -> Any:
    """Return the Kullback-Leibler divergence of log-probabilities, in nats, and with `return_grad` its gradient too.

    For a log-probability x with the target t the loss is ``t (log(t) - x)``, 0 log(0) being 0, or with `log_target`
    ``exp(t) (t - x)``.

    Parameters
    ----------
    input : array_like
        Log-probabilities, such as `log_softmax` gives.
    target : array_like
        Probabilities, or log-probabilities with `log_target`, of the input's shape; they are not checked. Another dtype
        than the input's is converted, in a copy.
    log_target : bool, default False
        Whether `target` holds logarithms.
    reduction : {"mean", "batchmean", "sum", "none"}, default "mean"
        The mean divides by the number of elements; "batchmean", which is the divergence's definition, by the length of
        the first axis.
    return_grad : bool, default False
        Whether to return the gradient of the reduced loss with respect to `input`; with `reduction="none"`, that of the
        sum of the losses.
    out : ndarray, optional
        Receives the gradient: of the input's shape and dtype, with `return_grad=True` alone. It may be `input`.

    Returns
    -------
    loss : scalar or ndarray
        In the input's dtype; an array of the input's shape with `reduction="none"`.
    grad : ndarray, if `return_grad`
        Of the input's shape and dtype; `out` if that is given.

    Raises
    ------
    TypeError
        If a dtype is wrong.
    ValueError
        If a shape or an option is wrong.

    Notes
    -----
    One pass over input and target, with no memory beside the outputs.

    References
    ----------
    `torch.nn.functional.kl_div <https://pytorch.org/docs/stable/generated/torch.nn.functional.kl_div.html>`_. Unlike
    torch, a target of another shape is an error, and "mean" does not warn.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> input = np.log([[0.25, 0.75]])
    >>> print(f"{fl.kl_div(input, [[0.5, 0.5]], reduction='batchmean'):.6f}")
    0.143841
    """
    _checks.reduction_option(reduction, ("mean", "batchmean", "sum", "none"))
    log_probabilities = _checks.float_array("input", input)
    targets = _checks.element_target(target, log_probabilities)
    gradient = _checks.gradient_output(out, return_grad, log_probabilities)
    loss, grad = _engine.element_loss(
        "kl_div_of_logs" if log_target else "kl_div", log_probabilities, targets, None, None, reduction,
        return_grad, gradient,
    )  # fmt: skip
    loss = _reduction.in_dtype(loss, log_probabilities.dtype)
    return (loss, grad) if return_grad else loss


def log_softmax(input: ArrayLike, axis: int = -1, *, out: np.ndarray | None = None) -> Any:
    """Return the logarithm of the softmax along an axis, in nats.

    For a row x it is ``x - log(sum(exp(x)))``.

    Parameters
    ----------
    input : array_like
        Logits.
    axis : int, default -1
        The axis of the classes.
    out : ndarray, optional
        Receives the result: of its shape and dtype. It may be `input`.

    Returns
    -------
    ndarray
        Of the input's shape and dtype.

    Raises
    ------
    TypeError
        If a dtype is wrong.
    ValueError
        If a shape is wrong or `axis` is out of range.

    Notes
    -----
    One pass over the input, no memory beside the result. A row with nan, with inf, or of -inf alone, is nan.

    References
    ----------
    `torch.nn.functional.log_softmax
    <https://pytorch.org/docs/stable/generated/torch.nn.functional.log_softmax.html>`_

    Examples
    --------
    >>> import fastloss as fl
    >>> fl.log_softmax([1.0, 2.0, 3.0]).round(4)
    array([-2.4076, -1.4076, -0.4076])
    """
    logits = _checks.float_array("input", input)
    axis = _checks.axis_option(axis, logits.ndim)
    return _engine.log_softmax(logits, axis, _checks.output(out, logits.shape, logits.dtype))


def softmax(input: ArrayLike, axis: int = -1, *, out: np.ndarray | None = None) -> Any:
    """Return the softmax along an axis: probabilities that sum to one.

    For a row x it is ``exp(x) / sum(exp(x))``.

    Parameters
    ----------
    input : array_like
        Logits.
    axis : int, default -1
        The axis of the classes.
    out : ndarray, optional
        Receives the result: of its shape and dtype. It may be `input`.

    Returns
    -------
    ndarray
        Of the input's shape and dtype.

    Raises
    ------
    TypeError
        If a dtype is wrong.
    ValueError
        If a shape is wrong or `axis` is out of range.

    Notes
    -----
    One pass over the input, no memory beside the result. A row with nan, with inf, or of -inf alone, is nan.

    References
    ----------
    `torch.nn.functional.softmax
    <https://pytorch.org/docs/stable/generated/torch.nn.functional.softmax.html>`_

    Examples
    --------
    >>> import fastloss as fl
    >>> fl.softmax([1.0, 2.0, 3.0]).round(4)
    array([0.09  , 0.2447, 0.6652])
    """
    logits = _checks.float_array("input", input)
    axis = _checks.axis_option(axis, logits.ndim)
    return _engine.softmax(logits, axis, _checks.output(out, logits.shape, logits.dtype))


def logsumexp(input: ArrayLike, axis: int = -1, *, out: np.ndarray | None = None) -> Any:
    """Return the logarithm of the sum of the exponentials along an axis, in nats, without overflow.

    For a row x it is ``log(sum(exp(x)))``.

    Parameters
    ----------
    input : array_like
        Logits.
    axis : int, default -1
        The axis of the classes.
    out : ndarray, optional
        Receives the result: of its shape and dtype.

    Returns
    -------
    scalar or ndarray
        In the input's dtype, of its shape without `axis`.

    Raises
    ------
    TypeError
        If a dtype is wrong.
    ValueError
        If a shape is wrong or `axis` is out of range.

    Notes
    -----
    One pass over the input, no memory beside a number for each row. A row of -inf alone, or of no classes, gives -inf,
    one with inf gives inf, one with nan gives nan.

    References
    ----------
    `torch.logsumexp <https://pytorch.org/docs/stable/generated/torch.logsumexp.html>`_,
    `scipy.special.logsumexp <https://docs.scipy.org/doc/scipy/reference/generated/scipy.special.logsumexp.html>`_

    Examples
    --------
    >>> import fastloss as fl
    >>> print(f"{fl.logsumexp([1000.0, 1000.0]):.6f}")
    1000.693147
    """
    logits = _checks.float_array("input", input)
    axis = _checks.axis_option(axis, logits.ndim)
    shape = logits.shape[:axis] + logits.shape[axis + 1 :]
    return _engine.logsumexp(logits, axis, _checks.output(out, shape, logits.dtype))


def sigmoid(input: ArrayLike, *, out: np.ndarray | None = None) -> Any:
    """Return the logistic sigmoid of each element.

    It is ``1 / (1 + exp(-x))``.

    Parameters
    ----------
    input : array_like
        Logits.
    out : ndarray, optional
        Receives the result: of the input's shape and dtype. It may be `input`.

    Returns
    -------
    scalar or ndarray
        Of the input's shape and dtype.

    Raises
    ------
    TypeError
        If a dtype is wrong.
    ValueError
        If the shape of `out` is wrong.

    Notes
    -----
    One pass over the input, no memory beside the result. At most 3 ulp from the exact value in float32 and float64,
    and without overflow at any input.

    References
    ----------
    `torch.nn.functional.sigmoid
    <https://pytorch.org/docs/stable/generated/torch.nn.functional.sigmoid.html>`_

    Examples
    --------
    >>> import fastloss as fl
    >>> fl.sigmoid([-1.0, 0.0, 1.0]).round(4)
    array([0.2689, 0.5   , 0.7311])
    """
    logits = _checks.float_array("input", input)
    return _engine.element_function("sigmoid", logits, _checks.output(out, logits.shape, logits.dtype))


def log_sigmoid(input: ArrayLike, *, out: np.ndarray | None = None) -> Any:
    """Return the logarithm of the logistic sigmoid of each element, in nats.

    It is ``-log(1 + exp(-x))``.

    Parameters
    ----------
    input : array_like
        Logits.
    out : ndarray, optional
        Receives the result: of the input's shape and dtype. It may be `input`.

    Returns
    -------
    scalar or ndarray
        Of the input's shape and dtype.

    Raises
    ------
    TypeError
        If a dtype is wrong.
    ValueError
        If the shape of `out` is wrong.

    Notes
    -----
    One pass over the input, no memory beside the result. At most 3 ulp from the exact value in float32 and float64,
    and without overflow at any input.

    References
    ----------
    `torch.nn.functional.logsigmoid
    <https://pytorch.org/docs/stable/generated/torch.nn.functional.logsigmoid.html>`_

    Examples
    --------
    >>> import fastloss as fl
    >>> fl.log_sigmoid([-1.0, 0.0, 1.0]).round(4)
    array([-1.3133, -0.6931, -0.3133])
    """
    logits = _checks.float_array("input", input)
    return _engine.element_function("log_sigmoid", logits, _checks.output(out, logits.shape, logits.dtype))
