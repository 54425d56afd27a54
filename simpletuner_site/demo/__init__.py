"""``simpletuner demo``: from an empty folder to a trained model, through the API, on a laptop."""
