"""Models: layers put together for a task; :mod:`recurra.models.protocol` is what every language model can do."""
