"""Components of small models in the real Hugging Face layout, for tests and for the demo. The ``tiny.py`` of a family assembles them."""
