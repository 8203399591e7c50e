"""From a ready machine to an executed notebook: ``python -m kernel_provider.demo``.

Beside the package's own dependencies this needs those of the extra ``demo``.
"""
