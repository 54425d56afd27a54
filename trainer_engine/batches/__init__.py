"""From the samples of the datasets to what one optimizer step takes in."""
