"""``simpletuner demo``: the whole way from nothing to a trained model, through the API, on a laptop."""
