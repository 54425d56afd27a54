"""``simpletuner train``: one configuration, here and now, without a server or a database."""
