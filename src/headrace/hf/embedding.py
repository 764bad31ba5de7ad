"""A model's input embedding in host memory, whose rows the device reads over the link by itself."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn

from headrace.errors import ConfigurationError, UnsupportedModelError
from headrace.runtime.lanes import Backend

_ATTRIBUTE = "_headrace_host_embedding"


class HostEmbedding:
    """An input embedding whose table stays on the host.

    The table is memory that host and device both reach: to the model it is a tensor of the device
    like any other, and nothing is copied but the rows that a forward reads.

    Args:
        model: on any device. No cache of it may be open, for forwards may have been recorded: as
            little when the embedding is released.
        backend: the device, and the link to it.

    Raises:
        ConfigurationError: the embedding is on the host already.
        UnsupportedModelError: the model has no such table of its own.
    """

    def __init__(self, model: nn.Module, backend: Backend) -> None:
        if host_embedding(model) is not None:
            raise ConfigurationError("the input embedding is on the host already; release it first")
        self._weight = _own_table(model)
        self._backend = backend
        # Without a cycle, so that a model is freed as soon as nobody uses it.
        self._model = weakref.ref(model)
        box = backend.mailbox(self._weight.shape, self._weight.dtype)
        box.host.copy_(self._weight.detach())
        self._weight.data = box.device
        self._host = box.host
        # On the model itself, so that the two of them end together.
        object.__setattr__(model, _ATTRIBUTE, self)

    @property
    def size_bytes(self) -> int:
        """Bytes of the table."""
        return self._host.numel() * self._host.element_size()

    @property
    def address(self) -> int:
        """Where the table begins, for host and device."""
        return self._host.data_ptr()

    def is_of(self, model: nn.Module) -> bool:
        """Return whether the table is the one that a model reads: it may have got another since."""
        module = _embedding_of(model)
        return module is not None and module.weight.data_ptr() == self.address

    def release(self) -> None:
        """Bring the table to the device; may be called again."""
        model = self._model()
        if model is None or getattr(model, _ATTRIBUTE, None) is not self:
            return
        self._backend.synchronize()
        if self.is_of(model):
            self._weight.data = self._host.to(self._backend.device, copy=True)
        self._backend.free_host(self._host)
        object.__delattr__(model, _ATTRIBUTE)

    def __deepcopy__(self, memo: dict[int, Any]) -> HostEmbedding:
        """Return the same: a copied model has a table of its own, on the device."""
        return self


def host_embedding(model: nn.Module) -> HostEmbedding | None:
    """Return a model's embedding on the host, or None if it is on the device."""
    found = getattr(model, _ATTRIBUTE, None)
    assert found is None or isinstance(found, HostEmbedding)
    return found if found is not None and found.is_of(model) else None


def bytes_on_host(model: nn.Module) -> int:
    """Return the bytes of a model's embedding that are on the host: all of its table's, or 0."""
    embedding = host_embedding(model)
    return 0 if embedding is None else embedding.size_bytes


def has_own_table(model: nn.Module) -> bool:
    """Return whether a model's input embedding is a table that nothing else uses."""
    try:
        _own_table(model)
    except UnsupportedModelError:
        return False
    return True


def _own_table(model: nn.Module) -> nn.Parameter:
    """Return the table of a model's input embedding, or raise ``UnsupportedModelError``."""
    module = _embedding_of(model)
    if module is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no input embedding that could stay on the host"
        )
    users = [one for one in model.modules() if _holds(one, module.weight)]
    if users != [module]:
        raise UnsupportedModelError(
            f"the input embedding of {type(model).__name__} is used by {len(users)} of its "
            "modules, which read it as a whole; it has to stay on the device"
        )
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _embedding_of(model: nn.Module) -> nn.Embedding | None:
    """Return a model's input embedding, or None if it has none of the usual kind."""
    find: Any = getattr(model, "get_input_embeddings", None)
    try:
        module = None if find is None else find()
    except NotImplementedError:
        return None
    return module if isinstance(module, nn.Embedding) else None


def _holds(module: nn.Module, weight: Tensor) -> bool:
    """Return whether a tensor, or another one of the same memory, is a module's own."""
    own = module.parameters(recurse=False)
    return any(
        one.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr() for one in own
    )
