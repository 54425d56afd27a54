"""Trains diffusion models. Imports no Django; the web imports only ``contract`` and ``datasets`` from here."""
