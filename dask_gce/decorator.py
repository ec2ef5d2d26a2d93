"""`requires_cluster`: a function that says what it needs, and gets a client when it is called.

Owns: the four kinds of functions (plain, generator, coroutine, asynchronous generator), finding out
whether a call brings a client, and the order in which client and cluster begin and end. Which
cluster answers a need is left to `need`, sharing one between calls to `keeping`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar, overload

from distributed import Client, get_client
from distributed.client import _current_client

from dask_gce.errors import SettingsError
from dask_gce.keeping import CLOSING_ERRORS, Loan, aclose, keeper, log_failed_close
from dask_gce.need import Need, begin, check_keywords, make_cluster, start

__all__ = ["requires_cluster"]

F = TypeVar("F", bound=Callable[..., Any])


@overload
def requires_cluster(function: F, /) -> F: ...


@overload
def requires_cluster(
    *,
    client_arg: str = ...,
    keep_alive: str | float | None = ...,
    reuse: bool | None = ...,
    local: bool | None = ...,
    adapt: Mapping[str, Any] | None = ...,
    **settings: Any,
) -> Callable[[F], F]: ...


def requires_cluster(
    function: Callable[..., Any] | None = None,
    /,
    *,
    client_arg: str = "client",
    keep_alive: str | float | None = None,
    reuse: bool | None = None,
    local: bool | None = None,
    adapt: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """Give a function a client of a cluster that exists for as long as the function runs.

    Each call makes a cluster, waits for its first worker, connects a client, passes it to the
    function, and closes both when the function has ended, however it did. Inside the function the
    client is the default one, so that ``dask.compute`` uses the cluster too. A call that brings a
    client gets no other.

    It stands above functions, methods, coroutine functions, generators and asynchronous generators;
    the cluster of a generator exists until it is exhausted or closed. Signature and docstring stay.

    Parameters
    ----------
    function : callable, optional
        The function, when the decorator is written without parentheses.
    client_arg : str
        Name of the function's parameter that takes the client.
    keep_alive : str or float, optional
        How long the cluster is kept after a call, in seconds or as ``"10 minutes"``, for any call
        in this process that needs an equal one; 0 for not at all.
    reuse : bool, optional
        Whether the default client is passed when there is one, and no cluster is made.
    local : bool, optional
        Whether to make a `distributed.LocalCluster` in this process instead, as for tests.
    adapt : mapping, optional
        Keyword arguments of `GCECluster.adapt`, such as ``{"maximum": 10}``, for a number of
        workers that follows the work.
    **settings
        Keyword arguments of `GCECluster`, such as ``n_workers`` or ``machine_type``. What is not
        given, or None, comes from the Dask configuration when the function is called.

    Returns
    -------
    callable
        The function, or a decorator for it.

    Raises
    ------
    SettingsError
        When decorating, if the function has no such parameter or a setting is unknown; when
        called, if a setting is impossible.
    TypeError
        If it is not a function that is decorated.

    Examples
    --------
    >>> from dask_gce import requires_cluster
    >>> @requires_cluster(n_workers=2, local=True)
    ... def total(numbers, client=None):
    ...     return client.submit(sum, numbers).result()
    >>> total(range(10))
    45
    """
    check_keywords(settings)
    if adapt is not None and not isinstance(adapt, Mapping):
        raise SettingsError(
            f"adapt = {adapt!r} must be the keyword arguments of GCECluster.adapt, "
            "such as {'maximum': 10}.",
            key="adapt",
        )
    load = partial(
        Need.load,
        keywords=settings,
        adapt=adapt,
        local=local,
        keep_alive=keep_alive,
        reuse=reuse,
    )
    if function is None:
        return lambda function: _decorate(function, client_arg, load)
    return _decorate(function, client_arg, load)


def _decorate(function: Any, client_arg: str, load: Callable[[str], Need]) -> Any:
    if isinstance(function, classmethod | staticmethod):
        # The decorators are in the other order than is usual.
        return type(function)(_decorate(function.__func__, client_arg, load))
    if not callable(function) or inspect.isclass(function):
        raise TypeError(
            f"requires_cluster() decorates functions, not {function!r}; "
            "settings are given by name, as in @requires_cluster(n_workers=4)."
        )
    slot = _ClientSlot(function, client_arg)
    load = partial(load, slot.function)
    # An object that can be called is of the kind that its class makes it.
    kinds = (function, type(function).__call__)
    if any(map(inspect.iscoroutinefunction, kinds)):
        return _wrap_coroutine(function, slot, load)
    if any(map(inspect.isasyncgenfunction, kinds)):
        return _wrap_async_generator(function, slot, load)
    if any(map(inspect.isgeneratorfunction, kinds)):
        return _wrap_generator(function, slot, load)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if slot.is_taken(args, kwargs):
            return function(*args, **kwargs)
        with _client_for(load()) as (client, is_ours):
            args, kwargs = slot.fill(args, kwargs, client)
            with _as_default(client if is_ours else None):
                return function(*args, **kwargs)

    return wrapper


class _ClientSlot:
    """Where a function takes its client."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function: str = getattr(function, "__qualname__", repr(function))
        self.signature = inspect.signature(function)
        self.name = name
        parameters = self.signature.parameters
        rest = [each.name for each in parameters.values() if each.kind is each.VAR_KEYWORD]
        self._rest = rest[0] if rest else None
        own = parameters.get(name)
        if own is not None and own.kind in (own.VAR_POSITIONAL, own.VAR_KEYWORD):
            own = None
        if own is None and self._rest is None:
            raise SettingsError(
                f"{self.function}{self.signature} has no parameter {name!r} to take the client: "
                f"add {name}=None, or name the parameter that takes it, as in "
                "@requires_cluster(client_arg='c').",
                key="client_arg",
            )
        self._is_own = own is not None

    def is_taken(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Tell whether a call brings a client; raise TypeError if it brings what does not fit."""
        bound = self.signature.bind_partial(*args, **kwargs)
        if self._values(bound).get(self.name) is not None:
            return True
        # What is missing is better told before a cluster is made.
        args, kwargs = self.fill(args, kwargs, None)
        self.signature.bind(*args, **kwargs)
        return False

    def fill(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], client: Client | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a call with the client among them."""
        bound = self.signature.bind_partial(*args, **kwargs)
        self._values(bound)[self.name] = client
        return bound.args, bound.kwargs

    def _values(self, bound: inspect.BoundArguments) -> dict[str, Any]:
        if self._is_own or self._rest is None:
            return bound.arguments
        values: dict[str, Any] = bound.arguments.setdefault(self._rest, {})
        return values


# -- kinds of functions ---------------------------------------------------------------------------


def _wrap_coroutine(function: Any, slot: _ClientSlot, load: Callable[[], Need]) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        if slot.is_taken(args, kwargs):
            return await function(*args, **kwargs)
        async with _async_client_for(load()) as (client, is_ours):
            args, kwargs = slot.fill(args, kwargs, client)
            with _as_default(client if is_ours else None):
                return await function(*args, **kwargs)

    return wrapper


def _wrap_generator(function: Any, slot: _ClientSlot, load: Callable[[], Need]) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        if slot.is_taken(args, kwargs):
            return (yield from function(*args, **kwargs))
        with _client_for(load()) as (client, is_ours):
            args, kwargs = slot.fill(args, kwargs, client)
            return (yield from _Steps(function(*args, **kwargs), client if is_ours else None))

    return wrapper


class _Steps(Generator[Any, Any, Any]):
    """A generator within whose steps, but not between them, a client is the default."""

    def __init__(self, generator: Generator[Any, Any, Any], client: Client | None) -> None:
        self._generator = generator
        self._client = client

    def send(self, value: Any) -> Any:
        with _as_default(self._client):
            return self._generator.send(value)

    def throw(self, *error: Any) -> Any:
        with _as_default(self._client):
            return self._generator.throw(*error)


def _wrap_async_generator(function: Any, slot: _ClientSlot, load: Callable[[], Need]) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        taken = slot.is_taken(args, kwargs)
        async with contextlib.AsyncExitStack() as stack:
            default = None
            if not taken:
                client, is_ours = await stack.enter_async_context(_async_client_for(load()))
                args, kwargs = slot.fill(args, kwargs, client)
                default = client if is_ours else None
            generator = function(*args, **kwargs)
            step = generator.__anext__
            while True:
                try:
                    with _as_default(default):
                        value = await step()
                except StopAsyncIteration:
                    return
                try:
                    sent = yield value
                except GeneratorExit:
                    with _as_default(default):
                        await generator.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001  # it is the generator's to handle
                    step = partial(generator.athrow, error)
                else:
                    step = partial(generator.asend, sent)

    return wrapper


# -- clients --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _as_default(client: Client | None) -> Iterator[None]:
    """Make a client the default of this thread, or of this task, for a while.

    `Client.as_current` would also write to the Dask configuration, which all threads share: of two
    that leave in another order than they came, one leaves its entry behind. Without that entry Dask
    asks for the default client anyway.
    """
    if client is None:
        yield
        return
    token = _current_client.set(client)
    try:
        yield
    finally:
        _current_client.reset(token)


def _default_client(*, asynchronous: bool) -> Client | None:
    """Return the default client if a function can use it: in its event loop, or outside of one."""
    try:
        client = get_client()
    except ValueError:
        return None
    if client.status != "running" or client.asynchronous is not asynchronous:
        return None
    return client


@contextlib.contextmanager
def _client_for(need: Need) -> Iterator[tuple[Client, bool]]:
    """Provide a client, and tell whether it is ours; end what was begun for it."""
    default = _default_client(asynchronous=False) if need.reuse else None
    if default is not None:
        yield default, False
        return
    home = threading.get_ident()
    stack = contextlib.ExitStack()
    try:
        cluster: Any
        target: dict[str, Any]
        if need.keep_alive:
            loan = Loan(keeper(), need)
            stack.callback(loan.give_back)
            loan.ask()
            cluster = loan.ready.result()
            # A client for each call, so that calls do not share futures. It has a loop of its own.
            target = {"address": cluster.scheduler_address, "security": cluster.security}
        else:
            cluster = make_cluster(need, asynchronous=False)
            stack.callback(_close, cluster)
            if begin(need, cluster):
                cluster.wait_for_workers(1)
            target = {"address": cluster}
        client = Client(**target, set_as_default=False)
        stack.callback(_close, client)
        yield client, True
    finally:
        if threading.get_ident() == home or not _in_event_loop():
            stack.close()
        else:
            # A generator is collected as garbage by the thread of some event loop, maybe of its
            # own cluster's, which must not wait for itself.
            threading.Thread(target=stack.close, name="requires_cluster").start()


@contextlib.asynccontextmanager
async def _async_client_for(need: Need) -> AsyncIterator[tuple[Client, bool]]:
    """Provide a client of the running event loop, as `_client_for` does outside of one."""
    default = _default_client(asynchronous=True) if need.reuse else None
    if default is not None:
        yield default, False
        return
    async with contextlib.AsyncExitStack() as stack:
        cluster: Any
        target: dict[str, Any]
        if need.keep_alive:
            loan = Loan(keeper(), need)
            stack.callback(loan.give_back)
            loan.ask()
            cluster = await asyncio.wrap_future(loan.ready)
            target = {"address": cluster.scheduler_address, "security": cluster.security}
        else:
            cluster = make_cluster(need, asynchronous=True)
            stack.push_async_callback(aclose, cluster)
            await start(cluster)
            if begin(need, cluster):
                await cluster.wait_for_workers(1)
            target = {"address": cluster}
        client = Client(**target, asynchronous=True, set_as_default=False)
        stack.push_async_callback(aclose, client)
        await start(client)
        yield client, True


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _close(closable: Any) -> None:
    """Close as `aclose` does, outside of event loops."""
    if sys.is_finalizing():
        return  # The loops have stopped; what costs money was deleted by the exit hook.
    try:
        closable.close()
    except CLOSING_ERRORS as error:
        log_failed_close(closable, error)
