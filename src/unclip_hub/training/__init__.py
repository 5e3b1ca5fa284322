"""Training: one loop (``loop``), one loss object per network, and the recipe of the bundled model (``bundled``)."""
