"""``simpletuner train``: train one configuration without a server or a database."""
